"""How each family of translation models is told its languages, read from its tokenizer, config and name.

Knows which field of which family holds the codes, not the codes themselves. Knows nothing of texts and prompts.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmkit.errors import UsageError
from llmkit.log import log
from llmkit.text.languages import Language, LanguageMap, Route, language_from_code, own_tag

__all__ = ["apply_source", "language_map"]

# Codes of tokenizers that mean something else in ISO 639, or nothing: Northern Sotho in M2M100, Brazilian Portuguese
# in Marian.
_OWN_CODES = {"ns": "nso", "pob": "pt-BR"}
# Helsinki's Serbo-Croatian stands for four written languages, and its Berber for a group.
_SEVERAL = frozenset(("sh", "hbs", "ber"))
# The limit langcodes itself sets for a good match; beyond it, a speaker of one does not read the other.
_NEAR = 25
_RELATED = 80  # from here on langcodes knows of no relation


def language_map(model_type: str, name: str, config: Mapping[str, Any], tokenizer: Any) -> LanguageMap | None:
    """The languages of a model, or None for one that has no way of its own to be told them.

    Args:
        model_type: from ``config.json``.
        name: as the user gave it. Marian and mBART-50 models say in their names what they say nowhere else.
        config: ``config.json``.
        tokenizer: the loaded one.
    """
    match model_type:
        case "m2m_100" | "nllb-moe":
            family = _m2m100 if hasattr(tokenizer, "get_lang_id") else _nllb
            return family(name, config, tokenizer)
        case "mbart":
            return _mbart(name, config, tokenizer)
        case "marian":
            return _marian(name, tokenizer)
        case "fsmt":
            return _fsmt(name, config)
        case "t5" | "mt5" | "umt5":
            return _madlad(name, tokenizer) or (_t5(name, config) if model_type == "t5" else None)
        case _:
            return None


@contextlib.contextmanager
def apply_source(tokenizer: Any, code: str | None) -> Iterator[None]:
    """Make the tokenizer mark its texts as written in the language of a `Route.source_code`; None changes nothing."""
    if code is None:
        yield
        return
    # The setter also rebuilds the template that puts the code beside the text.
    if not isinstance(getattr(type(tokenizer), "src_lang", None), property):
        raise UsageError(
            f"the tokenizer's class {type(tokenizer).__name__} cannot tell the model the language of the text",
            "set tokenizer_class in tokenizer_config.json to the class of the family, such as NllbTokenizer",
        )
    before, tokenizer.src_lang = tokenizer.src_lang, code
    try:
        yield
    finally:
        tokenizer.src_lang = before


# The families.


def _nllb(name: str, config: Mapping[str, Any], tokenizer: Any) -> LanguageMap | None:
    codes = _read(token for token in _in_order(tokenizer, config) if re.fullmatch("[a-z]{3}_[A-Z][a-z]{3}", token))
    return _forced(name, codes, codes, tokenizer.convert_tokens_to_ids) if codes else None


def _m2m100(name: str, config: Mapping[str, Any], tokenizer: Any) -> LanguageMap:
    for token, number in tokenizer.get_added_vocab().items():
        found = re.fullmatch("__([a-z]{2,3})__", token)
        if found and found[1] not in tokenizer.lang_code_to_id and number not in tokenizer.id_to_lang_token:
            # A language that was added: the class looks it up in tables of its own.
            tokenizer.lang_code_to_id[found[1]] = tokenizer.lang_token_to_id[token] = number
            tokenizer.lang_code_to_token[found[1]] = tokenizer.id_to_lang_token[number] = token
    codes = _read(code for code, number in tokenizer.lang_code_to_id.items() if number < _size(config))
    return _forced(name, codes, codes, tokenizer.get_lang_id)


def _mbart(name: str, config: Mapping[str, Any], tokenizer: Any) -> LanguageMap | None:
    # A piece of the vocabulary may look like a code, an added token hardly.
    listed = {*getattr(tokenizer, "lang_code_to_id", ()), *tokenizer.get_added_vocab()}
    tokens = [token for token in _in_order(tokenizer, config) if token in listed]
    # Each code names the country of the news it was trained on, ar_AR even a wrong one.
    found = _read(token for token in tokens if re.fullmatch("[a-z]{2,3}_[A-Z]{2}", token))
    if not found:
        return None
    codes = {language.without_region: code for language, code in found.items()}
    if type(tokenizer).__name__.startswith("MBart50"):
        english = {language: code for language, code in codes.items() if language.tag == "en"}
        sources = english if "one-to-many" in name else codes
        targets = english if "many-to-one" in name else codes
        return _forced(name, sources, targets, tokenizer.convert_tokens_to_ids)

    def write(source: Language | None, target: Language) -> Route:
        start = tokenizer.convert_tokens_to_ids(codes[target])
        return Route(source, target, source_code=codes[source] if source else None, decoder_start_token_id=start)

    return _Languages(name, frozenset(codes), frozenset(codes), write, asks_source=True)


def _forced(
    name: str, sources: Mapping[Language, str], targets: Mapping[Language, str], token_id: Callable[[str], int]
) -> LanguageMap:
    """A model whose translation begins with the code of its language."""

    def write(source: Language | None, target: Language) -> Route:
        code = sources[source] if source else None
        return Route(source, target, source_code=code, forced_bos_token_id=token_id(targets[target]))

    return _Languages(name, frozenset(sources), frozenset(targets), write, asks_source=True)


def _marian(name: str, tokenizer: Any) -> LanguageMap:
    sides = _pair_in(name) or (getattr(tokenizer, "source_lang", None), getattr(tokenizer, "target_lang", None))
    sources, targets = map(_members, sides)
    tokens = _read(found[1] for token in _in_order(tokenizer) if (found := re.fullmatch(">>(.+)<<", token)))
    # One target is asked for by a token too where it has several forms (cmn_Hans, cmn_Hant). Else tokens are leftovers.
    if tokens and (targets is None or any(_choose(target, tokens, exact=True) for target in targets)):
        targets = frozenset(tokens)
    else:
        tokens = {}

    def write(source: Language | None, target: Language) -> Route:
        return Route(source, target, prefix=f">>{tokens[target]}<< " if target in tokens else "")

    return _Languages(name, sources, targets, write)


def _pair_in(name: str) -> tuple[str, str] | None:
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


def _fsmt(name: str, config: Mapping[str, Any]) -> LanguageMap:
    langs = config.get("langs") or (None, None)
    source, target = (_members(code) for code in langs)
    return _Languages(name, source, target, lambda source, target: Route(source, target))


def _madlad(name: str, tokenizer: Any) -> LanguageMap | None:
    """A T5 that was taught the target as a first token, ``<2de>``.

    The others that begin so are no languages: scripts and regions (``<2Latn>``, ``<2NL>``), tasks (``<2translate>``),
    and English in simple words (``<2en_xx_simple>``).
    """
    found = (re.fullmatch("<2([a-z]{2,3}(?:_[A-Za-z]{2,4})*)>", token) for token in _in_order(tokenizer))
    codes = _read(match[1] for match in found if match)
    if len(codes) < 2:
        return None
    return _Languages(
        name, None, frozenset(codes), lambda source, target: Route(source, target, prefix=f"<2{codes[target]}> ")
    )


def _t5(name: str, config: Mapping[str, Any]) -> LanguageMap:
    prefixes: dict[tuple[Language, Language], str] = {}
    for task, params in (config.get("task_specific_params") or {}).items():
        pair = re.fullmatch("translation_([a-zA-Z]{2,3})_to_([a-zA-Z]{2,3})", task)
        source, target = (_language(pair[1]), _language(pair[2])) if pair else (None, None)
        if source and target and isinstance(params, Mapping) and params.get("prefix"):
            prefixes[source, target] = params["prefix"]

    def write(source: Language | None, target: Language) -> Route:
        if source is None:
            raise UsageError(f"{name} needs the language of the text", "name it with --from")
        if not prefixes:
            return Route(source, target, prefix=f"translate {source.name} to {target.name}: ")
        if (source, target) not in prefixes:
            pairs = ", ".join(f"{one.tag} to {other.tag}" for one, other in prefixes)
            raise UsageError(f"{name} does not translate from {source} into {target}", f"choose one of {pairs}")
        return Route(source, target, prefix=prefixes[source, target])

    if not prefixes:
        return _Languages(name, None, None, write, asks_source=True)
    sources, targets = (frozenset(side) for side in zip(*prefixes, strict=True))
    return _Languages(name, sources, targets, write, asks_source=True)


def _in_order(tokenizer: Any, config: Mapping[str, Any] | None = None) -> list[str]:
    """The tokens of the vocabulary by their ids, so that of two for the same the choice is always the same.

    With a config, those that the model has a vector for: a tokenizer's class may add the languages of its family.
    """
    vocabulary = tokenizer.get_vocab()
    size = _size(config or {})
    return sorted((token for token in vocabulary if vocabulary[token] < size), key=vocabulary.__getitem__)


def _size(config: Mapping[str, Any]) -> float:
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


# The map.


@dataclass(frozen=True)
class _Languages:
    """The languages of one model; ``write`` puts two of them into its own terms."""

    name: str
    sources: frozenset[Language] | None
    targets: frozenset[Language] | None
    write: Callable[[Language | None, Language], Route]
    asks_source: bool = False
    """The model must be told the language of the text, and not only that of the translation."""
    told: set[Language] = field(default_factory=set, compare=False, repr=False)
    """The languages whose choice was looked at, so that it is said once."""
    told_regions: set[Language] = field(default_factory=set, compare=False, repr=False)

    def route(self, source: Language | None, target: Language | None) -> Route:
        """See `LanguageMap.route`."""
        if target is None:
            target = self._only(self.targets)
        if target is None:
            known = f"(targets: {_list(self.targets)})" if self.targets else "(such as --to fr)"
            raise UsageError("the language to translate into is missing", f"name the target language with --to {known}")
        source = source or self._only(self.sources)
        if source is None and self.asks_source:
            raise UsageError(f"{self.name} needs the language of the text", "name it with --from")
        known_source = source and self._known(source, self.sources, "from")
        known_target = self._known(target, self.targets, "to")
        if source is not None and (source == target or known_source == known_target):
            same = source.name if source == target else f"{source} and {target}, which are one language to {self.name},"
            raise UsageError(
                f"the text and its translation would both be in {same}", "name another language with --to or --from"
            )
        return self.write(known_source, known_target)

    @staticmethod
    def _only(languages: frozenset[Language] | None) -> Language | None:
        return next(iter(languages)) if languages is not None and len(languages) == 1 else None

    def _known(self, wanted: Language, known: frozenset[Language] | None, side: str) -> Language:
        """The model's language that is meant."""
        if known is None:
            return wanted
        found = _choose(wanted, known, exact=side == "to")
        if found is not None:
            self._tell(wanted, found, known)
            if side == "to":
                self._tell_region(wanted, found)
            return found
        near = _nearest(wanted, known)
        what, option = ("into", "--to") if side == "to" else ("from", "--from")
        hint = f"nearest it knows: {', '.join(map(str, near))}" if near else f"it knows {_list(known)}"
        raise UsageError(
            f"{self.name} does not translate {what} {wanted}",
            f"{hint}; name one with {option}, or choose another model",
        )

    def _tell_region(self, wanted: Language, found: Language) -> None:
        if wanted.region is not None and found.region is None and wanted not in self.told_regions:
            self.told_regions.add(wanted)
            log.info("%s is taken as %s: %s knows no regions of it", wanted, found, self.name)

    def _tell(self, wanted: Language, found: Language, known: frozenset[Language]) -> None:
        """Say once which variety a name was taken for, where the model has others that go by it as well."""
        if wanted in self.told:
            return
        self.told.add(wanted)
        others = _others(wanted, found, known)
        if not others:
            return
        named = [f"{other.tag} for {other.name}" for other in others[:3]]
        more = f" ({len(others) - 3} more)" if len(others) > 3 else ""
        taken = found.name_with_script if any(other.alpha2 == found.alpha2 for other in others) else found.name
        log.info("%s is taken as %s (%s); name %s%s", wanted.asked_name, taken, found.tag, " or ".join(named), more)


def _others(wanted: Language, found: Language, known: Iterable[Language]) -> list[Language]:
    """What else of the known languages goes by the name that was asked for: other scripts, regions and varieties."""
    from langcodes.data_dicts import MACROLANGUAGES

    base, *more = wanted.asked.split("-")
    if not base or more:  # it was not a name or a plain code
        return []
    others = []
    for language in known:
        if language.alpha2 == found.alpha2:
            # Mandarin does not say its script; Iranian Persian does say that it is not Dari.
            other = language.script != found.script or base == found.alpha2
        else:
            # By name as well: to ISO 639, Indonesian is a Malay and Latgalian a Latvian.
            other = MACROLANGUAGES.get(language.alpha2) == base and wanted.asked_name in language.name
        if other and language != found:
            others.append(language)
    return sorted(others, key=lambda language: (len(language.tag), language.tag))


def _choose(wanted: Language, known: Iterable[Language], *, exact: bool) -> Language | None:
    """The one of the known languages that is meant by the wanted one.

    Args:
        wanted: what is asked for. Its region counts only where there is a choice.
        known: what there is.
        exact: the answer is what will be written, so it is not enough that it is much the same to a reader.
    """
    known = sorted(known, key=lambda language: (len(language.tag), language.tag))
    if (asked := Language(wanted.asked)) in known:  # the model's own name for just this: no beside nb
        return asked
    if wanted in known:
        return wanted
    same = [language for language in known if language.alpha2 == wanted.alpha2]
    written = [language for language in same if language.script == wanted.script]
    if written:
        return written[0]
    # A plain tag means the usual script, or the only one there is (sat is there as sat-Beng).
    if same and (wanted.without_region.tag == wanted.alpha2 or not exact):
        return same[0]
    members = [language for language in known if _whole(language) == wanted.alpha2 and language.script == wanted.script]
    if len(members) == 1:
        return members[0]
    if not exact:
        wholes = (language for language in known if language.alpha2 == _whole(wanted))
        return next((language for language in wholes if _distance(wanted, language) <= _NEAR), None)
    return None


def _whole(language: Language) -> str | None:
    """The macrolanguage of a variety that has no two-letter code of its own, as Pashto is that of Southern Pashto."""
    from langcodes.data_dicts import MACROLANGUAGES

    return MACROLANGUAGES.get(language.alpha2) if len(language.alpha2) == 3 else None


def _nearest(wanted: Language, known: Iterable[Language]) -> list[Language]:
    scored = sorted((_distance(wanted, language), language.tag, language) for language in known)
    near = [language for distance, _, language in scored if distance < _RELATED]
    return near[:3]


def _distance(wanted: Language, known: Language) -> int:
    import langcodes

    # With their scripts, since langcodes takes what it knows little of for Latin.
    return langcodes.tag_distance(f"{wanted.alpha2}-{wanted.script}", f"{known.alpha2}-{known.script}")


def _list(languages: Iterable[Language]) -> str:
    tags = sorted(language.tag for language in languages)
    return ", ".join(tags) if len(tags) <= 12 else f"{', '.join(tags[:10])} and {len(tags) - 10} more"
