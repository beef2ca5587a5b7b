"""Which model types Transformers can build for which head, read from its source without importing it.

Importing any Auto class loads torch (2 s); parsing the file that holds the tables takes 0.03 s. Knows the
names of classes, not the classes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llmkit.errors import MissingDependencyError
from llmkit.tasks import Head

__all__ = [
    "HEADS",
    "HeadFacts",
    "auto_class",
    "class_names",
    "config_class",
    "decoder_class",
    "encoder_decoder_class",
    "is_native",
    "masked_lm_types",
    "model_types",
    "module_name",
    "multimodal_class",
    "package",
    "writes",
]


@dataclass(frozen=True, kw_only=True)
class HeadFacts:
    """What is known of a head without a model. What it does with one is in `llmkit.heads`."""

    auto_class: str
    mapping: str
    """The table of Transformers that lists its classes."""
    architecture: str
    """The names of classes that have this head: a regular expression."""
    description: str
    task_type: str
    """PEFT's name."""
    writes: bool = True
    """It generates text; False: it extracts answers from one."""
    one_sequence: bool = False
    """Prompt and output are one sequence, in one context."""


HEADS: dict[Head, HeadFacts] = {
    Head.SEQ2SEQ: HeadFacts(
        auto_class="AutoModelForSeq2SeqLM",
        mapping="MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        architecture="(?!)",  # the names say too little: ForConditionalGeneration, MTModel
        description="an encoder-decoder (seq2seq head)",
        task_type="SEQ_2_SEQ_LM",
    ),
    Head.CAUSAL: HeadFacts(
        auto_class="AutoModelForCausalLM",
        mapping="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        architecture="(ForCausalLM|LMHeadModel|LMHead)$",
        description="a decoder (causal head)",
        task_type="CAUSAL_LM",
        one_sequence=True,
    ),
    Head.SPAN: HeadFacts(
        auto_class="AutoModelForQuestionAnswering",
        mapping="MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        architecture="ForQuestionAnswering",  # XLM and Flaubert call it ForQuestionAnsweringSimple
        description="an encoder that extracts answers from a text (span head)",
        task_type="QUESTION_ANS",
        writes=False,
    ),
}
"""In the order in which a type that several heads fit gets one, where no architecture decides."""
_MASKED_LM = "MODEL_FOR_MASKED_LM_MAPPING_NAMES"
_CONFIGS = "CONFIG_MAPPING_NAMES"
_MODULES = "SPECIAL_MODEL_TYPE_TO_MODULE_NAME"
_MULTIMODAL = ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES")
"""The second holds the first, beside types of its own."""


@cache
def package() -> Path:
    """The folder of Transformers."""
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError("transformers is not installed", "run: pip install transformers")
    return Path(spec.submodule_search_locations[0])


@cache
def _mappings() -> dict[str, dict[str, str]]:
    """Each ``…_MAPPING_NAMES`` table of `modeling_auto`: model type → class name (the first, if several)."""
    folder = package() / "models" / "auto"
    tables: dict[str, dict[str, str]] = {}
    sources = [(folder / name).read_text(encoding="utf-8") for name in ("modeling_auto.py", "auto_mappings.py")]
    for node in (node for source in sources for node in ast.parse(source).body):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(args=[ast.List() as pairs])):
                if name in (*(each.mapping for each in HEADS.values()), _MASKED_LM, *_MULTIMODAL, _CONFIGS, _MODULES):
                    own = (ast.literal_eval(pair) for pair in pairs.elts if not isinstance(pair, ast.Starred))
                    entries = dict(own)
                    tables[name] = {k: v if isinstance(v, str) else v[0] for k, v in entries.items()}
    return tables


def class_names(head: Head) -> dict[str, str]:
    """Model type → class name, for every type that Transformers can build with this head."""
    return _mappings()[HEADS[head].mapping]


def decoder_class(model_type: str) -> str | None:
    """The causal class of a type."""
    return class_names(Head.CAUSAL).get(model_type)


def encoder_decoder_class(model_type: str) -> str | None:
    """The seq2seq class of a type."""
    return class_names(Head.SEQ2SEQ).get(model_type)


def writes(head: Head | None) -> bool:
    """Whether a model with this head generates text; no head at all does not."""
    return head is not None and HEADS[head].writes


def masked_lm_types() -> frozenset[str]:
    """Model types that have a masked-LM class: the encoders, and a few encoder-decoders."""
    return frozenset(_mappings()[_MASKED_LM])


def config_class(model_type: str) -> str:
    """The config class of a type, be it only a part of another; empty for one that Transformers does not know."""
    return _mappings()[_CONFIGS].get(model_type, "")


def model_types() -> Iterable[str]:
    """Every type that Transformers knows, parts of others among them."""
    return _mappings()[_CONFIGS]


def module_name(model_type: str) -> str:
    """The folder of a type among Transformers' models."""
    return _mappings()[_MODULES].get(model_type, model_type.replace("-", "_"))


def multimodal_class(model_type: str) -> str | None:
    """The class of a decoder that also reads images or sound, where Transformers does not list it as causal."""
    tables = [_mappings()[name] for name in _MULTIMODAL]
    listed = (table[model_type] for table in tables if model_type in table)
    return encoder_decoder_class(model_type) or next(listed, None)


def is_native(model_type: str, head: Head) -> bool:
    """Whether Transformers can build the type with this head, without code that comes with a checkpoint."""
    return model_type in class_names(head) or (HEADS[head].one_sequence and multimodal_class(model_type) is not None)


def auto_class(model_type: str, head: Head, model_class: str) -> str:
    """What loads a model class: an Auto class that lists the type, else the class itself."""
    for each in (head, *HEADS):
        if class_names(each).get(model_type) == model_class:
            return HEADS[each].auto_class
    listed = any(_mappings()[name].get(model_type) == model_class for name in _MULTIMODAL)
    return "AutoModelForMultimodalLM" if listed else model_class
