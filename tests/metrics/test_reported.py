"""Metrics that papers report are those of the packages that papers use."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
from rouge_score.rouge_scorer import RougeScorer

import llmkit.metrics.packages
import llmkit.metrics.stemmed
from llmkit.errors import LlmkitError, MissingDependencyError, UsageError
from llmkit.metrics.bertscore import BERTSCORE, bertscore
from llmkit.metrics.meteor import meteor
from llmkit.metrics.rouge import ROUGE
from llmkit.metrics.score import find_metric, score
from llmkit.metrics.stemmed import stemmed_rouge
from tests.tiny import train_tokenizer

WORDS = re.split(
    " ",
    "the studies studied studying Dr. Smith flies flying die dies dying e.g. networks network U.S. news generally "
    "generalization “quoted” café 3.5 sky skies\n We propose. Models! (see Fig. 2) a",
)


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, 30))) for _ in range(count)]


@pytest.fixture(scope="module")
def nltk_sentences() -> PunktSentenceTokenizer:
    """NLTK's tokenizer with the parameters that its download has."""
    import punkt

    model, parameters = punkt.load_model("english"), PunktParameters()
    for name in ("abbrev_types", "collocations", "sent_starters"):
        setattr(parameters, name, set(getattr(model, name)))
    parameters.ortho_context.update(model.ortho_context)
    return PunktSentenceTokenizer(parameters)


def test_stemmed_rouge_is_that_of_run_summarization(nltk_sentences: PunktSentenceTokenizer) -> None:
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)

    def prepared(text: str) -> str:
        return "\n".join(nltk_sentences.tokenize(text.strip()))

    for prediction, *references in zip(texts(150, 0), texts(150, 1), texts(150, 2), strict=True):
        theirs = scorer.score_multi([prepared(each) for each in references], prepared(prediction))
        assert stemmed_rouge(prediction, references) == pytest.approx(
            {name: score.fmeasure for name, score in theirs.items()}, abs=1e-6
        )


def test_its_signature_says_how_sentences_were_split() -> None:
    prediction, reference = "We run. He runs.", "He ran. We ran."
    for split, said in (("punkt", "lsum-split:punkt-2"), ("lines", "lsum-split:lines")):
        found = {
            each.name: each
            for each in find_metric("rouge-stemmed", split=split).measure([prediction], [[reference]], "en")
        }
        assert said in found["stemmed_rougeLsum"].signature
        assert "stem:porter" in found["stemmed_rougeLsum"].signature
        # Without sentences, Lsum is rougeL: what users of rouge-score in evaluate see who pass no lines.
        assert (found["stemmed_rougeLsum"].value == found["stemmed_rougeL"].value) is (split == "lines")


@pytest.mark.parametrize(
    ("language", "reference"),
    [
        ("de", "The fox"),
        ("zh", "今天"),
        (None, "Der Fuchs springt über den Zaun, weil er Hunger hat."),
        (None, "今天天气很好"),
    ],
)
@pytest.mark.parametrize("name", ["rouge-stemmed", "meteor"])
def test_metrics_for_english_refuse_other_languages(name: str, language: str | None, reference: str) -> None:
    with pytest.raises(UsageError, match=f"the metric {name} is for English, and the references are in"):
        score([name], [reference], [[reference]], language=language)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(llmkit.metrics.packages, "import_module", absent)
    with pytest.raises(
        MissingDependencyError, match=r"rouge-stemmed needs a package .*run: pip install 'llmkit\[metrics\]'"
    ):
        stemmed_rouge("a fox", ["a fox"], split="punkt")


class Synsets:
    """As NLTK's WordNet, of two words."""

    def synsets(self, word: str) -> list[Any]:
        return [self] if word in ("auto", "car") else []

    def lemmas(self) -> list[Any]:
        return [self]

    def name(self) -> str:
        return "car"


def test_meteor_is_that_of_nltk_on_its_words(
    nltk_sentences: PunktSentenceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.translate.meteor_score import meteor_score

    def words(text: str) -> list[str]:
        return [word for part in nltk_sentences.tokenize(text) for word in NLTKWordTokenizer().tokenize(part)]

    monkeypatch.setattr("llmkit.metrics.meteor._wordnet", Synsets)
    predictions, references = [*texts(20, 0), "", "an auto"], [*texts(20, 1), "x", "a car"]
    expected = [
        meteor_score([words(one)], words(other), wordnet=Synsets())
        for other, one in zip(predictions, references, strict=True)
    ]
    assert meteor(predictions, [[each] for each in references]) == pytest.approx(expected)
    assert expected[-1] > 0
    assert meteor(["an auto"], [["a car"]], synonyms=False) == [0.0]


def test_meteor_without_wordnet_is_refused_unless_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(MissingDependencyError, match=r"nltk.downloader wordnet, or leave .*`meteor,synonyms=false`"):
        meteor(["a fox"], [["a fox"]])
    (found,) = find_metric("meteor", synonyms=False).measure(["a fox"], [["a fox"]], "en")
    assert "modules:exact+stem|" in found.signature


def encoder(folder: Path, family: str) -> str:
    tokenizer = train_tokenizer(f"{family}Tokenizer", folder)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=40,
    )
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("idf", [False, True])
def test_bertscore_is_that_of_bert_score(idf: bool, tmp_path: Path) -> None:
    import bert_score

    model = encoder(tmp_path, "Bert")
    transformers.AutoTokenizer.from_pretrained(model, model_max_length=40).save_pretrained(model)
    predictions, references = ["the fox jumps", "a lazy dog"], [["The quick fox", "the dog"], ["the lazy dog"]]
    theirs, name = bert_score.score(predictions, references, model_type=model, num_layers=2, idf=idf, return_hash=True)
    ours, signature = bertscore(predictions, references, model_type=model, num_layers=2, idf=idf)
    assert signature == f"{name}|refs:best"
    for measure, values in zip(BERTSCORE, theirs, strict=True):
        assert ours[measure] == pytest.approx(values.tolist(), abs=1e-5)


def test_bertscore_takes_what_bert_score_does_not(tmp_path: Path) -> None:
    """Empty predictions, texts longer than the encoder, and a space before the first word, all for Transformers 5."""
    model = encoder(tmp_path, "Roberta")
    long = "the quick brown fox jumps over the lazy dog " * 9
    found, _ = bertscore(["", "fox", long], [["fox"], ["the fox"], [long]], model_type=model, num_layers=0)
    assert found["bertscore_f1"][0] == 0.0
    assert found["bertscore_f1"][2] == pytest.approx(1.0)
    # Of layer 0 without positions in between: with its space, the one word is a token of the reference.
    first = transformers.AutoTokenizer.from_pretrained(model, add_prefix_space=True).tokenize("fox")
    assert first == transformers.AutoTokenizer.from_pretrained(model).tokenize(" fox")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs the language of the references.*`bertscore,lang=en`"),
        ({"model_type": "my-model"}, "does not know which layer of my-model.*num_layers=9"),
        ({"model_type": "my-model", "num_layers": 1, "rescale_with_baseline": True}, "needs the language"),
        ({"lang": "en", "layers": 1}, "has no option layers; choose from model_type"),
        ({"model_type": "/no/such/folder", "num_layers": 1}, "encoder of the metric bertscore cannot be loaded"),
    ],
)
def test_bertscore_says_what_is_missing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(LlmkitError, match=said):
        bertscore(["a fox"], [["a fox"]], **options)
