"""The question-answering pipeline of Transformers 4, which version 5 removed, on the pipeline base that it kept.

Reproduces 4.57.6 from the question and its context to the answers, except for two flaws, which ``bug_compatible``
restores. llmkit itself extracts answers with `llmkit.heads.span`. Models are located and loaded elsewhere.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from transformers.pipelines import base

from llmkit.errors import InputError, UsageError
from llmkit.heads.windows import takes, takes_token_types
from llmkit.log import warn

__all__ = ["QuestionAnsweringPipeline"]

_ChunkPipeline: Any = base.ChunkPipeline  # its own hints forbid the arguments that all of its subclasses add

_PREPROCESS = ("padding", "doc_stride", "max_question_len", "max_seq_len")
_POSTPROCESS = ("top_k", "max_answer_len", "handle_impossible_answer", "align_to_words")
_INPUTS = ("X", "data", "question", "context")
_OTHERS = ("topk", "batch_size", "num_workers", "binary_output")
_MASKED = -10000.0
_NULL = 1_000_000
"""Initial value of the "no answer" score, above any real one."""


@dataclass(frozen=True)
class _Example:
    question: str
    context: str


class QuestionAnsweringPipeline(_ChunkPipeline):  # type: ignore[misc]
    """Extracts answers to questions, with their positions in the context.

    One question gives ``{"score": float, "start": int, "end": int, "answer": str}``, or a list of such dicts where
    ``top_k`` is more than 1 and more than one is found; several give a list of these; a dataset or generator gives an
    iterator. Positions are in characters.

    The score of 4.57.6 was start probability × end probability within one window of the text, so that scores of two
    windows did not compare, and the best answer of a window without an answer could win. Scores of answers that read
    alike (they may be of several windows, or different tokens of one word) were added and could pass 1. Here a score is
    a share of all windows, and of answers that read alike the best counts; for a text that fits one window and
    ``top_k=1`` with ``align_to_words=False`` nothing differs. ``bug_compatible=True`` gives exactly what 4.57.6 gave.

    Tokenizers without character offsets are refused.
    """

    default_input_names = "question,context"
    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(self, *args: Any, bug_compatible: bool = False, **kwargs: Any) -> None:
        self.bug_compatible = bug_compatible
        super().__init__(*args, **kwargs)
        if not self.tokenizer.is_fast:
            raise UsageError(
                f"{type(self.tokenizer).__name__} has no character offsets",
                "use a model with a tokenizer.json",
                code="not_supported",
            )

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = (*_PREPROCESS, *_POSTPROCESS, *_INPUTS, *_OTHERS)
        for name in kwargs:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                raise UsageError(
                    f"question-answering has no argument {name}",
                    f"did you mean {near[0]}?" if near else "leave it out",
                    code="not_supported",
                )
        if kwargs.get("top_k") is None:
            kwargs["top_k"] = kwargs.get("topk")
        given = {name: value for name, value in kwargs.items() if value is not None}
        for name in ("top_k", "max_answer_len"):
            if given.get(name, 1) < 1:
                raise UsageError(f"{name} is {given[name]}", f"set {name} to 1 or more")
        if "max_question_len" in given:
            warn("no_effect", "max_question_len has no effect, as in Transformers 4 with a fast tokenizer")
        return (
            {name: given[name] for name in _PREPROCESS if name in given and name != "max_question_len"},
            {},
            {name: given[name] for name in _POSTPROCESS if name in given},
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer questions from texts; see the class for the results.

        Args:
            *args: a dict with ``question`` and ``context``, a list of these, a dataset or generator of them, or a
                question and a text. ``data`` and ``X`` name the same. An example may also be an object with
                ``question_text`` and ``context_text``, as SquadExample was.
            **kwargs: ``question`` and ``context`` (strings, a list of questions on one text, or two lists);
                ``top_k`` (1) answers; ``doc_stride`` (128 tokens that windows share, at most half of one);
                ``max_answer_len`` (15 tokens); ``max_seq_len`` (384 tokens, or fewer if the model takes fewer);
                ``handle_impossible_answer`` (False); ``align_to_words`` (True); ``padding``; ``batch_size``;
                ``num_workers``.
        """
        examples = _examples(*args, **kwargs)
        options = {name: value for name, value in kwargs.items() if name not in _INPUTS}
        if isinstance(examples, list) and not examples:
            return []
        return super().__call__(examples[0] if _single(examples) else examples, **options)

    def preprocess(
        self, example: Any, padding: Any = "do_not_pad", doc_stride: int | None = None, max_seq_len: int | None = None
    ) -> Iterator[dict[str, Any]]:
        example = _example(example)
        if max_seq_len is None:
            max_seq_len = min(self.tokenizer.model_max_length, 384)
        if doc_stride is None:
            doc_stride = min(max_seq_len // 2, 128)
        self._check_room(example, doc_stride, max_seq_len)
        question_first = self.tokenizer.padding_side == "right"
        pair = (example.question, example.context)
        encoded = self.tokenizer(
            *(pair if question_first else pair[::-1]),
            padding=padding,
            truncation="only_second" if question_first else "only_first",
            max_length=max_seq_len,
            stride=doc_stride,
            return_token_type_ids=True,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        names = [name for name in ("input_ids", "attention_mask") if name in encoded]
        names += ["token_type_ids"] if takes_token_types(self.model, self.tokenizer) else []
        all_open = self.bug_compatible and not question_first
        windows = len(encoded["input_ids"])
        for window in range(windows):
            ids = encoded["input_ids"][window]
            sides = encoded.sequence_ids(window)
            # CLS stays open, since models put "no answer" there.
            outside = [
                not all_open and side != int(question_first) and token != self.tokenizer.cls_token_id
                for side, token in zip(sides, ids, strict=True)
            ]
            inputs = {name: torch.tensor([encoded[name][window]]) for name in names}
            yield {
                "example": example,
                "encoding": encoded[window],
                "is_last": window == windows - 1,
                "p_mask": torch.tensor([outside]).long(),
                **inputs,
            }

    def _check_room(self, example: _Example, doc_stride: int, max_seq_len: int) -> None:
        """Raise `InputError` for lengths that would make the tokenizer panic."""

        def tokens(text: str) -> int:
            return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        question = tokens(example.question)
        room = max_seq_len - special - question
        if doc_stride >= max_seq_len - special or (doc_stride >= room and tokens(example.context) > room):
            raise InputError(
                f"max_seq_len={max_seq_len} leaves {max(0, room)} tokens for the context with a question of {question},"
                f" and adjacent windows share doc_stride={doc_stride} of them",
                "shorten the question, raise max_seq_len, or lower doc_stride",
                code="context_overflow",
            )

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs]
        model_inputs: dict[str, Any] = {name: inputs[name] for name in names if takes(self.model, name)}
        if takes(self.model, "use_cache"):
            model_inputs["use_cache"] = False
        output = self.model(**model_inputs)
        if not isinstance(output, Mapping):
            output = {"start_logits": output[0], "end_logits": output[1]}
        if "start_logits" not in output or "end_logits" not in output:
            raise UsageError(
                f"{type(self.model).__name__} returns no start and end logits",
                "use a …ForQuestionAnswering model",
                code="not_supported",
            )
        return {"start": output["start_logits"], "end": output["end_logits"], **inputs}

    def postprocess(
        self,
        model_outputs: Sequence[dict[str, Any]],
        top_k: int = 1,
        handle_impossible_answer: bool = False,
        max_answer_len: int = 15,
        align_to_words: bool = True,
    ) -> Any:
        answers: dict[str, dict[str, Any]] = {}
        null: float = _NULL
        # Some are lost when several fall on one word.
        candidates = top_k * 2 + 10 if align_to_words else top_k
        null_at = -1 if self.tokenizer.padding_side == "left" and not self.bug_compatible else 0
        read = [_probabilities(output) for output in model_outputs]
        shares = [1.0] * len(read) if self.bug_compatible else _shares([logit for _, _, logit, _ in read])
        for output, share, (start, end, _, open_) in zip(model_outputs, shares, read, strict=True):
            null = min(null, (start[null_at] * end[null_at]).item() * share)
            start[null_at] = end[null_at] = 0.0
            for first, last, score in _spans(start, end, open_, candidates, max_answer_len):
                place = self._place(output, first, last, align_to_words=align_to_words)
                self._add(answers, output["example"].context, *place, score * share)
        found = list(answers.values())
        if handle_impossible_answer:
            found.append({"score": null, "start": 0, "end": 0, "answer": ""})
        found = sorted(found, key=lambda answer: -answer["score"])[:top_k]
        return found[0] if len(found) == 1 else found

    def _add(self, answers: dict[str, dict[str, Any]], context: str, start: int, end: int, score: float) -> None:
        text = context[start:end]
        known = answers.get(text.lower())
        if known is not None and self.bug_compatible:
            known["score"] += score
        elif known is None or score > known["score"]:
            answers[text.lower()] = {"score": score, "start": start, "end": end, "answer": text}

    def _place(self, output: dict[str, Any], first: int, last: int, *, align_to_words: bool) -> tuple[int, int]:
        """The characters ``[start, end)`` of tokens ``first`` to ``last``, of their words with ``align_to_words``."""
        encoding = output["encoding"]
        if self.tokenizer.padding_side == "left":
            # A batch pads the tensor, not the encoding.
            padding = int((output["input_ids"] == self.tokenizer.pad_token_id).sum())
            first, last = first - padding, last - padding
        if align_to_words:
            side = 1 if self.tokenizer.padding_side == "right" else 0
            try:
                start = encoding.word_to_chars(encoding.token_to_word(first), sequence_index=side)[0]
                return start, encoding.word_to_chars(encoding.token_to_word(last), sequence_index=side)[1]
            except TypeError:
                pass  # a token of no word, or a word without characters
        return encoding.offsets[first][0], encoding.offsets[last][1]


# From arguments to examples.


def _examples(*args: Any, **kwargs: Any) -> Any:
    """A list of examples, or the caller's dataset or generator."""
    if args:
        given: Any = args[0] if len(args) == 1 else list(args)
        if len(args) == 2 and all(type(arg) is str for arg in args):
            given = [{"question": args[0], "context": args[1]}]
    elif "X" in kwargs or "data" in kwargs:
        given = kwargs["X"] if "X" in kwargs else kwargs["data"]
    elif "question" in kwargs and "context" in kwargs:
        given = _pairs(kwargs["question"], kwargs["context"])
    else:
        raise InputError("a question or a context is missing", "pass question= and context=", code="empty_input")
    if isinstance(given, types.GeneratorType | torch.utils.data.Dataset):
        return given
    if isinstance(given, Mapping):
        if isinstance(given.get("question"), list):
            return [_checked(pair) for pair in _pairs(given["question"], given.get("context"))]
        given = [given]
    if isinstance(given, str) or not isinstance(given, Iterable):
        given = [given]
    return [_checked(example) for example in given]


def _single(examples: Any) -> bool:
    return isinstance(examples, list) and len(examples) == 1


def _pairs(question: Any, context: Any) -> list[dict[str, Any]]:
    questions = question if isinstance(question, list) else [question]
    contexts = context if isinstance(context, list) else [context] * len(questions)
    if len(questions) != len(contexts) or (isinstance(context, list) and not isinstance(question, list)):
        raise InputError(
            f"{len(questions)} questions and {len(contexts)} contexts cannot be paired",
            "give one context, or one for each question",
        )
    return [{"question": each, "context": text} for each, text in zip(questions, contexts, strict=True)]


def _checked(value: Any) -> _Example:
    """A validated example: both texts are present and not empty, and nothing else."""
    if isinstance(value, Mapping):
        for name in ("question", "context"):
            if not value.get(name):
                raise InputError(f"an example has no {name}", "give a question and a context that are not empty")
        if others := sorted(set(value) - {"question", "context"}):
            raise InputError(
                f"an example has keys other than question and context: {', '.join(others)}", "leave them out"
            )
    return _example(value)


def _example(value: Any) -> _Example:
    if isinstance(value, _Example):
        return value
    if isinstance(value, Mapping) and "question" in value and "context" in value:
        pair = value["question"], value["context"]
    else:
        pair = getattr(value, "question_text", None), getattr(value, "context_text", None)
    if not all(isinstance(text, str) for text in pair):
        raise InputError(f"{str(value)[:60]!r} is not a question with its context", "give a dict of two strings")
    return _Example(*pair)


# From logits to spans.


def _probabilities(output: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Start and end probabilities ``[length]`` in one window, the logarithm of what their product was divided by, and
    which positions an answer may have.
    """
    open_ = output["p_mask"][0].numpy() == 0
    if "attention_mask" in output:
        open_ &= output["attention_mask"][0].numpy() == 1
    logit = 0.0
    probabilities = []
    for logits in (output["start"][0], output["end"][0]):
        values = (logits.float() if logits.dtype == torch.bfloat16 else logits).numpy()
        values = np.where(open_, values, np.asarray(_MASKED, dtype=values.dtype))
        highest = values.max()
        values = np.exp(values - highest)
        total = values.sum()
        probabilities.append(values / total)
        logit += float(highest) + math.log(float(total))
    return probabilities[0], probabilities[1], logit, open_


def _shares(logits: Sequence[float]) -> list[float]:
    """Each window's share of the weight of all spans."""
    highest = max(logits)
    weights = [math.exp(logit - highest) for logit in logits]
    return [weight / math.fsum(weights) for weight in weights]


def _spans(
    start: np.ndarray, end: np.ndarray, open_: np.ndarray, top: int, max_answer_len: int
) -> list[tuple[int, int, float]]:
    """The most probable spans of at most ``max_answer_len`` tokens, best first, as first and last token and score.

    Spans that lie outside the text are dropped after the best were chosen, as in 4.57.6.
    """
    products = np.tril(np.triu(np.outer(start, end)), max_answer_len - 1)
    flat = products.flatten()
    if top == 1:
        order = np.array([np.argmax(flat)])
    elif len(flat) < top:
        order = np.argsort(-flat)
    else:
        # Not a whole sort: the order of equals, of which masking makes many, is 4.57.6's.
        order = np.argpartition(-flat, top)[:top]
        order = order[np.argsort(-flat[order])]
    firsts, lasts = np.unravel_index(order, products.shape)
    inside = open_.copy()
    inside[0] = open_.any()  # as 4.57.6 reads its mask; its score is 0 if it is no place for an answer
    return [
        (int(first), int(last), products[first, last].item())
        for first, last in zip(firsts, lasts, strict=True)
        if inside[first] and inside[last]
    ]
