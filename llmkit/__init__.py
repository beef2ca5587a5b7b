"""llmkit: five language tasks on the right model class, over Transformers, Accelerate and PEFT.

One function per task answers a single input; `load` returns a pipeline for many:

    import llmkit

    output = llmkit.generate("Name a fruit.", "starter", max_new_tokens=16)
    print(output, output.finish_reason)

    writer = llmkit.load("text-generation", "starter", max_new_tokens=16)
    fruit, colour = writer(["Name a fruit.", "Name a colour."])

    try:
        llmkit.generate("Name a fruit.", "./no-such-folder")
    except llmkit.LlmkitError as error:
        print(error.code, error)

`help(llmkit.generate)` lists all options. `finetune` and `evaluate` train and score models, `check_data` examines
training data, `explain_steps` and `explain_attention` show how a model works, `inspect`, `merge`, `push` and `download`
manage models, `serve` answers over HTTP, and `pipeline` is
that of Transformers 4.

Importing this package loads nothing heavy; names are resolved when they are first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.api import answer as answer
    from llmkit.api import chat as chat
    from llmkit.api import evaluate as evaluate
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
    from llmkit.errors import InvalidRecipeError as InvalidRecipeError
    from llmkit.errors import LlmkitError as LlmkitError
    from llmkit.errors import MissingDependencyError as MissingDependencyError
    from llmkit.errors import ModelNotFoundError as ModelNotFoundError
    from llmkit.errors import NotEnoughMemoryError as NotEnoughMemoryError
    from llmkit.errors import TaskMismatchError as TaskMismatchError
    from llmkit.errors import UsageError as UsageError
    from llmkit.evaluation.evaluate import Evaluation as Evaluation
    from llmkit.explaining import explain_attention as explain_attention
    from llmkit.explaining import explain_steps as explain_steps
    from llmkit.inference.conversation import Conversation as Conversation
    from llmkit.inference.next_tokens import NextToken as NextToken
    from llmkit.inference.pipeline import Pipeline as Pipeline
    from llmkit.management import asgi_app as asgi_app
    from llmkit.management import check_data as check_data
    from llmkit.management import download as download
    from llmkit.management import export as export
    from llmkit.management import inspect as inspect
    from llmkit.management import merge as merge
    from llmkit.management import push as push
    from llmkit.management import report as report
    from llmkit.management import serve as serve
    from llmkit.tasks.output import Chunk as Chunk
    from llmkit.tasks.output import Note as Note
    from llmkit.tasks.output import Output as Output
    from llmkit.tasks.output import Usage as Usage
    from llmkit.tasks.types import Message as Message
    from llmkit.tuning import TunedModel as TunedModel
    from llmkit.tuning import finetune as finetune

__version__ = "0.1.0"

_HOME = {
    "answer": "llmkit.api",
    "chat": "llmkit.api",
    "evaluate": "llmkit.api",
    "explain_attention": "llmkit.explaining",
    "explain_steps": "llmkit.explaining",
    "TunedModel": "llmkit.tuning",
    "finetune": "llmkit.tuning",
    "generate": "llmkit.api",
    "load": "llmkit.api",
    "next_tokens": "llmkit.api",
    "pipeline": "llmkit.api",
    "summarize": "llmkit.api",
    "translate": "llmkit.api",
    "push": "llmkit.management",
    "report": "llmkit.management",
    "export": "llmkit.management",
    "merge": "llmkit.management",
    "inspect": "llmkit.management",
    "download": "llmkit.management",
    "check_data": "llmkit.management",
    "serve": "llmkit.management",
    "asgi_app": "llmkit.management",
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
    "InvalidRecipeError": "llmkit.errors",
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
    "InvalidRecipeError",
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
    "TunedModel",
    "Usage",
    "UsageError",
    "__version__",
    "answer",
    "asgi_app",
    "chat",
    "check_data",
    "download",
    "evaluate",
    "explain_attention",
    "explain_steps",
    "export",
    "finetune",
    "generate",
    "inspect",
    "load",
    "merge",
    "next_tokens",
    "pipeline",
    "push",
    "report",
    "serve",
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
