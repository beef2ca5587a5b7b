"""The languages that a model translates, and which of them a user means.

Knows languages, their varieties and scripts, not how they are passed to a model (`llmkit.models.families.translators`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmkit.errors import UsageError
from llmkit.log import log
from llmkit.text.languages import Language, Route

__all__ = ["ModelLanguages", "apply_source", "choose", "nearest"]

# The limit langcodes itself sets for a good match; beyond it, a speaker of one does not read the other.
_NEAR = 25
_RELATED = 80  # from here on langcodes knows of no relation


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
            code="language_missing",
        )
    before, tokenizer.src_lang = tokenizer.src_lang, code
    try:
        yield
    finally:
        tokenizer.src_lang = before


@dataclass(frozen=True)
class ModelLanguages:
    """The languages of one model; ``write`` puts two of them into its own terms."""

    name: str
    sources: frozenset[Language] | None
    targets: frozenset[Language] | None
    write: Callable[[Language | None, Language], Route]
    asks_source: bool = False
    """The model needs the source language as well as the target language."""
    tokens: Mapping[Language, str] = field(default_factory=dict)
    """The tokens of the vocabulary by which the model is told its languages."""
    spell: Callable[[Language, str], str] | None = None
    """The token of a language that the vocabulary lacks, from the language and the code that the user writes; None for
    a model to which languages are passed in another way."""
    logged: set[Language] = field(default_factory=set, compare=False, repr=False)
    """Languages whose choice was logged, so that each is logged once."""
    logged_regions: set[Language] = field(default_factory=set, compare=False, repr=False)

    def route(self, source: Language | None, target: Language | None) -> Route:
        """See `LanguageMap.route`."""
        if target is None:
            target = self._only(self.targets)
        if target is None:
            known = f"(targets: {_list(self.targets)})" if self.targets else "(such as `target=fr`)"
            raise UsageError(
                "the language to translate into is missing",
                f"name the target language with `target` {known}",
                code="language_missing",
            )
        source = source or self._only(self.sources)
        if source is None and self.asks_source:
            raise UsageError(
                f"{self.name} needs the language of the text", "name it with `source`", code="language_missing"
            )
        known_source = source and self._known(source, self.sources, "from")
        known_target = self._known(target, self.targets, "to")
        if source is not None and (source == target or known_source == known_target):
            same = source.name if source == target else f"{source} and {target}, which are one language to {self.name},"
            raise UsageError(
                f"the text and its translation would both be in {same}",
                "name another language with `target` or `source`",
                code="no_effect",
            )
        return self.write(known_source, known_target)

    @staticmethod
    def _only(languages: frozenset[Language] | None) -> Language | None:
        return next(iter(languages)) if languages is not None and len(languages) == 1 else None

    def _known(self, wanted: Language, known: frozenset[Language] | None, side: str) -> Language:
        """The model's language for a requested one."""
        if known is None:
            return wanted
        found = choose(wanted, known, exact=side == "to")
        if found is not None:
            self._log_choice(wanted, found, known)
            if side == "to":
                self._log_region(wanted, found)
            return found
        near = nearest(wanted, known)
        what, option = ("into", "`target`") if side == "to" else ("from", "`source`")
        hint = f"nearest it knows: {', '.join(map(str, near))}" if near else f"it knows {_list(known)}"
        raise UsageError(
            f"{self.name} does not translate {what} {wanted}",
            f"{hint}; name one with {option}, or choose another model",
            code="language_not_supported",
        )

    def _log_region(self, wanted: Language, found: Language) -> None:
        if wanted.region is not None and found.region is None and wanted not in self.logged_regions:
            self.logged_regions.add(wanted)
            log.info("%s is taken as %s: %s knows no regions of it", wanted, found, self.name)

    def _log_choice(self, wanted: Language, found: Language, known: frozenset[Language]) -> None:
        """Log once which variety a name was resolved to, if the model has others with the same name."""
        if wanted in self.logged:
            return
        self.logged.add(wanted)
        others = _others(wanted, found, known)
        if not others:
            return
        named = [f"{other.tag} for {other.name}" for other in others[:3]]
        more = f" ({len(others) - 3} more)" if len(others) > 3 else ""
        taken = found.name_with_script if any(other.alpha2 == found.alpha2 for other in others) else found.name
        log.info("%s is taken as %s (%s); name %s%s", wanted.requested_name, taken, found.tag, " or ".join(named), more)


def _others(wanted: Language, found: Language, known: Iterable[Language]) -> list[Language]:
    """Other known languages that share the requested name: other scripts, regions and varieties."""
    from langcodes.data_dicts import MACROLANGUAGES

    base, *more = wanted.requested.split("-")
    if not base or more:  # it was not a name or a plain code
        return []
    others = []
    for language in known:
        if language.alpha2 == found.alpha2:
            # "Mandarin" leaves the script open; "Iranian Persian" excludes Dari.
            other = language.script != found.script or base == found.alpha2
        else:
            # By name as well: to ISO 639, Indonesian is a Malay and Latgalian a Latvian.
            other = MACROLANGUAGES.get(language.alpha2) == base and wanted.requested_name in language.name
        if other and language != found:
            others.append(language)
    return sorted(others, key=lambda language: (len(language.tag), language.tag))


def choose(wanted: Language, known: Iterable[Language], *, exact: bool) -> Language | None:
    """The known language that best matches the wanted one.

    Args:
        wanted: the requested language. Its region matters only if several are known.
        known: the languages of the model.
        exact: for output, where a language that its readers would merely understand is not enough.
    """
    known = sorted(known, key=lambda language: (len(language.tag), language.tag))
    if (requested := Language(wanted.requested)) in known:  # the model's own name for just this: no beside nb
        return requested
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


def nearest(wanted: Language, known: Iterable[Language]) -> list[Language]:
    """Up to three known languages that are related to the wanted one."""
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
