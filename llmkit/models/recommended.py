"""Models that llmkit knows by name: the default of each task, and a few that do better. Plain data.

Licences and sizes are those that the model pages showed, as last seen in stored copies of 2025 and 2026; a size counts
the weight files that llmkit would download. Knows nothing of whether a model is on this machine or can be reached.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmkit.tasks import find_task

__all__ = ["RECOMMENDED", "Recommended", "default_models"]


@dataclass(frozen=True)
class Recommended:
    """One model for one task."""

    task: str
    model: str
    parameters: str
    megabytes: int
    licence: str
    languages: str
    note: str


_STARTER_NOTE = "embedded, from the package index: needs no model hub"
_SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOL_ROW = (_SMOL, "135M", 269, "Apache-2.0", "English")
_STARTER_ROW = ("starter", "135M", 93, "Apache-2.0", "English")
_QWEN_SMALL = ("Qwen/Qwen3-0.6B", "0.6B", 1500, "Apache-2.0", "100+ languages")
_QWEN = ("Qwen/Qwen3-4B-Instruct-2507", "4B", 8045, "Apache-2.0", "100+ languages")
_QUESTIONS, _ANY_PAIR = "question-answering", "facebook/m2m100_418M"

RECOMMENDED: tuple[Recommended, ...] = (
    Recommended("text-generation", *_SMOL_ROW, "the default"),
    Recommended("text-generation", *_STARTER_ROW, _STARTER_NOTE),
    Recommended("text-generation", *_QWEN_SMALL, "stronger, still runs on a CPU"),
    Recommended("text-generation", *_QWEN, "much stronger; wants a GPU"),
    Recommended(
        *("summarization", "sshleifer/distilbart-cnn-12-6", "306M", 1220, "Apache-2.0", "English"),
        "the default; news; .bin weights only",
    ),
    Recommended("summarization", *_STARTER_ROW, _STARTER_NOTE),
    Recommended("summarization", "facebook/bart-large-cnn", "406M", 1630, "MIT", "English", "news; a little better"),
    Recommended(
        *("summarization", "csebuetnlp/mT5_multilingual_XLSum", "582M", 2330, "CC-BY-NC-SA-4.0", "44 languages"),
        "one sentence; not for commercial use; .bin weights only",
    ),
    Recommended("summarization", *_QWEN, "follows instructions; wants a GPU"),
    Recommended(
        *(_QUESTIONS, "distilbert/distilbert-base-cased-distilled-squad", "65M", 261, "Apache-2.0", "English"),
        "the default; marks answers in the text",
    ),
    Recommended(_QUESTIONS, *_STARTER_ROW, _STARTER_NOTE),
    Recommended(
        *(_QUESTIONS, "deepset/roberta-base-squad2", "124M", 496, "CC-BY-4.0", "English"),
        "better, and can say that there is no answer",
    ),
    Recommended(
        *(_QUESTIONS, "luhua/chinese_pretrain_mrc_roberta_wwm_ext_large", "324M", 1300, "Apache-2.0", "Chinese"),
        "marks answers in Chinese text; .bin weights only",
    ),
    Recommended(_QUESTIONS, *_QWEN, "writes its answer; wants a GPU"),
    Recommended("dialogue", *_SMOL_ROW, "the default"),
    Recommended("dialogue", *_STARTER_ROW, _STARTER_NOTE),
    Recommended("dialogue", *_QWEN_SMALL, "stronger, still runs on a CPU; thinks before it answers"),
    Recommended("dialogue", *_QWEN, "much stronger; wants a GPU"),
    Recommended(
        *("translation", "Helsinki-NLP/opus-mt-{source}-{target}", "75M", 300, "Apache-2.0 or CC-BY-4.0", "one pair"),
        "the default where there is one for the pair; mostly .bin weights",
    ),
    Recommended(
        *("translation", "Helsinki-NLP/opus-mt-ROMANCE-en", "78M", 312, "Apache-2.0", "Romance to English"),
        ".bin weights only",
    ),
    Recommended(
        *("translation", "Helsinki-NLP/opus-mt-en-ROMANCE", "78M", 312, "Apache-2.0", "English to Romance"),
        ".bin weights only",
    ),
    Recommended(
        *("translation", "Helsinki-NLP/opus-mt-mul-en", "77M", 310, "Apache-2.0", "120 languages to English"),
        ".bin weights only",
    ),
    Recommended(
        *("translation", "Helsinki-NLP/opus-mt-en-mul", "77M", 310, "Apache-2.0", "English to 120 languages"),
        ".bin weights only",
    ),
    Recommended(
        *("translation", _ANY_PAIR, "484M", 1940, "MIT", "any pair of 100 languages"),
        "the default for all other pairs; .bin weights only",
    ),
    Recommended("translation", *_STARTER_ROW, f"{_STARTER_NOTE}; knows English only"),
    Recommended(
        *("translation", "facebook/nllb-200-distilled-600M", "615M", 2460, "CC-BY-NC-4.0", "any pair of 196 languages"),
        "better; not for commercial use; .bin weights only",
    ),
)

# The two-letter codes among the members that Helsinki-NLP gives for the group.
_ROMANCE = frozenset(("fr", "wa", "oc", "ca", "rm", "es", "pt", "gl", "an", "it", "co", "sc", "ro", "la"))


def default_models(task: str, *, source: str | None = None, target: str | None = None) -> tuple[str, ...]:
    """Models for a task whose user named none, the first that exists is to be taken.

    Args:
        task: name or verb of the task.
        source: for translation, the two-letter code of the text's language.
        target: that of the language wanted.
    """
    name = find_task(task).name
    if name == "translation":
        return (*_opus_models(_two_letters(source), _two_letters(target)), _ANY_PAIR)
    return (next(row.model for row in RECOMMENDED if row.task == name),)


def _two_letters(language: str | None) -> str:
    """``pt`` of ``pt-BR`` or ``pt_BR``: regions have no models of their own."""
    return re.split("[-_]", language or "")[0].lower()


def _opus_models(source: str, target: str) -> list[str]:
    """The Marian models for a pair, the most special first. From no other language to another is there a group."""
    if not source or not target or source == target:
        return []
    pairs = [f"{source}-{target}"]
    if target == "en":
        pairs += [*(["ROMANCE-en"] if source in _ROMANCE else []), "mul-en"]
    elif source == "en":
        pairs += [*(["en-ROMANCE"] if target in _ROMANCE else []), "en-mul"]
    return [f"Helsinki-NLP/opus-mt-{pair}" for pair in pairs]
