"""The commands of a conversation in the terminal: their names, their help, and what they do.

Knows conversations, settings and models; lines are read and replies shown by `llmkit.cli.chat`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from llmkit.cli.display import padded
from llmkit.cli.streams import echo
from llmkit.config.declaration import explicitly_set, setting_fields
from llmkit.config.paths import user_path
from llmkit.config.settings import GenerationSettings
from llmkit.errors import InputError, UsageError
from llmkit.tasks.messages import call_text

if TYPE_CHECKING:
    from llmkit.inference.conversation import Conversation
    from llmkit.inference.pipeline import Pipeline
    from llmkit.tasks.output import Output

__all__ = ["COMMANDS", "ChatState", "completions", "describe", "run_command", "show", "show_open_call"]

_FIXED = ("num_return_sequences",)
"""Settings that a conversation does not have: it continues with a single reply."""


def show(line: str) -> None:
    """Print a line for the user on standard error, also with --quiet: standard output holds the replies only."""
    echo(line, err=True)


def describe(pipeline: Pipeline) -> str:
    """The model of a pipeline, in words."""
    model = pipeline.engine.facts
    return f"{model.source.name} ({model.head}, {model.dtype} on {model.device})"


class ChatState:
    """What commands change.

    Args:
        conversation: the messages and the model.
        answer: generates and shows a reply.
        settings: generation settings, of which only those set explicitly are shown as such.
        load_model: builds the pipeline of another model with these settings.
    """

    def __init__(
        self,
        conversation: Conversation,
        answer: Callable[..., Output | None],
        settings: GenerationSettings,
        load_model: Callable[[str, GenerationSettings], Pipeline],
    ) -> None:
        self.conversation = conversation
        self.answer = answer
        self.settings = {name: getattr(settings, name) for name in explicitly_set(settings)}
        self.default_length: int | None = None
        """Default of ``max_new_tokens`` if it is known; it may follow from what the model was tuned for."""
        self.load_model = load_model
        self.line = ""
        """Text to put into the next input line."""
        self.files: set[Path] = set()
        """Files that were saved or loaded here, which may be replaced."""
        self.done = False


def run_command(state: ChatState, text: str) -> None:
    """Run a line that begins with a slash."""
    name, *rest = text.split(maxsplit=1)
    argument = rest[0] if rest else ""
    command = next((command for command in COMMANDS if name.lower() in command.names), None)
    if command is None:
        raise _unknown(name)
    if argument and not command.argument:
        raise UsageError(f"{name} takes no argument", f"write {name}, or /{name} … to send it as a message")
    if not argument and command.argument in ("FILE", "RESULT"):
        raise UsageError(f"{name} needs a {command.argument.lower()}", f"write {name} {command.argument}")
    command.run(state, argument)


def completions() -> dict[str, tuple[str, ...]]:
    """What the argument of each command can be; ``FILE`` is any file."""
    settings = (*(item.name for item in _settings()), "think")
    words = {"FILE": ("FILE",), "[NAME VALUE]": settings}
    return {name: words.get(command.argument, ()) for command in COMMANDS for name in command.names}


def _unknown(name: str) -> UsageError:
    names = [name for command in COMMANDS for name in command.names]
    begun = [known for known in names if len(name) > 1 and known.startswith(name)]
    near = begun or get_close_matches(name, names, n=1)
    fix = f"did you mean {' or '.join(near)}?" if near else f"/help lists them; write /{name} … to send it as a message"
    return UsageError(f"unknown command {name!r}", fix)


# Messages.


def _system(state: ChatState, argument: str) -> None:
    if argument:
        state.conversation.system = "" if argument == "-" else argument
    show(f"system message: {state.conversation.system or 'none'}")


def _reset(state: ChatState, _: str) -> None:
    state.conversation.reset()
    show("(all turns are removed)")


def _undo(state: ChatState, _: str) -> None:
    message = state.conversation.undo().content
    state.line = f"/{message.lstrip()}" if message.lstrip().startswith("/") else message
    show("(the last turn is removed; its message can be edited)")


def _retry(state: ChatState, _: str) -> None:
    state.answer(state.conversation.retry)


def _tool(state: ChatState, argument: str) -> None:
    conversation = state.conversation
    if len(conversation.open_calls) < 2:
        state.answer(conversation.send_result, argument)
    else:
        conversation.send_result(argument)
        show_open_call(conversation)


def show_open_call(conversation: Conversation) -> None:
    """Tell how to answer the tool call that the model waits for, if any."""
    if calls := conversation.open_calls:
        show(f"(/tool RESULT sends the result of {call_text(calls[0])})")


# Files.


def _save(state: ChatState, argument: str) -> None:
    path = _path(argument)
    if not state.conversation.messages:
        raise InputError("the conversation has no messages yet", "send a message first")
    if path.exists() and path.resolve() not in state.files:
        raise InputError(f"{path} exists", "give another name", code="output_exists")
    state.conversation.save(path)
    state.files.add(path.resolve())
    show(f"(saved {_turns(state)} to {path})")


def _load(state: ChatState, argument: str) -> None:
    path = _path(argument)
    state.conversation.load(path)
    state.files.add(path.resolve())
    show(f"(loaded {_turns(state)} and {_system_message(state)} from {path})")


def _path(argument: str) -> Path:
    """A path, which may contain spaces, or be in quotation marks as in a shell."""
    if len(argument) > 2 and argument[0] == argument[-1] and argument[0] in "\"'":
        argument = argument[1:-1]
    return user_path(argument)


def _turns(state: ChatState) -> str:
    turns = state.conversation.turns
    return f"{turns} {'turn' if turns == 1 else 'turns'}"


def _system_message(state: ChatState) -> str:
    return "a system message" if state.conversation.system else "no system message"


# Settings and the model.


def _settings() -> Iterator[Any]:
    return (item for item in setting_fields(GenerationSettings) if item.name not in _FIXED)


def _set(state: ChatState, argument: str) -> None:
    name, _, text = argument.strip().removeprefix("--").partition("=" if "=" in argument.split(" ")[0] else " ")
    name, text = name.strip().replace("-", "_"), text.strip()
    if not name:
        _show_settings(state)
        return
    if name == "think":
        _set_think(state, text)
        return
    known = ["think", *(item.name for item in _settings())]
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise UsageError(f"unknown setting {name!r}", f"did you mean {near[0]}?" if near else "/set lists them")
    if text:
        settings = dict(state.settings)
        if text == "-":
            settings.pop(name, None)
        else:
            settings[name] = _value(name, text)
        _use(state, settings)
    show(f"{name}: {_shown(state, name)}")


_ON_OFF = {"on": True, "off": False, "-": None}


def _set_think(state: ChatState, text: str) -> None:
    if text:
        if text not in _ON_OFF:
            raise UsageError(f"think: {text!r} is not on or off", "write /set think on, or off, or -")
        state.conversation.think = _ON_OFF[text]
    show(f"think: {_shown_think(state)}")


def _shown_think(state: ChatState) -> str:
    return {True: "on", False: "off", None: "default"}[state.conversation.think]


def _use(state: ChatState, settings: dict[str, Any]) -> None:
    """Continue the conversation with these settings; wrong ones change nothing."""
    from llmkit.inference.pipeline import Pipeline

    old = state.conversation.pipeline
    if "max_new_tokens" not in state.settings:
        state.default_length = old.settings.max_new_tokens
    defaults = {"max_new_tokens": state.default_length}
    state.conversation.use(
        Pipeline(old.task, old.engine, GenerationSettings(**{**defaults, **settings}), old.prompt_options)
    )
    state.settings = settings


def _value(name: str, text: str) -> Any:
    """The value of a setting from its text."""
    hint = get_type_hints(GenerationSettings)[name]
    kinds = get_args(hint) or (hint,)
    if hint == tuple[str, ...]:
        return tuple(shlex.split(text))
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                raise UsageError(f"{name}: {text!r} is not a number", f"write /set {name} and a number") from None
    return text


def _shown(state: ChatState, name: str) -> str:
    value = getattr(state.conversation.pipeline.settings, name)
    if name in state.settings:
        return f"{value}"
    return "default" if value in (None, ()) else f"{value} (default)"


def _show_settings(state: ChatState) -> None:
    names = [item.name for item in _settings()]
    width = max(map(len, names))
    for name in names:
        show(f"{name:{width}}  {_shown(state, name)}")
    show(f"{'think':{width}}  {_shown_think(state)}")
    show("\n/set NAME VALUE changes one, /set NAME - restores its default.")


def _model(state: ChatState, argument: str) -> None:
    if argument:
        state.conversation.use(state.load_model(argument, GenerationSettings(**state.settings)))
    show(f"model: {describe(state.conversation.pipeline)}")


def _status(state: ChatState, _: str) -> None:
    conversation = state.conversation
    dropped = f", the oldest {conversation.forgotten} dropped" if conversation.forgotten else ""
    rows = {
        "model": describe(conversation.pipeline),
        "system": conversation.system or "none",
        "messages": f"{len(conversation.messages)}{dropped}",
        "context": _context(conversation),
        "settings": ", ".join(f"{name}={value}" for name, value in state.settings.items()) or "the model's own",
    }
    show("\n".join(f"{name:9} {value}" for name, value in rows.items()))


def _context(conversation: Conversation) -> str:
    limit, last = conversation.pipeline.engine.facts.context.tokens, conversation.last
    context = "no fixed limit" if limit is None else f"{limit} tokens"
    if last is None:
        return context
    usage = last.usage
    return f"{context}; the last prompt had {usage.prompt_tokens}, {usage.cached_tokens} of them reused"


# The rest.


def _help(_state: ChatState, _: str) -> None:
    forms = [" ".join((", ".join(command.names), command.argument)) for command in COMMANDS]
    width = max(map(len, forms))
    for form, command in zip(forms, COMMANDS, strict=True):
        show(f"{padded(form, width)} {command.help}")
    show("\nAlt+Enter begins a new line, Tab completes a command, Ctrl+C stops a reply.")
    show("Write // to begin a message with a slash; exit and quit alone leave, too.")


def _quit(state: ChatState, _: str) -> None:
    state.done = True


@dataclass(frozen=True)
class Command:
    """A command of the conversation."""

    names: tuple[str, ...]
    argument: str
    """Form of the argument; one in brackets is optional."""
    help: str
    run: Callable[[ChatState, str], None]


COMMANDS = (
    Command(("/system",), "[TEXT]", "show the system message, or set it; - removes it", _system),
    Command(("/reset", "/clear"), "", "remove all turns; the system message stays", _reset),
    Command(("/undo",), "", "remove the last turn, and edit its message", _undo),
    Command(("/retry",), "", "generate another reply to the last message", _retry),
    Command(("/tool",), "RESULT", "send the result of the tool call that the model waits for", _tool),
    Command(("/set",), "[NAME VALUE]", "show the settings, or change one", _set),
    Command(("/model",), "[MODEL]", "show the model, or continue with another", _model),
    Command(("/save",), "FILE", "write the conversation to a file", _save),
    Command(("/load",), "FILE", "continue a conversation from a file", _load),
    Command(("/status",), "", "show model, context and settings", _status),
    Command(("/help",), "", "show this list", _help),
    Command(("/quit", "/exit", "/bye"), "", "leave, as Ctrl+D does", _quit),
)
