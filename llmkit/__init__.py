"""llmkit: five language tasks on the right model class, over Transformers, Accelerate and PEFT.

Importing this package loads nothing heavy; names are resolved when they are first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.api import answer as answer
    from llmkit.api import chat as chat
    from llmkit.api import evaluate as evaluate
    from llmkit.api import finetune as finetune
    from llmkit.api import generate as generate
    from llmkit.api import load as load
    from llmkit.api import next_tokens as next_tokens
    from llmkit.api import pipeline as pipeline
    from llmkit.api import summarize as summarize
    from llmkit.api import translate as translate
    from llmkit.errors import CheckpointError as CheckpointError
    from llmkit.errors import ContextOverflowError as ContextOverflowError
    from llmkit.errors import HubUnreachableError as HubUnreachableError
    from llmkit.errors import InputError as InputError
    from llmkit.errors import LlmkitError as LlmkitError
    from llmkit.errors import MissingDependencyError as MissingDependencyError
    from llmkit.errors import ModelNotFoundError as ModelNotFoundError
    from llmkit.errors import NotEnoughMemoryError as NotEnoughMemoryError
    from llmkit.errors import TaskMismatchError as TaskMismatchError
    from llmkit.errors import UsageError as UsageError
    from llmkit.evaluation.evaluate import Evaluation as Evaluation
    from llmkit.inference.conversation import Conversation as Conversation
    from llmkit.inference.next_tokens import NextToken as NextToken
    from llmkit.inference.pipeline import Pipeline as Pipeline
    from llmkit.tasks.output import Chunk as Chunk
    from llmkit.tasks.output import Note as Note
    from llmkit.tasks.output import Output as Output
    from llmkit.tasks.output import Usage as Usage
    from llmkit.tasks.types import Message as Message

__version__ = "0.1.0"

_HOME = {
    "answer": "llmkit.api",
    "chat": "llmkit.api",
    "evaluate": "llmkit.api",
    "finetune": "llmkit.api",
    "generate": "llmkit.api",
    "load": "llmkit.api",
    "next_tokens": "llmkit.api",
    "pipeline": "llmkit.api",
    "summarize": "llmkit.api",
    "translate": "llmkit.api",
    "Chunk": "llmkit.tasks.output",
    "Message": "llmkit.tasks.types",
    "Evaluation": "llmkit.evaluation.evaluate",
    "Conversation": "llmkit.inference.conversation",
    "NextToken": "llmkit.inference.next_tokens",
    "Note": "llmkit.tasks.output",
    "Output": "llmkit.tasks.output",
    "Usage": "llmkit.tasks.output",
    "Pipeline": "llmkit.inference.pipeline",
    "CheckpointError": "llmkit.errors",
    "ContextOverflowError": "llmkit.errors",
    "HubUnreachableError": "llmkit.errors",
    "InputError": "llmkit.errors",
    "LlmkitError": "llmkit.errors",
    "MissingDependencyError": "llmkit.errors",
    "ModelNotFoundError": "llmkit.errors",
    "NotEnoughMemoryError": "llmkit.errors",
    "TaskMismatchError": "llmkit.errors",
    "UsageError": "llmkit.errors",
}

__all__ = [
    "CheckpointError",
    "Chunk",
    "ContextOverflowError",
    "Conversation",
    "Evaluation",
    "HubUnreachableError",
    "InputError",
    "LlmkitError",
    "Message",
    "MissingDependencyError",
    "ModelNotFoundError",
    "NextToken",
    "NotEnoughMemoryError",
    "Note",
    "Output",
    "Pipeline",
    "TaskMismatchError",
    "Usage",
    "UsageError",
    "__version__",
    "answer",
    "chat",
    "evaluate",
    "finetune",
    "generate",
    "load",
    "next_tokens",
    "pipeline",
    "summarize",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'llmkit' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
