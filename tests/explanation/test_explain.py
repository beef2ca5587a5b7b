"""Steps and attention: pages, pictures and the Python functions."""

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llmkit
from llmkit.errors import InputError, UsageError
from llmkit.explanation.attention import AttentionWeights
from llmkit.explanation.tokens import readable_tokens, shown_token
from llmkit.pages import fonts
from tests.conftest import Checkpoint


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_steps_are_the_models_distributions(checkpoint: Checkpoint) -> None:
    steps = llmkit.explain_steps("The quick", str(checkpoint("gpt2")), top=3, max_new_tokens=4, temperature=0, raw=True)
    loaded = llmkit.load("generate", str(checkpoint("gpt2"))).loaded
    ids = loaded.tokenizer("The quick")["input_ids"]
    assert len(steps.tokens) == steps.output.usage.completion_tokens
    for step in steps.tokens:
        with torch.no_grad():
            probabilities = loaded.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        assert step.entropy == pytest.approx(float(-(probabilities * probabilities.log2()).sum()), abs=1e-4)
        best = probabilities.topk(3)
        assert [other.id for other in step.top] == best.indices.tolist()
        assert [math.exp(other.logprob) for other in step.top] == pytest.approx(best.values.tolist(), abs=1e-6)
        ids.append(step.id)


def test_a_page_of_steps_is_whole_and_escaped(checkpoint: Checkpoint) -> None:
    prompt = "<script>alert(1)</script> 今天"
    steps = llmkit.explain_steps(prompt, str(checkpoint("gpt2")), max_new_tokens=5, raw=True)
    page = steps.to_html()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 今天" in page
    assert page.count('class="token"') == len(steps.tokens)
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import|https?://""", page)
    assert "<iframe srcdoc=" in steps._repr_html_()


def test_the_page_of_attention_has_all_weights(checkpoint: Checkpoint) -> None:
    found = llmkit.explain_attention("The </script> 今天", str(checkpoint("gpt2")))["self"]
    page = found.to_html(layer=-1, head=0)
    content = data_of(page)
    numbers = np.frombuffer(base64.b64decode(content["weights"]), dtype="<u2").reshape(content["shape"]) / 65535
    assert numbers == pytest.approx(found.weights, abs=1e-5)
    assert content["keys"] == [shown_token(key) for key in found.keys]
    assert page.count("</script>") == 2
    assert '<option value="1" selected>1</option>' in page
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import|https?://""", page)


def test_weights_too_many_for_a_page_need_a_layer() -> None:
    names = tuple(map(str, range(300)))
    found = AttentionWeights("self", "m", names, names, tuple(range(30)), np.zeros((30, 4, 300, 300), np.float32))
    with pytest.raises(UsageError, match="too large; name a `layer`"):
        found.to_html()
    assert data_of(found.to_html(layer=7))["shape"] == [1, 4, 300, 300]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_drawn(suffix: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = llmkit.explain_attention("The quick fox", str(checkpoint("gpt2")))["self"]
    found.draw(tmp_path / f"map{suffix}", layer=0)
    begun = (tmp_path / f"map{suffix}").read_bytes()[:8]
    assert begun == b"\x89PNG\r\n\x1a\n" if suffix == ".png" else begun.startswith(b"<?xml")


def test_characters_without_a_font_are_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    own = {"DejaVu Sans": fonts._files()["DejaVu Sans"]}
    monkeypatch.setattr(fonts, "_files", lambda: own)
    with fonts.chosen_fonts("cat"):
        assert not caplog.records
    with fonts.chosen_fonts("天 cat"):
        assert "no font on this machine has 天" in caplog.text


def test_an_encoder_decoder_generates_its_target(checkpoint: Checkpoint) -> None:
    folder = str(checkpoint("t5"))
    found = llmkit.explain_attention("The quick brown fox", folder)
    assert list(found) == ["cross", "encoder", "decoder"]
    generated = llmkit.generate("The quick brown fox", folder, temperature=0, raw=True).text
    named = llmkit.explain_attention("The quick brown fox", folder, target=generated)
    assert np.array_equal(found["cross"].weights, named["cross"].weights)


def test_a_question_is_for_extractive_models(checkpoint: Checkpoint) -> None:
    found = llmkit.explain_attention("Life is 42.", str(checkpoint("bert")), question="What is life?")
    assert list(found) == ["question", "self"]
    with pytest.raises(UsageError, match="reads no question beside a text"):
        llmkit.explain_attention("Life is 42.", str(checkpoint("gpt2")), question="What is life?")
    with pytest.raises(UsageError, match="`target` has no effect beside a question"):
        llmkit.explain_attention("Life", str(checkpoint("bert")), question="What?", target="x")
    with pytest.raises(InputError, match="the text is empty"):
        llmkit.explain_attention("", str(checkpoint("gpt2")))


def test_parts_of_a_character_name_it(checkpoint: Checkpoint) -> None:
    tokenizer = llmkit.load("generate", str(checkpoint("gpt2"))).loaded.tokenizer
    ids = tokenizer("a龘b")["input_ids"]
    assert readable_tokens(tokenizer, ids) == ("a", "龘 1/3", "龘 2/3", "龘 3/3", "b")
    assert readable_tokens(tokenizer, ids[:2]) == ("a", "<E9>")
    assert shown_token(" a \n") == "·a ⏎"
