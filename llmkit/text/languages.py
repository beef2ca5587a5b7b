"""Languages: their names and tags, and how a source and target language are passed to a translation model.

Built on the tables of `langcodes`, which is imported when first needed. Independent of texts
(`llmkit.text.detection`) and of models: which languages a model supports, and by which codes, is in
`llmkit.models.families`.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import re
import string
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from llmkit.errors import UsageError

if TYPE_CHECKING:
    import langcodes

__all__ = [
    "Language",
    "LanguageMap",
    "Route",
    "find_language",
    "known_language",
    "language_from_code",
    "two_letter_languages",
]


@dataclass(frozen=True)
class Language:
    """A written language, by its canonical BCP 47 tag: ``en``, ``zh``, ``zh-Hant``, ``pt-BR``, ``yue``.

    The tag contains the script only if it is not the usual one. Create instances with `find_language`.
    """

    tag: str
    requested: str = field(default="", compare=False, repr=False)
    """The requested tag that `find_language` resolved to this language: ``no`` for ``nb``, ``zh-Hans`` for ``zh``."""

    def __str__(self) -> str:
        return f"{self.name} ({self.tag})"

    @property
    def name(self) -> str:
        """The English name, as in ``Chinese (Traditional)``; `find_language` accepts it."""
        return self._parsed.display_name("en")

    def name_in(self, tag: str) -> str:
        """The name in a language."""
        return self._parsed.display_name(tag)

    @property
    def requested_name(self) -> str:
        """The English name of the requested language, as in ``Norwegian`` for Norwegian Bokmål."""
        return _parse(self.requested or self.tag).display_name("en")

    @property
    def name_with_script(self) -> str:
        """The English name with the script, as in ``Chinese (Simplified)``; `name` omits a usual script."""
        return _parse(f"{self.alpha2}-{self.script}").display_name("en")

    @property
    def alpha2(self) -> str:
        """ISO 639-1, or ISO 639-3 for a language that has no two-letter code."""
        return self.tag.split("-")[0]

    @property
    def alpha3(self) -> str:
        """ISO 639-3."""
        return self._parsed.to_alpha3()

    @property
    def script(self) -> str:
        """ISO 15924, as in ``Latn``."""
        return self._parsed.script or _usual_script(self.alpha2)

    @property
    def without_region(self) -> Language:
        """The same language without its region, for models that do not distinguish regions."""
        parsed = self._parsed
        return Language("-".join(part for part in (parsed.language, parsed.script) if part))

    @property
    def region(self) -> str | None:
        """ISO 3166, unless it is the usual region of the language: None for ``pt-BR``."""
        territory, usual = self._parsed.territory, _parse(self.without_region.tag).maximize().territory
        return territory if territory != usual else None

    @property
    def _parsed(self) -> langcodes.Language:
        return _parse(self.tag)


# Source and target language of a model.


@dataclass(frozen=True)
class Route:
    """How the languages of one translation are passed to one model."""

    source: Language | None
    """None: not specified, and the model does not need it."""
    target: Language | None
    prefix: str = ""
    """Text to put before the input."""
    source_code: str | None = None
    """The tokenizer's ``src_lang``."""
    forced_bos_token_id: int | None = None
    decoder_start_token_id: int | None = None


class LanguageMap(Protocol):
    """The languages that one model translates between."""

    @property
    def sources(self) -> frozenset[Language] | None:
        """None: unknown, so that any language is tried."""

    @property
    def targets(self) -> frozenset[Language] | None:
        """None: unknown, so that any language is tried."""

    def route(self, source: Language | None, target: Language | None) -> Route:
        """How the languages are passed to the model. None means its only source or target.

        Raises:
            UsageError: a required language is missing or not supported by the model, or both are the same.
        """


# By name and by code.

# Codes that do not name a language: undetermined, no linguistic content, multiple, uncoded.
_NO_LANGUAGE = frozenset(("und", "zxx", "mul", "mis"))
# ISO 639 groups that models and corpora use for one language, written in its standard form.
_SPOKEN_GROUPS = {"ber": "zgh"}
# Names that the tables lack, or assign to a little-known language.
_NAMES = {
    "bahasa melayu": "ms",
    "berber": "ber",
    "malti": "mt",
    "ns": "nso",  # M2M100's code
    **dict.fromkeys(("汉语", "漢語", "国语", "國語"), "zh"),
    "正體中文": "zh-Hant",
    "廣東話": "yue",
}
# Tags that mean the same written language to every model. "Norwegian" is written in Bokmål unless Nynorsk is named;
# Filipino is the standard form of Tagalog, and only the latter has a two-letter code.
_SAME = {"no": "nb", "fil": "tl"}
_SAME_SCRIPT = {"Hang": "Kore", "Hani": "Hans", "Aran": "Arab"}


_NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]|.{100}")
"""Input that cannot be a name, and that the tables cannot look up, or only slowly."""


def find_language(name: str) -> Language:
    """Find a language by its English or native name, its ISO 639 code, or a tag with script and region.

    Codes take precedence over names: ``mon`` is Mongolian. A region is kept if specified (``pt-BR``), and a script if
    it is not the usual one of the language: ``zh_CN`` and ``zho_Hans`` are ``zh``, ``zh-TW`` is ``zh-Hant``.

    A name with several varieties means the most widely written one; models that support several report which is used:

    - Chinese, Mandarin: ``zh``, simplified. Traditional is ``zh-Hant``; Cantonese, Wu and Min Nan have their own codes.
    - Norwegian: ``nb``, Bokmål, unless the model has a code for ``no``. Nynorsk is ``nn``.
    - Serbian: ``sr``, Cyrillic; Latin is ``sr-Latn``. Serbo-Croatian is ``sh``, and none of its members.
    - Arabic: ``ar``, the standard one. Persian: ``fa``; Dari is ``fa-AF``.
    - Kurdish: ``ku``, Kurmanji; Sorani is ``ckb``.
    - Azerbaijani: ``az``, northern, Latin; South Azerbaijani is ``azb``.
    - Uzbek: ``uz``, Latin. Mongolian: ``mn``, Cyrillic.
    - Punjabi: ``pa``, Gurmukhi. Malay: ``ms``, Latin. Filipino is ``tl``. Portuguese: ``pt``, of no region.

    Raises:
        UsageError: no such language; the message names the nearest.
    """
    if found := known_language(name):
        return found
    wanted = " ".join(name.split())
    close = [] if _NO_NAME.search(wanted) else _nearest_names(wanted)
    guess = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    raise UsageError(
        f"unknown language {name!r}", f"{guess}give an English name or an ISO 639 code", code="unknown_language"
    )


@functools.lru_cache(4096)  # rows of data repeat them
def known_language(name: str) -> Language | None:
    """The language that `find_language` finds; None instead of an error, whose suggestions take long."""
    wanted = " ".join(name.split())
    for code in () if _NO_NAME.search(wanted) else (wanted, _code_of(wanted), _code_of(re.sub("[-_]", " ", wanted))):
        found = language_from_code(code) if code else None
        if code and found is not None:
            return replace(found, requested=own_tag(code))
    return None


def language_from_code(code: str) -> Language | None:
    """The language of an ISO 639 code or a BCP 47 tag with any separator; None for anything else, groups included."""
    if not re.fullmatch(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*", code):
        return None
    try:
        tag = _parse(code)
    except ValueError:
        return None
    base = tag.language
    if base is None or not tag.is_valid() or base in _NO_LANGUAGE:
        return None
    # Collections (Slavic languages) have codes too, but no written form.
    if re.search(r"(?i)\blanguages$|\bcreoles\b|\(family\)$", _parse(base).display_name("en")):
        return _canonical(tag) if base in _SPOKEN_GROUPS else None
    return _canonical(tag)


def two_letter_languages() -> Iterator[Language]:
    """The languages with a two-letter code, which are the common ones."""
    for code in map("".join, itertools.product(string.ascii_lowercase, repeat=2)):
        found = language_from_code(code)
        if found is not None and found.tag.partition("-")[0] == code:
            yield found


def own_tag(code: str) -> str:
    """A code as a BCP 47 tag, without the merging done by `language_from_code`: ``cmn-Hans``, ``swh``, ``no``."""
    return _parse(code).to_tag()


@functools.lru_cache(4096)
def _parse(tag: str) -> langcodes.Language:
    import langcodes

    # Normalization would turn tl into fil, and Serbo-Croatian into Serbian.
    base = re.split("[-_]", tag.lower())[0]
    if own := {"tl": "tl", "fil": "tl", "tgl": "tl", "sh": "sh", "hbs": "sh"}.get(base):
        return langcodes.Language.get(own + tag[len(base) :], normalize=False)
    return langcodes.Language.get(tag)


def _canonical(tag: langcodes.Language) -> Language:
    import langcodes

    base = str(tag.language)
    # An individual language that represents a macrolanguage (cmn for zh, arb for ar) becomes the macrolanguage, unless
    # it has a two-letter code and so is a written language of its own.
    if len(base) == 3:
        base = str(langcodes.Language.get(base).prefer_macrolanguage().language)
    base = _SAME.get(base, base)
    region = None if tag.territory in (None, "001", "XX", "ZZ") else tag.territory
    script = tag.script
    if script is None and region is not None:
        script = langcodes.Language.make(language=base, territory=region).maximize().script
    script = _SAME_SCRIPT.get(str(script), script)
    usual = _usual_script(base)
    if script == usual:
        script = None
    # Where a region implies a script (zh-TW, az-IR), the tag keeps the script only.
    if base == "zh" or (script is not None and tag.script is None):
        region = None
    return Language("-".join(part for part in (base, script, region) if part))


@functools.cache
def _usual_script(base: str) -> str:
    import langcodes
    from langcodes.data_dicts import MACROLANGUAGES

    likely = langcodes.Language.make(language=_SPOKEN_GROUPS.get(base, base)).maximize()
    # For unknown languages the tables return English as written in the United States.
    if likely.territory == "US" and base in MACROLANGUAGES:
        likely = langcodes.Language.make(language=MACROLANGUAGES[base]).maximize()
    return _SAME_SCRIPT.get(str(likely.script), str(likely.script))


@functools.cache
def _names(kind: str, language: str) -> Any:
    """The table of names of one kind (language, script, territory) in one language; ``und``: in all languages."""
    from language_data.names import load_trie  # type: ignore[import-untyped]
    from language_data.util import data_filename  # type: ignore[import-untyped]

    return load_trie(data_filename(f"trie/{language}/name_to_{kind}.marisa"))


def _look_up(name: str, kind: str = "language", tables: Collection[str] = ("en", "und")) -> str | None:
    """Look up a name exactly; the look-up of `langcodes` accepts any name by its longest known prefix."""
    from language_data.names import get_trie_value, normalize_name

    key = normalize_name(name)
    # English first: Fala is a language, and also the name for French in another language.
    for table in (_names(kind, language) for language in tables):
        if key in table:
            return str(get_trie_value(table, key))
    return None


def _code_of(name: str) -> str | None:
    """The code of a language name, with an optional script or region: ``Serbian (Latin)``, ``Chinese Simplified``."""
    if _is_country(name):  # cz, ua: also names of languages, but hardly meant as such
        return None
    code = _NAMES.get(name.casefold()) or _look_up(name)
    if code is not None:
        return code
    within = re.fullmatch(r"(.+?) ?[(\uff08](.+)[)\uff09]", name) or re.fullmatch("(.+?),? ([^ ]+)", name)
    base = _look_up(within[1]) if within else None
    if within is None or base is None:
        return None
    parts = [_part(part) for part in re.split("[,\uff0c] ?", within[2])]
    return "-".join([base, *map(str, parts)]) if all(parts) else None


def _is_country(name: str) -> bool:
    import langcodes

    return re.fullmatch("[A-Za-z]{2}", name) is not None and langcodes.Language.make(territory=name.upper()).is_valid()


def _part(name: str) -> str | None:
    # In English first: in other languages "Mongolia" is a name of the Mongolian script.
    for tables in ("en",), ("und",):
        for kind in ("script", "territory"):
            if found := _look_up(name, kind, tables):
                return found
    return None


def _nearest_names(name: str) -> list[str]:
    import langcodes

    if _is_country(name):
        spoken = language_from_code(str(langcodes.Language.make(territory=name.upper()).maximize().language))
        return [spoken.name] if spoken else []
    table = _names("language", "en")
    close = difflib.get_close_matches(name.casefold(), table.keys(), n=6, cutoff=0.75)
    codes = [code for code in map(_look_up, close) if code]
    found = [language for language in map(language_from_code, codes) if language is not None]
    # Languages with a two-letter code are the more likely ones.
    found.sort(key=lambda language: len(language.alpha2))
    if found and len(found[0].alpha2) == 2:
        found = [language for language in found if len(language.alpha2) == 2]
    return list(dict.fromkeys(language.name for language in found))[:2]
