"""The examples of a recipe: split, mixed, tokenized in parallel, and cached by the hash of their content.

Rows and examples are in memory-mapped Arrow files, so data may be larger than memory. The cache key is a hash of the
data's bytes, the relevant sections of the recipe, the tokenizer and llmkit's own code. Does not know how a row is
tokenized (`llmkit.training.encoding`), nor how files are parsed (`llmkit.data`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config.recipe import Recipe, SourceSection
from llmkit.errors import ErrorCode, InputError, UsageError
from llmkit.heads.base import IGNORED, Features
from llmkit.tasks import Task
from llmkit.training.disk_cache import cached_table, code_version, digest
from llmkit.training.encoding import Encoder, Outcome, make_encoder
from llmkit.training.row_counts import Ledger
from llmkit.training.row_table import Rows, read_rows

if TYPE_CHECKING:
    import datasets

__all__ = [
    "FIRST_ROWS",
    "LISTS",
    "NO_LABEL",
    "USED",
    "Examples",
    "Part",
    "check_status",
    "divide",
    "encoders_of",
    "make_examples",
    "outcome_lines",
]

_ROWS_PER_PROCESS = 2000
"""Fewer rows are tokenized faster than a process starts."""

USED = ("ok", "truncated", "chunked")
"""Statuses of rows that are trained on."""


@dataclass(frozen=True)
class Part:
    """The examples of training or of validation."""

    examples: datasets.Dataset
    """Columns of `llmkit.heads.base.Features`, ``row`` (index in the rows) and ``length``."""
    outcomes: datasets.Dataset
    """The same, with a line for each row without examples: ``status``, ``tokens``, ``cut``, ``message``."""
    rows: Rows
    order: Sequence[int]
    """Indices of the rows; they can repeat in a mixture."""
    ledger: Ledger

    def content_hash(self) -> str:
        """A hash of the examples and their order, which shows whether two versions of llmkit train on the same."""
        import pyarrow.compute as pc

        found = hashlib.sha256()
        for batch in self.examples.select_columns(list(LISTS)).with_format("arrow").iter(10_000):
            for name in LISTS:
                lengths, values = pc.list_value_length(batch[name]), pc.list_flatten(batch[name])
                if len(values):
                    found.update(name.encode() + lengths.to_numpy().tobytes() + values.to_numpy().tobytes())
        return found.hexdigest()

    def by_task(self) -> dict[str, list[int]]:
        """The indices of the examples of each task."""
        source, found = self.rows.table["source"][:], {task.name: list[int]() for task in self.rows.tasks}
        for index, row in enumerate(self.examples["row"][:]):
            found[self.rows.tasks[source[row]].name].append(index)
        return {name: indices for name, indices in found.items() if indices}

    def used_rows(self) -> Iterator[dict[str, Any]]:
        """The rows with an example."""
        used = set(self.examples["row"][:])
        return (self.rows[index] for index in self.order if index in used)


@dataclass(frozen=True)
class Examples:
    train: Part
    validation: Part | None


FIRST_ROWS = 1000
"""Number of rows of each streamed source by which a run is prepared and checked before it reads the others."""
_MAX_ROWS = 10**8
"""Maximum number of rows in an epoch whose rows repeat."""
NO_LABEL = "its answer is empty, or no reply is to be learned"

# Examples.

LISTS = tuple(each.name for each in fields(Features))


def _encode_batch(
    batch: Mapping[str, list[Any]], indices: list[int], encoders: Sequence[Encoder]
) -> dict[str, list[Any]]:
    """Lines of the outcome table for some rows."""
    lines: dict[str, list[Any]] = {name: [] for name in (*LISTS, *_FACTS)}
    for index, row, error, source in zip(indices, batch["row"], batch["error"], batch["source"], strict=True):
        for line in outcome_lines(index, row, error, encoders[source]):
            for name, value in line.items():
                lines[name].append(value)
    return lines


def outcome_lines(index: int, row: str, error: str, encoder: Encoder) -> Iterator[dict[str, Any]]:
    """The lines of a row in the outcome table: one per example, or one if it has none."""
    outcome = Outcome("bad", message=error) if error else encoder.encode(json.loads(row))
    facts: dict[str, Any] = {name: getattr(outcome, name) for name in ("tokens", "cut", "message")}
    facts["remarks"] = list(outcome.remarks)
    for each in outcome.features or (None,):
        yield {
            **{name: list(getattr(each, name)) if each else [] for name in LISTS},
            "row": index,
            "status": outcome.status,
            "length": _length(each) if each else 0,
            "targets": _targets(each) if each else 0,
            **facts,
        }
        facts = {name: type(value)() for name, value in facts.items()}  # of the row, so on its first line only


_FACTS = ("row", "status", "length", "targets", "tokens", "cut", "message", "remarks")


def _targets(features: Features) -> int:
    if features.start_positions:
        return int(any(features.end_positions))
    return sum(label != IGNORED for label in (*features.labels, *features.rejected_labels))


def _length(features: Features) -> int:
    """Tokens of an example; of a preference, those of both sequences."""
    return max(len(features.input_ids), len(features.decoder_input_ids)) + len(features.rejected_input_ids)


def _fingerprint(encoder: Encoder) -> str:
    """A hash of everything besides the rows that determines the token ids."""
    tokenizer: Any = encoder.loaded.tokenizer
    words = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    generation = encoder.loaded.model.generation_config.to_dict() if encoder.loaded.model.can_generate() else {}
    return digest(
        type(tokenizer).__name__,
        words,
        {name: value for name, value in tokenizer.init_kwargs.items() if "file" not in name and "path" not in name},
        tokenizer.chat_template,
        generation,
        encoder.loaded.model.config.to_dict(),
        encoder.loaded.source.name,
        encoder.task.settings,
        replace(encoder.traits, languages=None),  # they follow from config, name and tokenizer
        encoder.prompt_options,
        (encoder.max_length, encoder.max_target_length, encoder.policy, encoder.loss_on, encoder.truncation_side),
    )


def encoders_of(recipe: Recipe, rows: Rows, encoder: Encoder) -> list[Encoder]:
    """The encoder of each source; ``encoder`` is that of the recipe's task."""
    found = {id(encoder.task): encoder}
    for task in rows.tasks:
        if encoder.loaded.head not in task.heads:
            raise UsageError(
                f"{task.name} needs a model that generates text, and for {encoder.task.name} the head of "
                f"{encoder.loaded.source.name} extracts spans",
                "train them separately, or name another model",
                code="not_supported",
            )
        if id(task) not in found:
            found[id(task)] = make_encoder(recipe, task, encoder.loaded)
    return [found[id(task)] for task in rows.tasks]


def _outcomes(rows: Rows, encoders: Sequence[Encoder], num_proc: int | None) -> datasets.Dataset:
    import datasets

    columns: dict[str, Any] = {name: datasets.List(datasets.Value("int32")) for name in LISTS}
    columns |= {name: datasets.Value("int32") for name in ("length", "targets", "cut")}
    columns |= {"row": datasets.Value("int64"), "tokens": datasets.Value("int64")}
    columns |= {"status": datasets.Value("string"), "message": datasets.Value("string")}
    columns |= {"remarks": datasets.List(datasets.Value("string"))}
    prints = [_fingerprint(each) for each in {id(each): each for each in encoders}.values()]
    key = digest("examples", rows.key, prints, code_version())
    processes = num_proc or min(os.cpu_count() or 1, math.ceil(len(rows.table) / _ROWS_PER_PROCESS))

    def build(scratch: Path) -> datasets.Dataset:
        return rows.table.map(
            _encode_batch,
            batched=True,
            batch_size=256,
            with_indices=True,
            fn_kwargs={"encoders": encoders},
            remove_columns=rows.table.column_names,
            features=datasets.Features(columns),
            num_proc=processes if processes > 1 else None,
            cache_file_name=str(scratch / "examples.arrow"),
            new_fingerprint=key,
        )

    return cached_table(key, build)


# Parts.


def make_examples(recipe: Recipe, encoder: Encoder, *, strict: bool = True) -> Examples:
    """The examples of a recipe.

    Args:
        strict: stop as the recipe says (``on_bad_row``, ``on_no_label``, ``on_overflow``); False only counts.

    Raises:
        InputError: the first row that the recipe does not allow, and the number of others.
    """
    data = recipe.data
    rows = read_rows([_first_rows(source) if source.streaming else source for source in data.train], encoder.task)
    if encoder.prompt_options.examples:
        _refuse_only_plain(rows, encoder.task)
    encoders = encoders_of(recipe, rows, encoder)
    outcomes = _outcomes(rows, encoders, data.num_proc)
    if strict:
        _refuse(recipe, rows, outcomes, encoder)
    held: Part | None = None
    trained, kept = divide(recipe, rows)
    if kept:
        held = _part(rows, outcomes, kept, encoders)
        held = replace(held, ledger=replace(held.ledger, left_out=()))  # of both parts, counted for training
    elif data.validation is not None:
        own = read_rows(data.validation, encoder.task)
        own_encoders = encoders_of(recipe, own, encoder)
        own_outcomes = _outcomes(own, own_encoders, data.num_proc)
        if strict:
            _refuse(recipe, own, own_outcomes, encoder)
        held = _part(own, own_outcomes, list(range(len(own.table))), own_encoders)
    order = _mix(rows, trained, [source.weight for source in data.train], data.seed)
    part = _part(rows, outcomes, order, encoders)
    part = replace(part, ledger=replace(part.ledger, first_rows=data.streaming))
    if left_out := len(rows.table) - len(trained) - len(kept):
        counts = (*part.ledger.left_out, ("train_fraction", left_out))
        part = replace(part, ledger=replace(part.ledger, left_out=counts))
    return Examples(part, held)


def _first_rows(source: SourceSection) -> SourceSection:
    """The first rows of a source that is streamed, by which a run is prepared."""
    return source.model_copy(update={"max_rows": min(FIRST_ROWS, source.max_rows or FIRST_ROWS)})


def _refuse_only_plain(rows: Rows, task: Task) -> None:
    """Refuse few-shot examples if no row has a prompt."""
    if all(task.is_plain(json.loads(row)) for row in rows.table["row"] if row):
        raise UsageError(
            "prompt.examples has no effect on plain text, which has no prompt", "leave it out", code="no_effect"
        )


def _refuse(recipe: Recipe, rows: Rows, outcomes: datasets.Dataset, encoder: Encoder) -> None:
    statuses = outcomes["status"][:]
    counts = Counter(statuses)
    for status in ("bad", "no_label", "too_long"):
        if counts[status]:
            line = outcomes[statuses.index(status)]
            check_status(recipe, line, rows.where(line["row"]), encoder, more=counts[status] - 1)


def check_status(recipe: Recipe, line: Mapping[str, Any], where: str, encoder: Encoder, more: int = 0) -> None:
    """Raise the error of a row that the recipe does not allow.

    Args:
        line: its first line in the outcome table.
        more: number of other rows with the same status.
    """
    code: ErrorCode | None = None
    data, status = recipe.data, line["status"]
    if status == "bad" and data.on_bad_row == "error":
        message, fix = line["message"], "fix it, or skip such rows with data.on_bad_row: skip"
        message = message if where in message else f"{where}: {message}"
    elif status == "no_label" and data.on_no_label == "error":
        message, code = f"{where} has nothing to learn ({line['message'] or NO_LABEL})", "no_labels"
        fix = "fix it, or drop such rows with data.on_no_label: drop"
    elif status == "too_long" and data.on_overflow in (None, "error"):
        message, fix = f"{where} has {line['tokens']} tokens, too many", _room(recipe, encoder)
        code = "context_overflow"
    else:
        return
    raise InputError(f"{message}{f' (and {more} more rows are like this)' if more else ''}", fix, code=code)


def _room(recipe: Recipe, encoder: Encoder) -> str:
    """The fix for a row that is too long."""
    data, context = recipe.data, encoder.loaded.context
    lengths = [name for name in ("max_length", "max_target_length") if getattr(data, name) is not None]
    if data.max_length is not None and context.hard and data.max_length == context.tokens:
        lengths.remove("max_length")
    raised = f"raise {' or '.join(f'data.{name}' for name in lengths)}" if lengths else "shorten it"
    return f"{raised}, or set data.on_overflow to truncate or drop"


def divide(recipe: Recipe, rows: Rows) -> tuple[list[int], list[int]]:
    """Split the rows into those for training and those held out by ``validation_fraction``.

    ``train_fraction`` leaves out some of the others. Rows with the same input stay together, so that no input of a
    held-out row is trained on.
    """
    import numpy as np

    data, every = recipe.data, range(len(rows.table))
    if data.validation_fraction is None and data.train_fraction is None:
        return list(every), []
    groups: dict[str, list[int]] = {}
    for index, (text, source) in enumerate(zip(rows.table["row"], rows.table["source"], strict=True)):
        row = json.loads(text) if text else {}
        groups.setdefault(digest(row.get(rows.tasks[source].input_column, row.get("text"))), []).append(index)
    keys = list(groups)
    order = [groups[keys[place]] for place in np.random.default_rng(data.seed).permutation(len(keys))]
    held = _drawn(order, data.validation_fraction, len(every))
    rest = [members for members in order if members[0] not in held]
    trained = [index for index in every if index not in held]
    if not trained:
        if len(groups) > 1:
            raise InputError("data.validation_fraction leaves no rows for training", "lower it", code="no_rows")
        raise InputError(
            "all rows have the same input, so none can be held out", "set data.validation, or neither", code="no_rows"
        )
    if data.train_fraction is not None:
        # From the other end: a larger fraction contains a smaller one.
        kept = _drawn(rest[::-1], data.train_fraction, len(trained))
        trained = [index for index in trained if index in kept]
    return trained, sorted(held)


def _drawn(order: Sequence[Sequence[int]], fraction: float | None, count: int) -> set[int]:
    """The members of the first groups that make up a fraction of the rows; at least one group."""
    wanted, drawn = max(1, round((fraction or 0) * count)), set[int]()
    for members in order if fraction is not None else ():
        if len(drawn) + len(members) <= wanted or not drawn:
            drawn.update(members)
        if len(drawn) >= wanted:
            break
    return drawn


def _mix(rows: Rows, trained: Sequence[int], weights: Sequence[float | None], seed: int) -> list[int]:
    """The rows of an epoch. With weights, each source has its share, and rows of small sources repeat."""
    import numpy as np

    if all(weight is None for weight in weights):
        return list(trained)
    if any(weight is None for weight in weights):
        raise UsageError("some sources of data.train have a weight and others do not", "set it for all, or for none")
    source = rows.table["source"][:]
    members = [[index for index in trained if source[index] == number] for number in range(len(weights))]
    largest = max(float(weight or 0) for weight in weights)
    shares = [float(weight or 0) / largest for weight in weights]
    shares = [share / sum(shares) for share in shares]
    total = max(len(indices) / max(share, 1 / _MAX_ROWS) for indices, share in zip(members, shares, strict=True))
    if total > max(_MAX_ROWS, 10 * len(trained)):
        raise UsageError(
            f"with the weights of data.train, rows repeat until an epoch has {total:.0e} of them",
            "choose weights closer to the sizes of their sources",
        )
    random, order = np.random.default_rng(seed), []
    for indices, share in zip(members, shares, strict=True):
        if indices:
            whole, rest = divmod(round(total * share), len(indices))
            drawn = sorted(random.choice(len(indices), size=rest, replace=False))
            order += indices * whole + [indices[place] for place in drawn]
    return order


def _part(rows: Rows, outcomes: datasets.Dataset, order: Sequence[int], encoders: Sequence[Encoder]) -> Part:
    import numpy as np

    row, status = np.asarray(outcomes["row"][:]), np.asarray(outcomes["status"][:])
    first, count = np.searchsorted(row, order), np.bincount(row, minlength=len(rows.table))
    lines = np.concatenate([np.arange(start, start + count[index]) for start, index in zip(first, order, strict=True)])
    mine = outcomes.select(lines)
    used = np.isin(status[lines], USED)
    examples = mine.select(np.flatnonzero(used))
    keeps = "; ".join(dict.fromkeys(each.keeps for each in encoders))
    return Part(examples, mine, rows, order, _ledger(rows, mine, order, Counter(status[first]), keeps))


def _ledger(rows: Rows, lines: datasets.Dataset, order: Sequence[int], per_row: Counter[str], kept: str) -> Ledger:
    import numpy as np

    drawn = Counter(np.asarray(rows.table["source"][:])[list(order)])
    once = sorted(set(order))
    read = Counter(np.asarray(rows.table["source"][:])[once])
    unused = Counter(name for names in rows.table.select(once)["unused"] for name in names)
    return Ledger(
        rows=len(order),
        bad=per_row["bad"],
        no_label=per_row["no_label"],
        too_long=per_row["too_long"],
        truncated=per_row["truncated"],
        kept=kept,
        tokens_cut=sum(lines["cut"][:]),
        chunked=per_row["chunked"],
        examples=sum(status in USED for status in lines["status"][:]),
        tokens=sum(lines["length"][:]),
        target_tokens=sum(lines["targets"][:]),
        sources=tuple((name, int(read[number]), int(drawn[number])) for number, name in enumerate(rows.names)),
        unused=tuple(unused.items()),
        remarks=tuple(Counter(text for texts in lines["remarks"][:] for text in texts).items()),
        left_out=tuple(rows.left_out.items()),
    )
