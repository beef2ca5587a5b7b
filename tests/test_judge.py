"""A model as a judge: ratings are probabilities, and what it does not rate is counted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli.app import main
from llmkit.config.settings import LoadSettings
from llmkit.errors import UsageError
from llmkit.evaluation import judge
from llmkit.evaluation.additional import open_metrics
from llmkit.evaluation.answered import Answered
from llmkit.evaluation.judge import Judge, expected_rating
from llmkit.inference.next_tokens import NextToken
from llmkit.models.load import load_model
from llmkit.tasks import Chat, Summarization, Translation
from tests.conftest import Checkpoint
from tests.training.recipes import write_rows


def replies(monkeypatch: pytest.MonkeyPatch, *found: dict[str, float]) -> list[Any]:
    """Let the judge's next token have these probabilities, the last of them for all further rows; returns prompts."""
    prompts: list[Any] = []

    def next_tokens(_loaded: Any, prompt: Any, *, top: int) -> list[NextToken]:
        prompts.append(prompt)
        one = found[min(len(prompts), len(found)) - 1]
        return [NextToken(0, text, text, probability) for text, probability in one.items()]

    monkeypatch.setattr(judge, "next_tokens", next_tokens)
    return prompts


def test_a_rating_is_an_expected_value_over_digits(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(LoadSettings(model=str(checkpoint("llama", chat=True)), offline=True), "text-generation")
    replies(monkeypatch, {"4": 0.5, " 5": 0.2, "5": 0.1, "10": 0.1, "Sure": 0.1})
    assert expected_rating(loaded, "Rate.", "Rating:") == pytest.approx((4 * 0.5 + 5 * 0.3) / 0.8)


def test_real_probabilities_follow_the_prompt(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply begins with the prefill, as the chat template has it."""
    loaded = load_model(
        LoadSettings(model=str(checkpoint("llama", chat=True)), offline=True, device="cpu"), "text-generation"
    )
    (five,) = loaded.tokenizer.encode("5", add_special_tokens=False)[-1:]
    prompts: list[str] = []
    forward = type(loaded.model).forward

    def forced(model: Any, *args: Any, **inputs: Any) -> Any:
        prompts.append(str(loaded.tokenizer.decode(inputs["input_ids"][0])))
        output = forward(model, *args, **inputs)
        output.logits[..., five] = 1e4
        return output

    monkeypatch.setattr(type(loaded.model), "forward", forced)
    assert expected_rating(loaded, "Rate the fox.", "Rating:") == pytest.approx(5.0)
    assert prompts[-1].endswith("assistantating")  # "Rating:" in its small vocabulary
    assert "ate the fox." in prompts[-1]


def test_rows_without_a_rating_are_counted_and_no_zeros(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = str(checkpoint("llama", chat=True, max_position_embeddings=1024))
    rows = write_rows(tmp_path / "rows.jsonl", [{"document": f"The fox {n}.", "summary": "Fox."} for n in range(3)])
    prompts = replies(monkeypatch, {"3": 1.0}, {"I": 0.9, "5": 0.1}, {"5": 0.9})
    command = ["evaluate", "--task", "summarize", "--model", model, "--data", str(rows), "-o", str(tmp_path / "out")]
    assert main([*command, "--offline", "--max-new-tokens", "4", "--metric", f"judge,model={model}"]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    figure = found["figures"]["judge"]
    assert figure["value"] == pytest.approx(4.0)
    assert figure["low"] <= 4.0 <= figure["high"]
    assert found["others"] == {"judge": {"unrated": 1}}
    assert "judge rated 2 of 3 rows" in caplog.text
    lines = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["scores"]["judge"] for line in lines] == pytest.approx([3.0, None, 5.0])
    assert re.fullmatch(r"judge:.*@\w{12}\|prompt:\w{12}\|scale:1-5\|.*", figure["signature"])
    assert all(isinstance(prompt, Chat) and prompt.prefill == "Rating: [[" for prompt in prompts)
    assert "The fox 1." in prompts[1].messages[0].content


def test_a_judge_without_any_rating_has_no_figure(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Judge("judge", "m", LoadSettings(model=str(checkpoint("llama", chat=True)), offline=True, device="cpu"))
    replies(monkeypatch, {"I": 1.0})
    found = own.compute(Answered(Summarization(), [{"document": "The fox."}] * 2, ["Fox", None], [["Fox"]] * 2))
    assert found.scored.measures == []
    assert found.others == {"unrated": 2}


def test_the_prompt_is_chinese_for_chinese_and_the_callers_own_if_given(tmp_path: Path) -> None:
    answered = Answered(Translation(), [{"source": "Hi {{ 1 }}"}], ["你好"], [["您好"]])
    text, chinese = Judge("judge", "m", LoadSettings())._prompt(answered, 0)
    assert chinese
    assert "【参考答案】\n您好" in text
    assert "Hi {{ 1 }}" in text  # texts of rows are no templates
    (tmp_path / "own.j2").write_text("{{ source }}|{{ answer }}|{{ references | length }}", encoding="utf-8")
    (own,) = open_metrics([f"judge,model=m,template={tmp_path / 'own.j2'}"], LoadSettings()).values()
    assert isinstance(own, Judge)
    assert own._prompt(answered, 0) == ("Hi {{ 1 }}|你好|1", False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "the metric judge needs a model; write `judge,model=MODEL`"),
        (",model=m,scale=10", "the metric judge has no option scale"),
        (",model=m,template=absent.j2", r"`template`: .*absent.j2. is neither a file nor a Jinja template"),
    ],
)
def test_a_judge_that_cannot_be_is_refused(options: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        open_metrics([f"judge{options}"], LoadSettings())


def test_a_template_that_prints_what_no_row_has_is_refused_before_any_answer() -> None:
    own = Judge("judge", "m", LoadSettings(), template="{{ grade }}")
    with pytest.raises(UsageError, match="grade"):
        own.check(Answered(Summarization(), [{"document": "The fox."}], ["Fox"], [["Fox"]]))
