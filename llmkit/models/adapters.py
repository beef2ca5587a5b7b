"""Adapters as PEFT has them, from a recipe's section."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError
from llmkit.tasks import Head

if TYPE_CHECKING:
    from llmkit.config.recipe import Adapter

__all__ = ["attach"]

_TASK_TYPES = {Head.CAUSAL: "CAUSAL_LM", Head.SEQ2SEQ: "SEQ_2_SEQ_LM", Head.SPAN: "QUESTION_ANS"}

_SPAN_HEAD = "qa_outputs"
"""What all span models of Transformers call it."""


def attach(model: Any, section: Adapter, head: Head, *, tokenizer_name: str) -> Any:
    """The model with a new adapter, the only part of it that is trained (with ``modules_to_save``).

    Args:
        tokenizer_name: folder of the tokenizer, which prompt tuning reads to begin from a text.

    Raises:
        UsageError: PEFT cannot put this adapter on this model.
    """
    import peft

    settings = section.model_dump()
    kind = settings.pop("peft_type")
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    if kind == "PROMPT_TUNING" and settings["prompt_tuning_init"] == "TEXT":
        settings["tokenizer_name_or_path"] = tokenizer_name
    if head is Head.SPAN and settings.get("target_modules") == "all-linear" and settings["exclude_modules"] is None:
        settings["exclude_modules"] = [_SPAN_HEAD]  # new, so PEFT trains and saves all of it
    given = {name: value for name, value in settings.items() if value is not None}
    try:
        return peft.get_peft_model(model, config_class(task_type=_TASK_TYPES[head], **given))
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"PEFT cannot put {kind} on {type(model).__name__} ({reason})",
            "choose other target_modules, or another peft_type",
        ) from error
