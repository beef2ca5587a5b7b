"""Text pieces join to the whole, and stop strings never leak."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer

from llmkit.heads.text_stream import StopScanner, TextStream
from tests import tiny

TEXTS = [
    *tiny.SENTENCES,
    " leading space",
    "trailing ",
    "a\n\nb\tc",
    "你好，世界！😀👨‍👩‍👧 café naïve",
    "ไทย عربي 日本語",
]
TOKENIZERS = [f"{name}Tokenizer" for name in ("GPT2", "Llama", "Qwen2", "Gemma", "T5", "Bart", "Marian")]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.train_tokenizer(request.param, tmp_path_factory.mktemp("tokenizer"))


def pieces(tokenizer: Any, ids: Sequence[int], continues: Sequence[int] = ()) -> list[str]:
    stream = TextStream(tokenizer, continues)
    return [*(stream.push(token) for token in ids), stream.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_decoded_whole(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_continue_a_prompt(tokenizer: Any, text: str) -> None:
    ids = tokenizer(f"The quick{text}", add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    prompt, rest = ids[:2], ids[2:]
    shown = tokenizer.decode(prompt, skip_special_tokens=True)
    assert shown + "".join(pieces(tokenizer, rest, prompt)) == whole


def test_no_piece_ends_in_half_a_character() -> None:
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    text = "今天 😀 é"
    shown = pieces(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("很好，我们去公园散步。", "很好，我们去公园散步。"),
        ("公园 很好", "公园很好"),
        ("the 公园 dog 12345，散步", "the公园dog 12345，散步"),
        ("The quick brown fox.", "the quick brown fox."),
    ],
)
def test_no_blanks_between_chinese_characters_of_word_piece(text: str, expected: str, tmp_path: Path) -> None:
    tokenizer = tiny.train_tokenizer("BertTokenizer", tmp_path)
    ids = tokenizer(text)["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == expected
    start = ids[:3]
    assert "".join(pieces(tokenizer, ids[3:], start)) == expected.removeprefix("".join(pieces(tokenizer, start)))


def test_blanks_of_the_text_are_kept_where_chinese_is_not_cut_into_characters(tmp_path: Path) -> None:
    cased = transformers.BertTokenizer(
        vocab={token: n for n, token in enumerate(["[UNK]", "[CLS]", "[SEP]", "公园", "很好"])},
        tokenize_chinese_chars=False,
    )
    ids = cased("公园 很好", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(cased, ids)) == "公园 很好"


def test_the_line_break_of_pegasus(tmp_path: Path) -> None:
    trained = tiny.train_tokenizer("PegasusTokenizer", tmp_path)
    content = json.loads(trained.backend_tokenizer.to_str())
    content["model"]["vocab"].append(["<n>", 0.0])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="</s>", unk_token="<unk>"
    )
    ids = tokenizer("The fox.<n>The dog.", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<n>") in ids
    assert "".join(pieces(tokenizer, ids)) == "The fox.\nThe dog."


def test_a_model_that_writes_line_breaks_may_write_the_letters(tmp_path: Path) -> None:
    tokenizer = tiny.train_tokenizer("GPT2Tokenizer", tmp_path)
    tokenizer.add_tokens(["<n>"])
    ids = tokenizer("List<n>\n")["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == "List<n>\n"


def scan(stop: Sequence[str], chunks: Sequence[str]) -> tuple[list[str], bool]:
    scanner = StopScanner(stop)
    shown = []
    for chunk in chunks:
        shown.append(scanner.push(chunk))
        if scanner.found:
            return shown, True
    return [*shown, scanner.flush()], False


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        (["END"], "some text END and more", "some text "),
        (["END"], "some text EN and more", "some text EN and more"),
        (["\n\nQ:"], "answer\n\n\nQ: next", "answer\n"),
        (["aab"], "aaaab!", "aa"),
        (["bcd", "c"], "abcd", "a"),
        (["停止"], "今天停停止了", "今天停"),
        ([], "anything", "anything"),
    ],
)
def test_stop_strings_at_any_chunking(stop: list[str], text: str, expected: str, size: int) -> None:
    chunks = [text[n : n + size] for n in range(0, len(text), size)]
    shown, found = scan(stop, chunks)
    # Of two stop strings, single characters let the shorter one win that large chunks see later.
    assert "".join(shown) in ({expected, "ab"} if stop == ["bcd", "c"] else {expected})
    assert found is (expected != text)


def test_the_beginning_of_a_stop_string_is_never_shown() -> None:
    scanner = StopScanner(["</answer>"])
    for character in "yes</answer":
        assert scanner.push(character) in "yes"
    assert scanner.push(">") == ""
    assert scanner.found


def test_a_tokenizer_is_not_asked_to_decode_everything_again(tmp_path: Path) -> None:
    tokenizer = tiny.train_tokenizer("GPT2Tokenizer", tmp_path)
    decoded: list[int] = []

    class Counting:
        def decode(self, ids: Sequence[int], **options: Any) -> str:
            decoded.append(len(ids))
            return str(tokenizer.decode(ids, **options))

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    ids = tokenizer(" ".join(tiny.SENTENCES) * 20)["input_ids"]
    pieces(Counting(), ids)
    assert max(decoded) < 20
