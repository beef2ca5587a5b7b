"""The tasks, by name. Knows which heads serve a task, before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

from llmkit.errors import UsageError
from llmkit.tasks.base import Chat, Head, Message, Prompt, QuestionContext, Row, Task, Text, Wording

__all__ = [
    "TASKS",
    "Chat",
    "Head",
    "Message",
    "Prompt",
    "QuestionContext",
    "Row",
    "Task",
    "TaskInfo",
    "Text",
    "Wording",
    "find_task",
    "get_task",
]


@dataclass(frozen=True)
class TaskInfo:
    """A task's name, the verb that runs it, the heads that serve it, and its class once that is written."""

    name: str
    verb: str
    heads: tuple[Head, ...]
    implementation: str | None = None
    sample: str = '"TEXT"'
    """What follows the verb in an example command."""


_GENERATIVE = (Head.CAUSAL, Head.SEQ2SEQ)

TASKS: dict[str, TaskInfo] = {
    info.name: info
    for info in (
        TaskInfo("text-generation", "generate", _GENERATIVE, "llmkit.tasks.text_generation:TextGeneration"),
        TaskInfo("summarization", "summarize", _GENERATIVE, sample="FILE"),
        TaskInfo("question-answering", "answer", (Head.SPAN, *_GENERATIVE), sample='"QUESTION" --context FILE'),
        TaskInfo("dialogue", "chat", _GENERATIVE, sample=""),
        TaskInfo("translation", "translate", _GENERATIVE, sample='"TEXT" --from en --to fr'),
    )
}


def find_task(name: str) -> TaskInfo:
    """Look a task up by name or verb; `UsageError` names the nearest."""
    for info in TASKS.values():
        if name in (info.name, info.verb):
            return info
    near = get_close_matches(name, [*TASKS, *(info.verb for info in TASKS.values())], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"unknown task {name!r}", f"{hint}tasks: {', '.join(TASKS)}")


def get_task(name: str) -> Task:
    """The task object of that name or verb."""
    info = find_task(name)
    if info.implementation is None:
        raise UsageError(f"{info.name} is not available in this version", "use text-generation")
    module, _, attribute = info.implementation.partition(":")
    task: Task = getattr(import_module(module), attribute)()
    return task
