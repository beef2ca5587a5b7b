"""Which language a text is in, by its letters and the classifier of `py3langid`, imported when first needed."""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from llmkit.errors import UsageError
from llmkit.text.languages import Language, language_from_code
from llmkit.text.scripts import count_scripts

__all__ = ["Detected", "detect_language"]


@dataclass(frozen=True)
class Detected:
    """The language a text seems to be in, and how sure that is, from 0 to 1."""

    language: Language
    probability: float


# In possessive steps from the start of a word, so that the time is linear in the text.
_UNREAD = re.compile(
    r"```.*?```|`[^`\n]*`|(?:https?://|www\.)\S+|(?<![^\s@])[^\s@]++@[^\s@.]++(?:\.[^\s@.]++)+|\d+", re.DOTALL
)
_ENOUGH = 20_000  # characters; more text does not make it surer
_SHARED = frozenset(("Latn", "Cyrl", "Arab"))  # most languages that change scripts change between these


def detect_language(text: str, among: Collection[Language] | None = None) -> Detected:
    """The language of a text, and how sure that is; addresses, code in backticks and digits are not read.

    Args:
        text: a few words will do for most languages; less is a guess, and the probability says so.
        among: the only languages to choose from. Without it, all that have a two-letter code and that the classifier
            knows, about a hundred.

    Raises:
        UsageError: nothing in the text tells its language, or it can be none of ``among``.
    """
    read = _UNREAD.sub(" ", text[:_ENOUGH])
    scripts = _count_scripts(read)
    shown = text.strip()[:40]
    if not scripts:
        raise UsageError(f"the language cannot be told from {shown!r}", "name it with `source`")
    script = scripts.most_common(1)[0][0]
    labels = _labels(among)
    if script not in _SHARED:
        fitting = {label: language for label, language in labels.items() if language.script == script}
        # Written Cantonese and Wu are mostly taken for what is plain Chinese, so they are never told apart from it.
        chinese = {label: language for label, language in fitting.items() if language.alpha2 == "zh"}
        labels = chinese or fitting or labels
    if not labels:
        raise UsageError(f"none of the languages to choose from can be told from {shown!r}", "name it with `source`")
    label, probability = _classify(read, labels)
    return Detected(_variety(labels[label], among, read, script), probability)


def _count_scripts(text: str) -> Counter[str]:
    counts = count_scripts(filter(str.isalpha, text))
    for script in ("Hans", "Jpan", "Kore"):
        counts[script] *= 3  # a sign of these is a syllable or a word, so a few foreign words must not outweigh them
    # Japanese is written in both; a kana or two may be quoted in Chinese.
    if counts["Jpan"] * 20 > counts["Hans"]:
        counts["Jpan"] += counts.pop("Hans", 0)
    return +counts


def _labels(among: Collection[Language] | None) -> dict[str, Language]:
    """The classifier's labels to choose from, and the language of each."""
    if among is None:
        return {label: language for label, language in _known_labels().items() if len(label) == 2}
    wanted = {language.alpha2 for language in among}
    return {label: language for label, language in _known_labels().items() if language.alpha2 in wanted}


@functools.cache
def _known_labels() -> dict[str, Language]:
    return {label: language for label in _classifier().labels if (language := language_from_code(label))}


@functools.cache
def _classifier() -> Any:
    """The model, read once and never changed; it is this module's own, not the one that py3langid shares."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _classify(text: str, labels: Collection[str]) -> tuple[str, float]:
    ranked = [(str(label), float(probability)) for label, probability in _classifier().rank(text) if label in labels]
    total = sum(probability for _, probability in ranked)
    if total == 0.0:  # a long text is so surely in another language that nothing is left for these
        narrowed = copy.copy(_classifier())
        narrowed.set_languages(list(labels))
        ranked, total = narrowed.rank(text), 1.0
    label, probability = ranked[0]
    return label, probability / total


def _variety(language: Language, among: Collection[Language] | None, text: str, script: str) -> Language:
    """The member of ``among`` that is meant: in the script of the text, without a region where there is such a one."""
    if among is None:
        return language
    if script == "Hans" and _is_traditional(text):
        script = "Hant"
    members = [member for member in among if member.alpha2 == language.alpha2]
    return min(members, key=lambda member: (member.script != script, len(member.tag), member.tag))


def _is_traditional(text: str) -> bool:
    """Whether more of its signs are only in the character set of Taiwan than only in that of the mainland."""
    return _encodable(text, "big5") > _encodable(text, "gb2312")


def _encodable(text: str, encoding: str) -> int:
    return sum(1 for sign in text if sign.encode(encoding, "ignore"))
