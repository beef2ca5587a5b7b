"""What a user may have meant: suggestions for unknown commands and options, by meaning and by spelling.

Loaded only when a command line cannot be parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from typer._click.exceptions import BadOptionUsage, BadParameter, MissingParameter, NoSuchOption
from typer.exceptions import TyperException

from llmkit.cli.help import examples
from llmkit.config.commands import quoted
from llmkit.errors import UsageError as Refused
from llmkit.tasks import TASKS

__all__ = ["explain", "unknown_command"]

_COMMANDS = {
    "finetune": ("train", "training", "fine-tune", "finetuning", "tune", "sft", "lora", "fit"),
    "evaluate": ("eval", "evaluation", "test", "score", "bench", "benchmark", "metrics", "compare", "lm-eval"),
    "merge": ("merge-adapter", "merge-and-unload", "fuse", "export-merged"),
    "export": ("convert", "save", "gguf", "onnx", "ctranslate2", "safetensors"),
    "push": ("upload", "publish", "share", "push-to-hub"),
    "recipes": ("recipe", "configs", "templates"),
    "data": ("dataset", "datasets", "preprocess"),
    "models": ("model", "ls", "search", "recommended"),
    "inspect": ("info", "describe", "details", "check-model"),
    "download": ("pull", "fetch", "get", "install"),
    "next": ("next-token", "logits", "logprobs", "probabilities"),
    "cache": ("clean", "prune", "rm", "scan-cache"),
    "env": ("environment", "doctor", "version", "config", "system", "devices", "settings"),
    "serve": ("server", "api", "deploy", "web", "ui", "start"),
    "list": ("ls", "all"),
    "show": ("cat", "print", "view"),
    "copy": ("cp", "clone", "init"),
    "validate": ("verify", "lint"),
    "check": ("inspect", "preview"),
    "new": ("create", "init", "generate"),
}
"""Other names of commands; tasks have their own, `Task.synonyms`."""

_ABSENT = {
    ("quantize", "quantise", "gptq", "awq"): (
        "llmkit quantizes a model while it loads",
        "pass --quantize 8bit or --quantize 4bit to the command that uses the model",
    ),
    ("dpo", "orpo", "kto"): (
        "llmkit tunes on preferences with finetune",
        "write method: dpo, orpo or kto in its recipe",
    ),
    ("embed", "embeddings", "classify", "ner", "fill-mask", "rlhf", "grpo"): (
        "llmkit does not have this task",
        f"its tasks are {', '.join(TASKS)}",
    ),
    ("login", "logout", "auth"): ("llmkit uses the Hugging Face login", "log in with hf auth login"),
}
"""What llmkit does not do, and what to do instead."""

_OPTIONS = {
    "max_new_tokens": ("max-tokens", "max-length", "n-predict", "num-predict", "tokens", "max-output-tokens"),
    "temperature": ("temp", "t"),
    "num_beams": ("beams", "beam", "beam-size"),
    "num_return_sequences": ("n", "num-samples", "best-of", "num-outputs"),
    "stop": ("stop-sequence", "stop-sequences", "stop-string", "stop-strings", "stop-words"),
    "device": ("gpu", "cuda", "cpu", "mps", "use-gpu", "use-cpu"),
    "dtype": ("torch-dtype", "precision", "bf16", "fp16", "half", "float16", "bfloat16"),
    "quantize": ("load-in-8bit", "load-in-4bit", "int8", "8bit", "4bit", "bits", "quantization"),
    "output": ("out", "output-file", "output-dir", "save", "save-to", "out-dir"),
    "input": ("file", "files", "input-file", "rows", "batch", "data", "dataset"),
    "max_rows": ("limit", "max-samples", "num-rows", "first", "max-examples", "rows"),
    "model": ("model-name", "model-id", "model-path", "model-name-or-path", "name-or-path", "checkpoint", "adapter"),
    "target": ("target-lang", "target-language", "tgt", "tgt-lang", "lang", "language", "into"),
    "source": ("source-lang", "source-language", "src", "src-lang"),
    "system": ("system-prompt", "system-message"),
    "overrides": ("override", "learning-rate", "lr", "epochs", "batch-size", "num-train-epochs", "max-steps"),
    "num_processes": ("num-gpus", "nproc", "nproc-per-node", "gpus", "workers", "jobs", "j"),
    "offline": ("local-files-only", "no-network"),
    "debug": ("traceback", "trace"),
    "quiet": ("silent", "s"),
    "overwrite": ("force", "f", "yes", "y"),
    "column": ("columns", "map", "field", "fields"),
    "examples": ("few-shot", "demonstrations"),
    "shots": ("num-fewshot", "n-shot", "num-shots", "k-shot"),
    "shots_by": ("fewshot-sampler", "sampler"),
    "encoding": ("charset",),
    "top": ("n-best", "top-n", "k"),
    "as_json": ("format", "jsonl", "output-format"),
    "revision": ("branch", "tag", "commit"),
    "trust_remote_code": ("remote-code", "trust"),
}
"""Other names of options, by the name of the setting."""

_CLOSE = 0.7


def unknown_command(name: str, path: str, known: Sequence[str]) -> Refused:
    """The error for a command that does not exist.

    Args:
        name: what was typed.
        path: the command that it follows, such as ``llmkit recipes``.
        known: the commands that exist there.
    """
    word = name.casefold().replace("_", "-")
    for names, (problem, fix) in _ABSENT.items():
        if word in names:
            return Refused(problem, fix)
    others = {task.verb: (task.name, *task.synonyms) for task in TASKS.values()} | _COMMANDS
    meaning = {other: command for command, names in others.items() for other in (command, *names) if command in known}
    found = meaning.get(word) or _nearest(word, meaning)
    if found:
        return Refused(f"unknown command {name!r}", f"did you mean {path} {found}?")
    if path == "llmkit" and any(character.isspace() for character in name.strip()):
        return Refused("the command is missing before the text", f"write llmkit generate {quoted(name)}")
    return Refused(f"unknown command {name!r}", f"commands: {', '.join(known)}")


def _nearest(word: str, meaning: Mapping[str, str]) -> str | None:
    close = get_close_matches(word, meaning, n=1, cutoff=_CLOSE)
    return meaning[close[0]] if close else None


def explain(error: TyperException) -> tuple[str, str]:
    """The problem and the fix of a command line that cannot be parsed."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "llmkit"
    message = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error, NoSuchOption) and context:
        return _unknown_option(error.option_name, context)
    if isinstance(error, MissingParameter) and error.param is not None and context:
        shown = examples(context.command.help or "")
        return f"{_name(error.param)} is missing", f"for example: {shown[0]}" if shown else f"see {command} --help"
    if isinstance(error, BadParameter) and error.param is not None:
        return (
            f"{_name(error.param)}: {message.partition('Value error, ')[2] or error.message}",
            f"see {command} --help",
        )
    if found := re.search(r"unexpected extra argument\S* \((.*)\)", message):
        usage = " ".join(context.get_usage().split()).removeprefix("Usage: ") if context else command
        return f"too many arguments ({found[1]})", f"put a text with spaces in quotes: {usage}"
    if isinstance(error, BadOptionUsage):
        return f"{error.option_name} requires a value", f"see {command} --help"
    return message, f"see {command} --help"


def _name(parameter: Any) -> str:
    """An option or argument as the user types it."""
    if parameter.param_type_name == "option":
        return " or ".join(sorted(parameter.opts, key=len))
    return str(parameter.metavar or parameter.name.upper())


def _unknown_option(option: str, context: Any) -> tuple[str, str]:
    """The nearest option of the command, or else the commands that have one of this name."""
    problem = f"unknown option {option}"
    root = context.find_root().command
    word = _long_name(option, root).lstrip("-").casefold().replace("_", "-")
    own = _names(context.command.params)
    if found := own.get(word):
        key = "recipe keys are changed with --set, such as --set train.learning_rate=1e-4"
        return problem, key if found == "--set" else f"did you mean {found}?"
    if argument := next((each for each in context.command.params if word == _argument_name(each)), None):
        return problem, f"it is an argument: {context.command_path} {_name(argument)}"
    if commands := _commands_with(option, root, context.find_root().info_name):
        if context.parent is None:
            return f"{option} belongs after the command", f"write {commands[0]} {option}"
        return problem, f"it is an option of {', '.join(commands[:3])}"
    if close := get_close_matches(word, own, n=1, cutoff=_CLOSE):
        return problem, f"did you mean {own[close[0]]}?"
    begun = sorted({name for other, name in own.items() if len(word) > 1 and other.startswith(word)})
    return problem, f"did you mean {' or '.join(begun)}?" if 0 < len(
        begun
    ) < 4 else f"see {context.command_path} --help"


def _long_name(option: str, command: Any) -> str:
    """The long form of a letter, ``--model`` for ``-m``, in whichever command has it."""
    inner = getattr(command, "commands", {}).values()
    own = [max(each.opts, key=len) for each in command.params if option in each.opts]
    return next((name for each in inner if (name := _long_name(option, each)) != option), (own or [option])[0])


def _argument_name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).casefold() if parameter.param_type_name == "argument" else ""


def _names(parameters: Iterable[Any]) -> dict[str, str]:
    """The options of a command by their names and other names, without dashes."""
    options = [each for each in parameters if each.param_type_name == "option"]
    others = {other: each.opts[0] for each in options for other in _OPTIONS.get(each.name, ())}
    return others | {name.lstrip("-"): name for each in options for name in each.opts if name.startswith("--")}


def _commands_with(option: str, command: Any, path: str) -> list[str]:
    """The commands that have an option."""
    inner = getattr(command, "commands", {})
    if not inner:
        return [path] if any(option in each.opts for each in command.params) else []
    return [found for name, each in inner.items() for found in _commands_with(option, each, f"{path} {name}")]
