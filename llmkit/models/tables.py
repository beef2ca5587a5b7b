"""Which model types Transformers can build for which head, read from its source without importing it.

Importing any Auto class loads torch (2 s); parsing the file that holds the tables takes 0.03 s. Knows the
names of classes, not the classes.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llmkit.errors import MissingDependencyError
from llmkit.tasks import Head

__all__ = ["AUTO_CLASSES", "class_names", "masked_lm_types"]

AUTO_CLASSES: dict[Head, str] = {
    Head.CAUSAL: "AutoModelForCausalLM",
    Head.SEQ2SEQ: "AutoModelForSeq2SeqLM",
    Head.SPAN: "AutoModelForQuestionAnswering",
}

_TABLES: dict[Head, str] = {
    Head.CAUSAL: "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    Head.SEQ2SEQ: "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    Head.SPAN: "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
}
_MASKED_LM = "MODEL_FOR_MASKED_LM_MAPPING_NAMES"


@cache
def _mappings() -> dict[str, dict[str, str]]:
    """Each ``…_MAPPING_NAMES`` table of `modeling_auto`: model type → class name (the first, if several)."""
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError("transformers is not installed", "run: pip install transformers")
    source = Path(spec.submodule_search_locations[0], "models", "auto", "modeling_auto.py")
    tables: dict[str, dict[str, str]] = {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(args=[ast.List() as pairs])):
                if name in (*_TABLES.values(), _MASKED_LM):
                    entries = dict(ast.literal_eval(pairs))
                    tables[name] = {k: v if isinstance(v, str) else v[0] for k, v in entries.items()}
    return tables


def class_names(head: Head) -> dict[str, str]:
    """Model type → class name, for every type that Transformers can build with this head."""
    return _mappings()[_TABLES[head]]


def masked_lm_types() -> frozenset[str]:
    """Model types that have a masked-LM class: the encoders, and a few encoder-decoders."""
    return frozenset(_mappings()[_MASKED_LM])
