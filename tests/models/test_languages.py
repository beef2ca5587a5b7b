"""How the families are told their languages, on tokenizers of their classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from llmkit.errors import UsageError
from llmkit.models.families import family as known
from llmkit.models.families.translators import _language
from llmkit.models.language_map import apply_source
from llmkit.models.tokenizer import load_tokenizer
from llmkit.text.languages import Language, LanguageMap, Route, find_language
from tests.tiny import train_tokenizer

EN, FR, DE, ZH = (Language(tag) for tag in ("en", "fr", "de", "zh"))
NLLB, M2M = "facebook/nllb-200-distilled-600M", "facebook/m2m100_418M"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def nllb(folder: Path) -> Any:
    return train_tokenizer("NllbTokenizer", folder / "nllb")


@pytest.fixture(scope="module")
def m2m(folder: Path) -> Any:
    return train_tokenizer("M2M100Tokenizer", folder / "m2m")


@pytest.fixture(scope="module")
def mbart(folder: Path) -> Any:
    return train_tokenizer("MBartTokenizer", folder / "mbart")


@pytest.fixture(scope="module")
def mbart50(folder: Path) -> Any:
    return train_tokenizer("MBart50Tokenizer", folder / "mbart50")


@pytest.fixture(scope="module")
def marian(folder: Path) -> Any:
    return train_tokenizer("MarianTokenizer", folder / "marian")


def marian_with(folder: Path, *tokens: str, **options: Any) -> Any:
    train_tokenizer("MarianTokenizer", folder)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary |= {token: len(vocabulary) + n for n, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    return transformers.MarianTokenizer(
        source_spm=str(folder / "source.spm"),
        target_spm=str(folder / "target.spm"),
        vocab=str(folder / "vocab.json"),
        **options,
    )


def t5_with(*tokens: str) -> Any:
    pieces = ["<pad>", "</s>", "<unk>", *tokens, "▁", "a"]
    return transformers.T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0)


def make(model_type: str, name: str, tokenizer: Any = None, **config: Any) -> LanguageMap:
    languages = known(model_type).languages(name, config, tokenizer)
    assert languages is not None
    return languages


def route(languages: LanguageMap, source: str | None, target: str | None) -> Route:
    return languages.route(find_language(source) if source else None, find_language(target) if target else None)


# NLLB, M2M100, mBART: codes that are tokens.


@pytest.mark.parametrize(
    ("model_type", "name", "cls", "token", "code"),
    [
        ("m2m_100", NLLB, "NllbTokenizer", "tyv_Cyrl", "tyv_Cyrl"),
        ("m2m_100", M2M, "M2M100Tokenizer", "__tyv__", "tyv"),
        ("mbart", "mbart-large-cc25", "MBartTokenizer", "tyv_RU", "tyv_RU"),
        ("mbart", "mbart-large-50-many-to-many-mmt", "MBart50Tokenizer", "tyv_RU", "tyv_RU"),
    ],
)
@pytest.mark.parametrize("special", [True, False])
def test_a_language_that_was_added(
    model_type: str, name: str, cls: str, token: str, code: str, special: bool, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(cls, tmp_path / "training")
    before = make(model_type, name, tokenizer).targets
    if special:  # which replaces the list of the others
        tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    else:
        tokenizer.add_tokens([token])
    tokenizer.save_pretrained(tmp_path)
    loaded: Any = load_tokenizer(tmp_path)
    languages = make(model_type, name, loaded)
    assert set(languages.targets or ()) == {*(before or ()), Language("tyv")}
    number = loaded.convert_tokens_to_ids(token)
    to = route(languages, "en", "tyv")
    assert number in (to.forced_bos_token_id, to.decoder_start_token_id)
    back = route(languages, "tyv", "en")
    assert back.source_code == code
    with apply_source(loaded, back.source_code):
        assert number in loaded("a")["input_ids"]


def test_a_language_without_a_vector_in_the_model_is_none(nllb: Any) -> None:
    # The class adds all languages to a vocabulary that was cut down to two.
    tokens = ["<unk>", "<s>", "</s>", "eng_Latn", "fra_Latn", "a"]
    cut = transformers.NllbTokenizer(vocab={token: n for n, token in enumerate(tokens)}, unk_token="<unk>")
    assert len(cut) > 200
    assert set(make("m2m_100", NLLB, cut, vocab_size=len(tokens)).targets or ()) == {EN, FR}


def test_a_tokenizer_that_cannot_mark_the_language_is_refused(nllb: Any) -> None:
    generic = transformers.PreTrainedTokenizerFast(tokenizer_object=nllb.backend_tokenizer)
    source = route(make("m2m_100", NLLB, generic), "en", "fr").source_code
    with pytest.raises(UsageError, match="TokenizersBackend cannot tell"), apply_source(generic, source):
        pass


def test_nllb(nllb: Any) -> None:
    languages = make("m2m_100", NLLB, nllb)
    assert languages.sources == languages.targets
    assert languages.targets is not None
    assert len(languages.targets) == 202  # no two codes are one language
    expected = Route(EN, FR, source_code="eng_Latn", forced_bos_token_id=nllb.convert_tokens_to_ids("fra_Latn"))
    assert route(languages, "English", "French") == expected
    assert expected.forced_bos_token_id != nllb.unk_token_id
    assert route(make("nllb-moe", NLLB, nllb), "en", "fr") == expected


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *[("Arabic", "arb_Arab"), ("Moroccan Arabic", "ary_Arab"), ("Mesopotamian Arabic", "acm_Arab")],
        *[("Chinese", "zho_Hans"), ("zh-TW", "zho_Hant"), ("Cantonese", "yue_Hant"), ("Norwegian", "nob_Latn")],
        *[("Persian", "pes_Arab"), ("Dari", "prs_Arab"), ("Pashto", "pbt_Arab"), ("Malay", "zsm_Latn")],
        *[("Swahili", "swh_Latn"), ("Quechua", "quy_Latn"), ("Kurdish", "kmr_Latn"), ("Sorani", "ckb_Arab")],
        *[("Latvian", "lvs_Latn"), ("Albanian", "als_Latn"), ("Azerbaijani", "azj_Latn"), ("Uzbek", "uzn_Latn")],
        *[("Mongolian", "khk_Cyrl"), ("Odia", "ory_Orya"), ("Yiddish", "ydd_Hebr"), ("Tagalog", "tgl_Latn")],
        *[("Fula", "fuv_Latn"), ("Oromo", "gaz_Latn"), ("Malagasy", "plt_Latn"), ("Nepali", "npi_Deva")],
        *[("Crimean Tatar", "crh_Latn"), ("Santali", "sat_Beng"), ("Korean", "kor_Hang"), ("pt-BR", "por_Latn")],
        *[("Kashmiri", "kas_Arab"), ("Kashmiri (Devanagari)", "kas_Deva"), ("Twi", "twi_Latn"), ("Akan", "aka_Latn")],
    ],
)  # fmt: skip
def test_the_code_of_a_language_in_nllb(nllb: Any, name: str, code: str) -> None:
    languages = make("m2m_100", NLLB, nllb)
    assert route(languages, "en", name).forced_bos_token_id == nllb.convert_tokens_to_ids(code)
    assert route(languages, name, "en").source_code == code


def test_m2m100(m2m: Any) -> None:
    languages = make("m2m_100", M2M, m2m)
    assert route(languages, "en", "fr") == Route(EN, FR, source_code="en", forced_bos_token_id=m2m.get_lang_id("fr"))
    assert route(languages, "en", "Northern Sotho").forced_bos_token_id == m2m.get_lang_id("ns")
    assert route(languages, "Filipino", "no").forced_bos_token_id == m2m.get_lang_id("no")
    assert languages.targets is not None
    assert len(languages.targets) == 100


def test_mbart_begins_with_the_target_language(mbart: Any) -> None:
    languages = make("mbart", "facebook/mbart-large-en-ro", mbart)
    start = mbart.convert_tokens_to_ids("fr_XX")
    assert route(languages, "en", "fr") == Route(EN, FR, source_code="en_XX", decoder_start_token_id=start)
    assert route(languages, "zh-CN", "Arabic").source_code == "zh_CN"


def test_mbart_50_is_forced_into_the_target_language(mbart50: Any) -> None:
    languages = make("mbart", "facebook/mbart-large-50-many-to-many-mmt", mbart50)
    forced = mbart50.convert_tokens_to_ids("fr_XX")
    assert route(languages, "en", "fr") == Route(EN, FR, source_code="en_XX", forced_bos_token_id=forced)
    assert languages.targets is not None
    assert len(languages.targets) == 52


def test_mbart_50_says_in_its_name_which_side_is_english(mbart50: Any) -> None:
    many_to_one = make("mbart", "facebook/mbart-large-50-many-to-one-mmt", mbart50)
    assert set(many_to_one.targets or ()) == {EN}
    assert route(many_to_one, "fr", None).target == EN
    one_to_many = make("mbart", "facebook/mbart-large-50-one-to-many-mmt", mbart50)
    assert set(one_to_many.sources or ()) == {EN}
    assert route(one_to_many, None, "fr").source_code == "en_XX"
    with pytest.raises(UsageError, match=r"does not translate from French \(fr\); it knows en;"):
        route(one_to_many, "fr", "en")


@pytest.mark.parametrize("family", ["nllb", "m2m", "mbart", "mbart50"])
def test_every_code_is_the_code_of_its_language(family: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(family)
    languages = make("mbart" if "mbart" in family else "m2m_100", family, tokenizer)
    codes = (
        [token for token in tokenizer.all_special_tokens if "_" in token]
        if family == "nllb"
        else tokenizer.lang_code_to_id
    )
    assert len(codes) in (202, 100, 25, 52)
    for code in codes:
        language = _language(code)
        assert language is not None, code
        english, french = languages.route(language, EN if language != EN else FR), language
        assert english.source_code == code
        to = languages.route(EN if language != EN else FR, french)
        forced = to.decoder_start_token_id if to.forced_bos_token_id is None else to.forced_bos_token_id
        assert forced == (tokenizer.get_lang_id if family == "m2m" else tokenizer.convert_tokens_to_ids)(code)


@pytest.mark.parametrize(
    ("family", "before", "code", "place"),
    [
        ("nllb", "eng_Latn", "fra_Latn", 0),
        ("m2m", "en", "fr", 0),
        ("mbart", "en_XX", "fr_XX", -1),
        ("mbart50", "en_XX", "fr_XX", 0),
    ],
)
def test_the_source_stands_where_the_family_reads_it(
    family: str, before: str, code: str, place: int, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(family)
    as_id = tokenizer.get_lang_id if family == "m2m" else tokenizer.convert_tokens_to_ids
    plain = tokenizer("The fox").input_ids
    assert plain[place] == as_id(before)
    with apply_source(tokenizer, code):
        ids = tokenizer("The fox").input_ids
        assert ids[place] == as_id(code)
        assert ids.count(as_id(code)) == 1
        assert as_id(before) not in ids
    assert tokenizer("The fox").input_ids == plain
    assert tokenizer.src_lang == before


def test_the_source_is_restored_after_an_error(nllb: Any) -> None:
    with pytest.raises(ValueError, match="stop"), apply_source(nllb, "fra_Latn"):
        raise ValueError("stop")
    assert nllb.src_lang == "eng_Latn"


def test_no_source_changes_nothing(marian: Any) -> None:
    with apply_source(marian, None):
        assert not hasattr(marian, "src_lang")


# Marian.


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("Helsinki-NLP/opus-mt-en-fr", "en", "fr"),
        ("Helsinki-NLP/opus-mt-tc-big-en-fr", "en", "fr"),
        ("/models/opus-mt-zh-en/", "zh", "en"),
        (r"C:\models\opus-mt-zh-en", "zh", "en"),
        ("Helsinki-NLP/opus-mt-tc-big-fra-eng", "fr", "en"),
        ("someone/opus-mt-en-fr-finetuned-kde4", "en", "fr"),
        ("Helsinki-NLP/opus-mt-en-tl", "en", "tl"),
    ],
)
def test_a_marian_name_is_its_pair(marian: Any, name: str, source: str, target: str) -> None:
    languages = make("marian", name, marian)
    assert set(languages.sources or ()) == {Language(source)}
    assert set(languages.targets or ()) == {Language(target)}
    assert languages.route(None, None) == Route(Language(source), Language(target))


@pytest.mark.parametrize(
    "name", ["Helsinki-NLP/opus-mt-ROMANCE-en", "opus-mt-mul-en", "opus-mt-tc-big-zlw-en", "opus-mt-sh-en"]
)
def test_the_members_of_a_group_are_not_known(marian: Any, name: str) -> None:
    languages = make("marian", name, marian)
    assert languages.sources is None
    assert languages.route(FR, None) == Route(FR, EN)
    assert languages.route(None, None) == Route(None, EN)


def test_several_languages_on_one_side(marian: Any) -> None:
    languages = make("marian", "opus-mt-tc-bible-big-deu_eng_fra-zho", marian)
    assert set(languages.sources or ()) == {DE, EN, FR}
    assert set(languages.targets or ()) == {ZH}


def test_a_marian_tokenizer_knows_its_pair(tmp_path: Path) -> None:
    tokenizer = marian_with(tmp_path, source_lang="zho", target_lang="eng")
    assert make("marian", "./tuned", tokenizer).route(None, None) == Route(ZH, EN)


def test_nothing_is_known_of_a_marian_model_without_a_name(marian: Any) -> None:
    languages = make("marian", "./tuned", marian)
    assert (languages.sources, languages.targets) == (None, None)
    assert languages.route(EN, FR) == Route(EN, FR)
    with pytest.raises(UsageError, match="`target=fr`"):
        languages.route(EN, None)


def test_the_targets_of_marian_are_its_tokens(tmp_path: Path) -> None:
    tokens = (">>fra<<", ">>por<<", ">>pt_br<<", ">>srp_Latn<<", ">>roa<<", ">>spa<<", ">>oops<<")
    tokenizer = marian_with(tmp_path, *tokens)
    languages = make("marian", "Helsinki-NLP/opus-mt-en-ROMANCE", tokenizer)
    assert set(languages.sources or ()) == {EN}
    assert set(languages.targets or ()) == {Language(tag) for tag in ("fr", "pt", "pt-BR", "sr-Latn", "es")}
    told = languages.route(None, FR)
    assert told == Route(EN, FR, prefix=">>fra<< ")
    ids = tokenizer(f"{told.prefix}The fox").input_ids
    assert ids[0] == tokenizer.get_vocab()[">>fra<<"]
    assert ids[1:] == tokenizer("The fox").input_ids
    assert route(languages, None, "pt-BR").prefix == ">>pt_br<< "
    assert route(languages, None, "pt-PT").prefix == ">>por<< "
    assert route(languages, None, "sr").prefix == ">>srp_Latn<< "
    with pytest.raises(UsageError, match=r"targets: es, fr, pt, pt-BR, sr-Latn\)$"):
        languages.route(None, None)


def test_one_target_in_several_forms_is_asked_for_by_its_token(tmp_path: Path) -> None:
    tokenizer = marian_with(tmp_path, ">>cmn<<", ">>cmn_Hans<<", ">>cmn_Hant<<", ">>yue<<")
    languages = make("marian", "Helsinki-NLP/opus-mt-en-zh", tokenizer)
    assert route(languages, "en", "Chinese").prefix == ">>cmn_Hans<< "
    assert route(languages, "en", "zh-TW").prefix == ">>cmn_Hant<< "


def test_leftover_tokens_of_a_single_pair_mean_nothing(tmp_path: Path) -> None:
    languages = make("marian", "opus-mt-fr-en", marian_with(tmp_path, ">>fra<<", ">>spa<<"))
    assert set(languages.targets or ()) == {EN}
    assert languages.route(None, None).prefix == ""


def test_a_group_in_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = marian_with(tmp_path, ">>fra<<", ">>spa<<", source_lang="eng", target_lang="roa")
    languages = make("marian", "./tuned", tokenizer)
    assert set(languages.sources or ()) == {EN}
    assert languages.route(None, FR).prefix == ">>fra<< "


# FSMT and T5.


def test_fsmt() -> None:
    languages = make("fsmt", "facebook/wmt19-en-de", langs=["en", "de"])
    assert languages.route(None, None) == Route(EN, DE)
    with pytest.raises(UsageError, match="does not translate into French"):
        languages.route(EN, FR)


T5_PARAMS = {
    "summarization": {"prefix": "summarize: "},
    "translation_en_to_de": {"prefix": "translate English to German: "},
    "translation_en_to_fr": {"prefix": "translate English to French: "},
    "translation_en_to_ro": {"prefix": "translate English to Romanian: "},
}


def test_t5_has_its_prefixes_in_its_config() -> None:
    languages = make("t5", "t5-small", t5_with(), task_specific_params=T5_PARAMS)
    assert set(languages.sources or ()) == {EN}
    assert set(languages.targets or ()) == {DE, FR, Language("ro")}
    assert languages.route(None, FR) == Route(EN, FR, prefix="translate English to French: ")
    with pytest.raises(UsageError, match=r"does not translate from French \(fr\)"):
        languages.route(FR, DE)


def test_pairs_that_t5_was_not_given_are_refused() -> None:
    params = {"translation_en_to_de": {"prefix": "a"}, "translation_de_to_fr": {"prefix": "b"}}
    languages = make("t5", "mine", t5_with(), task_specific_params=params)
    with pytest.raises(UsageError, match=r"from English \(en\) into French \(fr\); choose one of en to de, de to fr$"):
        languages.route(EN, FR)


def test_t5_without_prefixes_is_asked_in_english() -> None:
    languages = make("t5", "google/flan-t5-small", t5_with(), task_specific_params=None)
    assert (languages.sources, languages.targets) == (None, None)
    assert languages.route(EN, FR).prefix == "translate English to French: "
    with pytest.raises(UsageError, match=r"name it with `source`$"):
        languages.route(None, FR)


@pytest.mark.parametrize("model_type", ["t5", "mt5"])
def test_madlad_is_told_the_target_by_a_token(model_type: str) -> None:
    tokens = ("<2de>", "<2zh>", "<2zh_Hant>", "<2en_xx_simple>", "<2fil>", "<2translate>", "<2zxx_xx_dtynoise>")
    languages = make(model_type, "google/madlad400-3b-mt", t5_with(*tokens))
    assert languages.sources is None
    assert set(languages.targets or ()) == {Language(tag) for tag in ("de", "zh", "zh-Hant", "tl")}
    assert languages.route(None, DE) == Route(None, DE, prefix="<2de> ")
    assert route(languages, "en", "Filipino").prefix == "<2fil> "


@pytest.mark.parametrize("model_type", ["llama", "bart", "pegasus", "blenderbot", "mt5", "umt5", "longt5"])
def test_other_models_are_told_nothing(model_type: str) -> None:
    assert known(model_type).languages("any", {}, t5_with()) is None


def test_an_mbart_with_another_tokenizer_is_told_nothing(marian: Any) -> None:
    assert known("mbart").languages("any", {}, marian) is None


# What is refused.


def test_an_unknown_target_names_the_nearest(m2m: Any) -> None:
    with pytest.raises(UsageError) as caught:
        route(make("m2m_100", M2M, m2m), "en", "Faroese")
    assert str(caught.value) == (
        "facebook/m2m100_418M does not translate into Faroese (fo); nearest it knows: Danish (da);"
        " name one with `target`, or choose another model"
    )


@pytest.mark.parametrize("target", ["zh-Hant", "yue", "sr-Latn", "nn", "arz"])
def test_what_is_written_must_be_what_was_asked_for(m2m: Any, target: str) -> None:
    with pytest.raises(UsageError, match="nearest it knows: "):
        route(make("m2m_100", M2M, m2m), "en", target)


@pytest.mark.parametrize(
    ("source", "code"), [("zh-Hant", "zh"), ("sr-Latn", "sr"), ("arz", "ar"), ("pt-BR", "pt"), ("pbt", "ps")]
)
def test_what_is_read_may_be_a_variety(m2m: Any, source: str, code: str) -> None:
    assert route(make("m2m_100", M2M, m2m), source, "en").source_code == code


def test_malay_is_not_taken_for_indonesian(mbart50: Any) -> None:
    with pytest.raises(UsageError, match="does not translate into Malay"):
        route(make("mbart", "mbart-large-50-many-to-many-mmt", mbart50), "en", "ms")


@pytest.mark.parametrize(("source", "target"), [("fr", "French"), ("pt-BR", "pt-PT"), ("zh", "zh-CN")])
def test_a_language_is_not_translated_into_itself(m2m: Any, source: str, target: str) -> None:
    with pytest.raises(UsageError, match=r"would both be in .*; name another language with `target` or `source`$"):
        route(make("m2m_100", M2M, m2m), source, target)


def test_one_script_of_a_language_into_the_other(nllb: Any) -> None:
    assert route(make("m2m_100", NLLB, nllb), "zh-Hant", "zh").source_code == "zho_Hant"


def test_the_target_must_be_named_where_there_is_a_choice(m2m: Any) -> None:
    languages = make("m2m_100", M2M, m2m)
    with pytest.raises(UsageError, match=r"name the target language with `target` \(targets: af, .* and 90 more\)$"):
        route(languages, "en", None)
    with pytest.raises(UsageError, match=r"name it with `source`$"):
        route(languages, None, "fr")
