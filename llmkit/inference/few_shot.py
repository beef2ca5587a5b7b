"""The few-shot examples of each prompt: all of them, or some: drawn with a seed, or those most similar to the row.

Never chooses an example with the row's own input. Does not know how examples are rendered (`llmkit.tasks`), or which
are dropped if a prompt is too long (`llmkit.inference.context_window`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from llmkit.errors import InputError, UsageError
from llmkit.metrics.words import words
from llmkit.tasks import PromptOptions, Row, Task
from llmkit.text.scripts import is_unspaced

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FewShot"]

_SEED = 42


class FewShot:
    """Chooses the examples of a row. It can be pickled, for other processes.

    The choice depends on the row and the examples only, not on other rows. With more shots, examples are added in front
    of the others, so that a prompt from which the first is dropped equals the prompt with one shot fewer.
    """

    def __init__(self, task: Task, options: PromptOptions) -> None:
        _check(options)
        self.task, self.options = task, options

    def origin(self) -> dict[str, Any]:
        """How many examples there are and how they are chosen, as JSON values; empty without examples."""
        options = self.options
        if not options.examples:
            return {}
        found: dict[str, Any] = {"count": len(options.examples)}
        if options.shots:
            found["shots_by"] = options.shots_by or "random"
            if found["shots_by"] == "random":
                found["shots_seed"] = self._seed
        return found

    def options_for(self, row: Row) -> PromptOptions:
        """The options with the examples of one row.

        Raises:
            InputError: too few examples have another input.
        """
        if not self.options.examples:
            return self.options
        own, shots = self.task.input_key(row), self.options.shots
        if shots is None:
            kept = [place for place, key in enumerate(self._keys) if key != own]
        else:
            kept = [place for place in self._ranked(row, shots) if self._keys[place] != own][:shots][::-1]
            if len(kept) < shots:
                raise self._too_few(len(kept))
        examples = self.options.examples
        return replace(self.options, examples=tuple(examples[place] for place in kept))

    def require(self, rows: Iterable[Row]) -> None:
        """Raise the error of the first row for which there are too few examples, without choosing them."""
        shots, keys = self.options.shots, {self._keys[place] for place in self._distinct}
        if shots is not None and shots >= len(keys) and any(self.task.input_key(row) in keys for row in rows):
            raise self._too_few(len(keys) - 1)

    def _too_few(self, count: int) -> InputError:
        return InputError(
            f"`shots={self.options.shots}`: only {count} examples differ from the row itself",
            "lower it",
            "give more `examples`",
            code="invalid_value",
        )

    @property
    def _seed(self) -> int:
        return _SEED if self.options.shots_seed is None else self.options.shots_seed

    @cached_property
    def _keys(self) -> list[tuple[str, ...]]:
        return [self.task.input_key(example) for example in self.options.examples]

    @cached_property
    def _distinct(self) -> list[int]:
        """The first example of each input, in random order.

        Raises:
            UsageError: there are fewer than shots.
        """
        import numpy as np

        found = list({key: place for place, key in reversed(list(enumerate(self._keys)))}.values())[::-1]
        if len(found) < (shots := self.options.shots or 0):
            raise UsageError(
                f"`shots={shots}`: there are only {len(found)} different examples",
                "lower it",
                "give more `examples`",
                code="invalid_value",
            )
        return [found[place] for place in np.random.default_rng(self._seed).permutation(len(found))]

    def _ranked(self, row: Row, shots: int) -> Sequence[int]:
        """Examples, the first choice first."""
        distinct = self._distinct
        if self.options.shots_by != "similarity" or not shots:
            return distinct
        scores = self._similarity.scores(self.task.text(row))
        return sorted(distinct, key=lambda place: (-scores[place], place))

    @cached_property
    def _similarity(self) -> _Similarity:
        return _Similarity([self.task.text(example) for example in self.options.examples])


def _check(options: PromptOptions) -> None:
    if options.shots is not None and not options.examples:
        raise UsageError(
            f"`shots={options.shots}` has no effect without examples", "name their file with `examples`",
            "leave it out", code="no_effect",
        )  # fmt: skip
    given = {"shots_by": options.shots_by, "shots_seed": options.shots_seed}
    for name, value in given.items():
        if value is not None and options.shots is None:
            raise UsageError(
                f"`{name}` has no effect on prompts with all examples", "set `shots`", "leave it out", code="no_effect"
            )
    if options.shots_by == "similarity" and options.shots_seed is not None:
        raise UsageError(
            "`shots_seed` has no effect with `shots_by=similarity`", "leave one of them out", code="no_effect"
        )


class _Similarity:
    """The cosine of texts by the words they share; rare words weigh more."""

    def __init__(self, texts: Sequence[str]) -> None:
        import numpy as np

        bags = [_terms(text) for text in texts]
        counts = Counter(chain.from_iterable(bags))
        self._weights = {term: math.log((1 + len(bags)) / count) for term, count in counts.items()}
        places: dict[str, list[int]] = {}
        for place, bag in enumerate(bags):
            for term in bag:
                places.setdefault(term, []).append(place)
        self._places = {term: np.asarray(found) for term, found in places.items()}
        self._norms = np.asarray([math.sqrt(sum(self._weights[term] ** 2 for term in bag)) or 1.0 for bag in bags])

    def scores(self, text: str) -> NDArray[np.float64]:
        """The similarity of a text to each of the texts, up to a factor."""
        import numpy as np

        found = np.zeros(len(self._norms))
        for term in _terms(text):
            if term in self._places:
                found[self._places[term]] += self._weights[term] ** 2
        return np.asarray((found / self._norms).round(9))


def _terms(text: str) -> list[str]:
    """The different words of a text; and pairs of characters in scripts without spaces, whose words are longer."""
    found = words(text)
    pairs = (one + other for one, other in pairwise(found) if is_unspaced(one[0]) and is_unspaced(other[0]))
    return list(dict.fromkeys((*found, *pairs)))
