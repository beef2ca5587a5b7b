"""How an exported model is compared with its source.

By greedy answers to `PROMPTS`, and by the log-probabilities of the tokens of the source's answers. If the weights have
the same values, answers are equal and log-probabilities differ by rounding of the computation alone; if the export
rounds them, to 8 bits for example, the mean difference is limited.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llmkit.errors import CheckpointError
from llmkit.heads.base import encode_text
from llmkit.heads.span import SpanHead
from llmkit.heads.windows import Document
from llmkit.tasks import QuestionContext

if TYPE_CHECKING:
    from llmkit.models.load import Loaded

__all__ = [
    "PROMPTS",
    "Check",
    "GenerativeModel",
    "TransformersModel",
    "compare",
    "compare_spans",
    "record",
    "record_spans",
    "span_questions",
]

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a fox who",
    "What is the meaning of life?",
    "List three colours: red,",
    "def add(a, b):\n    return",
    "Translate to German: Good morning.",
    "La bibliothèque est fermée, mais le café",
    "Der schnelle braune Fuchs springt",
    "今天天气很好，我们去",
    "吾輩は猫である。名前は",
    "Сегодня хорошая погода, и мы",
    "مرحبا بالعالم",
    "An emoji 😀 and the number 12345",
    '{"name": "Ada", "born": 1815, "field":',
    "1 + 2 + 3 =",
    "  Two spaces, then a tab\tand a line break\n",
    "HELLO WORLD",
    "A summary of the report follows. The council",
    "Q: Who wrote Hamlet?\nA:",
    "x",
)
"""Prompts in several languages and scripts, with code, digits and white space."""
_ANSWER = 16
"""Number of tokens of an answer."""
_EXACT, _ROUNDED = 0.01, 0.2
"""Limits of the differences of log-probabilities: of the largest one, and of the mean if weights are rounded.

Another model makes a mean difference of more than 1."""
_LOGIT = 1e-4
"""Limit of the difference of two logits of an extractive model."""


class GenerativeModel(Protocol):
    """A model that answers token ids with token ids."""

    def answer(self, prompt: Sequence[int], most: int) -> list[int]:
        """The greedy answer with at most this many tokens."""

    def log_probs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """The log-probability of each token of an answer."""


@dataclass(frozen=True)
class Check:
    """The comparison of an exported model with its source."""

    compared: int
    """Number of prompts, or of questions."""
    equal: int
    """How many answers are equal."""
    measure: str
    difference: float
    """See ``measure``."""
    limit: float


@dataclass(frozen=True)
class Answer:
    """A greedy answer, with the log-probabilities of its tokens."""

    prompt: list[int]
    ids: list[int]
    log_probs: list[float]


def record(loaded: Loaded) -> list[Answer]:
    """The answers of a model of Transformers to the prompts."""
    model, found = TransformersModel(loaded), []
    for text in PROMPTS:
        prompt = encode_text(loaded.tokenizer, text)
        ids = model.answer(prompt, _ANSWER)
        found.append(Answer(prompt, ids, model.log_probs(prompt, ids)))
    return found


def compare(answers: Sequence[Answer], exported: GenerativeModel, *, exact: bool) -> Check:
    """Compare an exported model with the answers of its source; ``exact`` if the weights have the same values.

    Raises:
        CheckpointError: it is another model.
    """
    equal = sum(exported.answer(each.prompt, _ANSWER) == each.ids for each in answers)
    differences = [
        abs(one - other)
        for each in answers
        for one, other in zip(each.log_probs, exported.log_probs(each.prompt, each.ids), strict=True)
    ]
    found = max(differences) if exact else sum(differences) / len(differences)
    name = "largest" if exact else "mean"
    measure = f"{name} difference of the log-probabilities of {len(differences)} tokens"
    return _accepted(Check(len(answers), equal, measure, found, _EXACT if exact else _ROUNDED), exact=exact)


@dataclass(frozen=True)
class Spans:
    """The windows of a question, their logits, and the spans that follow."""

    document: Document
    logits: list[Any]
    found: list[tuple[str, int, int]]


def record_spans(loaded: Loaded) -> list[Spans]:
    """The spans that an extractive model finds for questions in texts of one or several windows."""
    head, found = SpanHead(), []
    for question in span_questions():
        document = head.encode(loaded, question)
        logits = head.read(loaded, document.windows)
        spans = [(span.text, span.start, span.end) for span in head.answer(document, logits).spans]
        found.append(Spans(document, logits, spans))
    return found


def span_questions() -> list[QuestionContext]:
    """Each prompt as a question about the prompts before it."""
    return [QuestionContext(text, " ".join(PROMPTS[: number + 1])) for number, text in enumerate(PROMPTS)]


def compare_spans(one: Sequence[Spans], other: Sequence[Spans], limit: float = _LOGIT, *, exact: bool = True) -> Check:
    """Compare the logits, spans and offsets of an exported model with those of its source.

    Raises:
        CheckpointError: it is another model.
    """
    both = list(zip(one, other, strict=True))
    windows = [pair for mine, theirs in both for pair in zip(mine.logits, theirs.logits, strict=True)]
    found = max(float((a - b).abs().max()) for mine, theirs in windows for a, b in zip(mine, theirs, strict=True))
    equal = sum(mine.found == theirs.found for mine, theirs in both)
    return _accepted(Check(len(both), equal, "largest difference of a logit", found, limit), exact=exact)


def _accepted(check: Check, *, exact: bool) -> Check:
    if check.difference <= check.limit and (check.equal == check.compared or not exact):  # NaN is refused too
        return check
    raise CheckpointError(
        f"the exported model is another one: {check.equal} of {check.compared} answers are equal, {check.measure}:"
        f" {check.difference:.1e}, where {check.limit:.0e} would be rounding",
        "choose another format, or report this with the model's config.json",
        code="logits_differ",
    )


@dataclass(frozen=True)
class TransformersModel:
    """A model of Transformers."""

    loaded: Loaded

    def answer(self, prompt: Sequence[int], most: int) -> list[int]:
        """See `GenerativeModel`."""
        import torch

        model: Any = self.loaded.model
        ids = torch.tensor([prompt])
        with torch.inference_mode(), _greedily(model):
            output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=most)
        start = 1 if model.config.is_encoder_decoder else len(prompt)
        found: list[int] = output[0, start:].tolist()
        return found

    def log_probs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """See `GenerativeModel`."""
        import torch

        model: Any = self.loaded.model
        config = model.generation_config
        if model.config.is_encoder_decoder:
            ids = {"input_ids": [prompt], "decoder_input_ids": [[config.decoder_start_token_id, *answer[:-1]]]}
        else:
            ids = {"input_ids": [[*prompt, *answer[:-1]]]}
        with torch.no_grad():
            logits = model(**{name: torch.tensor(each) for name, each in ids.items()}).logits[0, -len(answer) :]
        never = [word[0] for word in config.bad_words_ids or () if len(word) == 1]
        logits[:, never] = -torch.inf
        found: list[float] = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()
        return found


_OF_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "bad_words_ids")


@contextmanager
def _greedily(model: Any) -> Iterator[None]:
    """Generate without the checkpoint's penalties, beams and forced tokens, which other programs do not have."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in _OF_TOKENS})
    try:
        yield
    finally:
        model.generation_config = own
