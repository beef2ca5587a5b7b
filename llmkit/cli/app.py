"""The commands, and the one place where an exception becomes a message and an exit code.

Exit codes: 0 success (also if the reader of a pipe has closed it), 1 runtime error, 2 usage error, 3 some rows failed,
130 Ctrl+C, 143 SIGTERM, 128 + n if one of several processes was ended by signal n.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from llmkit import __version__
from llmkit.cli.cache import cache_list, cache_prune, cache_size
from llmkit.cli.completion import completion_options
from llmkit.cli.data import data_check
from llmkit.cli.env import env
from llmkit.cli.evaluate import evaluate_command
from llmkit.cli.explain import explain
from llmkit.cli.finetune import finetune
from llmkit.cli.help import Entry, HelpGroup
from llmkit.cli.logs import log_error, logging_to_stderr
from llmkit.cli.models import download, inspect, models
from llmkit.cli.next_tokens import next_
from llmkit.cli.options import Stopped, command, flags, remedy, worded
from llmkit.cli.recipes import (
    recipes_copy,
    recipes_list,
    recipes_new,
    recipes_schema,
    recipes_show,
    recipes_validate,
)
from llmkit.cli.report import report_page
from llmkit.cli.results import export, merge, push
from llmkit.cli.serve import serve
from llmkit.cli.streams import echo, guard_terminal
from llmkit.cli.tasks import task_command
from llmkit.errors import ErrorCode, InvalidRecipeError, LlmkitError, without_password
from llmkit.models.memory import is_out_of_memory
from llmkit.tasks import TASKS, Task, find_task
from llmkit.tasks.output import SCHEMA_VERSION

__all__ = ["application", "main"]

_TASKS, _TRAINING, _MODELS = "Tasks", "Training and evaluation", "Models and environment"
_RECIPES = "List, show, copy, write and check recipes."
_DATA = "Inspect training data."
_CACHE = "Show and remove cached files."


def application() -> HelpGroup:
    """The commands, with the registered tasks first."""
    return _application(tuple(TASKS.values()))


@functools.cache
def _application(tasks: tuple[type[Task], ...]) -> HelpGroup:
    entries = (
        *(command(task.verb, task_command(task), _TASKS, task) for task in tasks),
        command("finetune", finetune, _TRAINING),
        command("evaluate", evaluate_command(tasks), _TRAINING),
        command("report", report_page, _TRAINING),
        command("merge", merge, _TRAINING),
        command("export", export, _TRAINING),
        command("push", push, _TRAINING),
        Entry("recipes", _RECIPES, _TRAINING, lambda: _group("recipes", _RECIPES, _recipes_commands())),
        Entry("data", _DATA, _TRAINING, lambda: _group("data", _DATA, [command("check", data_check)])),
        command("models", models, _MODELS),
        command("inspect", inspect, _MODELS),
        command("download", download, _MODELS),
        Entry("cache", _CACHE, _MODELS, lambda: _group("cache", _CACHE, _cache_commands())),
        command("next", next_, _MODELS),
        command("explain", explain, _MODELS, find_task("text-generation")),
        command("serve", serve, _MODELS),
        command("env", env, _MODELS),
    )
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    root = _group("llmkit", str(_root.__doc__), entries, callback=_root, context_settings=settings)
    root.params += completion_options()
    return root


def _group(name: str, text: str, entries: Sequence[Entry], **settings: Any) -> HelpGroup:
    app = typer.Typer(
        name=name,
        cls=HelpGroup,
        help=text,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # half the time of --help
        **settings,
    )
    group = typer.main.get_group(app)
    assert isinstance(group, HelpGroup)
    return group.fill(entries)


def _recipes_commands() -> list[Entry]:
    return [
        command("list", recipes_list),
        command("show", recipes_show),
        command("copy", recipes_copy),
        command("new", recipes_new),
        command("validate", recipes_validate),
        command("schema", recipes_schema),
    ]


def _cache_commands() -> list[Entry]:
    return [command("list", cache_list), command("size", cache_size), command("prune", cache_prune)]


def _print_version(value: bool) -> None:
    if value:
        echo(f"llmkit {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=_print_version,
            is_eager=True,
            help="Print the version.",
            rich_help_panel="Program",
        ),
    ] = False,
) -> None:
    """Five language tasks on the right model class: generate, summarize, answer, chat, translate.

    Examples:
        llmkit generate "The meaning of life is"
        llmkit summarize report.txt --length short
        llmkit translate "Good morning." --to French
    """


def _on_sigterm(*_: int | FrameType | None) -> NoReturn:
    raise Stopped(143)


@contextlib.contextmanager
def _program() -> Iterator[None]:
    """Process-wide state while the program runs; restored afterwards for callers such as tests and notebooks."""
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:  # by the program that started this one
        setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: PTH123, SIM115 - closed below
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # code pages lack languages, and strict UTF-8 some file names
            errors = "surrogateescape" if stream.errors == "strict" else stream.errors
            stream.reconfigure(encoding="utf-8", errors=errors)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = guard_terminal(sys.stdout), guard_terminal(sys.stderr, bars=True)
    for library in ("TRANSFORMERS", "HF_HUB", "DATASETS"):  # some of their messages contain complete URLs
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait for others sleep soon. By default they take the CPUs away for milliseconds, each time.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    previous = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        with warnings.catch_warnings(), logging_to_stderr():
            # Warnings of other libraries are for developers; llmkit checks and reports what matters to users.
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout, sys.stderr = streams
        for name in closed:
            getattr(sys, name).close()
            setattr(sys, name, None)
        signal.signal(signal.SIGTERM, previous)


def _leave(code: int) -> NoReturn:
    """Exit at once: nothing can be written to a closed pipe, and a model may be in the middle of a long step."""
    if code == 130 and sys.stderr.isatty():
        print(file=sys.stderr)  # noqa: T201 - the shell's prompt starts on a new line
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Interrupted runs leave the process at once."""
    if arguments is None:
        _need_utf8()
    flags.debug = flags.quiet = False
    flags.options, flags.as_json = {}, None
    try:
        with _program():
            return _run(arguments)
    except Stopped as stopped:
        _leave(stopped.code)
    except KeyboardInterrupt:
        _leave(130)
    except BrokenPipeError:
        _leave(0)


def _need_utf8() -> None:
    """Restart in UTF-8 mode if the locale is ASCII only: arguments and file names may contain any text."""
    ascii_only = codecs.lookup(sys.getfilesystemencoding()).name == "ascii"
    if ascii_only and sys.executable and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # for child processes
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606


def _run(arguments: Sequence[str] | None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    flags.arguments = list(arguments)
    try:
        code = application()(args=arguments or ["--help"], prog_name="llmkit", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except TyperException as error:
        from llmkit.cli.suggestions import explain

        _complain("invalid_usage", *explain(error))
        return 2
    except LlmkitError as error:
        first, *more = error.mistakes if isinstance(error, InvalidRecipeError) else (error,)
        others = [_message(worded(each.problem), remedy(each)) for each in more]
        shown = error if flags.debug else None
        _complain(error.code, worded(first.problem), remedy(first), *others, error=shown)
        return error.exit_code
    except Exception as error:  # last resort: one line, and how to see the traceback
        if isinstance(error, BrokenPipeError):
            raise
        _complain(*_last_resort(error), error=error)
        return 1


def _last_resort(error: Exception) -> tuple[ErrorCode, str, str]:
    """Code, problem and fix of an unforeseen error."""
    if is_out_of_memory(error):
        return "out_of_memory", "memory ran out", "use a smaller model, batch or --dtype, or free some memory"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = f"{error.filename or 'the output'} cannot be written ({error.strerror})"
        return "disk_full", problem, "make room, or write elsewhere"
    return (
        "internal_error",
        f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
        "see the whole error with --debug",
    )


def _message(problem: str, fix: str) -> str:
    return problem + (f"; {fix}" if fix else "")


def _complain(code: ErrorCode, problem: str, fix: str, *more: str, error: BaseException | None = None) -> None:
    """Log the error that ends the run, one line for each message; with ``--json``, also as an object to stdout."""
    messages = (_message(problem, fix), *more)
    for number, message in enumerate(messages, 1):
        log_error(code, message, error if number == len(messages) else None)
    as_json = "--json" in flags.arguments if flags.as_json is None else flags.as_json
    if as_json and os.environ.get("RANK", "0") == "0":
        about = {"code": code, "message": without_password("\n".join(messages))}
        with contextlib.suppress(OSError):  # standard output may be full, which may be the error
            echo(json.dumps({"schema_version": SCHEMA_VERSION, "error": about}, ensure_ascii=False))
