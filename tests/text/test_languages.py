"""Languages by name, code and text."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmkit.errors import UsageError
from llmkit.text.detection import detect_language
from llmkit.text.languages import Language, find_language, language_from_code
from llmkit.text.scripts import looks_english


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        *[("English", "en"), ("french", "fr"), ("GERMAN", "de"), ("Bengali", "bn"), ("Farsi", "fa"), ("Maori", "mi")],
        *[("Deutsch", "de"), ("français", "fr"), ("中文", "zh"), ("日本語", "ja"), ("русский", "ru")],
        *[("de", "de"), ("ger", "de"), ("deu", "de"), ("chi", "zh"), ("zho", "zh"), ("cmn", "zh"), ("FR", "fr")],
        *[("fra_Latn", "fr"), ("en_XX", "en"), ("pt-BR", "pt-BR"), ("iw", "he"), ("arb_Arab", "ar")],
        *[("zh_CN", "zh"), ("zh-Hans", "zh"), ("zho_Hans", "zh"), ("Chinese", "zh"), ("Simplified Chinese", "zh")],
        *[("zh-TW", "zh-Hant"), ("zh_HK", "zh-Hant"), ("zho_Hant", "zh-Hant"), ("Traditional Chinese", "zh-Hant")],
        *[("Chinese (Traditional)", "zh-Hant"), ("繁體中文", "zh-Hant"), ("Mandarin", "zh"), ("Cantonese", "yue")],
        *[("Norwegian", "nb"), ("no", "nb"), ("Nynorsk", "nn"), ("Serbian", "sr"), ("pt_br", "pt-BR")],
        *[("Brazilian Portuguese", "pt-BR"), ("Portuguese (Brazil)", "pt-BR"), ("Persian", "fa"), ("pes", "fa")],
        *[("Filipino", "tl"), ("Tagalog", "tl"), ("tgl_Latn", "tl"), ("Egyptian Arabic", "arz"), ("  French ", "fr")],
        *[("Serbian Latin", "sr-Latn"), ("Chinese Simplified", "zh"), ("chinese_traditional", "zh-Hant")],
        *[("brazilian_portuguese", "pt-BR"), ("中文（繁體）", "zh-Hant"), ("漢語", "zh"), ("廣東話", "yue")],
        *[("Georgian (Georgia)", "ka-GE"), ("Mongolian (Mongolia)", "mn-MN"), ("Malti", "mt"), ("Bahasa Melayu", "ms")],
        *[("sh", "sh"), ("Serbo-Croatian", "sh"), ("hbs_Cyrl", "sh-Cyrl"), ("Berber", "ber"), ("ber-Latn", "ber-Latn")],
        *[("немецкий", "de"), ("德语", "de"), ("de_DE", "de-DE"), ("Wu", "wuu"), ("mon", "mn"), ("العربية", "ar")],
    ],
)  # fmt: skip
def test_a_language_is_found_by_any_of_its_names(name: str, tag: str) -> None:
    assert find_language(name) == Language(tag)


@pytest.mark.parametrize(
    "tag", ["en", "zh", "zh-Hant", "pt-BR", "yue", "sr-Latn", "nb", "tl", "fa-AF", "sat-Beng", "acm"]
)
def test_a_language_is_found_by_its_own_tag_and_name(tag: str) -> None:
    language = find_language(tag)
    assert language.tag == tag
    assert find_language(language.name) == language
    assert find_language(language.alpha3).alpha2 == language.alpha2


@pytest.mark.parametrize(
    ("tag", "name", "alpha2", "alpha3", "script"),
    [
        ("zh-Hant", "Chinese (Traditional)", "zh", "zho", "Hant"),
        ("fr", "French", "fr", "fra", "Latn"),
        ("yue", "Cantonese", "yue", "yue", "Hant"),
        ("tl", "Tagalog", "tl", "tgl", "Latn"),
        ("nb", "Norwegian Bokmål", "nb", "nob", "Latn"),
        ("acm", "Mesopotamian Arabic", "acm", "acm", "Arab"),
    ],
)
def test_names_codes_and_script(tag: str, name: str, alpha2: str, alpha3: str, script: str) -> None:
    language = Language(tag)
    assert (language.name, language.alpha2, language.alpha3, language.script) == (name, alpha2, alpha3, script)


def test_an_unknown_language_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        find_language("frensh")
    assert str(caught.value) == (
        "unknown language 'frensh'; did you mean 'French'? give an English name or an ISO 639 code"
    )


@pytest.mark.parametrize(
    ("code", "name"), [("jp", "Japanese"), ("CZ", "Czech"), ("ua", "Ukrainian"), ("cn", "Chinese")]
)
def test_the_code_of_a_country_names_its_language(code: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{name}'"):
        find_language(code)


@pytest.mark.parametrize(
    "name", ["crp", "Roa_Latn", "", "xx", "und", "mul", "zxx", "mis", "gmq", "roa", "12", "translate", "en--fr"]
)
def test_what_is_no_language_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown language .* ISO 639 code$"):
        find_language(name)


def test_a_name_is_no_code() -> None:
    assert language_from_code("French") is None


TEXTS = {
    "en": "The train to the city leaves at noon.",
    "fr": "Le train pour la ville part à midi.",
    "de": "Der Zug in die Stadt fährt am Mittag ab.",
    "zh": "开往城市的火车中午出发。",
    "ja": "東京行きの電車は正午に出ます。",
    "ko": "도시로 가는 기차는 정오에 출발합니다.",
    "th": "รถไฟไปเมืองออกตอนเที่ยง",
    "ru": "Поезд в город отправляется в полдень.",
    "nb": "Jeg vet ikke hva han har gjort i byen i dag.",
}


@pytest.mark.parametrize("tag", TEXTS)
def test_the_language_of_a_sentence(tag: str) -> None:
    found = detect_language(TEXTS[tag])
    assert found.language == Language(tag)
    assert 0.0 < found.probability <= 1.0


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("東京", "zh"),
        ("天气", "zh"),
        ("今日は", "ja"),
        ("안녕", "ko"),
        ("我用 Python 写代码", "zh"),
        ("Le code `the quick brown fox jumps over the dog` est ici, sur https://example.com/the/quick/brown/fox", "fr"),
    ],
)
def test_a_short_or_mixed_text(text: str, tag: str) -> None:
    assert detect_language(text).language == Language(tag)


def test_a_sentence_is_surer_than_a_word() -> None:
    assert detect_language(TEXTS["fr"]).probability > detect_language("table").probability


def test_only_the_named_languages_are_chosen() -> None:
    among = [Language("de"), Language("es")]
    assert detect_language(TEXTS["fr"], among).language in among
    assert detect_language(TEXTS["fr"]).language == Language("fr")  # nothing is left of it


def test_a_long_text_in_another_language_still_gets_an_answer() -> None:
    found = detect_language(TEXTS["ja"] * 500, [Language("en"), Language("de")])
    assert found.language in (Language("en"), Language("de"))


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("我沒事，我們走吧。", "zh-Hant"),
        ("我没事，我们走吧。", "zh"),
        ("Добар дан, како сте?", "sr"),
        ("Dobar dan, kako ste?", "sr-Latn"),
    ],
)
def test_the_script_tells_the_varieties_apart_where_there_is_a_choice(text: str, tag: str) -> None:
    among = {Language(tag) for tag in ("en", "zh", "zh-Hant", "sr", "sr-Latn")}
    assert detect_language(text, among).language == Language(tag)


def test_the_only_variety_there_is_is_taken() -> None:
    assert detect_language(TEXTS["zh"], [Language("zh-Hant"), Language("en")]).language == Language("zh-Hant")


@pytest.mark.parametrize("text", ["", "  ", "123 + 456", "`code` https://example.com", "😀 !"])
def test_a_text_without_letters_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"the language of .* cannot be detected; name it with `source`$"):
        detect_language(text)


def test_languages_the_classifier_does_not_know_are_refused() -> None:
    with pytest.raises(UsageError, match=r"`source`$"):
        detect_language("Hello there", [Language("fon"), Language("nus")])


def test_the_shared_classifier_is_left_alone() -> None:
    from py3langid import langid  # type: ignore[import-untyped]

    detect_language(TEXTS["fr"], [Language("de"), Language("es")])
    assert langid.IDENTIFIER is None


def test_importing_reads_no_tables() -> None:
    script = (
        "import sys, llmkit.text.languages\n"
        "print({'langcodes', 'language_data', 'py3langid', 'numpy', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["\x00", "fr\x00", "\ud800", "French\x1b", "", "a" * 5000])
def test_names_that_no_table_can_look_up(name: str) -> None:
    with pytest.raises(UsageError, match="unknown language"):
        find_language(name)


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("", True),
        ("What is a café?", True),
        ("The naïve owner of the café paid 3 € — “too much”.", True),
        ("你好", False),
        ("Où est né Molière ?", False),
        ("Кто написал эту книгу?", False),
        ("La lettre a été envoyée à la préfecture, et le maire a répondu la semaine suivante.", False),
    ],
)
def test_texts_that_do_not_look_english(text: str, english: bool) -> None:
    assert looks_english(text) == english
