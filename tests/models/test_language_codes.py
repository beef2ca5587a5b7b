"""Every code of every family of translation models: it is one language, which is found by each of its names."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import langcodes
import pytest
from transformers.models.m2m_100 import tokenization_m2m_100 as m2m_100
from transformers.models.mbart import tokenization_mbart as mbart
from transformers.models.mbart50 import tokenization_mbart50 as mbart50
from transformers.models.nllb import tokenization_nllb as nllb

from llmkit.errors import UsageError
from llmkit.models.families import family as known
from llmkit.models.language_map import ModelLanguages
from llmkit.text.languages import Language, Route, find_language

# The targets in the vocabulary of google/madlad400-3b-mt.
_MADLAD = """
abt ace ace_Arab acf ada adh ady af agr ahk ak akb alt alz am amu an ang ann ape ar arn ary arz as av awa ay az
az_RU ba ban bar bas bbc bci be ber ber_Latn bew bg bg_Latn bgp bho bi bik bim bjn bjn_Arab bm bn bn_Latn bo bqc
br bru brx bs bts btx bua bug bum bus bzj ca cab cac cak cbk cce ce ceb cfm ch chk chm chr ckb cnh co cr_Latn
crh crh_Latn crs cs ctd_Latn ctu cuk cv cy da de din dje djk dln doi dov dtp dv dwr dyu dz ee el el_Latn emp en
enq eo es et eu fa ff ffm fi fil fip fj fo fon fr fr_CA frp fur fuv fy ga gag gbm gd gl gn gof gom gom_Latn gor
grc gsw gu gu_Latn gub guc guh gui gv gvl gym ha haw he hi hi_Latn hif hil hmn hne ho hr ht hu hui hus hvn hy
iba ibb id ify ig ilo inb io is iso it iu ium izz ja jac jam jiv jv jvn ka kaa kaa_Latn kac kbd kbp kek kg kha
kj kjg kjh kk kl km kmb kmz_Latn kn kn_Latn knj ko koi kos kr kr_Arab krc kri ks ks_Deva ksd ksw ktu ku kum kv
kw kwi ky la laj lb lg lhu li lij lmo ln lo lrc lt ltg lu lus lv mad mag mai mak mam mas maz mbt mdf meo meu mfe
mg mgh mh mi min miq mk mkn ml ml_Latn mn mni mps mqy mr mrj mrw ms ms_Arab ms_Arab_BN msb msi msm mt mwl my myv
nan_Latn_TW ndc_ZW nds nds_NL ne new ngu nhe nia nij niq nl nn nnb no noa nog nr nso nus nut nv ny nyu nzi oc oj
om or os otq pa pag pap pau pck pis pl pon ppk prs ps pt qu qub quc quf quh qup quy qvc qvi qvz qxr raj rcf rki
rm rmc rn ro rom ru ru_Latn rw rwo sa sah sat_Latn sc scn sd sda se seh sg sh shn shp si sja sk skr sl sm smt sn
so spp sq sr srm srn ss st stq su sus suz sv sw sxn syr szl ta ta_Latn tab taj taq taq_Tfng tbz tca tcy tdx te
te_Latn teo tet tg th ti tiv tk tks tlh tll tly_IR tn to toj tr trp ts tsc tsg tt tuc tvl twu tyv tyz tzh tzj
tzm tzo ubu udm ug uk ur uz ve vec vi wa wal war wo wuu xal xh yap yi yo yua zap zh zh_Hant zh_Latn zne zu zza
"""
# What else begins with <2 there.
_MADLAD_OTHERS = """
Arab Armn Beng CA Cans Cher Cyrl Deva Ethi Geor Grek Gujr Guru Hans Hant Hebr IR Jpan Khmr Knda Kore Latn Mlym
Mymr NL Orya RU Taml Telu Tfng Thaa Thai Tibt ZW back_translated en_xx_simple mass translate transliterate
zxx_xx_dtynoise
"""
MADLAD, MADLAD_OTHERS = _MADLAD.split(), _MADLAD_OTHERS.split()

# Targets as Helsinki-NLP's models have them; those of ROMANCE, ZH, NORTH_EU, CELTIC and SAMI are examples.
MARIAN = {
    "opus-mt-en-mul": """
abk acm ady afb afh_Latn afr akl_Latn aln amh ang_Latn apc ara arg arq ary arz asm ast avk_Latn awa aze_Latn bak
bam_Latn bel bel_Latn ben bho bod bos_Latn bre brx brx_Latn bul bul_Latn cat ceb ces cha che chr chv cjy_Hans
cjy_Hant cmn cmn_Hans cmn_Hant cor cos crh crh_Latn csb_Latn cym dan deu dsb dtp dws_Latn egl ell enm_Latn epo
est eus ewe ext fao fij fin fkv_Latn fra frm_Latn frr fry fuc fuv gan gcf_Latn gil gla gle glg glv gom gos
got_Goth grc_Grek grn gsw guj hat hau_Latn haw heb hif_Latn hil hin hnj_Latn hoc hoc_Latn hrv hsb hun hye iba
ibo ido ido_Latn ike_Latn ile_Latn ilo ina_Latn ind isl ita izh jav jav_Java jbo jbo_Cyrl jbo_Latn jdt_Cyrl jpn
kab kal kan kat kaz_Cyrl kaz_Latn kek_Latn kha khm khm_Latn kin kir_Cyrl kjh kpv krl ksh kum kur_Arab kur_Latn
lad lad_Latn lao lat_Latn lav ldn_Latn lfn_Cyrl lfn_Latn lij lin lit liv_Latn lkt lld_Latn lmo ltg ltz lug lzh
lzh_Hans mad mah mai mal mar max_Latn mdf mfe mhr mic min mkd mlg mlt mnw moh mon mri mwl mww mya myv nan nau
nav nds niu nld nno nob nob_Hebr nog non_Latn nov_Latn npi nya oci ori orv_Cyrl oss ota_Arab ota_Latn pag
pan_Guru pap pau pdc pes pes_Latn pes_Thaa pms pnb pol por ppl_Latn prg_Latn pus quc qya qya_Latn rap rif_Latn
roh rom ron rue run rus sag sah san_Deva scn sco sgs shs_Latn shy_Latn sin sjn_Latn slv sma sme smo sna snd_Arab
som spa sqi srp_Cyrl srp_Latn stq sun swe swg swh tah tam tat tat_Arab tat_Latn tel tet tgk_Cyrl tha tir
tlh_Latn tly_Latn tmw_Latn toi_Latn ton tpw_Latn tso tuk tuk_Latn tur tvl tyv tzl tzl_Latn udm uig_Arab uig_Cyrl
ukr umb urd uzb_Cyrl uzb_Latn vec vie vie_Hani vol_Latn vro war wln wol wuu xal xho yid yor yue yue_Hans
yue_Hant zho zho_Hans zho_Hant zlm_Latn zsm_Latn zul zza
""",
    "opus-mt-en-ROMANCE": """
fr fr_BE fr_CA fr_FR wa frp oc ca rm lld fur lij lmo es es_AR es_CL es_CO es_CR es_DO es_EC es_ES es_GT es_HN
es_MX es_NI es_PA es_PE es_PR es_SV es_UY es_VE pt pt_br pt_BR pt_PT gl lad an mwl it it_IT co nap scn vec sc ro
la
""",
    "opus-mt-en-zh": "cjy_Hans cjy_Hant cmn cmn_Hans cmn_Hant gan lzh lzh_Hans nan wuu yue yue_Hans yue_Hant",
    "opus-mt-fi-ZH": "cmn cn yue ze_zh zh_cn zh_CN zh_HK zh_tw zh_TW zh_yue zhs zht zh",
    "opus-mt-en-sla": """
bel bel_Latn bos_Latn bul bul_Latn ces csb_Latn dsb hrv hsb mkd orv_Cyrl pol rue rus slv srp_Cyrl srp_Latn ukr
""",
    "opus-mt-en-NORTH_EU": "de nl fy af da fo is no nb nn sv",
    "opus-mt-en-CELTIC": "ga cy br gd kw gv",
    "opus-mt-fi-SAMI": "se sma smj smn sms",
}
# Codes that are not offered: another of the model's is the same language and surer of its script, or is spelled alike.
DOUBLES = {
    "opus-mt-en-mul": {"cmn", "zho", "ido", "jbo", "lzh", "qya", "tuk", "tzl", "yue"},
    "opus-mt-en-ROMANCE": {"pt_BR"},
    "opus-mt-en-zh": {"cmn", "lzh", "yue"},
    # cn, zhs, zht and ze_zh (subtitles in two languages) are no codes of languages.
    "opus-mt-fi-ZH": {"zh_CN", "zh_TW", "zh_yue", "cn", "zhs", "zht", "ze_zh"},
}


class Vocabulary:
    """Of a tokenizer, what the language maps read."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.all_special_tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: n for n, token in enumerate(self.tokens)}

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.tokens.index(token)


class MBart(Vocabulary):
    @property
    def lang_code_to_id(self) -> dict[str, int]:
        return self.get_vocab()


class MBart50(MBart):
    """Told from the other by where it puts the code."""

    prefix_tokens = (0,)


class M2M100(MBart):
    def get_lang_id(self, code: str) -> int:
        return self.convert_tokens_to_ids(code)


_M2M100 = m2m_100.FAIRSEQ_LANGUAGE_CODES["m2m100"]
FAMILIES: dict[str, tuple[str, Vocabulary, list[str]]] = {
    # name: (model type, tokenizer, codes)
    "nllb-200": ("m2m_100", Vocabulary(nllb.FAIRSEQ_LANGUAGE_CODES), nllb.FAIRSEQ_LANGUAGE_CODES),
    "m2m100": ("m2m_100", M2M100(_M2M100), _M2M100),
    "mbart": ("mbart", MBart(mbart.FAIRSEQ_LANGUAGE_CODES), mbart.FAIRSEQ_LANGUAGE_CODES),
    "mbart-50": ("mbart", MBart50(mbart50.FAIRSEQ_LANGUAGE_CODES), mbart50.FAIRSEQ_LANGUAGE_CODES),
    "madlad": ("t5", Vocabulary([f"<2{code}>" for code in [*MADLAD_OTHERS, *MADLAD]]), MADLAD),
    **{
        name: ("marian", Vocabulary([f">>{code}<<" for code in codes.split()]), codes.split())
        for name, codes in MARIAN.items()
    },
}


@cache
def languages_of(family: str) -> ModelLanguages:
    model_type, tokenizer, _ = FAMILIES[family]
    found = known(model_type).languages(family, {}, tokenizer)
    assert isinstance(found, ModelLanguages)
    return found


def code_in(family: str, route: Route) -> str:
    """The code of the target of a route."""
    if route.prefix:
        return route.prefix.strip(" <>").removeprefix("2")
    number = route.forced_bos_token_id if route.decoder_start_token_id is None else route.decoder_start_token_id
    assert number is not None
    return FAMILIES[family][2][number]


def code_of(family: str, language: Language) -> str:
    languages = languages_of(family)
    source = None if languages.sources is None or len(languages.sources) == 1 else Language("en")
    if source == language:
        source = Language("fr")
    return code_in(family, languages.route(source, language))


@cache
def by_code(family: str) -> dict[str, Language]:
    return {code_of(family, language): language for language in languages_of(family).targets or ()}


EVERY = [
    (family, code)
    for family, (_, _, codes) in FAMILIES.items()
    for code in codes
    if code not in DOUBLES.get(family, ()) and not (family.startswith("opus") and code in ("en", "no_nb"))
]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_codes_are_one_language(family: str) -> None:
    assert set(by_code(family)) == set(FAMILIES[family][2]) - DOUBLES.get(family, set())
    assert len(by_code(family)) == len(languages_of(family).targets or ())


@pytest.mark.parametrize(("family", "code"), EVERY)
def test_a_code_is_reached_by_each_name_of_its_language(family: str, code: str) -> None:
    language = by_code(family)[code]
    names = [code, language.tag, f"{language.alpha3}{language.tag[len(language.alpha2) :]}"]
    # A code goes before a name, and a few languages of ISO 639-3 share a name with a better known one.
    if language.name not in SHADOWED:
        names.append(language.name)
    written = f"{language.alpha2}-{language.script}"
    if find_language(written) == language and Language(written) not in by_code(family).values():
        names += [written, written.replace("-", "_").upper()]
    for name in names:
        assert code_of(family, find_language(name)) == code, name


# These are codes of Umatilla, Hiri Motu and Mongolian.
SHADOWED = {"Uma", "Ho", "Mon"}

# The names that their speakers give them, by CLDR, which has for some that of another language.
NATIVE = [
    (family, code)
    for family, code in EVERY
    if not family.startswith("opus")
    and (language := by_code(family)[code]).tag not in ("tw", "lu", "mas", "mgh", "ppk", "sh")
    and langcodes.Language.get(language.tag).autonym() != language.name
]


@pytest.mark.parametrize(("family", "code"), NATIVE)
def test_a_code_is_reached_by_the_native_name(family: str, code: str) -> None:
    autonym = langcodes.Language.get(by_code(family)[code].tag).autonym()
    assert code_of(family, find_language(autonym)) == code


def test_what_is_no_language_in_madlad_is_not_offered() -> None:
    assert not {f"<2{code}>" for code in MADLAD_OTHERS} & {f"<2{code}>" for code in by_code("madlad")}


# What a name of several varieties is taken for.

CHOICES = [
    ("nllb-200", "Chinese", "zho_Hans", "Chinese is taken as Chinese (Simplified) (zh); name zh-Hant for "),
    ("nllb-200", "cmn", "zho_Hans", "Mandarin Chinese is taken as Chinese (Simplified) (zh); name zh-Hant for "),
    ("nllb-200", "norsk", "nob_Latn", "Norwegian is taken as Norwegian Bokmål (nb); name nn for Norwegian Nynorsk"),
    ("nllb-200", "Kurdish", "kmr_Latn", "Kurdish is taken as Kurdish (ku); name ckb for Central Kurdish"),
    ("nllb-200", "az", "azj_Latn", "Azerbaijani is taken as Azerbaijani (az); name azb-Arab for South Azerbaijani"),
    ("nllb-200", "Farsi", "pes_Arab", "Persian is taken as Persian (fa); name fa-AF for Persian (Afghanistan)"),
    ("nllb-200", "Arabic", "arb_Arab", "Arabic is taken as Arabic (ar); name "),
    ("madlad", "Malay", "ms", "Malay is taken as Malay (ms); name "),
    ("madlad", "Norwegian", "no", "Norwegian is taken as Norwegian Bokmål (nb); name nn for "),
    ("madlad", "Azerbaijani", "az", "Azerbaijani is taken as Azerbaijani (Latin) (az); name az-Cyrl for "),
    ("opus-mt-en-sla", "Serbian", "srp_Cyrl", "Serbian is taken as Serbian (Cyrillic) (sr); name sr-Latn for "),
    ("opus-mt-en-NORTH_EU", "Norwegian", "no", "Norwegian is taken as Norwegian (no); name nb for Norwegian Bokmål"),
    ("opus-mt-en-ROMANCE", "Portuguese", "pt", "Portuguese is taken as Portuguese (pt); name pt-BR for "),
    ("opus-mt-en-mul", "Uzbek", "uzb_Latn", "Uzbek is taken as Uzbek (Latin) (uz); name uz-Cyrl for "),
    ("nllb-200", "pt-PT", "por_Latn", "Portuguese (Portugal) (pt-PT) is taken as Portuguese (pt): "),
    ("m2m100", "es-MX", "es", "Spanish (Mexico) (es-MX) is taken as Spanish (es): "),
]


@pytest.mark.parametrize(("family", "name", "code", "said"), CHOICES)
def test_a_choice_among_varieties_is_said_once(
    family: str, name: str, code: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llmkit")
    languages_of.cache_clear()
    for _ in range(2):
        assert code_of(family, find_language(name)) == code
    (message,) = caplog.messages
    assert message.startswith(said)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *[
            ("nllb-200", name)
            for name in ("Simplified Chinese", "zh-CN", "zho_Hans", "zh-Hant", "Bokmål", "nob", "pes")
        ],
        *[("nllb-200", name) for name in ("Serbian", "Malay", "Latvian", "Indonesian", "Uzbek", "Kurmanji", "fr")],
        *[("m2m100", name) for name in ("Chinese", "Norwegian", "Serbian", "Persian", "Arabic", "pt-BR", "de_DE")],
        *[("mbart-50", name) for name in ("Chinese", "Portuguese", "Azerbaijani")],
        *[("opus-mt-en-sla", name) for name in ("sr-Latn", "sr_Cyrl", "Serbian (Latin)")],
    ],
)
def test_nothing_is_said_where_nothing_was_chosen(family: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmkit")
    languages_of.cache_clear()
    code_of(family, find_language(name))
    assert caplog.messages == []


def test_a_code_of_the_models_own_goes_before_the_language_it_belongs_to() -> None:
    tokens: Any = Vocabulary([f">>{code}<<" for code in ("swa", "swh", "nor", "nob", "ara", "arb")])
    languages = known("marian").languages("opus-mt-en-mul", {}, tokens)
    assert languages is not None
    for name, code in {"sw": "swa", "swh": "swh", "no": "nor", "nb": "nob", "ar": "ara", "arb": "arb"}.items():
        assert languages.route(Language("en"), find_language(name)).prefix == f">>{code}<< "


def test_serbo_croatian_is_none_of_its_members() -> None:
    assert code_of("madlad", find_language("Serbo-Croatian")) == "sh"
    with pytest.raises(UsageError, match="nearest it knows: "):
        code_of("nllb-200", find_language("Serbo-Croatian"))
