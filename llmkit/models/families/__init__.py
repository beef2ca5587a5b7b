"""All that is known of families of models by name, one entry a model type.

An entry is a fallback: it holds what no file of a checkpoint, no class or source of Transformers (`upstream`) and no
trial with the model tells. Model types and tokenizer classes are named in this package only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmkit.models.families import translators
from llmkit.text.languages import LanguageMap

__all__ = ["FAMILIES", "FRAMED", "OTHER_INPUTS", "Family", "family"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is known of a model type. The defaults are those of every type without an entry."""

    languages: Callable[[str, Mapping[str, Any], Any], LanguageMap | None] = lambda *_: None
    """From name, config.json and tokenizer to how a translation model gets its languages: each family has codes and
    a place for them of its own (`translators`)."""
    only_translates: bool = False
    """It writes any text in another language, whatever the prompt says. Architectures are named alike either way."""
    forces_language: bool = False
    """``generate`` needs the output language as the first token, which config.json does not declare."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """By task, what it was trained with, for checkpoints without task_specific_params and prefix in their config."""
    separator: str | None = None
    """Separator of the turns of a conversation, without a chat template."""
    reads_padding: bool = False
    """An encoder that mixes positions by means that no mask reaches, so that a row's answers depend on its batch. To
    try it is not possible: a short row makes BigBird's attention another one for good."""
    gguf_architecture: str = ""
    """The architecture of GGUF files that it shares with another type; general.name tells which it is."""


FAMILIES: dict[str, Family] = {
    "big_bird": Family(reads_padding=True),
    "bigbird_pegasus": Family(reads_padding=True),
    # BlenderbotTokenizer._build_conversation_input_ids of Transformers 4
    "blenderbot": Family(separator="  "),
    "blenderbot-small": Family(separator="  "),
    "convbert": Family(reads_padding=True),
    "fnet": Family(reads_padding=True),
    "fsmt": Family(languages=translators.fsmt, only_translates=True),
    "funnel": Family(reads_padding=True),
    "m2m_100": Family(languages=translators.m2m100, only_translates=True, forces_language=True),
    "marian": Family(languages=translators.marian, only_translates=True),
    "mbart": Family(languages=translators.mbart, forces_language=True),
    "mt5": Family(languages=translators.madlad),
    "nllb-moe": Family(languages=translators.m2m100, only_translates=True, forces_language=True),
    "nystromformer": Family(reads_padding=True),
    "seamless_m4t": Family(languages=translators.seamless, only_translates=True, forces_language=True),
    "seamless_m4t_v2": Family(languages=translators.seamless, only_translates=True, forces_language=True),
    # Raffel et al. 2020, appendix D
    "t5": Family(languages=translators.t5, prefixes={"summarization": "summarize: "}),
    "umt5": Family(languages=translators.madlad, gguf_architecture="t5"),
    "yoso": Family(reads_padding=True),
}


def family(model_type: object) -> Family:
    """What is known of the ``model_type`` of a config."""
    return FAMILIES.get(str(model_type), _UNKNOWN)


_UNKNOWN = Family()

FRAMED = {
    "CodeLlamaTokenizer": True,
    "CohereTokenizer": True,
    "GemmaTokenizer": True,
    "GPTNeoXTokenizer": False,
    "LlamaTokenizer": True,
}
"""The tokenizer classes that let ``add_bos_token`` and ``add_eos_token`` decide in version 4, whatever tokenizer.json
said, and the default of the first. Version 5, whose own files need none of it, has no trace of which they were."""

OTHER_INPUTS = {
    "audio_encoder": "codes of sound",  # MusicGen
    "backbone_hidden_size": "hidden states of the model that it drafts for",  # Gemma 4 assistants
    "coordinate_size": "words with their boxes on a page",  # LayoutLM 2 and 3
    "default_num_delay_tokens": "sound",  # Voxtral Realtime
    "image_text_hidden_size": "images",  # BLIP, BLIP-2
    "max_state_dim": "images and the state of a robot",  # PI0
    "num_query_tokens": "images",  # BLIP-2, InstructBLIP
    "visual_feat_dim": "features of images",  # LXMERT
    "xpath_unit_hidden_size": "the nodes of web pages",  # MarkupLM
}
"""Settings in config.json of models that cannot do without another input → what that is: their classes take it as an
optional argument, as others do that can."""
