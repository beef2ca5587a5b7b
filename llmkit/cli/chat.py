"""``llmkit chat`` without a text: a conversation in the terminal.

Knows which line is a message, what goes to which stream, and what Ctrl+C means. Commands are in
`llmkit.cli.chat_commands`, turns are kept by `llmkit.inference.conversation`, lines are read by
`llmkit.cli.line_editor`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.chat_commands import ChatState, completions, describe, run_command, show, show_open_call
from llmkit.cli.options import flags
from llmkit.cli.reply_printer import reply_printer
from llmkit.cli.streams import echo
from llmkit.config.paths import user_path
from llmkit.config.settings import GenerationSettings, LoadSettings
from llmkit.errors import InputError, LlmkitError, UsageError
from llmkit.log import log
from llmkit.tasks.messages import call_text

if TYPE_CHECKING:
    from llmkit.inference.conversation import Conversation, SavedConversation
    from llmkit.inference.pipeline import Pipeline
    from llmkit.tasks import PromptOptions, Task
    from llmkit.tasks.output import Output

__all__ = ["CHAT_OPTIONS", "ChatOptions", "Session", "converse"]

CHAT_OPTIONS: dict[str, Any] = {
    "load_file": Annotated[
        str | None,
        typer.Option(
            "--load", metavar="FILE", help="Continue a conversation that /save wrote.", rich_help_panel="Input"
        ),
    ],
    "continue_last": Annotated[
        bool, typer.Option("--continue", help="Continue the last conversation.", rich_help_panel="Input")
    ],
    "plain": Annotated[
        bool,
        typer.Option("--no-markdown", help="Show replies as they are, without formatting.", rich_help_panel="Output"),
    ],
}
"""Options of a conversation, by the field of `ChatOptions`."""
_LEAVE = ("exit", "quit")
"""Lines that leave the conversation without a slash."""
_HINTS = {"output_cut": ', or write "continue"', "context_full": "; /reset starts over"}
"""What helps in a conversation, by the code of a note."""


@dataclass(frozen=True)
class ChatOptions:
    """The values of `CHAT_OPTIONS`."""

    load_file: str | None = None
    continue_last: bool = False
    plain: bool = False

    def refuse(self) -> None:
        """Refuse options that have no effect without a conversation."""
        used = {"--load": self.load_file, "--continue": self.continue_last, "--no-markdown": self.plain}
        if option := next((name for name, value in used.items() if value), None):
            raise UsageError(
                f"{option} is for a conversation in the terminal", "leave it out, or the text", code="no_effect"
            )


def converse(
    task: Task,
    prompt_options: PromptOptions,
    generation: GenerationSettings,
    load: LoadSettings,
    options: ChatOptions,
    *,
    one_reply: Mapping[str, Any],
) -> None:
    """A conversation in the terminal. ``one_reply`` are options that have an effect on a single reply only."""
    from llmkit.api import build_pipeline
    from llmkit.cli.line_editor import line_editor
    from llmkit.config.paths import cache_dir

    if option := next((name for name, value in one_reply.items() if value not in (None, False)), None):
        raise UsageError(f"{option} is for one reply, and no message was passed", "give a text, a file, or pipe one in")
    if generation.num_return_sequences > 1:  # before a model is loaded
        raise UsageError(
            "a conversation continues with a single reply", "leave --num-return-sequences out, or give a text"
        )
    last = cache_dir() / "last_chat.json"
    saved = _saved_conversation(options, last)
    if saved is not None and load.model is None and options.continue_last:
        load = _for_model(load, saved.model)
    read = line_editor(completions(), cache_dir() / "chat_history")
    pipeline = build_pipeline(task, load, generation, prompt_options)
    from llmkit.inference.conversation import Conversation

    def load_model(name: str, settings: GenerationSettings) -> Pipeline:
        return build_pipeline(task, _for_model(load, name), settings, prompt_options, fallback=False)

    conversation = Conversation(pipeline)
    log.info("%s answers", describe(pipeline))
    if saved is not None:
        conversation.restore(saved, keep_system=bool(prompt_options.system))
        log.info("continuing after %d messages; the last: %s", len(saved.messages), _excerpt(saved))
    log.info("/help lists the commands; Ctrl+D leaves")
    Session(conversation, read, generation, load_model=load_model, last=last, markdown=not options.plain).run()


def _for_model(load: LoadSettings, model: str | None) -> LoadSettings:
    """Load settings for another model, without those that belong to the first."""
    return replace(load, model=model, revision=None, base=None, head=None)


def _saved_conversation(options: ChatOptions, last: Path) -> SavedConversation | None:
    """The conversation to continue, read before a model is loaded; None to begin a new one."""
    from llmkit.inference.conversation import read_conversation

    if options.load_file is not None and options.continue_last:
        raise UsageError("--load and --continue are mutually exclusive", "leave one of them out", code="no_effect")
    if options.load_file is not None:
        return read_conversation(user_path(options.load_file))
    if not options.continue_last:
        return None
    if not last.is_file():
        raise InputError("no earlier conversation to continue", "leave --continue out", code="file_not_found")
    return read_conversation(last)


def _excerpt(saved: SavedConversation) -> str:
    words = " ".join(saved.messages[-1].content.split())
    return words if len(words) <= _EXCERPT else f"{words[:_EXCERPT]}…"


_EXCERPT = 60


class _Interrupt:
    """Ctrl+C while a reply is generated: the first stops it after the next token, the second at once.

    Until the prompt is processed no token comes, so the first one says that it was noticed.
    """

    def __init__(self) -> None:
        self.requested = False
        self.begun = False
        """Whether a piece of the reply was shown."""

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch Ctrl+C inside this context; Python handles signals in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._on_sigint)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)

    def noted(self, receive: Callable[[str], None]) -> Callable[[str], None]:
        """The receiver of pieces, which also notes that there are some."""

        def push(piece: str) -> None:
            self.begun = True
            receive(piece)

        return push

    def _on_sigint(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if not self.begun:
            show("(stopping once the prompt is processed; Ctrl+C again stops at once)")


class Session:
    """A conversation and its terminal.

    Args:
        conversation: generates the replies.
        read: returns the next line; its argument is the text to begin the line with. EOFError ends the session.
        generation: the settings of the caller.
        load_model: builds the pipeline of another model, for ``/model``.
        last: file that keeps the conversation for ``--continue``.
        markdown: whether replies are formatted on a terminal.
    """

    def __init__(
        self,
        conversation: Conversation,
        read: Callable[[str], str],
        generation: GenerationSettings | None = None,
        *,
        load_model: Callable[[str, GenerationSettings], Pipeline] | None = None,
        last: Path | None = None,
        markdown: bool = True,
    ) -> None:
        self._conversation = conversation
        self._read = read
        self._last = last
        self._markdown = markdown
        self._state = ChatState(
            conversation, self._answer, generation or GenerationSettings(), load_model or _no_other_model
        )

    def run(self) -> None:
        """Read lines and answer them until the user leaves."""
        interrupted = False
        while not self._state.done:
            line, self._state.line = self._state.line, ""
            try:
                line = self._read(line)
            except EOFError:
                return
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                show("Ctrl+C again leaves, as /quit and Ctrl+D do")
            else:
                interrupted = False
                self._try(line)

    def _try(self, line: str) -> None:
        """Run one line. An error in it does not end the conversation."""
        try:
            self._take(line)
        except KeyboardInterrupt:
            show("")
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
        """Run a command, or send a message."""
        text = line.rstrip().lstrip("\n")
        if text.lower() in _LEAVE:
            self._state.done = True
        elif text.lstrip().startswith("//"):
            self._answer(self._conversation.send, text.lstrip()[1:])
        elif text.lstrip().startswith("/"):
            run_command(self._state, text.lstrip())
        elif text:
            self._answer(self._conversation.send, text)

    def _answer(self, answer: Callable[..., Output | None], *message: str) -> None:
        """Generate a reply and show it."""
        started, interrupt = time.perf_counter(), _Interrupt()
        printer = reply_printer(markdown=self._markdown)
        output = None
        try:
            with interrupt.caught():
                output = answer(
                    *message,
                    on_text=interrupt.noted(printer.say),
                    on_reasoning=interrupt.noted(printer.think),
                    cancelled=lambda: interrupt.requested,
                )
        except KeyboardInterrupt:
            pass
        finally:
            printer.end()
        if output is None:
            show("(stopped; nothing of this reply is kept)")
            return
        if output.text:
            echo()
        for call in output.tool_calls:
            echo(call_text(call))
        self._explain(output, time.perf_counter() - started)
        if output.tool_calls:
            show_open_call(self._conversation)
        self._keep()

    def _keep(self) -> None:
        """Save the conversation for ``--continue``. An error, such as a full disk, is ignored."""
        if self._last is not None:
            with suppress(LlmkitError, OSError):
                self._last.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._last.touch(mode=0o600)
                self._conversation.save(self._last)
                self._last.chmod(0o600)

    def _explain(self, output: Output, seconds: float) -> None:
        """Show why the reply ended where it does, and its cost."""
        if output.finish_reason == "interrupted":
            show("(stopped; the reply so far is kept)" if output.text else "(stopped; there was no reply yet)")
        elif not output.text and not output.tool_calls:
            show("(the reply is empty)")
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
            text = note.text.replace("raise `max_new_tokens`", "raise it with /set max_new_tokens N")
            log.warning("%s%s", text, hint, extra={"code": note.code})


def _no_other_model(_name: str, _settings: GenerationSettings) -> Pipeline:
    raise UsageError("this conversation has a fixed model", "start another one")
