"""The tasks, by name or verb. Nothing here imports a tensor library."""

from __future__ import annotations

from difflib import get_close_matches

from llmkit.config.settings import TaskSettings
from llmkit.errors import UsageError
from llmkit.tasks.base import (
    Chat,
    Chunk,
    Example,
    Head,
    Message,
    Prompt,
    QuestionContext,
    Raw,
    Reader,
    Reading,
    Result,
    Row,
    Span,
    Step,
    Task,
    Text,
    Traits,
    Wording,
    Work,
)
from llmkit.tasks.dialogue import Dialogue
from llmkit.tasks.question_answering import QuestionAnswering
from llmkit.tasks.summarization import Summarization
from llmkit.tasks.text_generation import TextGeneration
from llmkit.tasks.translation import Translation

__all__ = [
    "TASKS",
    "Chat",
    "Chunk",
    "Dialogue",
    "Example",
    "Head",
    "Message",
    "Prompt",
    "QuestionAnswering",
    "QuestionContext",
    "Raw",
    "Reader",
    "Reading",
    "Result",
    "Row",
    "Span",
    "Step",
    "Summarization",
    "Task",
    "Text",
    "TextGeneration",
    "Traits",
    "Translation",
    "Wording",
    "Work",
    "find_task",
    "get_task",
]

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (TextGeneration, Summarization, QuestionAnswering, Dialogue, Translation)
}


def find_task(name: str) -> type[Task]:
    """Look a task up by name or verb; `UsageError` names the nearest."""
    for task in TASKS.values():
        if name in (task.name, task.verb):
            return task
    near = get_close_matches(name, [*TASKS, *(task.verb for task in TASKS.values())], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"unknown task {name!r}", f"{hint}tasks: {', '.join(TASKS)}")


def get_task(name: str, settings: TaskSettings | None = None) -> Task:
    """The task of that name or verb, with its own settings."""
    return find_task(name)(settings)
