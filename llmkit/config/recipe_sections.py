"""The sections of a recipe on model, tokenizer, prompt and data.

Names follow Transformers v5 and Datasets where they have one. Settings of `llmkit.config.settings` and of tasks are
reused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from llmkit.config.declaration import MOST, bounds, nested_kind, setting_fields
from llmkit.config.peft_methods import NO_SOURCE
from llmkit.config.row_condition import RowCondition
from llmkit.config.settings import LoadSettings, TruncationSide, delimiter_character
from llmkit.errors import UsageError
from llmkit.tasks import PromptOptions, find_task

__all__ = [
    "FILE_KEYS",
    "ConflictError",
    "DataSection",
    "ModelSection",
    "Positive",
    "PromptSection",
    "PythonRows",
    "Section",
    "Seed",
    "SourceSection",
    "TeacherSection",
    "TokenizerSection",
    "TrainedTokenizer",
    "regular_expression",
    "section_of",
]

Positive = Annotated[int, Field(ge=1, le=MOST)]
Share = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32 - 2**16)]
"""NumPy accepts 32 bits, and each process adds its rank."""


def regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError) as error:
        raise ValueError(f"{text!r} is not a regular expression ({error}); escape its special characters") from error
    return text


class ConflictError(ValueError):
    """Keys of a section that do not go together: one message for each problem, as ``problem; fix``."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__(messages[0])
        self.messages = tuple(messages)


class Section(BaseModel):
    """A section of a recipe. Unknown keys and values of the wrong type are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def changed(self, *names: str) -> list[str]:
        """Those of some keys that differ from their defaults."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]

    def _conflicts(self) -> Iterator[str]:
        """The problems of keys that do not go together, each as ``problem; fix``."""
        yield from ()

    @model_validator(mode="after")
    def _check_conflicts(self) -> Self:
        if found := list(self._conflicts()):
            raise ConflictError(found)
        return self


def section_of(name: str, settings: type[Any], *, without: tuple[str, ...] = (), base: type[Section]) -> Any:
    """Create a section with the fields of a settings class: names, types, defaults, bounds and help.

    A mapping or rows may be the name of a file.
    """
    hints = get_type_hints(settings)
    members: dict[str, Any] = {}
    for item in setting_fields(settings):
        if item.name in without or item.metadata["inference_only"]:
            continue
        hint = hints[item.name] | str if nested_kind(hints[item.name]) else hints[item.name]
        limits = zip(("ge", "le"), bounds(item, hint), strict=True)
        constraints: dict[str, Any] = {key: value for key, value in limits if math.isfinite(value) and _is_number(hint)}
        default = [] if item.default == () else item.default  # as YAML has it
        members[item.name] = (hint, Field(default, description=item.metadata["help"], **constraints))
    return create_model(name, __base__=base, __cls_kwargs__=NO_SOURCE, **members)


def _is_number(hint: Any) -> bool:
    return bool({int, float} & {hint, *get_args(hint)})


# The model.


class TrainedTokenizer(Section):
    """Train a tokenizer on the training data: byte-level BPE, which can represent every character."""

    vocab_size: Annotated[int, Field(ge=300, le=MOST)] = 8192
    """Number of tokens, including special tokens."""
    min_frequency: Positive = 2
    """How often a pair of tokens must occur to be merged."""


class TokenizerSection(Section):
    """The tokenizer, if not the checkpoint's own, and additions to it."""

    name_or_path: str | None = None
    """Use the tokenizer of this checkpoint. Known tokens keep their embeddings, new ones start from theirs."""
    train: TrainedTokenizer | None = None
    """Train one. Embeddings as with ``name_or_path``."""
    add_tokens: list[Annotated[str, Field(min_length=1)]] | Annotated[str, Field(min_length=1)] = []
    """Tokens to add; the embeddings are resized, trained and saved. A list of tokens, which are found wherever they
    occur in a text; or a file, whose tokens become part of the vocabulary: a text with one token per line, a
    SentencePiece model, or a tokenizer.json."""
    add_languages: dict[str, str] = {}
    """Translation: languages that the model does not know, each with a related one that it knows, such as
    ``{tyv_Cyrl: kir_Cyrl}``. Each gets a language token, whose embedding starts from the related one's."""
    chat_template: str | None = None
    """A Jinja chat template to use instead of the default: its text, a file, or the name of one of the model's."""

    def _conflicts(self) -> Iterator[str]:
        if self.name_or_path is not None and self.train is not None:
            yield ("name_or_path and train are mutually exclusive; give one of them")


class _ModelBase(Section):
    name_or_path: str | None = None
    """Hub id, folder, PEFT adapter folder, or 'starter'."""
    config: dict[str, Any] | None = None
    """Start from random weights: the fields of a Transformers config, including ``model_type``."""
    config_overrides: dict[str, Any] = {}
    """Fields of the checkpoint's config to change and save, such as ``attention_dropout: 0.0``."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] | None = None
    """With ``quantize: 4bit``: the data type of the quantized weights, nf4 by default."""
    bnb_4bit_use_double_quant: bool | None = None
    """With ``quantize: 4bit``: quantize the scales too."""
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """With ``quantize: 4bit``: the dtype of matrix products, that of the other weights by default."""
    bnb_4bit_quant_storage: Literal["uint8", "float32", "bfloat16", "float16"] | None = None
    """With ``quantize: 4bit``: the dtype in which packed weights are stored; FSDP needs that of the other weights."""
    llm_int8_threshold: Annotated[float, Field(ge=0)] | None = None
    """With ``quantize: 8bit``: activations above this are multiplied without quantization, 6.0 by default."""
    llm_int8_skip_modules: list[str] | None = None
    """With ``quantize``: names of modules that are not quantized."""

    @property
    def quantization(self) -> dict[str, Any]:
        """The fields of Transformers' BitsAndBytesConfig that are set."""
        names = (name for name in type(self).model_fields if name.startswith(("bnb_4bit_", "llm_int8_")))
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _conflicts(self) -> Iterator[str]:
        quantize = getattr(self, "quantize", None)
        for name in self.quantization:
            needed = "4bit" if name.startswith("bnb_4bit_") else "8bit"
            if quantize != needed and not (quantize and name == "llm_int8_skip_modules"):
                yield f"{name} has no effect without quantize: {needed}; set that, or leave it out"
        if (self.name_or_path is None) == (self.config is None):
            yield ("give either name_or_path (a checkpoint) or config (random weights)")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            yield ("config needs a model_type, such as llama, t5 or marian")
        if self.config is not None and self.config_overrides:
            yield ("config_overrides changes the config of a checkpoint; put its fields in config")
        for name in ("revision", "base"):
            if self.config is not None and getattr(self, name, None) is not None:
                yield (f"{name} requires a checkpoint (name_or_path), not config; leave it out")


ModelSection = section_of("ModelSection", LoadSettings, without=("model",), base=_ModelBase)


class _TeacherBase(Section):
    """Train the model on the logits of a teacher with the same tokenizer, too."""

    name_or_path: Annotated[str, Field(min_length=1)]
    """Hub id, folder, or PEFT adapter folder of the teacher."""
    kd_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the divergence from the teacher; the loss on the labels has the rest. Named as in torchtune."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Divergence, as in TRL: 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher), and between them the generalized
    Jensen-Shannon divergence."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divide the logits of both models by this before comparing them, as in TRL."""


TeacherSection = section_of(
    "TeacherSection", LoadSettings, without=("model", "head", "device", "threads", "offline"), base=_TeacherBase
)


if TYPE_CHECKING:
    PromptSection = PromptOptions
else:
    PromptSection = section_of("PromptSection", PromptOptions, base=Section)


# Data.


Paths = Annotated[
    list[str],
    Field(min_length=1),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]),
]


def _delimiter(text: str) -> str:
    try:
        return delimiter_character(text)
    except UsageError as error:
        raise ValueError(str(error)) from error


def _task_name(text: str) -> str:
    try:
        return find_task(text).name
    except UsageError as error:
        raise ValueError(str(error)) from error


def _condition(text: str) -> str:
    RowCondition(text)
    return text


class PythonRows(Section):
    """Rows that were passed in Python. They have no path: whoever uses them again passes them again."""

    kind: str
    """Their class, such as pandas.DataFrame."""
    count: Positive
    """Number of rows; with ``streaming``, of the first, of which the hash is."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Hash of their content."""


FILE_KEYS = (
    "path",
    "aligned",
    "rows",
    "format",
    "encoding",
    "delimiter",
    "header",
    "column_names",
    "quotes",
    "sample_by",
    "name",
    "split",
    "revision",
    "license",
)
"""Keys of a source that describe its files rather than how its rows are used."""
_OF_FILES = frozenset(FILE_KEYS) - {"rows", "license"}


class SourceSection(Section):
    """Where rows come from: ``path``, or ``aligned`` for files with corresponding lines."""

    path: Paths | None = None
    """A file, a folder, a pattern such as ``data/*.jsonl``, a list of these, or a Hub id."""
    aligned: dict[str, str] | None = None
    """Maps each column to a file with one value per line; line n of all files is row n."""
    rows: PythonRows | None = None
    """In Python: rows themselves, such as a data frame; of these a recipe holds only a description."""
    format: Literal["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow"] | None = None
    """Format of the files, if it does not follow from their suffix."""
    encoding: str | None = None
    """Encoding of text formats; UTF-8 by default."""
    delimiter: Annotated[str, AfterValidator(_delimiter)] | None = None
    """CSV and TSV: what separates the fields: a character, or tab; detected by default."""
    header: bool | None = None
    """CSV and TSV: whether the first row names the columns; detected by default."""
    column_names: list[str] | None = None
    """Column names of a CSV or TSV file without a header."""
    quotes: bool = True
    """CSV and TSV: whether quotation marks enclose fields. If false, they are ordinary characters."""
    sample_by: Literal["line", "paragraph", "document"] | None = None
    """Plain text: what one row is, by default a line. Paragraphs are separated by empty lines."""
    name: str | None = None
    """Hub: the configuration."""
    split: str | None = None
    """Hub, or a folder with one file per split: which split."""
    revision: str | None = None
    """Hub: branch, tag or commit hash."""
    streaming: bool = False
    """Load rows while training, for data larger than the disk or the memory (see ``data.buffer_size``). Requires
    ``train.max_steps``, since the number of rows is unknown."""
    shape: Literal["columns", "squad", "messages", "alpaca", "translation"] | None = None
    """Layout of the rows; by default detected from the first rows (``llmkit data check`` shows it)."""
    columns: dict[str, str] = {}
    """Maps task fields to columns of the rows; ``a.b`` is a field of an object."""
    join: str | None = None
    """Separator used to join a list of strings where one text is needed."""
    prefix: str | None = None
    """Put this text before the prompt of each row, in place of ``prompt.prefix``: a mixture can have a prefix for each
    source, such as ``"summarize: "``."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share in a mixture, relative to the other sources. No rows are dropped: sources with too few rows repeat them."""
    where: Annotated[str, AfterValidator(_condition)] | None = None
    """Use only rows for which this is true: an expression over the columns, such as ``lang == "de" and len(text) < 99``
    (comparisons, ``in``, ``and``, ``or``, ``not``, ``len``, arithmetic; ``a.b`` is a field of an object)."""
    deduplicate: Literal["input", "row"] | None = None
    """Of rows with the same input, or the same input and answer, use only the first. Unicode and white space are
    normalized; rows of earlier sources with this setting count too."""
    max_rows: Positive | None = None
    """Use only this many rows from the start; with ``where``, of those for which it is true."""
    task: Annotated[str, AfterValidator(_task_name)] | None = None
    """Task of these rows, in a mixture of tasks; by default the recipe's."""
    settings: dict[str, Any] = {}
    """Settings of the task for these rows, such as ``{target: de}``."""
    license: str | None = None
    """License of the data for the model card, such as cc-by-sa-4.0."""

    def _conflicts(self) -> Iterator[str]:
        if self.columns and self.shape in ("squad", "alpaca", "translation"):
            yield (f"columns has no effect on the shape {self.shape}, whose columns have fixed names; leave it out")
        if self.streaming and self.deduplicate is not None:
            yield "deduplicate needs all rows, and streaming does not keep them; leave one of them out"
        if self.column_names is not None and self.header:
            yield "column_names are for a file without a header; leave out column_names or header"
        if (self.path, self.aligned, self.rows).count(None) != 2:
            yield ("give either path or aligned")
        elif self.rows is not None and (others := self.model_dump(exclude_defaults=True).keys() & _OF_FILES):
            yield (f"{', '.join(sorted(others))} has no effect on rows passed in Python; leave it out")
        if self.aligned is not None and len(self.aligned) < 2:
            yield ("aligned needs two files or more, such as {source: train.en, target: train.de}")


def _as_list(value: object) -> object:
    """Accept a single path or source in place of a list."""
    several = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in several]


Sources = Annotated[
    list[SourceSection],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=str | SourceSection | list[str | SourceSection]),
]


class DataSection(Section):
    """The rows, how they become examples, and what to do with rows that do not fit."""

    train: Sources
    """A path, a source, or a list of them."""
    validation: Sources | None = None
    """Rows for validation, which are not trained on."""
    validation_fraction: Share | None = None
    """Hold out this fraction of the training rows, drawn with ``seed``."""
    train_fraction: Share | None = None
    """Train on this fraction of the rows (after ``validation_fraction``), drawn with ``seed``. A larger fraction
    contains the rows of a smaller one."""
    seed: Seed = 42
    """Seed of the validation split, of ``train_fraction`` and of mixtures."""
    max_length: Annotated[int, Field(ge=2, le=MOST)] | None = None
    """Maximum length of an example in tokens: prompt and answer (causal), or encoder input (seq2seq). The model's
    context length by default. For windows of extractive models see ``settings.max_seq_len``."""
    max_target_length: Positive | None = None
    """Seq2seq: maximum length of an answer in tokens."""
    on_overflow: Literal["error", "truncate", "chunk", "drop"] | None = None
    """What to do with longer examples; by default error, and chunk for plain text, which is cut into blocks."""
    truncation_side: TruncationSide | None = None
    """Side that ``on_overflow: truncate`` cuts: left keeps the end of the input, right its beginning. By default right
    for summarization, translation and question answering, left for the prompt of a continuation."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with rows that cannot be read or lack a column."""
    on_no_label: Literal["error", "drop"] = "error"
    """What to do with rows that have nothing to learn."""
    loss_on: Literal["target", "all", "answer", "last"] = "target"
    """Which tokens contribute to the loss: the target's, the prompt's too (all), the target's without its reasoning
    and the tags around that (answer), or only the last learned reply of a conversation (last)."""
    num_proc: Positive | None = None
    """Number of processes for tokenization; by default one per core."""
    buffer_size: Positive | None = None
    """With ``streaming``: number of examples in memory, which are shuffled and sorted by length together; by default
    10,000, rounded to complete updates. Larger for data that are sorted."""

    @property
    def streaming(self) -> bool:
        """Whether the training rows are streamed."""
        return any(source.streaming for source in self.train)

    def _streaming_conflicts(self) -> Iterator[str]:
        if not self.streaming:
            if self.buffer_size is not None:
                yield "buffer_size requires streaming: true in a source of train; set that, or leave it out"
            return
        if not all(source.streaming for source in self.train):
            yield "some sources of train are streamed and others are not; set streaming for all, or for none"
        if self.validation_fraction is not None:
            yield "validation_fraction needs all rows, and train is streamed; set validation to rows of their own"
        if self.train_fraction is not None:
            yield "train_fraction needs all rows, and train is streamed; select rows with where or max_rows"

    def _conflicts(self) -> Iterator[str]:
        yield from self._streaming_conflicts()
        if any(source.streaming and source.max_rows is None for source in self.validation or ()):
            yield "validation rows are not streamed; set max_rows to load only so many from the start, or leave it out"
        if self.validation is not None and self.validation_fraction is not None:
            yield ("validation and validation_fraction are mutually exclusive; give one of them")
        if self.truncation_side is not None and self.on_overflow != "truncate":
            yield ("truncation_side requires on_overflow: truncate; set that, or leave it out")
