"""Reports on checkpoints, from their small files: ``llmkit inspect``.

Collects the findings of `checkpoint`, `context`, `tokenizer_files`, `known_issues` and `resolve` into one report.
Loads no weights, and imports torch and transformers only to count parameters on the meta device.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.config.commands import command_line
from llmkit.errors import CheckpointError, TaskMismatchError
from llmkit.files import in_units, read_json
from llmkit.hub.card import card_metadata
from llmkit.models.adapter_files import brings_head, check_adapter, check_base, embedding_rows, weights_file
from llmkit.models.checkpoint import (
    gguf_config,
    gguf_metadata,
    parameter_counts,
    tensor_counts,
    torch_dtype_name,
    weight_files,
)
from llmkit.models.context import ContextLength, context_length
from llmkit.models.families import family
from llmkit.models.families.translators import pair_in
from llmkit.models.generation_settings import read_settings
from llmkit.models.known_issues import Facts, find_issues, needs_own_code
from llmkit.models.resolve import natural_head, resolve
from llmkit.models.source import ADAPTER_CONFIG, Source
from llmkit.models.tables import HEADS, writes
from llmkit.models.tokenizer_files import SpecialToken, TokenizerFiles, has_chat_template, read_tokenizer
from llmkit.models.tuned import Tuned, tuned_for, tuned_lines
from llmkit.tasks import TASKS, Task

__all__ = ["Adapter", "ModelReport", "TaskFit", "inspect_source", "render"]

_READY, _NEW_HEAD, _NO = "ready", "needs fine-tuning", "no"
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}


@dataclass(frozen=True, kw_only=True)
class TaskFit:
    """Whether a model supports a task, and the class it is loaded with."""

    status: str
    """``ready``, ``needs fine-tuning`` or ``no``."""
    head: str | None = None
    auto_class: str | None = None
    model_class: str | None = None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A PEFT adapter on top of the model."""

    base: str
    method: str
    rank: int | None
    parameters: int | None
    commit: str | None


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """Result of `inspect_source`; None means unknown."""

    model: str
    commit: str | None
    library: str
    """``transformers``, ``peft`` or ``gguf``."""
    architecture: str
    model_type: str
    parameters: int | None
    parameters_by_dtype: Mapping[str, int]
    """Empty if no header shows it."""
    weights: str | None
    """``safetensors``, ``bin`` or ``gguf``; None where no weights are on this machine."""
    context_length: int | None
    context_is_hard: bool
    """Longer input has no positions; otherwise the length is what it was trained on."""
    tasks: Mapping[str, TaskFit]
    chat_template: bool
    special_tokens: Mapping[str, SpecialToken]
    languages: tuple[str, ...]
    direction: tuple[str, str] | None
    """Source and target language of a model that translates one way."""
    license: str
    memory: Mapping[str, int | None]
    """Bytes of the weights alone, by dtype."""
    known_issues: tuple[str, ...]
    commands: tuple[str, ...]
    """Commands that can be run now."""
    adapter: Adapter | None
    tuned: Tuned | None
    """Of a result of llmkit's training."""

    def __str__(self) -> str:
        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under stable keys."""
        plain: dict[str, Any] = json.loads(json.dumps({"schema_version": 1, **asdict(self)}))
        return plain


def inspect_source(
    source: Source, *, exact: bool = False, hub_counts: dict[str, int] | None = None, update: int | None = None
) -> ModelReport:
    """Report on a model whose small files are on this machine.

    Args:
        source: where the files are; the weights may be missing.
        exact: if no safetensors header states the number of parameters, build the model on the meta device and
            count. Imports torch, takes seconds.
        hub_counts: parameters by dtype as the Hub counts them, used where no header is on this machine.
        update: of a checkpoint of the run in the folder: the updates done.

    Raises:
        CheckpointError: a file is missing, partial or corrupt.
    """
    metadata = gguf_metadata(source.folder / source.gguf_file) if source.gguf_file else {}
    config = gguf_config(metadata) if source.gguf_file else source.config()
    generation = read_settings(source.folder) if not source.gguf_file else {}
    tokenizer = _tokenizer(source, config, generation, metadata)
    head = natural_head(config)
    weights = _weights(source)
    adapter = _adapter(source)
    counts = metadata.get("parameters_by_dtype") or _counts(source, config, weights, hub_counts)
    parameters = sum(counts.values()) if counts else None
    if parameters is None and exact:
        parameters = _count_on_meta(source, config)
    context = context_length(config, tokenizer.config).without(source.virtual_tokens)
    tasks = {name: _fit(task, source, config, tokenizer) for name, task in TASKS.items()}
    direction = _direction(source, config, tokenizer)
    tuned = tuned_for(source.adapter or source.folder, update)
    card = card_metadata(source.folder / "README.md")
    facts = Facts(
        name=source.name,
        config={**config, **_own_rows(source, config, tokenizer)},
        generation=generation,
        tokenizer=tokenizer,
        head=head,
        context=context,
        weights=weights,
        local=source.commit is None,
        method=adapter.method if adapter else "",
        target_codes=family(config.get("model_type")).only_translates and _has_target_codes(source.folder),
    )
    return ModelReport(
        model=source.name,
        commit=source.commit,
        library="peft" if adapter else "gguf" if source.gguf_file else "transformers",
        architecture=str(next(iter(config.get("architectures") or ()), config.get("model_type", "unknown"))),
        model_type=str(config.get("model_type", "unknown")),
        parameters=parameters,
        parameters_by_dtype=dict(counts or {}),
        weights=weights,
        context_length=context.tokens,
        context_is_hard=context.hard,
        tasks=tasks,
        chat_template=tokenizer.chat_template,
        special_tokens=tokenizer.tokens,
        languages=_languages(direction, config, card, metadata),
        direction=direction,
        license=_license(source.folder, card, metadata),
        memory={dtype: None if parameters is None else int(parameters * size) for dtype, size in _BYTES.items()},
        known_issues=tuple(find_issues(facts)),
        commands=_commands(source, facts, tasks, None if tuned is None else tuned.task),
        adapter=adapter,
        tuned=tuned,
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


# Weights.


def _weights(source: Source) -> str | None:
    if source.gguf_file:
        return "gguf"
    if _only_small_files(source):
        return None
    files = weight_files(source.folder)
    return "safetensors" if files.safetensors else "bin" if files.bins else None


def _only_small_files(source: Source) -> bool:
    """A Hub snapshot fetched without weights: it may hold an index whose parts are all elsewhere."""
    if source.commit is None:
        return False
    return not any(next(source.folder.glob(f"*{suffix}"), None) for suffix in (".safetensors", ".bin"))


def _counts(
    source: Source, config: Mapping[str, Any], weights: str | None, hub_counts: dict[str, int] | None
) -> dict[str, int] | None:
    if weights == "safetensors":
        return parameter_counts(source.folder)
    # The Hub counts packed elements too; and for an adapter's name it counts the adapter.
    if not hub_counts or config.get("quantization_config") or source.adapter is not None:
        return None
    return {torch_dtype_name(name): number for name, number in hub_counts.items()}


def _count_on_meta(source: Source, config: Mapping[str, Any]) -> int:
    """Parameters of the saved architecture, each tied one once, without memory for any of them."""
    if needs_own_code(config, natural_head(config)):
        raise CheckpointError(
            f"{source.name} requires its own code, which is not run for counting",
            "omit `exact`",
            code="code_not_trusted",
        )
    import torch
    import transformers

    head = natural_head(config)
    named = str(next(iter(config.get("architectures") or ()), ""))
    try:
        model_config = transformers.AutoConfig.from_pretrained(source.folder, local_files_only=True)
        with torch.device("meta"):
            if hasattr(transformers, named):
                model = getattr(transformers, named)(model_config)
            else:
                auto_class = getattr(transformers, HEADS[head].auto_class if head else "AutoModel")
                model = auto_class.from_config(model_config)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{source.name} cannot be built from its config ({reason})", "omit `exact`") from error
    return sum(parameter.numel() for parameter in model.parameters())


def _adapter(source: Source) -> Adapter | None:
    if source.adapter is None:
        return None
    config = read_json(source.adapter / ADAPTER_CONFIG)
    small_files_only = source.adapter_commit is not None and not any(source.adapter.glob("adapter_model.*"))
    weights = None if small_files_only else weights_file(source.adapter)
    if weights is not None and not _only_small_files(source):
        check_base(source.adapter, source.folder)
    rank = config.get("r")
    return Adapter(
        base=str(config.get("base_model_name_or_path") or "unknown"),
        method=str(config.get("peft_type") or "unknown"),
        rank=rank if isinstance(rank, int) else None,
        parameters=sum(tensor_counts(weights).values()) if weights and weights.suffix != ".bin" else None,
        commit=source.adapter_commit,
    )


# Tokenizer and tasks.


def _tokenizer(
    source: Source, config: Mapping[str, Any], generation: Mapping[str, Any], metadata: Mapping[str, Any]
) -> TokenizerFiles:
    # The loader, too, prefers an adapter's own tokenizer: tuning may have brought tokens and a template.
    if source.adapter is not None and (source.adapter / "tokenizer_config.json").is_file():
        files = read_tokenizer(source.adapter, config, generation)
        return replace(files, chat_template=files.chat_template or has_chat_template(source.folder))
    if source.gguf_file:
        ids = {
            kind: config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad", "unk") if f"{kind}_token_id" in config
        }
        return TokenizerFiles(
            chat_template="tokenizer.chat_template" in metadata,
            tokens={kind: SpecialToken(ids=(number,)) for kind, number in ids.items()},
        )
    return read_tokenizer(source.folder, config, generation)


def _own_rows(source: Source, config: Mapping[str, Any], tokenizer: TokenizerFiles) -> dict[str, int]:
    """The number of tokens that an adapter gives its base: that of its tensors, else what its tokenizer needs."""
    rows = config.get("vocab_size")
    if source.adapter is None or not isinstance(rows, int) or not any(source.adapter.glob("adapter_model.*")):
        return {}
    known = None if _only_small_files(source) else embedding_rows(source.adapter, source.folder)
    return {"vocab_size": known or max(rows, tokenizer.largest_added_id + 1)}


def _fit(task: type[Task], source: Source, config: Mapping[str, Any], tokenizer: TokenizerFiles) -> TaskFit:
    try:
        found = resolve(task.name, config, model=source.name)
        if source.adapter is not None:
            check_adapter(source.adapter, found.head)
    except TaskMismatchError:
        return TaskFit(status=_NO)
    if not writes(found.head) and not tokenizer.offsets:
        return TaskFit(status=_NO)
    new = found.new_head and not brings_head(source.adapter, found.head)
    new |= family(found.model_type).only_translates and not task.suits_translators
    return TaskFit(
        status=_NEW_HEAD if new else _READY,
        head=str(found.head),
        auto_class=found.auto_class,
        model_class=found.model_class,
    )


def _commands(source: Source, facts: Facts, tasks: Mapping[str, TaskFit], first: str | None) -> tuple[str, ...]:
    runs = (facts.weights or not facts.local) and (facts.tokenizer.present or facts.weights == "gguf")
    if not runs or needs_own_code(facts.config, facts.head):
        return ()
    return tuple(
        command_line(task.verb, task.sample, **task.sample_options, model=source.name)
        for name, task in sorted(TASKS.items(), key=lambda item: item[0] != first)
        if tasks[name].status == _READY
    )


# Licence and languages.


_EMPTY = ("", "~", "null")


def _names(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(name.strip() for name in values if isinstance(name, str) and name.strip() not in _EMPTY)


def _license(folder: Path, card: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    named = _names(card.get("license")) or _names(metadata.get("general.license"))
    if named and named != ("other",):
        return ", ".join(named)
    other = _names(card.get("license_name"))
    if other:
        return other[0]
    file = next((path.name for path in sorted(folder.glob("LICEN[CS]E*"))), None)
    return f"see {file}" if file else ", ".join(named) or "unknown"


def _languages(
    direction: tuple[str, str] | None, config: Mapping[str, Any], card: Mapping[str, Any], metadata: Mapping[str, Any]
) -> tuple[str, ...]:
    if family(config.get("model_type")).forces_language:
        return ("multilingual (codes in the tokenizer)",)
    named = _names(card.get("language")) or _names(metadata.get("general.languages"))
    return named or direction or ()


def _direction(source: Source, config: Mapping[str, Any], tokenizer: TokenizerFiles) -> tuple[str, str] | None:
    if not family(config.get("model_type")).only_translates:
        return None
    if pair := pair_in(source.name) or pair_in(str(config.get("_name_or_path", ""))):
        return pair
    languages = tokenizer.config.get("langs") or [tokenizer.config.get(f"{side}_lang") for side in ("source", "target")]
    named = _names(languages)
    return (named[0], named[1]) if len(named) == 2 else None


def _has_target_codes(folder: Path) -> bool:
    vocabulary = folder / "vocab.json"
    text = vocabulary.read_text(encoding="utf-8", errors="replace") if vocabulary.is_file() else ""
    return re.search('">>[a-z]\\w+<<"', text) is not None


# The text for a terminal.

_LABEL = 15


def render(report: ModelReport) -> str:
    """The report as text for a person, in about 25 lines."""
    context = ContextLength(report.context_length, report.context_is_hard)
    rows = [
        ("model", report.model + (f" ({report.commit[:12]})" if report.commit else "")),
        ("architecture", f"{report.architecture} ({report.model_type}, {report.library})"),
        *([("adapter", _adapter_text(report.adapter))] if report.adapter else []),
        *(tuned_lines(report.tuned) if report.tuned else ()),
        ("parameters", _parameters_text(report)),
        ("memory", _memory_text(report.memory)),
        ("context", _context_text(context)),
        ("languages", _languages_text(report)),
        ("license", report.license),
        ("chat template", "yes" if report.chat_template else "no"),
        ("special tokens", _tokens_text(report.special_tokens)),
    ]
    lines = [f"{label:<{_LABEL}} {text}" for label, text in rows]
    lines += ["", "tasks", *(_task_line(name, fit) for name, fit in report.tasks.items())]
    if report.known_issues:
        lines += ["", "known issues", *(f"  - {issue}" for issue in report.known_issues)]
    lines += ["", "run", *(f"  {command}" for command in report.commands or ("nothing yet",))]
    return "\n".join(lines)


def _short(number: int) -> str:
    return in_units(number, ("", "k", "M", "B", "T"))


def _parameters_text(report: ModelReport) -> str:
    if report.parameters is None:
        return "unknown (not in a safetensors header; `exact` counts on the meta device)"
    kinds = report.parameters_by_dtype
    if len(kinds) == 1:
        return f"{_short(report.parameters)} ({next(iter(kinds))})"
    parts = ", ".join(f"{_short(kinds[name])} {name}" for name in sorted(kinds, key=lambda name: -kinds[name]))
    return _short(report.parameters) + (f" ({parts})" if parts else "")


def _memory_text(memory: Mapping[str, int | None]) -> str:
    known = [f"{dtype} {in_units(size)}" for dtype, size in memory.items() if size is not None]
    return f"{', '.join(known)} (weights only)" if known else "unknown"


def _context_text(context: ContextLength) -> str:
    if context.tokens is None:
        return "unknown (no limit in the files)"
    return f"{context.tokens:,} tokens" + ("" if context.hard else " (what it was trained on; longer input runs)")


def _languages_text(report: ModelReport) -> str:
    if report.direction:
        return f"{report.direction[0]} → {report.direction[1]}"
    shown = ", ".join(report.languages[:8])
    more = len(report.languages) - 8
    return f"{shown} and {more} more" if more > 0 else shown or "unknown"


def _tokens_text(tokens: Mapping[str, SpecialToken]) -> str:
    parts = []
    for kind, token in tokens.items():
        ids = f"[{', '.join(map(str, token.ids))}]" if len(token.ids) > 1 else "".join(map(str, token.ids))
        parts.append(" ".join(filter(None, (kind, token.text, f"({ids})" if token.text and ids else ids))))
    return ", ".join(parts) or "none in the files"


def _adapter_text(adapter: Adapter) -> str:
    size = f", {_short(adapter.parameters)} parameters" if adapter.parameters is not None else ""
    rank = f" of rank {adapter.rank}" if adapter.rank is not None else ""
    commit = f" ({adapter.commit[:12]})" if adapter.commit else ""
    return f"{adapter.method}{rank} on {adapter.base}{size}{commit}"


def _task_line(name: str, fit: TaskFit) -> str:
    loaded = f"{fit.auto_class} → {fit.model_class}" if fit.auto_class else ""
    return f"  {name:<{_LABEL + 4}} {fit.status:<18} {loaded}".rstrip()
