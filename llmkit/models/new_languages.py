"""Languages that a translation model does not know, as new tokens of its vocabulary.

As in the fine-tuning of NLLB for another language: the embedding of the new token starts from that of a related
language. Knows tokens and ids; how a family is told its languages is in `llmkit.models.families.translators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmkit.errors import UsageError
from llmkit.models.embeddings import resize_embeddings
from llmkit.models.families import family
from llmkit.models.language_map import ModelLanguages, choose, nearest
from llmkit.models.load import Loaded
from llmkit.text.languages import Language, find_language

__all__ = ["add_languages"]

_KEY = "tokenizer.add_languages"


def add_languages(loaded: Loaded, wanted: Mapping[str, str]) -> Loaded:
    """The model with a token for each language, whose embedding is that of a related language.

    Args:
        wanted: languages that the model does not know, each with a related one that it does.

    Raises:
        UsageError: the model has no tokens for languages, or knows a new one already, or does not know a related one.
    """
    tokenizer: Any = loaded.tokenizer
    found = _new_tokens(loaded, wanted)
    tokenizer.add_special_tokens({"extra_special_tokens": list(found)}, replace_extra_special_tokens=False)
    ids = dict(zip(*map(tokenizer.convert_tokens_to_ids, (list(found), list(found.values()))), strict=True))
    _start_embeddings(loaded.model, ids)
    return replace(loaded, new_tokens=(*loaded.new_tokens, *ids))


def _start_embeddings(model: Any, ids: Mapping[int, int]) -> None:
    """Give each new token the embedding of another; a model without weights gets the room only."""
    import torch

    if max(ids) >= model.get_input_embeddings().weight.shape[0]:
        resize_embeddings(model, max(ids) + 1)
    new, old = list(ids), list(ids.values())
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            if table is not None and not table.weight.is_meta:
                table.weight[new] = table.weight[old]


def _new_tokens(loaded: Loaded, wanted: Mapping[str, str]) -> dict[str, str]:
    """The new tokens, each with the token from which its embedding starts."""
    languages = _languages(loaded)
    if languages is None or languages.spell is None:
        raise UsageError(
            f"{_KEY} has no effect on {loaded.source.name}, which has no tokens for languages",
            "leave it out: prompts name languages"
            if languages is None
            else "use a model such as NLLB, M2M100 or mBART",
            code="no_effect",
        )
    found: dict[str, str] = {}
    for code, related in wanted.items():
        language = _find(code, code)
        if language in languages.tokens:
            raise UsageError(
                f"{_KEY}: {languages.name} knows {language} already ({languages.tokens[language]})",
                "leave it out",
                code="no_effect",
            )
        found[languages.spell(language, code)] = languages.tokens[_related(languages, code, related)]
    tokenizer: Any = loaded.tokenizer
    if known := found.keys() & tokenizer.get_vocab().keys():
        raise UsageError(
            f"{_KEY}: the vocabulary of {languages.name} has {', '.join(sorted(known))} already",
            "write the language by another code",
            code="not_supported",
        )
    return found


def _languages(loaded: Loaded) -> ModelLanguages | None:
    languages = family(loaded.resolution.model_type).languages(
        loaded.source.name, loaded.model.config.to_dict(), loaded.tokenizer
    )
    return languages if isinstance(languages, ModelLanguages) else None


def _related(languages: ModelLanguages, code: str, related: str) -> Language:
    """The language of a model whose token a new one starts from."""
    wanted = _find(code, related)
    if (found := choose(wanted, languages.tokens, exact=True)) is not None:
        return found
    near = nearest(wanted, languages.tokens)
    raise UsageError(
        f"{_KEY}.{code}: {languages.name} does not know {wanted}",
        f"name a related language that it knows{', such as ' + ', '.join(map(str, near)) if near else ''}",
        code="language_not_supported",
    )


def _find(key: str, name: str) -> Language:
    try:
        return find_language(name)
    except UsageError as error:
        private = "give a language without a code a private one, from qaa to qtz, such as qaa_Latn"
        more = [private] if name == key else []
        raise error.reworded(f"{_KEY}.{key}: {error.problem}", *more) from error
