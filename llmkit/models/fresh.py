"""A model that does not exist yet: its config and its tokenizer, written as the folder of a checkpoint without weights.

Knows how a tokenizer is trained and which of its tokens a config has to name. Random weights are the business of
whoever trains them; where the texts come from, that of whoever gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError
from llmkit.models.resolve import resolve
from llmkit.models.tables import HEADS, class_names, writes
from llmkit.tasks import Head

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["train_tokenizer", "write_untrained_checkpoint"]

_PAD, _BEGIN, _END = "<pad>", "<s>", "</s>"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, min_frequency: int, head: Head) -> Any:
    """Byte-level BPE (Radford et al. 2019), which knows every character and comes out the same each time.

    A text begins with ``<s>`` for a causal model and ends with ``</s>`` for a seq2seq one. The chat template is left
    out: a new model has no turns.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if not writes(head):
        raise UsageError(
            "a tokenizer is trained for models that write",
            "take tokenizer.name_or_path from a BERT-like checkpoint",
            code="not_supported",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[_PAD, _BEGIN, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    frame = f"{_BEGIN} $A" if HEADS[head].one_sequence else f"$A {_END}"
    marks = [(mark, tokenizer.token_to_id(mark)) for mark in (_BEGIN, _END)]
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(single=frame, special_tokens=marks)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_PAD, bos_token=_BEGIN, eos_token=_END)


def write_untrained_checkpoint(
    given: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, folder: Path, *, task: str, head: str | None
) -> None:
    """Write config.json, generation_config.json and the tokenizer of a new model.

    Args:
        given: settings of a Transformers config, ``model_type`` among them. What the tokenizer decides (the size of
            the vocabulary, special tokens) is set here.

    Raises:
        UsageError: an unknown model type or setting, or one that the tokenizer decides.
    """
    import transformers

    settings = dict(given)
    model_type = str(settings.pop("model_type"))
    if model_type not in transformers.CONFIG_MAPPING:
        near = get_close_matches(model_type, list(transformers.CONFIG_MAPPING.keys()), n=1)
        raise UsageError(
            f"Transformers has no model_type {model_type!r}",
            f"did you mean {near[0]!r}?" if near else "name one, such as llama",
            code="not_supported",
        )
    resolution = resolve(task, {"model_type": model_type}, head=head, model=f"a new {model_type} model")
    _check_names(settings, transformers.CONFIG_MAPPING[model_type], model_type)
    tokens = _tokens(tokenizer, resolution.head)
    if decided := sorted(tokens.keys() & settings.keys()):
        raise UsageError(
            f"model.config sets {', '.join(decided)}, which the tokenizer decides", "leave it out", code="not_supported"
        )
    try:
        config = transformers.AutoConfig.for_model(model_type, **settings)
    except Exception as error:  # each class of configs checks in its own way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"model.config is invalid for {model_type}: {reason}",
            "correct these settings",
            code="not_supported",
        ) from error
    for name, value in tokens.items():
        if name in _NAMED_BY_ALL or hasattr(config, name):
            setattr(config, name, value)
    config.architectures = [class_names(resolution.head)[model_type]]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    transformers.GenerationConfig.from_model_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


_NAMED_BY_ALL = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def _tokens(tokenizer: Any, head: Head) -> dict[str, int | None]:
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": pad, "bos_token_id": begin, "eos_token_id": end}
    if writes(head) and not HEADS[head].one_sequence:
        tokens |= {"decoder_start_token_id": pad, "forced_eos_token_id": end, "forced_bos_token_id": None}
        tokens |= {"decoder_vocab_size": len(tokenizer)}
    return tokens


def _check_names(settings: Mapping[str, Any], config_class: Any, model_type: str) -> None:
    """Config classes take any name, and a misspelled one would change nothing."""
    known = {item.name for item in fields(config_class)} if is_dataclass(config_class) else set(vars(config_class()))
    known |= set(config_class.attribute_map)
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise UsageError(
                f"the config of {model_type} has no setting {name!r}",
                f"did you mean {near[0]!r}?" if near else "see its page in the documentation of Transformers",
                code="not_supported",
            )
