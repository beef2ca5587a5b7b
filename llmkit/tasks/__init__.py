"""The tasks, by name or verb. Nothing here imports a tensor library."""

from __future__ import annotations

from difflib import get_close_matches

from llmkit.config.settings import TaskSettings
from llmkit.errors import UsageError
from llmkit.tasks.base import Task
from llmkit.tasks.dialogue import Dialogue
from llmkit.tasks.output import Chunk, Output, TokenLogprob
from llmkit.tasks.question_answering import QuestionAnswering
from llmkit.tasks.recommended import Recommended
from llmkit.tasks.summarization import Summarization
from llmkit.tasks.text_generation import TextGeneration
from llmkit.tasks.translation import Translation
from llmkit.tasks.types import (
    Chat,
    Example,
    Generation,
    Head,
    Message,
    ModelView,
    Prompt,
    PromptKeywords,
    PromptOptions,
    QuestionContext,
    Result,
    Row,
    ShotsBy,
    Span,
    SpanPrediction,
    Step,
    Text,
    ToolCall,
    Traits,
    WordingKeywords,
    Work,
)

__all__ = [
    "TASKS",
    "Chat",
    "Chunk",
    "Dialogue",
    "Example",
    "Generation",
    "Head",
    "Message",
    "ModelView",
    "Output",
    "Prompt",
    "PromptKeywords",
    "PromptOptions",
    "QuestionAnswering",
    "QuestionContext",
    "Recommended",
    "Result",
    "Row",
    "ShotsBy",
    "Span",
    "SpanPrediction",
    "Step",
    "Summarization",
    "Task",
    "Text",
    "TextGeneration",
    "TokenLogprob",
    "ToolCall",
    "Traits",
    "Translation",
    "WordingKeywords",
    "Work",
    "find_task",
    "get_task",
    "register",
]

TASKS: dict[str, type[Task]] = {}
"""Registered tasks by name, in the order of the commands."""


def register(task: type[Task]) -> type[Task]:
    """Register a task for commands, recipes and ``llmkit inspect``. Can be used as a decorator."""
    if missing := [name for name in Task.__annotations__ if not hasattr(task, name)]:
        raise UsageError(f"{task.__name__} lacks {', '.join(missing)}", "set them as attributes of the class")
    for other in TASKS.values():
        if taken := {task.name, task.verb} & {other.name, other.verb}:
            raise UsageError(
                f"the name {' and '.join(sorted(taken))} is already used by {other.name}", "choose another name"
            )
    TASKS[task.name] = task
    return task


for _task in (TextGeneration, Summarization, QuestionAnswering, Dialogue, Translation):
    register(_task)


def find_task(name: str) -> type[Task]:
    """Find a task by name or verb; `UsageError` suggests the nearest."""
    for task in TASKS.values():
        if name in (task.name, task.verb):
            return task
    meanings = {word: task.name for task in TASKS.values() for word in (*task.synonyms, task.verb, task.name)}
    near = get_close_matches(name.casefold(), meanings, n=1)
    hint = f"did you mean {meanings[near[0]]!r}? " if near else ""
    raise UsageError(f"unknown task {name!r}", f"{hint}tasks: {', '.join(TASKS)}", code="unknown_task")


def get_task(name: str, settings: TaskSettings | None = None) -> Task:
    """A task by name or verb, with its settings."""
    return find_task(name)(settings)
