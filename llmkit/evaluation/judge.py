"""A language model as a judge: it rates each answer from 1 to 5, given the prompt and the reference.

The rating is the expected value over the probabilities of the five digits after ``Rating: [[`` (G-Eval, Liu et al.
2023), so no text is parsed; no vocabulary has a space there. A row after whose prompt the judge would rather write
something else has no rating.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from typing import Any

from llmkit.config.settings import LoadSettings
from llmkit.data.prompt_files import read_template
from llmkit.engines.row_faults import attempt
from llmkit.errors import LlmkitError, UsageError
from llmkit.evaluation.answered import Answered, Computed
from llmkit.evaluation.groups import Scored
from llmkit.inference.next_tokens import next_tokens
from llmkit.inference.run_manifest import model_hashes
from llmkit.log import warn
from llmkit.metrics.bootstrap import mean_of
from llmkit.metrics.score import Measure
from llmkit.metrics.words import has_unspaced
from llmkit.models.load import Loaded, load_model
from llmkit.tasks import Chat, Message, Prompt, PromptOptions, Task, Text, Traits
from llmkit.text.templates import render_template

__all__ = ["Judge", "expected_rating"]

RATINGS = ("1", "2", "3", "4", "5")
"""Each is one token in any vocabulary, unlike 10."""
_CANDIDATES = 100
_LEAST = 0.5
"""The least probability of the ratings together, below which a row has no rating."""
_ENGLISH = """\
Rate how well the answer does what the prompt asks for. Judge its content: whether it is correct, complete and \
to the point. The reference answer is a good one; others may be as good.

5: as good as the reference answer
4: good, with small faults
3: partly right
2: mostly wrong or missing
1: wrong, or no answer to the prompt

[Prompt]
{{ prompt }}

[Reference answer]
{{ reference }}

[Answer]
{{ answer }}

Reply with the rating alone, as in Rating: [[3]]."""
_CHINESE = """\
请评价回答在多大程度上完成了提示的要求。请看内容是否正确、完整、切题。参考答案是一个好的答案，其他答案也可能同样好。

5：与参考答案一样好
4：好，有小的缺点
3：部分正确
2：大部分错误或缺失
1：错误，或没有回答提示

【提示】
{{ prompt }}

【参考答案】
{{ reference }}

【回答】
{{ answer }}

只回复评分，例如：评分：[[3]]"""
_CHAT = Traits(continues=True, chat=True)


@dataclass
class Judge:
    """A model that rates answers; loaded when first needed, and kept."""

    name: str
    model: str
    load: LoadSettings
    template: str | None = None
    """Jinja template of the judge's prompt, with ``prompt``, ``answer``, ``reference``, ``references`` and the row's
    columns; by default a built-in one, in Chinese if the reference is."""

    @classmethod
    def from_options(cls, name: str, options: Mapping[str, Any], load: LoadSettings) -> Judge:
        """The judge of ``judge,model=MODEL[,template=FILE]``.

        Raises:
            UsageError: the model is missing, an option is unknown, or the file does not exist.
        """
        if unknown := next((key for key in options if key not in ("model", "template")), None):
            raise UsageError(
                f"the metric judge has no option {unknown}", "choose from model, template", code="invalid_value"
            )
        if "model" not in options:
            raise UsageError("the metric judge needs a model", "write `judge,model=MODEL`", code="invalid_value")
        given = options.get("template")
        template = None if given is None else read_template("template", str(given))
        own = LoadSettings(
            model=str(options["model"]), device=load.device, dtype=load.dtype, offline=load.offline,
            trust_remote_code=load.trust_remote_code,
        )  # fmt: skip
        return cls(name, str(options["model"]), own, template)

    def check(self, answered: Answered) -> None:
        self._prompt(answered, 0)
        load_model(self.load, "text-generation", weights=False, fallback=False)

    def compute(self, answered: Answered) -> Computed:
        """The mean rating, and the number of rows without one."""
        import numpy as np

        found = [attempt(partial(self._rating, answered, row)) for row in range(len(answered.rows))]
        reasons = [str(each) for each in found if isinstance(each, LlmkitError)]
        ratings = [math.nan if isinstance(each, LlmkitError) else each for each in found]
        unrated = sum(map(math.isnan, ratings))
        if unrated:
            why = reasons[0] if reasons else "the judge would not reply with a rating"
            warn("rows_not_rated", "%s rated %d of %d rows; %s", self.name, len(ratings) - unrated, len(ratings), why)
        statistics = np.asarray([(0.0, 0.0) if math.isnan(value) else (value, 1.0) for value in ratings])
        rated = [Measure(self.name, statistics, mean_of, self._signature())] if unrated < len(ratings) else []
        return Computed(Scored(rated, {}), {"unrated": unrated} if unrated else {})

    @cached_property
    def _model(self) -> Loaded:
        return load_model(self.load, "text-generation", fallback=False)

    def _rating(self, answered: Answered, row: int) -> float:
        """The rating of a row's answer; NaN if there is none."""
        text, chinese = self._prompt(answered, row)
        return expected_rating(self._model, text, "评分：[[" if chinese else "Rating: [[")

    def _prompt(self, answered: Answered, number: int) -> tuple[str, bool]:
        """The judge's prompt for a row, and whether it is the Chinese one."""
        row, references = answered.rows[number], [text or "(no answer)" for text in answered.references[number]]
        columns = {
            **{name: value for name, value in row.items() if value is not None},
            "prompt": _task_prompt(answered.task, row),
            "answer": answered.predictions[number] or "(no answer)",
            "references": references,
            "reference": "\n".join(references) or "(no answer)",
        }
        chinese = self.template is None and any(map(has_unspaced, references))
        return render_template(self.template or (_CHINESE if chinese else _ENGLISH), columns), chinese

    def _signature(self) -> str:
        source = self._model.source
        weights = source.named_commit or sha256(str(model_hashes(source)).encode()).hexdigest()
        prompt = sha256((self.template or _ENGLISH + _CHINESE).encode()).hexdigest()
        return (
            f"judge:{source.name}@{weights[:12]}|prompt:{prompt[:12]}|scale:1-5|rating:expected value|"
            f"least-probability:{_LEAST}"
        )


def _task_prompt(task: Task, row: Mapping[str, Any]) -> str:
    """What the model was asked, as a chat model is."""
    prompt = task.render(row, _CHAT, PromptOptions())
    assert isinstance(prompt, Chat)
    if len(prompt.messages) == 1:
        return prompt.messages[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt.messages)


def expected_rating(loaded: Loaded, text: str, prefill: str) -> float:
    """The expected value over the probabilities of the ratings as the next token; NaN if they are improbable."""
    prompt: Prompt = Text(text, f"\n{prefill}")
    if getattr(loaded.tokenizer, "chat_template", None):
        prompt = Chat((Message("user", text),), prefill, thinking=False)
    probabilities = dict.fromkeys(RATINGS, 0.0)
    for token in next_tokens(loaded, prompt, top=_CANDIDATES):
        if (rating := token.text.strip()) in probabilities:
            probabilities[rating] += token.probability
    total = sum(probabilities.values())
    if total < _LEAST:
        return math.nan
    return sum(int(rating) * each for rating, each in probabilities.items()) / total
