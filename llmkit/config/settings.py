"""Every setting of loading and generating, declared once: name, type, default, bounds and help text.

The command line builds its options from these classes (`llmkit.cli.options`), the Python API takes their
fields as keyword arguments. Names follow Transformers v5 where it has one. Standard library only, so that
``llmkit --help`` stays fast; independent of models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from llmkit.config.declaration import Checked, non_default, setting
from llmkit.errors import UsageError

__all__ = [
    "TOKEN_CONTROLS",
    "DType",
    "Device",
    "GenerationSettings",
    "LoadOptions",
    "LoadSettings",
    "Options",
    "Overflow",
    "RowSettings",
    "TaskSettings",
    "TruncationSide",
    "column_pairs",
    "delimiter_character",
]

Device = Literal["auto", "cpu", "cuda", "mps"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["8bit", "4bit"]
Overflow = Literal["error", "truncate", "chunk"]
TruncationSide = Literal["left", "right"]
"""Which side of a text is cut, named as in Transformers' tokenizers: ``right`` keeps the beginning."""


@dataclass(frozen=True, kw_only=True)
class LoadSettings(Checked):
    """Which model is loaded, and how."""

    model: str | None = setting(
        None,
        "Use this model: a Hub id, a folder, a PEFT adapter folder, a GGUF file, or 'starter'.",
        short="m",
        metavar="MODEL",
        group="Model",
        shown_default="set by the task",
    )
    revision: str | None = setting(
        None, "Use this branch, tag or commit of the model's Hub repository.", metavar="REVISION", group="Model"
    )
    base: str | None = setting(
        None, "Attach the adapter to this base model instead of the one it names.", metavar="MODEL", group="Model"
    )
    head: Literal["causal", "seq2seq", "span"] | None = setting(
        None, "Use this head instead of the detected one.", group="Advanced"
    )
    device: Device = setting("auto", "Run the model on this device.", group="Model")
    threads: int | None = setting(
        None,
        "Use this many CPU threads.",
        minimum=1,
        maximum=4096,
        metavar="N",
        group="Model",
        shown_default="one per core, fewer while other programs use the CPUs",
    )
    dtype: DType = setting(
        "auto",
        "Load the weights with this dtype; auto keeps the checkpoint's where the device supports it well.",
        group="Model",
    )
    quantize: Quantization | None = setting(None, "Quantize the weights while loading.", group="Model")
    attn_implementation: str | None = setting(
        None,
        "Use this attention implementation, named as in Transformers (sdpa, eager …).",
        metavar="NAME",
        group="Advanced",
    )
    offline: bool = setting(False, "Never use the network.", group="Model")
    safetensors_only: bool = setting(False, "Refuse checkpoints that have .bin files only.", group="Advanced")
    allow_pickle: bool = setting(
        False, "Load pickled weights that can run code (of the model, its base or a baseline).", group="Advanced"
    )
    trust_remote_code: bool = setting(
        False, "Run code that comes with the model, its base, a baseline or a metric.", group="Advanced"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.revision is not None and self.model is None:
            raise UsageError("revision requires a model", "name one with model", code="no_effect")
        if self.base is not None and self.model is None:
            raise UsageError("base requires an adapter", "name one with model", code="no_effect")


TOKEN_CONTROLS = (
    "frequency_penalty", "presence_penalty", "logit_bias", "json_schema", "regex", "choice", "logprobs",
)  # fmt: skip
"""Settings that act on the tokens of one output."""


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(Checked):
    """How text is generated. A setting left at None is taken from the model's own generation_config.json."""

    max_new_tokens: int | None = setting(
        None, "Stop after this many tokens of output.", minimum=1, group="Output", shown_default="set by the task"
    )
    min_new_tokens: int | None = setting(
        None, "Generate at least this many tokens of output.", minimum=0, group="Output"
    )
    temperature: float | None = setting(
        None, "Sample at this temperature; 0 is greedy.", minimum=0, maximum=100, group="Sampling"
    )
    top_p: float | None = setting(
        None,
        "Nucleus sampling: keep the most probable tokens up to this cumulative probability.",
        minimum=0,
        maximum=1,
        group="Sampling",
    )
    top_k: int | None = setting(
        None, "Sample from this many most probable tokens; 0 means all.", minimum=0, group="Sampling"
    )
    min_p: float | None = setting(
        None,
        "Keep tokens at least this fraction as probable as the top token.",
        minimum=0,
        maximum=1,
        group="Sampling",
    )
    repetition_penalty: float | None = setting(
        None, "Penalize repetition; above 1 makes it less likely.", minimum=0.01, maximum=100, group="Sampling"
    )
    frequency_penalty: float = setting(
        0.0,
        "Subtract this from a token's logit for each time that it occurs in the output.",
        minimum=-2,
        maximum=2,
        group="Sampling",
    )
    presence_penalty: float = setting(
        0.0,
        "Subtract this from the logits of tokens that occur in the output.",
        minimum=-2,
        maximum=2,
        group="Sampling",
    )
    logit_bias: Mapping[str, float] | None = setting(
        None, "Add to the logits of tokens: a JSON object of token ids and numbers.", metavar="FILE", group="Sampling"
    )
    no_repeat_ngram_size: int | None = setting(
        None, "Never repeat a sequence of this many tokens; 0 is off.", minimum=0, group="Sampling"
    )
    num_beams: int | None = setting(
        None, "Use beam search with this many beams; 1 is off.", minimum=1, maximum=1000, group="Sampling"
    )
    length_penalty: float | None = setting(
        None, "Beam search: above 0 favours longer outputs.", minimum=-10, maximum=10, group="Sampling"
    )
    num_return_sequences: int = setting(
        1, "Generate this many outputs for each input.", minimum=1, maximum=1000, group="Output"
    )
    seed: int | None = setting(
        None, "Make sampling reproducible with this random seed.", minimum=0, maximum=2**63 - 1, group="Sampling"
    )
    stop: tuple[str, ...] = setting(
        (), "Stop before this text, which is not printed (repeatable).", metavar="TEXT", group="Output"
    )
    json_schema: Mapping[str, Any] | None = setting(
        None,
        "Only generate JSON that conforms to this JSON Schema; reasoning before it is free.",
        metavar="FILE",
        group="Output",
    )
    regex: str | None = setting(
        None, "Only generate text that this regular expression matches.", metavar="REGEX", group="Output"
    )
    choice: tuple[str, ...] = setting(
        (), "Only generate one of several texts, of which this is one (repeatable).", metavar="TEXT", group="Output"
    )
    logprobs: int | None = setting(
        None,
        "Report the log probability of each token, and of this many of the most probable ones.",
        minimum=0,
        maximum=20,
        group="Output",
    )
    on_overflow: Overflow | None = setting(
        None,
        "What to do with input longer than the model's context: refuse it, truncate it, or process it in chunks.",
        group="Input",
        shown_default="set by the task",
    )
    truncation_side: TruncationSide | None = setting(
        None,
        "Side that on_overflow=truncate cuts: left keeps the end, right the beginning.",
        group="Input",
        shown_default="set by the task",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stop", "choice"):
            texts = getattr(self, name)
            texts = (texts,) if isinstance(texts, str) else texts
            if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
                raise UsageError(f"{name}={texts!r} is not text", "give one string or several", code="invalid_value")
            object.__setattr__(self, name, tuple(texts))
        if any(not text for text in self.stop):
            raise UsageError("stop='' would stop immediately", "give the text to stop at", code="invalid_value")
        if self.truncation_side is not None and self.on_overflow != "truncate":
            raise UsageError(
                "truncation_side requires on_overflow=truncate", "set that, or leave it out", code="no_effect"
            )
        if (self.min_new_tokens or 0) > (self.max_new_tokens or math.inf):
            raise UsageError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens", "lower it", code="invalid_value"
            )
        if len(structured := non_default(self, "json_schema", "regex", "choice")) > 1:
            raise UsageError(
                f"{' and '.join(structured)} each determine the whole output", "give one of them", code="invalid_value"
            )
        if (self.num_beams or 1) > 1 and (found := non_default(self, *TOKEN_CONTROLS)):
            raise UsageError(
                f"{_listed(found)}: not supported by beam search", "leave it out, or num_beams", code="not_supported"
            )
        if self.top_p == 0:
            raise UsageError("top_p=0 leaves no token", "use temperature 0 for greedy decoding", code="invalid_value")
        if self.temperature == 0 and any(value is not None for value in (self.top_p, self.top_k, self.min_p)):
            raise UsageError(
                "temperature=0 is greedy, top_p, top_k and min_p have no effect", "leave them out", code="no_effect"
            )

    @property
    def samples(self) -> bool:
        """Whether these settings request sampling, irrespective of the model's own generation config."""
        sampling = (self.top_p, self.top_k, self.min_p)
        return bool(self.temperature) or (self.temperature is None and any(value is not None for value in sampling))


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Checked):
    """Base of the settings of tasks (`llmkit.tasks`); used as it is by tasks without settings."""


def _listed(names: Iterable[str]) -> str:
    """Names of settings for a message."""
    return ", ".join(f"`{name}`" for name in names)


@dataclass(frozen=True, kw_only=True)
class RowSettings(Checked):
    """An input file of rows, and how it is processed. All other settings require ``input``."""

    input: tuple[str, ...] = setting(
        (),
        "Answer every row of this file (repeatable), folder or pattern in quotes: .jsonl, .json, .csv, .tsv, .parquet, "
        ".txt, .gz of these, or - for standard input.",
        metavar="FILE",
        group="Rows",
    )
    output: str | None = setting(
        None,
        "Write the answers to this JSON Lines file, in the order of the rows.",
        short="o",
        metavar="FILE",
        group="Rows",
        shown_default="standard output",
    )
    column: tuple[str, ...] = setting(
        (),
        "Map a task field to an input column, e.g. context=body; a.b is a field of an object (repeatable).",
        metavar="FIELD=COLUMN",
        group="Rows",
    )
    max_rows: int | None = setting(None, "Use only the first N rows.", minimum=1, group="Rows")
    header: bool | None = setting(
        None,
        "CSV and TSV: whether the first row names the columns.",
        group="Rows",
        shown_default="detected",
    )
    delimiter: str | None = setting(
        None,
        "CSV and TSV: the character that separates the fields, or tab.",
        metavar="CHARACTER",
        group="Rows",
        shown_default="detected",
    )
    sample_by: Literal["line", "paragraph", "document"] | None = setting(
        None,
        "Plain text: what one row is.",
        group="Rows",
        shown_default="a line; of several files, a document each",
    )
    window: int = setting(
        256, "Buffer this many rows in memory, sorted by length and generated together.", minimum=1, group="Advanced"
    )
    max_batch_tokens: int | None = setting(
        None,
        "Batch at most this many tokens (prompt, output, padding).",
        minimum=1,
        group="Advanced",
        shown_default="estimated from free memory",
    )
    resume: bool = setting(False, "Continue an interrupted run with the same output file.", group="Rows")
    overwrite: bool = setting(False, "Replace the output file.", group="Rows")
    fail_fast: bool = setting(False, "Stop at the first bad row instead of writing an error record.", group="Rows")
    num_processes: int | None = setting(None, "Distribute the rows over this many processes.", minimum=1, group="Rows")

    def __post_init__(self) -> None:
        object.__setattr__(self, "input", (self.input,) if isinstance(self.input, str) else tuple(self.input))
        super().__post_init__()
        if not self.input and (without_effect := non_default(self)):
            raise UsageError(
                f"{_listed(without_effect)} requires a file of rows",
                "name it with `input`",
                "redirect the output of one text with >" if without_effect == ["output"] else "",
                code="no_effect",
            )
        if self.resume and self.overwrite:
            raise UsageError("resume and overwrite are mutually exclusive", "give one of them", code="no_effect")
        if self.output is None and (need := non_default(self, "resume", "overwrite", "num_processes")):
            raise UsageError(f"{_listed(need)} requires an output file", "name it with output", code="no_effect")
        if self.resume and "-" in self.input:
            raise UsageError("resume cannot read standard input again", "give a file as input")
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", delimiter_character(self.delimiter))
        self.columns()

    def columns(self) -> dict[str, str]:
        """The input column of each mapped task field."""
        return column_pairs(self.column)


def column_pairs(items: Sequence[str]) -> dict[str, str]:
    """The input column of each mapped task field, from ``FIELD=COLUMN``."""
    names: dict[str, str] = {}
    for item in items:
        name, equals, column = item.partition("=")
        if not (name and equals and column):
            raise UsageError(
                f"column={item!r} is not of the form FIELD=COLUMN",
                "write a pair, such as context=body",
                code="invalid_value",
            )
        if name in names:
            raise UsageError(f"the field {name!r} is mapped twice", "map each field once", code="invalid_value")
        names[name] = column
    return names


_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}


def delimiter_character(text: str) -> str:
    """The delimiter of a table, from the character or its name."""
    found = _DELIMITERS.get(text.lower(), text)
    if len(found) != 1 or found in '"\r\n\0':
        raise UsageError(
            f"delimiter={text!r} is not one character", "give a character such as ';', or tab", code="invalid_value"
        )
    return found


class LoadOptions(TypedDict, total=False):
    """The fields of `LoadSettings`, except ``model``, as keyword arguments.

    For editors and type checkers, like `Options`; a test compares them with the classes.
    """

    revision: str | None
    base: str | None
    head: Literal["causal", "seq2seq", "span"] | None
    device: Device
    threads: int | None
    dtype: DType
    quantize: Quantization | None
    attn_implementation: str | None
    offline: bool
    safetensors_only: bool
    allow_pickle: bool
    trust_remote_code: bool


class Options(LoadOptions, total=False):
    """The fields of `GenerationSettings` too."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[str, float] | str | Path | None
    no_repeat_ngram_size: int | None
    num_beams: int | None
    length_penalty: float | None
    num_return_sequences: int
    seed: int | None
    stop: tuple[str, ...]
    json_schema: Mapping[str, Any] | str | Path | type[Any] | None
    regex: str | None
    choice: tuple[str, ...]
    logprobs: int | None
    on_overflow: Overflow | None
    truncation_side: TruncationSide | None
