"""``llmkit chat`` without a text: a conversation in the terminal.

Knows commands, what goes to which stream, and what Ctrl+C means. Turns are kept by
`llmkit.inference.conversation`, lines are read by `llmkit.cli.line_editor`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.cli.options import flags
from llmkit.cli.output import StreamPrinter
from llmkit.cli.streams import echo
from llmkit.config.paths import user_path
from llmkit.config.settings import GenerationSettings, LoadSettings, explicitly_set
from llmkit.errors import InputError, LlmkitError, UsageError
from llmkit.log import log

if TYPE_CHECKING:
    from llmkit.inference.conversation import Conversation
    from llmkit.inference.pipeline import Pipeline
    from llmkit.tasks import PromptOptions, Task
    from llmkit.tasks.output import Output

__all__ = ["Session", "converse"]


def converse(
    task: Task,
    prompt_options: PromptOptions,
    generation: GenerationSettings,
    load: LoadSettings,
    *,
    one_reply: Mapping[str, Any],
) -> None:
    """A conversation in the terminal. ``one_reply`` are options that have an effect on a single reply only."""
    from llmkit.api import build_pipeline
    from llmkit.cli.line_editor import line_editor
    from llmkit.models.cache import cache_dir

    if option := next((name for name, value in one_reply.items() if value not in (None, False)), None):
        raise UsageError(f"{option} is for one reply, and there is no message", "give a text, a file, or pipe one in")
    if generation.num_return_sequences > 1:  # said before a model is loaded
        raise UsageError(
            "a conversation continues with a single reply", "leave --num-return-sequences out, or give a text"
        )
    forms = {name: command.argument for command in _COMMANDS for name in command.names}
    read = line_editor(forms, cache_dir() / "chat_history")
    pipeline = build_pipeline(task, load, generation, prompt_options)
    from llmkit.inference.conversation import Conversation

    log.info("%s answers", _describe(pipeline))
    log.info("/help lists the commands; Ctrl+D leaves")
    Session(Conversation(pipeline), read, generation).run()


def _describe(pipeline: Pipeline) -> str:
    model = pipeline.engine.facts
    return f"{model.source.name} ({model.head}, {model.dtype} on {model.device})"


def _tell(line: str) -> None:
    """What was asked for, also with --quiet. Not on standard output, which holds the replies only."""
    echo(line, err=True)


_HINTS = {"output_cut": ', or say "go on"', "context_full": "; /reset begins anew"}
"""What can be done in a conversation about what a note says."""


class _Interrupt:
    """Ctrl+C while a reply is generated: the first asks for its end, the second does not wait for it.

    A model that reads a long prompt asks nobody before its first token.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Only meanwhile; signals can be caught in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._on_sigint)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)

    def _on_sigint(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Session:
    """A conversation and who types it.

    Args:
        conversation: who answers.
        read: gives the next line; its argument stands in the line already. EOFError ends the session.
        generation: the settings that the caller gave, for ``/status``.
    """

    def __init__(
        self, conversation: Conversation, read: Callable[[str], str], generation: GenerationSettings | None = None
    ) -> None:
        self.conversation = conversation
        self._read = read
        self._generation = generation or GenerationSettings()
        self._default = ""
        self._files: set[Path] = set()
        self._done = False

    def run(self) -> None:
        """Read lines and answer them until the user leaves."""
        while not self._done:
            default, self._default = self._default, ""
            try:
                line = self._read(default)
            except EOFError:
                return
            except KeyboardInterrupt:
                _tell("/quit or Ctrl+D leaves")
            else:
                self._try(line)

    def _try(self, line: str) -> None:
        """One line. The turns so far are worth more than one that failed."""
        try:
            self._take(line)
        except KeyboardInterrupt:
            _tell("")
        except BrokenPipeError:
            raise
        except LlmkitError as error:
            log.error("%s", error, extra={"code": error.code})
        except Exception as error:
            if flags.debug:
                raise
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            log.error("%s; start with --debug to see the whole error", problem, extra={"code": "internal_error"})

    def _take(self, line: str) -> None:
        """A command, or a message."""
        text = line.rstrip().lstrip("\n")
        if text.lstrip().startswith("//"):
            self._answer(self.conversation.send, text.lstrip()[1:])
        elif text.lstrip().startswith("/"):
            self._command(text.lstrip())
        elif text:
            self._answer(self.conversation.send, text)

    def _command(self, text: str) -> None:
        name, *rest = text.split(maxsplit=1)
        argument = rest[0] if rest else ""
        command = next((command for command in _COMMANDS if name.lower() in command.names), None)
        if command is None:
            raise _unknown(name)
        if argument and not command.argument:
            raise UsageError(f"{name} stands alone", f"write {name}, or /{name} … to send it as a message")
        if not argument and command.argument == "FILE":
            raise UsageError(f"{name} needs a file", f"write {name} FILE")
        command.run(self, argument)

    # Replies.

    def _answer(self, answer: Callable[..., Output], *message: str) -> None:
        """Generate a reply and show it."""
        started, shown, interrupt = time.perf_counter(), StreamPrinter(), _Interrupt()
        output = None
        try:
            with interrupt.caught():
                output = answer(
                    *message, on_text=shown.say, on_reasoning=shown.think, cancelled=lambda: interrupt.asked
                )
        except KeyboardInterrupt:
            pass
        finally:
            shown.end()
        if output is None:
            _tell("(ended; nothing of this reply is kept)")
            return
        if output.text:
            shown.say("\n")
        self._explain(output, time.perf_counter() - started)

    def _explain(self, output: Output, seconds: float) -> None:
        """Why the reply ended where it does, and what it cost."""
        if output.finish_reason == "interrupted":
            _tell("(stopped; the reply so far is kept)" if output.text else "(stopped; there was no reply yet)")
        elif not output.text:
            _tell("(the model said nothing)")
        usage = output.usage
        log.info(
            "%d tokens in %.1f s (%.1f tokens/s); %d of %d prompt tokens reused",
            usage.completion_tokens,
            seconds,
            usage.completion_tokens / max(seconds, 1e-9),
            usage.cached_tokens,
            usage.prompt_tokens,
        )
        for note in output.notes:
            hint = _HINTS.get(note.code, "") if output.text else ""
            log.warning("%s%s", note.text, hint, extra={"code": note.code})

    # Commands.

    def system(self, argument: str) -> None:
        if argument:
            self.conversation.system = "" if argument == "-" else argument
        _tell(f"system message: {self.conversation.system or 'none'}")

    def reset(self, _: str) -> None:
        self.conversation.reset()
        _tell("(all turns are forgotten)")

    def undo(self, _: str) -> None:
        message = self.conversation.undo().content
        self._default = f"/{message.lstrip()}" if message.lstrip().startswith("/") else message
        _tell("(the last turn is taken back; its message can be edited)")

    def retry(self, _: str) -> None:
        self._answer(self.conversation.retry)

    def save(self, argument: str) -> None:
        path = _path(argument)
        if not self.conversation.messages:
            raise InputError("there is nothing to save yet", "send a message first")
        if path.exists() and path.resolve() not in self._files:
            raise InputError(f"{path} exists", "give another name", code="output_exists")
        self.conversation.save(path)
        self._files.add(path.resolve())
        _tell(f"(saved {self._turns()} to {path})")

    def load(self, argument: str) -> None:
        path = _path(argument)
        self.conversation.load(path)
        self._files.add(path.resolve())
        system = "a system message" if self.conversation.system else "no system message"
        _tell(f"(loaded {self._turns()} and {system} from {path})")

    def status(self, _: str) -> None:
        conversation, pipeline = self.conversation, self.conversation.pipeline
        settings = [f"{name}={getattr(self._generation, name)}" for name in explicitly_set(self._generation)]
        forgotten = f", the oldest {conversation.forgotten} forgotten" if conversation.forgotten else ""
        rows = {
            "model": _describe(pipeline),
            "system": conversation.system or "none",
            "messages": f"{len(conversation.messages)}{forgotten}",
            "context": self._context(),
            "settings": ", ".join(settings) or "the model's own",
        }
        _tell("\n".join(f"{name:9} {value}" for name, value in rows.items()))

    def _context(self) -> str:
        limit, last = self.conversation.pipeline.engine.facts.context.tokens, self.conversation.last
        context = "of unknown length" if limit is None else f"{limit} tokens"
        if last is None:
            return context
        usage = last.usage
        return f"{context}; the last prompt had {usage.prompt_tokens}, {usage.cached_tokens} of them reused"

    def help(self, _: str) -> None:
        forms = [" ".join((", ".join(command.names), command.argument)) for command in _COMMANDS]
        width = max(map(len, forms))
        for form, command in zip(forms, _COMMANDS, strict=True):
            _tell(f"{form:{width}} {command.help}")
        _tell("\nAlt+Enter begins a new line, Tab completes a command, Ctrl+C stops a reply.")
        _tell("Write // to begin a message with a slash.")

    def quit(self, _: str) -> None:
        self._done = True

    def _turns(self) -> str:
        turns = len(self.conversation.messages) // 2
        return f"{turns} {'turn' if turns == 1 else 'turns'}"


def _path(argument: str) -> Path:
    """A file name may hold spaces; who is used to a shell puts it in quotes."""
    if len(argument) > 2 and argument[0] == argument[-1] and argument[0] in "\"'":
        argument = argument[1:-1]
    return user_path(argument)


def _unknown(name: str) -> UsageError:
    names = [name for command in _COMMANDS for name in command.names]
    begun = [known for known in names if len(name) > 1 and known.startswith(name)]
    near = begun or get_close_matches(name, names, n=1)
    fix = f"did you mean {' or '.join(near)}?" if near else f"/help lists them; write /{name} … to send it as a message"
    return UsageError(f"unknown command {name!r}", fix)


@dataclass(frozen=True)
class _Command:
    names: tuple[str, ...]
    argument: str
    """How what follows is shown: ``FILE`` is needed, what is in brackets is not."""
    help: str
    run: Callable[[Session, str], None]


_COMMANDS = (
    _Command(("/system",), "[TEXT]", "show the system message, or set it; - removes it", Session.system),
    _Command(("/reset",), "", "forget all turns; the system message stays", Session.reset),
    _Command(("/undo",), "", "take the last turn back, and edit its message", Session.undo),
    _Command(("/retry",), "", "another reply to the last message", Session.retry),
    _Command(("/save",), "FILE", "write the conversation to a file", Session.save),
    _Command(("/load",), "FILE", "go on with a conversation from a file", Session.load),
    _Command(("/status",), "", "show model, context and settings", Session.status),
    _Command(("/help",), "", "show this list", Session.help),
    _Command(("/quit", "/exit"), "", "leave, as Ctrl+D does", Session.quit),
)
