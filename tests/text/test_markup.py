import random

import pytest

from llmkit.text.markup import blocks
from llmkit.text.protected import Block, around, protected, survives

NASTY = [
    *"aB .!?\n\r\t\0\u2028\u3000。\"'()1-*#>|`~$%{}[]<>/\\&;:=_@+é中",
    *["```", "~~~", "---\n", "\n\n", "    ", "http://a.b/", "](", "<!--", "-->", "$$", "\\(", "\\)", "{{", "}}", "%s"],
    *["<pre>", "</pre>", "| a |\n|---|\n", "1. ", "\ud83d", "&nbsp;", "www.", "[x]: http://a\n", "\ufeff", "- "],
]


def translated(text: str) -> list[str]:
    found = blocks(text)
    assert "".join(block.text for block in found) == text
    return [block.text for block in found if block.translate]


def spans(text: str) -> list[str]:
    return [text[start:end] for start, end in protected(text)]


def test_nothing_is_lost() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        text = "".join(rng.choice(NASTY) for _ in range(rng.randint(0, 40)))
        for found in (blocks(text), around(text)):
            assert "".join(block.text for block in found) == text
            assert all(block.text for block in found)
            for block in found:
                letters = any(char.isalpha() for char in block.text)
                assert not block.translate or (letters and block.text == block.text.strip())
        places = [0, *(edge for span in protected(text) for edge in span), len(text)]
        assert places == sorted(places)
        assert survives(text, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Plain prose, wrapped\nat some width.\n\nA second\r\nparagraph.\n",
            ["Plain prose, wrapped\nat some width.", "A second\r\nparagraph."],
        ),
        ("# Title ##\n\n## C# is\n", ["Title", "C# is"]),
        ("Title\n=====\nText\n---\n", ["Title", "Text"]),
        ("- one\n- [ ] two\n  goes on\n\t1. three", ["one", "two\n  goes on", "three"]),
        ("> quoted\n> > twice", ["quoted", "twice"]),
        ("born in\n1984. Then he left", ["born in\n1984. Then he left"]),
        ("1. one\n2. two", ["one", "two"]),
        ("A line.  \nAnother\\\nand more", ["A line.", "Another", "and more"]),
        ("- he said\n\n* * *\n\n5 > 3, and so on", ["he said", "5 > 3, and so on"]),
        ("1984.\n\n---\n\n42", []),
        ("\ufeff# Title", ["Title"]),
        ("[^1]: A note", ["A note"]),
    ],
)
def test_paragraphs_are_whole_and_the_marks_before_them_are_kept(text: str, expected: list[str]) -> None:
    assert translated(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n```python title=x\nx = y\n```\nb", ["a", "b"]),
        ("~~~\nkept ```\n~~~~\nb", ["b"]),
        ("a\n```\nx = y\n\nto the end", ["a"]),
        ("> ```\n> x = y\nb", ["b"]),
        ("- a\n\n      ```\n      x = y\n\n      z\n      ```\n- b", ["a", "b"]),
        ("a\n\n    x = y\n\nb", ["a", "b"]),
        ("a\n    x = y", ["a", "x = y"]),
        ("- a\n\n    goes on", ["a", "goes on"]),
        ("    It was a dark night.\nIt rained.", ["It was a dark night.\nIt rained."]),
        ("\tIt was 1984.\n\n\tIt rained.", ["It was 1984.", "It rained."]),
        ("---\ntitle: x\n---\nb", ["b"]),
        ("---\nnot front matter\n---\nb", ["not front matter", "b"]),
        ("<!-- a\nb -->\nc", ["c"]),
        ("<!-- never closed\nb", ["b"]),
        ('<div class="x">\nb\n</div>', ["b"]),
        ("<pre>\nx\n</pre>\nb", ["b"]),
        ("[id]: http://x.y 'Title'\n[Anna]: Hello", ["[Anna]: Hello"]),
        ("https://x.y/z", []),
        ("`code` {name}", []),
    ],
)
def test_what_is_not_prose_is_kept(text: str, expected: list[str]) -> None:
    assert translated(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "| A | B |\n|---|:-:|\n| c `x|y` | d \\| e |\n",
        "A | B\n--|--\nc `x|y` | d \\| e\n",
    ],
)
def test_the_cells_of_a_table_are_apart(text: str) -> None:
    assert translated(text) == ["A", "B", "c `x|y`", "d \\| e"]


def test_an_indent_within_an_indented_paragraph_does_not_cut_a_sentence() -> None:
    assert translated("  The paragraph\n  goes on.\n  Another one.") == ["The paragraph\n  goes on.", "Another one."]
    assert translated("Text\n  Another") == ["Text", "Another"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`a` ``b ` c`` d` e", ["`a`", "``b ` c``"]),
        ("see https://x.y/z). (http://x.y/A_(b)), WWW.x.y!", ["https://x.y/z", "http://x.y/A_(b)", "WWW.x.y"]),
        ("请看https://x.y/z。或http://x.y/wiki/北京，好", ["https://x.y/z", "http://x.y/wiki/北京"]),
        ("mailto:a@b.c, a.b@c.de. <a@b.cd>联系foo@bar.com", ["mailto:a@b.c", "a.b@c.de", "<a@b.cd>", "foo@bar.com"]),
        ('[a](http://x.y/(z) "t") ![b](c.png) [r][id]', ['](http://x.y/(z) "t")', "](c.png)", "][id]"]),
        ("[he](in a low voice)", []),
        ('<b class="x y">a</b><br/> 5 < 3 > 2 <!-- a b -->', ['<b class="x y">', "</b>", "<br/>", "<!-- a b -->"]),
        ("a&nbsp;b &#39; AT&T; R&D", ["&nbsp;", "&#39;"]),
        ("{name} {0} {} {x:>10} {{ y }} {% if z %} {a b}", ["{name}", "{0}", "{}", "{x:>10}", "{{ y }}", "{% if z %}"]),
        ("${VAR} $HOME US$5 <|im_end|>", ["${VAR}", "$HOME", "<|im_end|>"]),
        ("%s of %d, %(name)s %1$d %5.2f %@ %ds", ["%s", "%d", "%(name)s", "%1$d", "%5.2f", "%@", "%d"]),
        ("50% sure, 100 % d'accord, 50%sure, 50 %de, %sure", []),
        ("from $5 and $6, or $5, or 6$ to $5-$6", []),
        (
            "$x^2$, $n$, $a + b = c$, \\(a\\) and \\[b\\] $$c\nd$$",
            ["$x^2$", "$n$", "$a + b = c$", "\\(a\\)", "\\[b\\]", "$$c\nd$$"],
        ),
    ],
)
def test_what_has_to_survive_is_found(text: str, expected: list[str]) -> None:
    assert spans(text) == expected


@pytest.mark.parametrize(
    ("source", "translation", "expected"),
    [
        ("{a} and {b}", "{b} et {a}", True),
        ("{a}{a}", "{a}", False),
        ("{a}", "{a} {a}", True),
        ("text", "{a}", False),
        ("see {a}", "voir {A}", False),
        ("http://x.y http://x.y/z", "http://x.y/z http://x.y/z", False),
        ("http://x.y http://x.y/z", "http://x.y/z、http://x.y。", True),
        ("%s files", "5%s", True),
        ("%s %s", "5%s %s", True),
        ("text", "texte", True),
    ],
)
def test_a_translation_survives_with_all_that_is_protected_and_no_more(
    source: str, translation: str, expected: bool
) -> None:
    assert survives(source, translation) is expected


def test_a_text_is_divided_around_what_is_protected() -> None:
    assert around("See [the docs](http://a.b) now, `x` .") == [
        Block("See [the docs", translate=True),
        Block("](http://a.b)", translate=False),
        Block(" ", translate=False),
        Block("now,", translate=True),
        Block(" ", translate=False),
        Block("`x`", translate=False),
        Block(" .", translate=False),
    ]
