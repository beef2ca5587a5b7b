"""Known issues of a checkpoint that raise no error, as far as its files show them: one line each.

Each was reported upstream (in the issues of Transformers, TRL, PEFT and their users). Works on plain values: reads no
files and imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.models.context import ContextLength
from llmkit.models.families import family
from llmkit.models.generation_settings import FIELDS, clean, fit_vocabulary
from llmkit.models.tables import HEADS, class_names, decoder_class, is_native, writes
from llmkit.models.tokenizer_files import SpecialToken, TokenizerFiles
from llmkit.models.upstream import lets_packed_examples_leak
from llmkit.tasks import Head

__all__ = ["Facts", "find_issues", "hub_kernels", "needs_own_code"]

_INSTRUCT = re.compile(r"(?i)(?:^|[-_./])(?:instruct|chat|it|dpo|rlhf|sft)(?:[-_./]|$)")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts from which known issues are derived."""

    name: str
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokenizer: TokenizerFiles
    head: Head | None
    context: ContextLength
    weights: str | None
    """safetensors, bin or gguf; None without weights."""
    local: bool
    """The folder is the user's, so it should be complete; of a Hub model, only small files may be on this machine."""
    method: str = ""
    """The adapter's method by its name in PEFT."""
    target_codes: bool = False
    """The vocabulary has ``>>xxx<<`` tokens, as Marian's may."""

    @property
    def one_sequence(self) -> bool:
        return self.head is not None and HEADS[self.head].one_sequence


def find_issues(facts: Facts) -> list[str]:
    """The known issues of a checkpoint; those that prevent it from working come first."""
    groups = (_files, _code, _tokens, _generation, _templates, _family, _training)
    return [line for group in groups for line in group(facts)]


def needs_own_code(config: Mapping[str, Any], head: Head | None) -> bool:
    """Whether the model can only be built by Python code in the checkpoint."""
    return bool(config.get("auto_map")) and (head is None or not is_native(str(config.get("model_type")), head))


def hub_kernels(config: Any) -> Iterator[str]:
    """Kernel repositories named in settings at any depth, instead of an implementation in Transformers."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if key.endswith("_implementation"):
            names = value.values() if isinstance(value, Mapping) else [value]
            yield from (name for name in names if isinstance(name, str) and "/" in name)
        else:
            yield from hub_kernels(value)


def _files(facts: Facts) -> Iterator[str]:
    if facts.weights is None and facts.local:
        yield "no weights in the folder: it cannot run"
    if facts.weights == "bin":
        yield "weights only as .bin, which are pickles: llmkit loads them with weights_only=True"
    if not facts.tokenizer.present and facts.weights != "gguf":
        yield "no tokenizer files: it cannot run"
    quantization = facts.config.get("quantization_config")
    if isinstance(quantization, Mapping):
        method = quantization.get("quant_method", "an unnamed method")
        yield f"the weights are quantized ({method}): loading needs that method's package, and often a GPU"


def _code(facts: Facts) -> Iterator[str]:
    if needs_own_code(facts.config, facts.head):
        yield "needs its own Python code (auto_map): review it, then pass `trust_remote_code=True`"
    if kernels := ", ".join(hub_kernels(facts.config)):
        yield f"names kernels of the Hub ({kernels}), whose code would run here: only with `trust_remote_code=True`"
    model_type = str(facts.config.get("model_type", ""))
    encoder = not writes(facts.head) and not facts.config.get("is_encoder_decoder")
    causal = decoder_class(model_type)
    if encoder and causal and not any("QuestionAnswering" in name for name in facts.config.get("architectures") or ()):
        yield f"encoder-only: Transformers also loads it as {causal}, without an error, and that generates noise"


def _tokens(facts: Facts) -> Iterator[str]:
    tokens, none = facts.tokenizer.tokens, SpecialToken()
    pad, eos = tokens.get("pad", none), tokens.get("eos", none)
    if not facts.tokenizer.present and facts.weights != "gguf":
        return
    if _same(pad, eos):
        yield "padding and end of text share a token: training must mask by position, not by id"
    if "pad" not in tokens:
        yield "no padding token: batches need one set, and it must be masked by position"
    stops = eos.ids if facts.tokenizer.own_eos is None else _stops(facts)
    if writes(facts.head) and facts.tokenizer.own_eos not in (None, *stops):
        yield (
            f"the tokenizer ends a text with token {facts.tokenizer.own_eos}, and its generation settings name only"
            f" {', '.join(map(str, stops))}: llmkit stops at each, other programs may not stop"
        )
    rows = facts.config.get("vocab_size")
    if isinstance(rows, int) and facts.tokenizer.largest_added_id >= rows:
        yield (
            f"the tokenizer has ids up to {facts.tokenizer.largest_added_id} and the model {rows} embeddings: resize"
            " them before use"
        )


def _generation(facts: Facts) -> Iterator[str]:
    """Generation settings that llmkit replaces."""
    if not writes(facts.head):
        return
    rows, file = facts.config.get("vocab_size"), "generation_config.json" if facts.generation else "config.json"
    own = facts.generation or {name: value for name, value in facts.config.items() if name in FIELDS}
    cleaned = clean(own)
    fitted = fit_vocabulary(cleaned.values, rows if isinstance(rows, int) else None)
    yield from (f"{file}: {note}" for note in (*cleaned.notes, *fitted.notes))


def _same(pad: SpecialToken, eos: SpecialToken) -> bool:
    if pad.text and eos.text:
        return pad.text == eos.text
    return bool(pad.ids and eos.ids) and pad.ids[0] == eos.ids[0]


def _stops(facts: Facts) -> tuple[int, ...]:
    """The ids at which ``generate`` stops, other than the tokenizer's."""
    value = facts.generation.get("eos_token_id", facts.config.get("eos_token_id"))
    stops = tuple(value) if isinstance(value, list) else (value,)
    # If none is set, llmkit stops at the tokenizer's.
    return tuple(i for i in stops if isinstance(i, int)) or (facts.tokenizer.own_eos or 0,)


def _templates(facts: Facts) -> Iterator[str]:
    if facts.one_sequence and not facts.tokenizer.chat_template:
        instruct = "although its name says it follows instructions, " if _INSTRUCT.search(facts.name) else ""
        yield f"{instruct}no chat template: prompts are continued as plain text"
    marks = any(facts.config.get("model_type") in class_names(head) for head in HEADS if not writes(head))
    if marks and not facts.tokenizer.offsets:
        yield f"{facts.tokenizer.class_name} has no character offsets: extractive question answering is not possible"


def _family(facts: Facts) -> Iterator[str]:
    config, model_type = facts.config, facts.config.get("model_type")
    forced = facts.generation.get("forced_bos_token_id")
    if family(model_type).forces_language and forced is None:
        yield "the output language is a forced first token, and none is set: without one it may be any language"
    if facts.generation and forced is None and config.get("forced_bos_token_id") is not None:
        yield "forced_bos_token_id is only in config.json: Transformers 5 reads it from generation_config.json"
    if facts.target_codes:
        yield "several target languages: each text must begin with a code such as >>fra<<"
    prefixes = _prefixes(config)
    if prefixes:
        yield f"trained with prefixes ({', '.join(map(repr, prefixes[:3]))} …): without one, results may be wrong"
    rope = config.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    if theta is not None and theta != 10_000 and "rope_theta" not in config:
        yield f"rope_theta {theta:g} is where Transformers 4 does not look: it would take 10000, without an error"


def _prefixes(config: Mapping[str, Any]) -> list[str]:
    tasks = config.get("task_specific_params")
    found = [task.get("prefix") for task in tasks.values() if isinstance(task, Mapping)] if tasks else []
    return [prefix for prefix in found if isinstance(prefix, str) and prefix]


def _training(facts: Facts) -> Iterator[str]:
    if facts.one_sequence and lets_packed_examples_leak(str(facts.config.get("model_type"))):
        yield "packed training examples attend to each other, whatever position_ids are: train it padded"
    if facts.config.get("tie_word_embeddings") is True and facts.one_sequence:
        yield "input and output embeddings are tied: training one changes the other"
    window = facts.config.get("sliding_window") or 0
    slides = isinstance(window, int) and facts.config.get("use_sliding_window") is not False
    if slides and 0 < window < (facts.context.tokens or 0):
        yield f"a sliding window of {window:,} tokens: a cache cannot be truncated beyond it"
    if facts.method == "PREFIX_TUNING":
        yield "prefix tuning: the loss of packed examples is wrong, and it cannot be merged"
    if facts.method in ("PROMPT_TUNING", "P_TUNING"):
        yield "the adapter prepends virtual tokens: they take up context, and it cannot be merged"
