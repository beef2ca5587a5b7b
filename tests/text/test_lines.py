"""Lines stay lines: what is translated of lists, logs, subtitles and files of keys, and where it is put."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from llmkit.errors import InputError
from llmkit.tasks import Generation, Row, Traits, Translation
from llmkit.tasks.output import NoteCode
from llmkit.tasks.translation import TranslationSettings
from llmkit.text.lines import meant_breaks, spread
from llmkit.text.sentences import script_language, sentences


class ModelView:
    """A model of sentences, or one that follows prompts."""

    max_new_tokens = 512

    def __init__(self, chat: bool) -> None:
        self.traits = Traits(continues=chat, chat=chat)
        self.shown = ""

    @property
    def default_max_new_tokens(self) -> int:
        return 512

    def count(self, text: str) -> int:
        return len(text.split())

    def room(self, row: Row) -> int | None:
        return 1000

    def fits(self, row: Row) -> bool:
        return True

    def note(self, code: NoteCode, text: str) -> None:
        """Not looked at."""

    def emit(self, text: str) -> None:
        self.shown += text


def translate(text: str, *, chat: bool = False, model: Callable[[str], str] = str.upper) -> tuple[str, list[str]]:
    """The translation, and what the model was given."""
    reader, seen = ModelView(chat), list[str]()
    work = Translation(TranslationSettings(source="en", target="fr")).steps({"source": text}, reader)
    step = next(work)
    try:
        while True:
            raws = []
            for index, row in enumerate(step.rows):
                seen.append(row["source"])
                raws.append(Generation(model(row["source"])))
                if step.each is not None:
                    step.each(index, raws[-1])
            step = work.send(raws)
    except StopIteration as stop:
        translated: str = stop.value.text
    assert reader.shown in (translated, "")
    return translated, seen


LISTS = [
    "Monday\nTuesday\nWednesday",
    "apples\npears",
    "apples\nbananas\npears",
    "Sign in\nSign up\nLog out",
    "Grilled chicken\nCaesar salad with bacon, croutons and parmesan cheese\nSoup",
    "2 eggs\n1 cup of milk\nsalt, pepper",
    "Name: John\nAge: 30\nCity: Paris",
    "2024-01-01 10:00:00 INFO Server started\n2024-01-01 10:00:05 WARN Disk almost full",
    "I met a traveller from an antique land,\nWho said—Two vast and trunkless legs of stone\nStand in the desert. Near",
    "Roses are red\nviolets are blue\nsugar is sweet",
    "Two roads diverged in a yellow wood,\nAnd sorry I could not travel both",
    "— Bonjour Marie\n— Salut Paul",
    "Best regards,\nJohn Smith",
    "int x = 5;\nreturn x;",
    "✅ Done\n❌ Failed",
    "one\ttwo\nthree\tfour",
    "Introduction to machine learning and statistics\nAdvanced topics",
    "Apple, Google sign deal on maps integration today\nMicrosoft shares fall, analysts blame weak demand",
    "星期一\n星期二\n星期三",
    "春眠不觉晓\n处处闻啼鸟",
    "一、总则\n二、附则",
    "月曜日\n火曜日",
    "วันจันทร์\nวันอังคาร",
    "الإثنين\nالثلاثاء\nالأربعاء",
    "понедельник\nвторник\nсреда",
    "[ ] buy milk\n[x] call mom",
    "-h, --help     show the help\n-q, --quiet    say nothing",
]
WRAPPED = [
    "Plain prose, wrapped\nat some width.",
    "Der Hund lief gestern durch den großen dunklen\nWald und kam nicht zurück.",
    "The quick brown fox jumps over the lazy dog and then runs away from\nLondon to Paris, where it lives happily.",
    'The key words "MUST", "MUST NOT", "REQUIRED", "SHALL", "SHALL\nNOT", "SHOULD", "SHOULD NOT", "RECOMMENDED", '
    '"MAY", and "OPTIONAL" in\nthis document are to be interpreted as described in RFC 2119.',
    "A: It is a program that\n   translates texts.",
    "Then we met Anna and\nPeter, who went to the store yesterday with\nher brother",
    "Это очень длинное предложение, которое было перенесено на\nследующую строку, потому что оно не помещалось.",
    "我们今天去公园散步，天气非常好，公园里面有很多\n人在唱歌跳舞，孩子们也在草地上面跑来跑去，大家\n都很开心。",
    "هذا نص طويل جدا تم تقسيمه على سطرين لأن عرض السطر\nمحدود في هذا المحرر، وهو جملة واحدة.",
]


@pytest.mark.parametrize("text", LISTS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_lines_of_lists_are_translated_one_by_one(text: str, newline: str) -> None:
    text = text.replace("\n", newline)
    translated, seen = translate(text)
    assert translated == text.upper()
    assert not any("\n" in part for part in seen)
    assert all(meant_breaks(text.splitlines()))


@pytest.mark.parametrize("text", WRAPPED)
def test_a_wrapped_paragraph_is_translated_by_sentences(text: str) -> None:
    assert sentences(text, script_language(text)) == [text]
    translated, seen = translate(text)
    assert len(seen) == 1
    assert "\n" not in translated


LETTER = (
    "Die Regierung hat am Mittwoch beschlossen, dass die Kosten für den Ausbau der Strecke zwischen Hamburg und Berlin "
    "vom Bund getragen werden. Der Minister erklärte, Bürger und Unternehmen sollten von der Entscheidung Vorteile "
    "haben. Kritiker sagen, Geld werde an anderer Stelle fehlen, und verweisen auf Schulen, Häuser und Straßen."
)


@pytest.mark.parametrize("width", [35, 40, 50, 60, 72, 80, 100])
@pytest.mark.parametrize("mark", ["", "> "])
def test_sentences_of_a_letter_are_the_same_at_every_width(width: int, mark: str) -> None:
    wrapped = textwrap.fill(LETTER, width, initial_indent=mark, subsequent_indent=mark)
    translated, seen = translate(f"{wrapped}\n{mark}\n{mark}Ende.\n")
    assert seen == [*(part.strip() for part in sentences(LETTER, "de")), "Ende."]
    assert translated.splitlines()[0].startswith(f"{mark}DIE REGIERUNG")
    assert translated.splitlines()[-2:] == [mark, f"{mark}ENDE."]


def test_tags_are_no_words_of_a_line() -> None:
    assert meant_breaks(["<p>This is a paragraph that", "is wrapped.</p>"]) == [False]


def test_a_word_that_was_divided_is_one() -> None:
    translated, _ = translate("The govern-\nment has a plan for pre- and\nafter-work, or mid-\nand end-of-day, travel.")
    assert translated == "THE GOVERN-MENT HAS A PLAN FOR PRE- AND AFTER-WORK, OR MID- AND END-OF-DAY, TRAVEL."


def test_columns_are_kept_where_the_model_loses_them() -> None:
    text = "Soup          4.50\nSalad\tfresh\nChapter ........ 1\n"
    assert translate(text, model=lambda part: " ".join(part.replace(".", "").split()).upper())[0] == text.upper()


def test_a_model_that_glues_lines_is_asked_for_each() -> None:
    for model in (str.upper, lambda text: " ".join(text.split()).upper()):
        assert translate(LISTS[0], chat=True, model=model)[0] == LISTS[0].upper()
        assert translate(f"{LISTS[0]}\n\nThe end.", chat=True, model=model)[0] == f"{LISTS[0]}\n\nThe end.".upper()
    assert translate("Monday\nSee `code`", chat=True, model=lambda _: "foo\n\nbar")[0] == "foo bar\nfoo bar `code`"


SRT = """1
00:00:01,000 --> 00:00:04,000
Hello there.

2
00:00:05,000 --> 00:00:06,500 X1:40 X2:600
{\\an8}I told you that
I would come <i>back</i> soon.

3
00:01:00,000 --> 00:01:02,000
- Who is it?
- Me.
4
00:02:00,000 --> 00:02:01,000
♪
"""
VTT = """WEBVTT - title
Kind: captions

NOTE a comment
with two lines

STYLE
::cue { color: red }

intro
00:01.000 --> 00:04.000 align:start position:0%
<v Roger O'Neil>We are in <c.yellow>New York City</c>
and it rains

00:05.000 --> 00:06.000
<00:05.500>Bye now.
"""
ASS = """[Script Info]
Title: Default file

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:03.00,Default,,0,0,0,,Hello there,\\Nmy friend.
Dialogue: 0,0:00:03.50,0:00:05.00,Default,Jo,0,0,0,,{\\i1}How are you?{\\i0}
"""
KEPT = {
    SRT: ["Hello there.", "I told you that", "I would come", "back", "soon.", "Who is it?", "Me."],
    VTT: ["We are in", "New York City", "and it rains", "Bye now."],
    "[ar:Queen]\n[00:12.00]First line of it\n[00:15.30][00:20.30]Second line\n": ["First line of it", "Second line"],
    "# note\ngreeting=Hello world\nbye = Goodbye\nenabled=true\nsize=3\npath=/usr/bin\n": ["Hello world", "Goodbye"],
    '"hello" = "Hello world";\n"bye" = "Bye";\n': ["Hello world", "Bye"],
    '{\n  "a": "Hello",\n  "b": "World"\n}\n': ["Hello", "World"],
    "[main]\ntitle=My app\n": ["My app"],
    "# note\na.b=Hello, {0}!\\n\\\n   Welcome back\nc.d=Bye\n": ["Hello,", "Welcome back", "Bye"],
    "<li>One thing</li>\n<li>and another</li>\n": ["One thing", "and another"],
    "Hello there<br>\nhow are you\n": ["Hello there", "how are you"],
    '/* Button */\n"bye" = "Goodbye";\n': ["Goodbye"],
    'title: My page\ntags:\n  - cats\n  - "some dogs"\n': ["My page", "cats", "some dogs"],
    '{"text": "Good \\"day\\"", "parts": ["one", "two"], "n": 1}\n[{"text": "Bye"}]\n': [
        "Good",
        "day",
        "one",
        "two",
        "Bye",
    ],
    ASS: ["Hello there,", "my friend.", "How are you?"],
    "10:00 Opening remarks\n10:30 Keynote\n": ["Opening remarks", "Keynote"],
}


@pytest.mark.parametrize("text", KEPT)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("chat", [False, True])
def test_what_is_around_the_words_is_kept_to_the_byte(text: str, newline: str, chat: bool) -> None:
    expected = text
    for words in KEPT[text]:
        expected = expected.replace(words, words.upper(), 1)
    assert translate(text.replace("\n", newline), chat=chat)[0] == expected.replace("\n", newline)


def test_a_sentence_over_two_lines_of_a_subtitle_is_read_whole_and_stays_on_two() -> None:
    head = "7\n00:00:05,000 --> 00:00:06,500\n"
    translated, seen = translate(
        f"{head}I told you that\nI would come.\n", model=lambda _: "Je t'avais dit que je viendrais."
    )
    assert seen == ["I told you that I would come."]
    first, second = translated.removeprefix(head).splitlines()
    assert f"{first} {second}" == "Je t'avais dit que je viendrais."
    assert translate(f"{head}I told you that\nI would come.\n", model=lambda _: "Oui")[0] == f"{head}Oui\n"


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        ("one two three", ["a" * 5, "b" * 5], ["one two", "three"]),
        ("我们去公园散步", ["aaa", "bbb"], ["我们去", "公园散步"]),
        ("one", ["a", "b"], ["one"]),
        ("", ["a", "b"], []),
    ],
)
def test_words_are_spread_over_lines(text: str, lines: list[str], expected: list[str]) -> None:
    assert spread(text, lines, ()) in (expected, ["one", "two three"], ["我们去公", "园散步"])


@pytest.mark.parametrize(
    ("text", "read", "meant"),
    [
        ('{"a": "He said \\"yes\\" to it.", "b": "No."}', json.loads, {"a": 'He said "yes" to it.', "b": "No."}),
        ("a: \"He said \\\"yes\\\".\"\nb: 'It''s so.'\n", yaml.safe_load, {"a": 'He said "yes".', "b": "It's so."}),
        ("title: Good day\nreply: 'Not now'\n", yaml.safe_load, {"title": "Good day", "reply": "Not now"}),
        ("first: Good day\nsecond: No thanks\n", yaml.safe_load, {"first": "Good day", "second": "No thanks"}),
    ],
)
def test_quotation_marks_of_a_translation_are_written_as_its_file_writes_them(
    text: str, read: Callable[[str], Any], meant: dict[str, str]
) -> None:
    found, seen = translate(text, model=lambda part: f"«'{part.upper()}' \"ok\"»")
    assert read(found) == {name: f"«'{value.upper()}' \"ok\"»" for name, value in meant.items()}
    assert seen == list(meant.values())


def test_a_catalogue_of_gettext_is_refused() -> None:
    with pytest.raises(InputError, match=r"belong in msgstr; translate its msgid texts"):
        translate('msgid ""\nmsgstr ""\n\nmsgid "Open the file"\nmsgstr ""\n')
