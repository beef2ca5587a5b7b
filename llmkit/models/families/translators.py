"""How languages are passed to families of translation models, found in tokenizer, config and name.

Knows which field of which family holds the codes, and not the codes themselves. Knows nothing of texts and prompts.
Each reader has the same arguments and is an entry of a `Family`:

    name: the user's name of the model. Marian and mBART-50 models declare some facts only there.
    config: ``config.json``.
    tokenizer: the loaded one.

It returns the languages, or None for a model to which they cannot be passed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llmkit.errors import UsageError
from llmkit.models.language_map import ModelLanguages, choose
from llmkit.text.languages import Language, LanguageMap, Route, language_from_code, own_tag

__all__ = ["fsmt", "m2m100", "madlad", "marian", "mbart", "pair_in", "seamless", "t5"]

Config = Mapping[str, Any]

# Codes of tokenizers that mean something else in ISO 639, or nothing: Northern Sotho in M2M100, Brazilian Portuguese
# in Marian.
_OWN_CODES = {"ns": "nso", "pob": "pt-BR"}
# Helsinki's Serbo-Croatian covers four written languages, and its Berber a group.
_SEVERAL = frozenset(("sh", "hbs", "ber"))


def m2m100(name: str, config: Config, tokenizer: Any) -> LanguageMap | None:
    """M2M100, and NLLB under the same type, by their tokenizers."""
    if not hasattr(tokenizer, "get_lang_id"):
        tokens = _in_order(tokenizer, config)
        codes = _read(token for token in tokens if re.fullmatch(_NLLB, token))
        return _forced(name, codes, codes, tokenizer.convert_tokens_to_ids, _spelled_as_nllb) if codes else None
    for token, number in tokenizer.get_added_vocab().items():
        found = re.fullmatch("__([a-z]{2,3})__", token)
        if found and found[1] not in tokenizer.lang_code_to_id and number not in tokenizer.id_to_lang_token:
            # A language that was added: the class looks it up in tables of its own.
            tokenizer.lang_code_to_id[found[1]] = tokenizer.lang_token_to_id[token] = number
            tokenizer.lang_code_to_token[found[1]] = tokenizer.id_to_lang_token[number] = token
    codes = _read(code for code, number in tokenizer.lang_code_to_id.items() if number < _size(config))

    def spell(language: Language, code: str) -> str:
        return f"__{code if re.fullmatch('[a-z]{2,3}', code) else language.alpha2}__"

    return _forced(name, codes, codes, tokenizer.get_lang_id, spell, "__{}__")


_NLLB = "[a-z]{3}_[A-Z][a-z]{3}"


def _spelled_as_nllb(language: Language, code: str) -> str:
    return code if re.fullmatch(_NLLB, code) else f"{language.alpha3}_{language.script}"


def seamless(name: str, config: Config, tokenizer: Any) -> LanguageMap | None:
    """SeamlessM4T: ``__fra__``, which its tokenizer also puts before the text."""
    found = (re.fullmatch("__([a-z]{3}(?:_[A-Z][a-z]{3})?)__", token) for token in _in_order(tokenizer, config))
    codes = _read(match[1] for match in found if match)
    if not codes:
        return None
    return _forced(
        *(name, codes, codes, lambda code: tokenizer.convert_tokens_to_ids(f"__{code}__")),
        lambda language, _: f"__{language.alpha3}__",
        "__{}__",
    )


def mbart(name: str, config: Config, tokenizer: Any) -> LanguageMap | None:
    """mBART-25 and mBART-50."""
    # A piece of the vocabulary may look like a code, an added token hardly.
    listed = {*getattr(tokenizer, "lang_code_to_id", ()), *tokenizer.get_added_vocab()}
    tokens = [token for token in _in_order(tokenizer, config) if token in listed]
    # Each code names the country of the news it was trained on, ar_AR even a wrong one.
    found = _read(token for token in tokens if re.fullmatch("[a-z]{2,3}_[A-Z]{2}", token))
    if not found:
        return None
    codes = {language.without_region: code for language, code in found.items()}
    if getattr(tokenizer, "prefix_tokens", None):  # mBART-50: the code is before the text; in mBART-25 it is behind it
        english = {language: code for language, code in codes.items() if language.tag == "en"}
        sources = english if "one-to-many" in name else codes
        targets = english if "many-to-one" in name else codes
        return _forced(name, sources, targets, tokenizer.convert_tokens_to_ids, _spelled_as_mbart)

    def write(source: Language | None, target: Language) -> Route:
        start = tokenizer.convert_tokens_to_ids(codes[target])
        return Route(source, target, source_code=codes[source] if source else None, decoder_start_token_id=start)

    languages = frozenset(codes)
    return ModelLanguages(name, languages, languages, write, asks_source=True, tokens=codes, spell=_spelled_as_mbart)


def _spelled_as_mbart(language: Language, code: str) -> str:
    return code if re.fullmatch("[a-z]{2,3}_[A-Z]{2}", code) else f"{language.alpha2}_{language.region or 'XX'}"


def _forced(
    name: str,
    sources: Mapping[Language, str],
    targets: Mapping[Language, str],
    token_id: Callable[[str], int],
    spell: Callable[[Language, str], str],
    form: str = "{}",
) -> LanguageMap:
    """A model whose translation begins with the code of its language; ``form`` is how a code becomes a token."""

    def write(source: Language | None, target: Language) -> Route:
        code = sources[source] if source else None
        return Route(source, target, source_code=code, forced_bos_token_id=token_id(targets[target]))

    tokens = {language: form.format(code) for language, code in {**sources, **targets}.items()}
    return ModelLanguages(
        name, frozenset(sources), frozenset(targets), write, asks_source=True, tokens=tokens, spell=spell
    )


def marian(name: str, _: Config, tokenizer: Any) -> LanguageMap:
    """Marian: one pair, or several targets of which a token ``>>fra<<`` before the text names one."""
    sides = pair_in(name) or (getattr(tokenizer, "source_lang", None), getattr(tokenizer, "target_lang", None))
    sources, targets = map(_members, sides)
    tokens = _read(found[1] for token in _in_order(tokenizer) if (found := re.fullmatch(">>(.+)<<", token)))
    # A single target needs a token too if it has several forms (cmn_Hans, cmn_Hant). Otherwise tokens are leftovers.
    if tokens and (targets is None or any(choose(target, tokens, exact=True) for target in targets)):
        targets = frozenset(tokens)
    else:
        tokens = {}

    def write(source: Language | None, target: Language) -> Route:
        return Route(source, target, prefix=f">>{tokens[target]}<< " if target in tokens else "")

    written = {language: f">>{code}<<" for language, code in tokens.items()}
    spell = (lambda language, _: f">>{language.alpha3}<<") if tokens else None
    return ModelLanguages(name, sources, targets, write, tokens=written, spell=spell)


def pair_in(name: str) -> tuple[str, str] | None:
    """The two sides in a name such as ``Helsinki-NLP/opus-mt-tc-big-en-pt``."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    found = re.fullmatch(
        "opus-mt-(?:tc-)?(?:bible-)?(?:big-|base-|small-|tiny-)?([A-Za-z_]+)-([A-Za-z_]+)(?:-fine.*)?", last
    )
    return (found[1], found[2]) if found else None


def _members(side: str | None) -> frozenset[Language] | None:
    """The languages of one side of a Marian model; None for a group, whose members its name does not list."""
    if not side or side in _SEVERAL or re.fullmatch("[A-Z_]+", side):
        return None
    parts = side.split("_")
    # Not a language with its region or script: eng_deu, en_el_es_fi.
    several = len(parts) > 2 or (len(parts) == 2 and len(parts[1]) == 3 and parts[1].islower())
    languages = [_language(code) for code in (parts if several else [side])]
    known = frozenset(language for language in languages if language is not None)
    return known if len(known) == len(languages) else None


def fsmt(name: str, config: Config, _: Any) -> LanguageMap:
    """FSMT: one pair."""
    langs = config.get("langs") or (None, None)
    source, target = (_members(code) for code in langs)
    return ModelLanguages(name, source, target, lambda source, target: Route(source, target))


def madlad(name: str, _: Config, tokenizer: Any) -> LanguageMap | None:
    """A T5 that was taught the target as a first token, ``<2de>``.

    The others that begin so are no languages: scripts and regions (``<2Latn>``, ``<2NL>``), tasks (``<2translate>``),
    and English in simple words (``<2en_xx_simple>``).
    """
    found = (re.fullmatch("<2([a-z]{2,3}(?:_[A-Za-z]{2,4})*)>", token) for token in _in_order(tokenizer))
    codes = _read(match[1] for match in found if match)
    if len(codes) < 2:
        return None
    return ModelLanguages(
        name,
        None,
        frozenset(codes),
        lambda source, target: Route(source, target, prefix=f"<2{codes[target]}> "),
        tokens={language: f"<2{code}>" for language, code in codes.items()},
        spell=lambda language, _: f"<2{language.tag.replace('-', '_')}>",
    )


def t5(name: str, config: Config, tokenizer: Any) -> LanguageMap:
    """T5, which was taught to translate by a prefix that names both languages, or MADLAD under its type."""
    if (taught := madlad(name, config, tokenizer)) is not None:
        return taught
    prefixes: dict[tuple[Language, Language], str] = {}
    for task, params in (config.get("task_specific_params") or {}).items():
        pair = re.fullmatch("translation_([a-zA-Z]{2,3})_to_([a-zA-Z]{2,3})", task)
        source, target = (_language(pair[1]), _language(pair[2])) if pair else (None, None)
        if source and target and isinstance(params, Mapping) and params.get("prefix"):
            prefixes[source, target] = params["prefix"]

    def write(source: Language | None, target: Language) -> Route:
        if source is None:
            raise UsageError(f"{name} needs the language of the text", "name it with `source`", code="language_missing")
        if not prefixes:
            return Route(source, target, prefix=f"translate {source.name} to {target.name}: ")
        if (source, target) not in prefixes:
            pairs = ", ".join(f"{one.tag} to {other.tag}" for one, other in prefixes)
            raise UsageError(
                f"{name} does not translate from {source} into {target}",
                f"choose one of {pairs}",
                code="language_not_supported",
            )
        return Route(source, target, prefix=prefixes[source, target])

    if not prefixes:
        return ModelLanguages(name, None, None, write, asks_source=True)
    sources, targets = (frozenset(side) for side in zip(*prefixes, strict=True))
    return ModelLanguages(name, sources, targets, write, asks_source=True)


def _in_order(tokenizer: Any, config: Config | None = None) -> list[str]:
    """The tokens of the vocabulary by their ids, so that of two for the same the choice is always the same.

    With a config, those that the model has a vector for: a tokenizer's class may add the languages of its family.
    """
    vocabulary = tokenizer.get_vocab()
    size = _size(config or {})
    return sorted((token for token in vocabulary if vocabulary[token] < size), key=vocabulary.__getitem__)


def _size(config: Config) -> float:
    size = config.get("vocab_size")
    return size if isinstance(size, int) else math.inf


def _read(codes: Iterable[str]) -> dict[Language, str]:
    """Codes by their languages.

    Of several for one language, the one spelled like it has it (nob, not nor), else the first; the others are languages
    by their own tags (no, swh, zh-TW). Not used is a code without script beside one with it (cmn and zho beside
    cmn_Hans: what they are written in is not sure), and a second spelling of the same (pt_BR after pt_br).
    """
    same: dict[Language, list[str]] = {}
    for code in codes:
        if (language := _language(code)) is not None:
            same.setdefault(language, []).append(code)
    found: dict[Language, str] = {}
    for language, spelled in same.items():
        certain = [code for code in spelled if _names_script(code)] or spelled
        first = next((code for code in certain if own_tag(code) == language.tag), certain[0])
        found[language] = first
        if len(certain) > 1:
            for code in certain:
                if code != first and own_tag(code) != own_tag(first):
                    found.setdefault(Language(own_tag(code)), code)
    return found


def _language(code: str) -> Language | None:
    return language_from_code(_OWN_CODES.get(code, code))


def _names_script(code: str) -> bool:
    return re.search("_[A-Z][a-z]{3}$", code) is not None
