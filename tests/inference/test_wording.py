"""The caller's template and prefix, and prompts in the language of the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.engines.fake import CHAT
from llmkit.errors import InputError, UsageError
from llmkit.tasks import Traits, get_task
from tests.fakes import PLAIN, READER, fake

CHINESE = "故宫位于北京中轴线的中心，是明清两代的皇家宫殿。今天，那里是一座博物馆。"
ENGLISH = "The palace is in the centre of Beijing. Today it is a museum."
T5 = Traits(prefix="summarize: ")


def prompt_of(task: str, row: Any, traits: Traits | None = None, **options: Any) -> str:
    pipeline, engine = fake(task, traits=traits or CHAT, **options)
    pipeline(row)
    return engine.prompts[-1]


# A template.


@pytest.mark.parametrize("traits", [None, PLAIN, READER])
def test_a_template_is_the_prompt(traits: Traits | None) -> None:
    template = "Title for: {{ document }}\n{% if author %}\nby {{ author }}\n{% endif %}\n=>"
    assert prompt_of("summarization", "A fox.", traits, template=template) == "Title for: A fox.\n=>"
    row = {"document": "A fox.", "author": "Aesop"}
    assert prompt_of("summarization", row, traits, template=template) == "Title for: A fox.\nby Aesop\n=>"


def test_a_template_replaces_the_prefix_of_the_model_too() -> None:
    assert prompt_of("summarization", "x", T5) == "summarize: x"
    assert prompt_of("summarization", "x", T5, template="about {{ document }}") == "about x"


def test_braces_in_a_text_stay() -> None:
    text = "{{ 7 * 7 }} {x} {% if %}"
    assert prompt_of("summarization", text, READER, template="a {{ document }}") == f"a {text}"
    for traits in (None, PLAIN):
        assert text in prompt_of("summarization", text, traits)
        assert text in prompt_of("question-answering", {"question": "Who?", "context": text}, traits)


def test_columns_whose_names_are_no_identifiers() -> None:
    row = {"document": "x", "Tweet text": "hello", "原文": "你好"}
    assert prompt_of("summarization", row, template="{{ document }} {{ row['Tweet text'] }}") == "x hello"
    assert prompt_of("summarization", row, template="{{ row.document }}{{ 原文 }}") == "x你好"


@pytest.mark.parametrize("row", [{"document": "x"}, {"document": "x", "title": None}])
def test_a_column_that_a_row_lacks_is_named(row: dict[str, Any]) -> None:
    for use in ("{{ title }}", "{{ row['title'] }}"):
        with pytest.raises(InputError, match="the row has no 'title', which `template` uses"):
            prompt_of("summarization", row, template="{{ document }} " + use)
    assert prompt_of("summarization", row, template="{% if title %}{{ title }}: {% endif %}{{ document }}") == "x"
    assert prompt_of("summarization", row, template="{{ title | default('-') }} {{ document }}") == "- x"


@pytest.mark.parametrize(
    ("task", "template", "said"),
    [
        ("summarization", "Summarize this.", "does not use document, so that input would be dropped"),
        ("question-answering", "{{ context }}", "does not use question"),
        ("summarization", "{{ document }} {{ summary }}", "uses summary, which belongs to what is learned"),
        ("text-generation", "{{ prompt }} {{ text }}", "uses text, which belongs"),
        ("summarization", "{{ document }", "line 1 of `template` is wrong"),
        ("summarization", "{{ document }}{% for x in row %}{{ x }}{% endfor %}", "uses row as a whole"),
        ("dialogue", "{{ messages }}", "`template` does not apply to conversations"),
    ],
)
def test_a_template_that_drops_or_betrays_something_is_refused(task: str, template: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fake(task, template=template)


@pytest.mark.parametrize(
    "code", ["{{ document.__class__.__mro__ }}", "{{ 9 ** 9 }}", "{{ (document * 99999) * 99999 }}", "{{ 1 / 0 }}"]
)
def test_a_template_is_sandboxed(code: str) -> None:
    with pytest.raises((UsageError, InputError)):
        prompt_of("summarization", "x", template="{{ document }}" + code)


def test_a_long_text_is_cut_within_the_template() -> None:
    text = " ".join(f"Sentence {number} is here." for number in range(40))
    pipeline, engine = fake("summarization", template="Read {{ document }} End", context=80, max_new_tokens=8)
    pipeline(text)
    assert len(engine.prompts) > 1
    assert all(each.startswith("Read ") and each.endswith(" End") for each in engine.prompts)
    parts = [each.removeprefix("Read ").removesuffix(" End") for each in engine.prompts]
    assert all(f"Sentence {number} is" in "".join(parts) for number in range(40))
    pipeline, engine = fake("text-generation", template="Q {{ prompt }} A", context=100, on_overflow="truncate")
    output = pipeline(text)
    assert output.truncated
    assert engine.prompts[-1].startswith("Q ")
    assert engine.prompts[-1].endswith("39 is here. A")


def test_few_shot_examples_have_the_template_too() -> None:
    examples = [{"document": "a", "summary": "b"}]
    assert prompt_of("summarization", "c", PLAIN, template="{{ document }} =>", examples=examples) == "a => b\n\nc =>"


def test_languages_are_variables_of_a_translation() -> None:
    template = "{{ source_language }} > {{ target_language }}: {{ source }}"
    options: dict[str, Any] = {"source": "en", "target": "fr", "template": template}
    assert prompt_of("translation", "Hello.", **options) == "English > French: Hello."


# A prefix.


def test_a_prefix_replaces_that_of_the_model() -> None:
    assert prompt_of("summarization", "x", T5, prefix="headline: ") == "headline: x"
    assert prompt_of("summarization", "x", T5, prefix="") == "x"
    assert prompt_of("summarization", "x", READER, prefix="headline: ") == "headline: x"
    row = {"question": "a", "context": "b"}
    assert prompt_of("question-answering", row, READER, prefix="trivia ") == "trivia question: a context: b"
    assert prompt_of("summarization", "x", PLAIN, prefix="News: ") == "News: x\n\nTL;DR:"
    assert prompt_of("summarization", "x", prefix="News. ").startswith("News. Summarize the following")
    assert prompt_of("summarization", "x", prefix="> ", template="{{ document }}") == "> x"


# The language of the prompt.

ROWS: dict[str, dict[str, str]] = {
    "summarization": {"document": CHINESE},
    "question-answering": {"question": "故宫在哪里？", "context": CHINESE},
    "translation": {"source": CHINESE},
}


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("traits", [None, PLAIN])
def test_a_chinese_text_has_a_chinese_prompt(task: str, traits: Traits | None) -> None:
    options = {"source": "zh", "target": "en"} if task == "translation" else {}
    own = "".join(ROWS[task].values())
    prompt = prompt_of(task, ROWS[task], traits, **options)
    added = "".join(each for each in prompt if each not in own)
    assert not any(each.isascii() and each.isalpha() for each in added)
    english = prompt_of(task, ROWS[task], traits, prompt_language="en", **options)
    assert any(each.isascii() and each.isalpha() for each in english)
    assert prompt_of(task, ROWS[task], traits, prompt_language="zh", **options) == prompt


def test_the_chinese_wordings() -> None:
    assert prompt_of("summarization", CHINESE) == f"请用几句话概括下面的文本。使用与原文相同的语言。\n\n{CHINESE}"
    assert "请用大约60字概括" in prompt_of("summarization", CHINESE, length=40)
    assert prompt_of("translation", CHINESE, source="zh", target="fr").startswith("请把下面的文本从中文翻译成法语。")
    assert prompt_of("translation", CHINESE, PLAIN, source="zh", target="en") == f"中文：{CHINESE}\n英语："


@pytest.mark.parametrize(
    "text",
    [ENGLISH, "私は本を読みます。", "한국어 텍스트입니다.", "He wrote 你好 on the old wall.", "12345"],
)
def test_other_texts_have_an_english_prompt(text: str) -> None:
    assert prompt_of("summarization", text).startswith("Summarize the following text in a few sentences.")


def test_parts_of_a_text_and_examples_have_its_language() -> None:
    quote = " The quick brown fox jumps over the lazy dog and over the fence." * 6
    pipeline, engine = fake("summarization", context=60, max_new_tokens=8)
    pipeline(CHINESE * 12 + quote)
    assert len(engine.prompts) > 2
    assert all(each.startswith("请用几句话概括") for each in engine.prompts)
    examples = [{"document": ENGLISH, "summary": "A palace."}]
    prompt = prompt_of("summarization", CHINESE, PLAIN, examples=examples)
    assert prompt == f"{ENGLISH}\n\n摘要：A palace.\n\n{CHINESE}\n\n摘要："


@pytest.mark.parametrize(
    "reply", ["无答案", "“无答案”。", "无法回答。", "无法从文本中得知。", "根据文本无法确定。", "文本中没有提到。"]
)
def test_chinese_replies_without_an_answer(reply: str) -> None:
    pipeline, _ = fake("question-answering", reply)
    assert pipeline(ROWS["question-answering"]).answered is False


def test_a_chinese_row_without_an_answer_is_learned_in_chinese() -> None:
    task, row = get_task("question-answering"), {**ROWS["question-answering"], "answers": []}
    pipeline, _ = fake("question-answering")
    (example,) = task.examples(row, pipeline.traits, pipeline.prompt_options)
    assert example.target == "无答案"
    (example,) = task.examples({**row, "context": ENGLISH}, pipeline.traits, pipeline.prompt_options)
    assert example.target == "No answer"


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("task", ["text-generation", "summarization"])
def test_a_language_without_effect_is_refused(task: str, language: str) -> None:
    with pytest.raises(UsageError, match="`prompt_language` has no effect"):
        fake(task, traits=READER, prompt_language=language)
    with pytest.raises(UsageError, match="`prompt_language` has no effect: "):
        fake(task, prompt_language=language, template="{{ prompt }}{{ document }}")


# Files of rows.


def test_rows_of_a_file_bring_their_columns(tmp_path: Path) -> None:
    from llmkit.config.settings import LoadSettings, RowSettings
    from llmkit.inference.row_files import answer_file

    template = "{% if input %}{{ prompt }} | {{ input }}{% else %}{{ prompt }}{% endif %}"
    alpaca = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Sing.", "input": ""}]
    named = [{"prompt": "Add.", "context": "1 2"}, {"prompt": "Sing.", "context": ""}]
    for rows, column in ((alpaca, ()), (named, ("input=context",))):
        path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        pipeline, engine = fake("text-generation", template=template)
        answer_file(
            pipeline,
            RowSettings(input=(str(path),), output=str(out), column=column, overwrite=True),
            load=LoadSettings(),
        )
        assert sorted(engine.prompts) == ["Add. | 1 2", "Sing."]
        records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert records[0]["input"] == "1 2"
