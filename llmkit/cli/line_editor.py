"""The line editor of the chat. The only module that uses prompt_toolkit; imported when a chat begins."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.shortcuts import CompleteStyle

from llmkit.cli.streams import terminal

__all__ = ["line_editor"]

_PROMPT = "> "


def line_editor(
    commands: Mapping[str, Sequence[str]],
    history: Path,
    *,
    input: Input | None = None,  # noqa: A002 - as prompt_toolkit calls it
    output: Output | None = None,
) -> Callable[[str], str]:
    """A function that reads one message; its argument is the text to begin the line with.

    It raises EOFError at Ctrl+D, and KeyboardInterrupt at Ctrl+C in an empty line; in another, Ctrl+C empties it.

    Args:
        commands: names of commands and the words that can follow each, which Tab completes; FILE is any file.
        history: file that remembers the lines.
        input: the keyboard, if not that of the terminal.
        output: the screen, if not that of the terminal.
    """
    session: PromptSession[str] = PromptSession(
        _PROMPT,
        multiline=True,  # or else a line break in a pasted text would be shown as ^J
        prompt_continuation=" " * len(_PROMPT),
        key_bindings=_key_bindings(),
        completer=_CommandCompleter(commands),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,  # the menu would hold eight lines free below the prompt
        auto_suggest=AutoSuggestFromHistory(),
        history=_History(history),
        enable_suspend=True,
        input=input,
        # Standard output may be a file that takes the replies; the line is drawn on the terminal all the same.
        output=output or create_output(stdout=terminal(sys.stdout if sys.stdout.isatty() else sys.stderr)),
    )
    return lambda default: _printable(session.prompt(default=default))


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")  # Alt+Enter
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c")
    @bindings.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        if not event.current_buffer.text:
            event.app.exit(exception=KeyboardInterrupt())
        event.current_buffer.reset()

    return bindings


class _CommandCompleter(Completer):
    """Completes commands: prompt_toolkit's own completer splits words at slashes."""

    def __init__(self, commands: Mapping[str, Sequence[str]]) -> None:
        self._commands = commands
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Completions of the text before the cursor."""
        name, space, rest = document.text_before_cursor.partition(" ")
        if space:
            words = self._commands.get(name, ())
            if "FILE" in words:
                yield from self._files.get_completions(Document(rest), complete_event)
            else:
                yield from (Completion(word, -len(rest)) for word in words if word.startswith(rest))
        elif name.startswith("/"):
            for command in self._commands:
                if command.startswith(name):
                    yield Completion(command, start_position=-len(name))


class _History(FileHistory):
    """The user's lines of earlier sessions. A history that cannot be read or written is ignored."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.chmod(0o600)  # an earlier version may have made it readable by others

    def load_history_strings(self) -> Iterable[str]:
        """The lines, the newest first."""
        with contextlib.suppress(OSError):
            return list(super().load_history_strings())
        return []

    def store_string(self, string: str) -> None:
        """Remember a line."""
        with contextlib.suppress(OSError):
            super().store_string(string)


def _printable(text: str) -> str:
    """Bytes that are not UTF-8 arrive as lone surrogates, which no tokenizer and no file takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
