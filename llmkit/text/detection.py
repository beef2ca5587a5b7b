"""Language detection by script and the classifier of `py3langid`, which is imported when first needed."""

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
    """The detected language of a text and its probability, from 0 to 1."""

    language: Language
    probability: float


# Possessive quantifiers keep the matching time linear in the length of the text.
_IGNORED = re.compile(
    r"```.*?```|`[^`\n]*`|(?:https?://|www\.)\S+|(?<![^\s@])[^\s@]++@[^\s@.]++(?:\.[^\s@.]++)+|\d+", re.DOTALL
)
_MAX_CHARACTERS = 20_000  # more text does not make the result more certain
_SHARED = frozenset(("Latn", "Cyrl", "Arab"))  # languages with several scripts mostly use two of these


def detect_language(text: str, among: Collection[Language] | None = None) -> Detected:
    """Detect the language of a text, ignoring addresses, code in backticks and digits.

    Args:
        text: a few words are enough for most languages; with less the result is a guess, with a low probability.
        among: the candidate languages. By default all languages with a two-letter code that the classifier supports,
            about a hundred.

    Raises:
        UsageError: the text has no letters, or none of ``among`` can be detected.
    """
    read = _IGNORED.sub(" ", text[:_MAX_CHARACTERS])
    scripts = _count_scripts(read)
    shown = text.strip()[:40]
    if not scripts:
        raise UsageError(
            f"the language of {shown!r} cannot be detected", "name it with `source`", code="language_missing"
        )
    script = scripts.most_common(1)[0][0]
    labels = _labels(among)
    if script not in _SHARED:
        fitting = {label: language for label, language in labels.items() if language.script == script}
        # The classifier mostly confuses written Cantonese and Wu with standard Chinese, so they are not distinguished.
        chinese = {label: language for label, language in fitting.items() if language.alpha2 == "zh"}
        labels = chinese or fitting or labels
    if not labels:
        raise UsageError(
            f"none of the candidate languages can be detected in {shown!r}",
            "name it with `source`",
            code="language_missing",
        )
    label, probability = _classify(read, labels)
    return Detected(_variety(labels[label], among, read, script), probability)


def _count_scripts(text: str) -> Counter[str]:
    counts = count_scripts(filter(str.isalpha, text))
    for script in ("Hans", "Jpan", "Kore"):
        # One of these characters is a syllable or a word, so a few foreign words must not outweigh them.
        counts[script] *= 3
    # Japanese uses both kana and Han characters; Chinese text may quote a kana or two.
    if counts["Jpan"] * 20 > counts["Hans"]:
        counts["Jpan"] += counts.pop("Hans", 0)
    return +counts


def _labels(among: Collection[Language] | None) -> dict[str, Language]:
    """The candidate labels of the classifier, and the language of each."""
    if among is None:
        return {label: language for label, language in _known_labels().items() if len(label) == 2}
    wanted = {language.alpha2 for language in among}
    return {label: language for label, language in _known_labels().items() if language.alpha2 in wanted}


@functools.cache
def _known_labels() -> dict[str, Language]:
    return {label: language for label in _classifier().labels if (language := language_from_code(label))}


@functools.cache
def _classifier() -> Any:
    """The model, loaded once and never modified: an instance of our own, not the one that py3langid shares."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _classify(text: str, labels: Collection[str]) -> tuple[str, float]:
    ranked = [(str(label), float(probability)) for label, probability in _classifier().rank(text) if label in labels]
    total = sum(probability for _, probability in ranked)
    if total == 0.0:  # in a long text another language can leave the candidates a probability of zero
        narrowed = copy.copy(_classifier())
        narrowed.set_languages(list(labels))
        ranked, total = narrowed.rank(text), 1.0
    label, probability = ranked[0]
    return label, probability / total


def _variety(language: Language, among: Collection[Language] | None, text: str, script: str) -> Language:
    """The best match in ``among``: the script of the text first, then preferably a tag without a region."""
    if among is None:
        return language
    if script == "Hans" and _is_traditional(text):
        script = "Hant"
    members = [member for member in among if member.alpha2 == language.alpha2]
    return min(members, key=lambda member: (member.script != script, len(member.tag), member.tag))


def _is_traditional(text: str) -> bool:
    """Whether Taiwan's character set (Big5) covers more of the text than the mainland's (GB 2312)."""
    return _encodable(text, "big5") > _encodable(text, "gb2312")


def _encodable(text: str, encoding: str) -> int:
    return sum(1 for character in text if character.encode(encoding, "ignore"))
