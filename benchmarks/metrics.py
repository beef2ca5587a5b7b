"""Metrics against the packages that papers use, on the same pairs in one run.

    python benchmarks/metrics.py FOLDER

FOLDER holds SciTLDR (``*.jsonl`` with ``source``, a list of sentences, and ``target``, a list of references).
Predictions are the first three sentences. NLTK's sentence tokenizer gets the parameters of its download, which the
package punkt has.
Prints a table of Markdown (``benchmarks/metrics.md``).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from llmkit.metrics.bertscore import BERTSCORE, bertscore
from llmkit.metrics.meteor import meteor
from llmkit.metrics.rouge import ROUGE, rouge
from llmkit.metrics.stemmed import stemmed_rouge

PAIRS = 2000
FEWER = 200


def nltk_sentences() -> Callable[[str], list[str]]:
    import punkt
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    model, parameters = punkt.load_model("english"), PunktParameters()
    for name in ("abbrev_types", "collocations", "sent_starters"):
        setattr(parameters, name, set(getattr(model, name)))
    parameters.ortho_context.update(model.ortho_context)
    tokenizer = PunktSentenceTokenizer(parameters)
    return lambda text: list(tokenizer.tokenize(text))


def pairs_of(folder: Path) -> list[tuple[str, list[str]]]:
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(" ".join(row["source"][:3]), row["target"]) for row in map(json.loads, lines[:PAIRS])]


def timed(compute: Callable[[], Sequence[Any]]) -> tuple[Sequence[Any], float]:
    begun = time.perf_counter()
    return compute(), time.perf_counter() - begun


def report(name: str, pairs: int, ours: Callable[[], Sequence[Any]], theirs: Callable[[], Sequence[Any]]) -> None:
    """Print the greatest difference of any value, and the seconds of both sides."""
    (mine, own), (other, their) = timed(ours), timed(theirs)
    found = [abs(a - b) for one, two in zip(mine, other, strict=True) for a, b in zip(one, two, strict=True)]
    equal = sum(each <= 1e-5 for each in found)
    print(
        f"| {name} | {pairs:,} | {max(found):.1e} | {equal:,} of {len(found):,} | {own:.1f} | {their:.1f} |", flush=True
    )


def random_encoder(texts: Sequence[str]) -> str:
    """A small BERT with random weights, whose vocabulary is the characters of the texts."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    characters = sorted({character for text in texts for character in text.lower()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{each}" for each in characters)]
    tokenizer = transformers.BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=512)
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    folder = tempfile.mkdtemp()
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    import bert_score
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.translate.meteor_score import meteor_score
    from rouge_score.rouge_scorer import RougeScorer

    from llmkit.metrics.meteor import _NoSynonyms

    pairs, split = pairs_of(Path(sys.argv[1])), nltk_sentences()
    plain, stemmed = RougeScorer(list(ROUGE)), RougeScorer(list(ROUGE), use_stemmer=True)

    def lines(text: str) -> str:
        return "\n".join(split(text.strip()))

    def words(text: str) -> list[str]:
        return [word for sentence in split(text) for word in NLTKWordTokenizer().tokenize(sentence)]

    def theirs(scorer: Any, prepare: Callable[[str], str]) -> list[list[float]]:
        found = [scorer.score_multi(list(map(prepare, expected)), prepare(text)) for text, expected in pairs]
        return [[scores[name].fmeasure for name in ROUGE] for scores in found]

    print("| metric | pairs | greatest difference | equal to 1e-5 | llmkit, s | other, s |\n|---|---|---|---|---|---|")
    report(
        "rouge-stemmed against rouge-score with stemmer, sentences by NLTK", len(pairs),
        lambda: [list(stemmed_rouge(*pair).values()) for pair in pairs], lambda: theirs(stemmed, lines),
    )  # fmt: skip
    report(
        "rouge against rouge-score without stemmer", len(pairs),
        lambda: [list(rouge(*pair).values()) for pair in pairs], lambda: theirs(plain, str),
    )  # fmt: skip
    few = pairs[:FEWER]
    predictions, references = [text for text, _ in few], [expected for _, expected in few]
    report(
        "meteor, synonyms=false, against NLTK's", len(few),
        lambda: [meteor(predictions, references, synonyms=False)],
        lambda: [[meteor_score(list(map(words, e)), words(text), wordnet=_NoSynonyms()) for text, e in few]],
    )  # fmt: skip
    encoder: dict[str, Any] = {
        "model_type": random_encoder([*predictions, *chain.from_iterable(references)]),
        "num_layers": 2,
    }
    report(
        "bertscore against bert-score, a random encoder", len(few),
        lambda: [bertscore(predictions, references, **encoder)[0][name] for name in BERTSCORE],
        lambda: [each.tolist() for each in bert_score.score(predictions, references, **encoder)],
    )  # fmt: skip


if __name__ == "__main__":
    main()
