"""Sentence splitting, and packing of sentences into chunks within a budget. Joined, the parts are the text again.

Knows writing systems and their sentence punctuation; the budget is in the unit of the caller's ``count``. Independent
of tokenizers, models and markup.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from math import ceil

from llmkit.log import log
from llmkit.text.graphemes import graphemes
from llmkit.text.lines import meant_breaks
from llmkit.text.scripts import SCRIPTS, count_scripts

__all__ = ["pack", "script_language", "sentences"]

_BREAK = r"(?>\r\n|[\n\r\x0b\x0c\x85\u2028\u2029])"
_PARAGRAPH = re.compile(rf"(?:{_BREAK}[^\S\n\r\x0b\x0c\x85\u2028\u2029]*+{_BREAK}|[\x0c\u2029])\s*+")
_LINE = re.compile(rf"{_BREAK}\s*+")
# ASCII punctuation ends a clause only before a space ("3,000", "10:30"); in scripts without spaces, anywhere.
_CLAUSE = re.compile(
    r"""[.!?…,;:،؛؟।॥។།]['"”’»)\]]*+\s++|\s[–—-]\s++|[—、，；：。！？][」』”’）】》]*+\s*+""",
)
_SPACE = re.compile(r"\s++")

# In characters. sentencex takes quadratic time on Chinese: minutes for 1 MB in one call, a second or two in windows.
_WINDOW = 2048
_ODD = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]|[^\S\n]|[\0\ud800-\udfff]")
_THAI = re.compile(r"[\u0e01-\u0e5b]")


def sentences(text: str, language: str = "en", *, wrapped: bool = False) -> list[str]:
    """Split a text into sentences that join to the text again; whitespace stays with the preceding sentence.

    Args:
        text: Any text. Line breaks within a sentence (hard-wrapped prose) do not split it; blank lines, list items,
            headings and lines that are not wrapped prose (`llmkit.text.lines`) do.
        language: A BCP 47 tag; its first subtag determines abbreviations and sentence punctuation.
        wrapped: Treat every line break as wrapping.
    """
    primary = language.replace("_", "-").split("-")[0].lower() or "en"
    cuts: list[int] = []
    start = 0
    for end in [*(match.end() for match in _PARAGRAPH.finditer(text)), len(text)]:
        cuts += (start + cut for cut in _paragraph(text[start:end], primary, wrapped))
        cuts.append(end)
        start = end
    return _parts(text, cuts)


def _parts(text: str, cuts: Iterable[int]) -> list[str]:
    """Cut a text, with whitespace moved to the preceding part; no cuts within graphemes, no blank parts."""
    places: list[int] = []
    for cut in sorted(set(cuts)):
        space = _SPACE.match(text, cut)
        place = space.end() if space else cut
        if 0 < place < len(text) and (not places or place > places[-1]) and _separable(text, place):
            places.append(place)
    parts = [text[start:end] for start, end in pairwise([0, *places, len(text)]) if start < end]
    if len(parts) > 1 and not parts[0].strip():  # leading blank lines have no preceding sentence
        parts[:2] = [parts[0] + parts[1]]
    return parts


def _separable(text: str, place: int) -> bool:
    """Whether a text may be cut at this place, which must not be between a letter and its accent."""
    following = text[place]
    if following < "\u0300" or "\u3400" <= following <= "\u9fff":  # none of these combines with the preceding character
        return True
    return len(graphemes(text[place - 1 : place + 1])) == 2


def _paragraph(text: str, language: str, wrapped: bool) -> Iterator[int]:
    """The sentence boundaries in a text without blank lines."""
    if not text.strip():
        return
    masked = _ODD.sub(_mask, text)
    if not wrapped:
        yield from _lines(masked)
    start = 0
    while start < len(masked):
        window = masked[start : start + _WINDOW]
        last = start + len(window) == len(masked)
        found = _thai(window) if language == "th" else _marks(window, language)
        ends = [end for end in found if end < len(window)]
        yield from (start + end for end in ends)
        if last:
            return
        # The last sentence may extend past the window, so the next window begins with it, unless it is the only one.
        start += ends[-1] if ends else len(window)


def _mask(match: re.Match[str]) -> str:
    """Replace characters that sentencex fails on, such as U+2028 and surrogates, keeping the length."""
    found = match[0]
    if found == "\r\n":
        return " \n"
    if found in "\r\x0b\x0c\x85\u2028\u2029":
        return "\n"
    return " " if found.isspace() else "x"


def _lines(text: str) -> Iterator[int]:
    """The positions of intentional line breaks."""
    if "\n" not in text.strip("\n"):
        return
    lines = text.splitlines(keepends=True)
    place = 0
    for line, meant in zip(lines, meant_breaks(lines), strict=False):
        place += len(line)
        if meant:
            yield place


def _marks(text: str, language: str) -> list[int]:
    """The ends of the sentences that sentencex finds."""
    import sentencex

    try:
        found: list[str] = sentencex.segment(language, text)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3 derives it from BaseException and exports no name for it
            raise
        return []
    return _ends(text, found)


def _ends(text: str, found: Sequence[str]) -> list[int]:
    """Where the parts end in the text, even if they lack some of its whitespace."""
    ends, place = [], 0
    for part in found:
        at = text.find(part.strip(), place)
        if at >= 0:
            place = at + len(part.strip())
            ends.append(place)
    return [space.end() if (space := _SPACE.match(text, end)) else end for end in ends]


def _thai(text: str) -> list[int]:
    """The ends of Thai sentences: by crfcut if it is installed, otherwise after each space between Thai words."""
    cut = _crfcut()
    if cut is not None and text.strip():
        return _ends(text, cut(text))
    return [
        space.end()
        for space in _SPACE.finditer(text, 1)
        if space.end() < len(text)
        and (
            text[space.start() - 1] in ".!?…"
            or (_THAI.match(text, space.start() - 1) and _THAI.match(text, space.end()))
        )
    ]


@cache
def _crfcut() -> Callable[[str], list[str]] | None:
    try:
        import pycrfsuite  # noqa: F401 # crfcut needs it, and pythainlp does not declare it
        from pythainlp.tokenize import sent_tokenize
    except ImportError:
        log.info("Thai text is split at spaces; for better boundaries: pip install pythainlp python-crfsuite")
        return None
    return lambda text: [str(part) for part in sent_tokenize(text, engine="crfcut", keep_whitespace=True)]


_SAMPLE = 20_000  # characters to inspect
_HAN_WEIGHT = 2  # a Han character stands for a syllable or two, so "GPT 是一个模型" is Chinese


def script_language(text: str) -> str:
    """Guess from the script alone which language's sentence rules apply; ``en`` for Latin and for no letters."""
    counts = count_scripts(text[:_SAMPLE])
    kana, han = counts["Jpan"] * _HAN_WEIGHT, counts["Hans"] * _HAN_WEIGHT
    shares = {script.language: counts[code] for code, script in SCRIPTS.items()} | {"zh": han + kana, "ja": 0}
    best = max(shares, key=lambda language: (shares[language], language == "en"))
    # Chinese text quotes an occasional word in kana; Japanese writes its particles in kana.
    return "ja" if best == "zh" and kana * 20 >= han + kana else best


@dataclass(frozen=True)
class _Atom:
    """Text that stays in one part while it fits. ``level`` is the boundary at its end: 0 piece, 1 line … 4 grapheme."""

    text: str
    weight: float
    level: int


_FINEST = 4


def pack(pieces: Sequence[str], budget: int, count: Callable[[str], int]) -> list[str]:
    """Join neighbouring pieces into the smallest number of chunks within ``budget``, about equally full.

    Joined, the chunks are the same text as the pieces. A piece over the budget is split at line breaks, after clauses,
    at spaces, then between characters; a single character (grapheme) over the budget becomes a chunk of its own.

    Args:
        pieces: For example the result of `sentences`.
        budget: The maximum size of a chunk.
        count: The size of a text, such as its number of tokens.
    """
    atoms: list[_Atom] = []
    for piece in pieces:
        if piece:
            atoms += _fitting(_Atom(piece, count(piece), 0), budget, count)
    return [chunk for group in _groups(atoms, budget) for chunk in _verified(group, budget, count)]


def _verified(group: list[_Atom], budget: int, count: Callable[[str], int]) -> Iterator[str]:
    """A group as one chunk if its actual count is within the budget, otherwise as several."""
    stack = [group]
    while stack:
        atoms = stack.pop()
        text = "".join(atom.text for atom in atoms)
        if len(atoms) == 1 and atoms[0].level == 0:  # a complete piece, already counted
            yield text
            continue
        actual = count(text)
        if actual <= budget:
            yield text
            continue
        if len(atoms) == 1:
            parts = _divided(_Atom(text, actual, atoms[0].level), budget, count)
            if len(parts) == 1:
                yield text
                continue
            halves = _groups(parts, budget)
        else:
            total = sum(atom.weight for atom in atoms)
            # The joined text counts more than the sum of its atoms: scale all of them by the same factor.
            scaled = [
                _Atom(a.text, a.weight * actual / total if total > 0 else len(a.text) * actual / len(text), a.level)
                for a in atoms
            ]
            halves = _groups(scaled, budget)
            if len(halves) == 1:
                halves = [scaled[: len(scaled) // 2], scaled[len(scaled) // 2 :]]
        stack += reversed(halves)


def _fitting(atom: _Atom, budget: int, count: Callable[[str], int]) -> list[_Atom]:
    """The atom, divided until each part is within the budget or a single grapheme."""
    done, todo = [], [atom]
    while todo:
        atom = todo.pop()
        parts = _divided(atom, budget, count) if atom.weight > budget else [atom]
        if len(parts) == 1:
            done += parts
        else:
            todo += reversed(parts)
    return done


def _divided(atom: _Atom, budget: int, count: Callable[[str], int]) -> list[_Atom]:
    """Divide an atom over the budget at its coarsest boundaries; the atom itself if it has none."""
    level, parts = next(((level, parts) for level, parts in _partings(atom, budget) if len(parts) > 1), (0, []))
    if not parts:
        return [atom]
    ratio = atom.weight / len(atom.text)
    # A few parts are counted. Many small ones are estimated by their length, since the chunk they end up in is counted.
    few = len(parts) <= 4 * ceil(atom.weight / max(budget, 1)) and level < _FINEST
    atoms = []
    for number, part in enumerate(parts, 1):
        estimate = ratio * len(part)
        weight = count(part) if few or (estimate > budget and level < _FINEST) else estimate
        atoms.append(_Atom(part, weight, atom.level if number == len(parts) else level))
    return atoms


def _partings(atom: _Atom, budget: int) -> Iterator[tuple[int, list[str]]]:
    text = atom.text
    for level, separator in enumerate((_LINE, _CLAUSE, _SPACE), 1):
        yield level, _parts(text, [match.end() for match in separator.finditer(text)])
    clusters = graphemes(text)
    # Runs of an eighth of a chunk fill chunks well enough; a run that turns out to be too long is divided again.
    run = max(1, int(len(clusters) * max(budget, 0) / atom.weight / 8)) if atom.weight > 0 else 1
    run = min(run, ceil(len(clusters) / 2))
    yield _FINEST, ["".join(clusters[at : at + run]) for at in range(0, len(clusters), max(run, 1))]


def _groups(atoms: list[_Atom], budget: int) -> list[list[_Atom]]:
    """Group neighbouring atoms into the smallest number of groups within the budget, as equal as possible."""
    total = len(atoms)
    sums = [0.0, *accumulate(atom.weight for atom in atoms)]
    slack = budget + 1e-6  # for rounding errors in the sums
    reach = [0] * total  # where a group that begins here must end at the latest
    needed = [0] * (total + 1)  # how many groups the rest needs
    end = total
    for start in range(total - 1, -1, -1):
        while end > start + 1 and sums[end] - sums[start] > slack:
            end -= 1
        reach[start], needed[start] = end, 1 + needed[end]
    groups, start = [], 0
    while start < total:
        rest = needed[start]
        share = (sums[total] - sums[start]) / rest
        # If the group ended earlier, the rest would need one more.
        first = bisect_left(needed, 1 - rest, start + 1, reach[start] + 1, key=lambda groups: -groups)
        place = _cut(atoms, sums, sums[start] + share, share / 8, range(first, reach[start] + 1))
        groups.append(atoms[start:place])
        start = place
    return groups


def _cut(atoms: list[_Atom], sums: list[float], target: float, near: float, places: range) -> int:
    """The place nearest to the target, or one close to it at a coarser boundary."""
    low = bisect_left(sums, target - near, places.start, places.stop - 1)
    high = bisect_right(sums, target + near, low, places.stop - 1)
    candidates = range(max(low - 1, places.start), min(high + 1, places.stop))
    nearest = min(candidates, key=lambda place: abs(sums[place] - target))
    close = [place for place in candidates if abs(sums[place] - target) <= near]
    return min(close, key=lambda place: (atoms[place - 1].level, abs(sums[place] - target)), default=nearest)
