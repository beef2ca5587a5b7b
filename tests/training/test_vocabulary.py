"""Tokenizers replaced and extended: embeddings start from old ones, and files hold what was trained for any program."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import sentencepiece
import tokenizers
import torch
import transformers

import llmkit
from llmkit.config.recipe import Recipe
from llmkit.config.recipe_file import load_recipe
from llmkit.errors import CheckpointError, InputError, UsageError
from llmkit.models.embeddings import rebuild_embeddings
from llmkit.models.new_tokens import Piece, extend_tokenizer, read_pieces
from llmkit.models.vocabulary import Vocabulary, find_origins
from llmkit.tasks import Head
from llmkit.training.dry_run import dry_run
from llmkit.training.merge import merge
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.tiny import SENTENCES, train_tokenizer
from tests.training.recipes import make_recipe, write_rows
from tests.zoo.models import build

LORA = {"peft_type": "LORA", "r": 4}
CHINESE = [
    "今天天气预报说明天有雨，请带好雨伞。",
    "他们在公园里散步，天气很好。",
    "图书馆关门了，我们明天再来。",
    "天气预报说今天很冷，请多穿衣服。",
]


@pytest.fixture(scope="session")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of Chinese text, as Chinese-LLaMA merges into Llama's."""
    file = tmp_path_factory.mktemp("spm") / "chinese.model"
    with file.open("wb") as written:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CHINESE * 4), model_writer=written, vocab_size=90, model_type="bpe",
            character_coverage=1.0, minloglevel=2, normalization_rule_name="identity",
        )  # fmt: skip
    return file


def recipe_of(model: Any, folder: Path, out: str = "out", **sections: Any) -> Recipe:
    rows = write_rows(folder / "rows.jsonl", [{"prompt": CHINESE[0], "completion": f"{CHINESE[1]}<new> The fox."}] * 4)
    train = {
        "output_dir": str(folder / out),
        "max_steps": 2,
        "learning_rate": 0.05,
        "save_strategy": "no",
        "bf16": False,
        "logging_steps": 1,
    } | sections.pop("train", {})
    return make_recipe("text-generation", model, rows, train=train, **sections)


def loaded(folder: Path) -> Any:
    return llmkit.load("generate", str(folder), offline=True, device="cpu", dtype="float32").loaded


def ids_of(tokenizer: Any) -> Any:
    return torch.tensor([tokenizer(f"The fox {CHINESE[2]} <new>", add_special_tokens=False)["input_ids"]])


def logits(model: Any, ids: Any) -> Any:
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    with torch.no_grad():
        return model.eval()(**inputs).logits


def in_plain_libraries(folder: Path, *, seq2seq: bool = False) -> tuple[Any, Any]:
    """Model and tokenizer of a folder by Transformers and PEFT alone, as their documentation says."""
    kind: Any = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    if not (folder / "adapter_config.json").is_file():
        return kind.from_pretrained(folder), tokenizer
    base = kind.from_pretrained(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # which merging is about
        return peft.PeftModel.from_pretrained(base, str(folder)), tokenizer


# The Chinese-LLaMA flow.


@pytest.mark.parametrize(
    ("tied", "adapter"),
    [
        (False, LORA | {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (False, LORA),
        (False, LORA | {"modules_to_save": ["lm_head"]}),
        (True, LORA | {"modules_to_save": ["embed_tokens"]}),
        (True, LORA),
        (True, None),
    ],
    ids=["chinese-llama", "rows", "head-and-rows", "tied", "tied-rows", "full"],
)
def test_chinese_pieces_are_added_to_llama_trained_and_saved(
    tied: bool, adapter: dict[str, Any] | None, checkpoint: Checkpoint, chinese: Path, tmp_path: Path
) -> None:
    base = checkpoint("llama", tie_word_embeddings=tied, max_position_embeddings=512)
    sections: dict[str, Any] = {} if adapter is None else {"adapter": adapter}
    trainer = finetune(recipe_of(base, tmp_path, tokenizer={"add_tokens": str(chinese)}, **sections))
    mine = loaded(tmp_path / "out")
    ids = ids_of(mine.tokenizer)
    assert max(mine.tokenizer(CHINESE[0])["input_ids"]) >= 202
    expected = logits(trainer.model, ids)
    torch.testing.assert_close(logits(mine.model, ids), expected)
    plain, tokenizer = in_plain_libraries(tmp_path / "out")
    assert ids_of(tokenizer).tolist() == ids.tolist()
    torch.testing.assert_close(logits(plain, ids), expected)
    if adapter is not None:
        merge(str(tmp_path / "out"), tmp_path / "merged")
        plain, tokenizer = in_plain_libraries(tmp_path / "merged")
        assert ids_of(tokenizer).tolist() == ids.tolist()
        torch.testing.assert_close(logits(plain, ids), expected, rtol=1e-3, atol=1e-3)


def test_the_recipe_of_the_documentation_trains(checkpoint: Checkpoint, chinese: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "vocabulary.md").read_text(encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(page.split("<!-- chinese-llama -->\n```yaml\n")[1].split("```")[0])
    (tmp_path / "corpus.txt").write_text("\n".join(CHINESE), encoding="utf-8")
    (tmp_path / "chinese.model").write_bytes(chinese.read_bytes())
    changes = [f"model.name_or_path={checkpoint('llama')}", "train.max_steps=1", f"train.output_dir={tmp_path / 'out'}"]
    finetune(load_recipe(str(tmp_path / "recipe.yaml"), changes))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["embed_tokens", "lm_head"]
    assert config["trainable_token_indices"] is None


def test_a_resumed_run_is_the_uninterrupted_one(checkpoint: Checkpoint, chinese: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"tokenizer": {"add_tokens": str(chinese)}, "adapter": LORA}
    sections["train"] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    base = checkpoint("llama", max_position_embeddings=512)
    stopped = iter([False, True])
    finetune(recipe_of(base, tmp_path, "a", **sections), should_stop=lambda: next(stopped))
    resumed = finetune(recipe_of(base, tmp_path, "a", **sections), resume=True)
    whole = finetune(recipe_of(base, tmp_path, "b", **sections))
    ids = ids_of(loaded(tmp_path / "b").tokenizer)
    assert torch.equal(logits(resumed.model, ids), logits(whole.model, ids))


def test_a_changed_file_of_tokens_is_not_resumed_with(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text("伞", encoding="utf-8")
    sections: dict[str, Any] = {"tokenizer": {"add_tokens": str(file)}}
    sections["train"] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    finetune(recipe_of(checkpoint("llama"), tmp_path, **sections), should_stop=lambda: True)
    for other, said in (("雪", "the tokenizer changed since"), ("雪\n冬", "is of a run that trained other parameters")):
        file.write_text(other, encoding="utf-8")
        with pytest.raises((UsageError, CheckpointError), match=said):
            finetune(recipe_of(checkpoint("llama"), tmp_path, **sections), resume=True)


def test_the_dry_run_counts_new_embeddings(
    checkpoint: Checkpoint, chinese: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def parameters(**sections: Any) -> tuple[int, int]:
        line = next(each for each in dry_run(recipe_of(base, tmp_path, **sections)) if each.startswith("parameters"))
        numbers = [int(word.replace(",", "")) for word in line.split() if word.replace(",", "").isdigit()]
        return numbers[0], numbers[1]

    base = checkpoint("llama", max_position_embeddings=512)
    before, _ = parameters()
    caplog.set_level("INFO", "llmkit")
    whole = LORA | {"modules_to_save": ["embed_tokens", "lm_head"]}
    after, trained = parameters(tokenizer={"add_tokens": str(chinese)}, adapter=whole)
    (added,) = [
        int(str(each.args[1]))
        for each in caplog.records
        if isinstance(each.args, tuple) and "were added to the tokenizer" in each.msg
    ]
    assert added > 20
    rows = 202 + added
    lora = after - before - 2 * 16 * added - 2 * 16 * rows  # PEFT keeps the old embeddings beside the trained ones
    assert trained == 2 * 16 * rows + lora
    assert f"vocabulary: {rows} tokens, of which 202 keep their embeddings" in caplog.text


# Tokens from files.


@pytest.fixture(scope="module")
def tokenizers_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    return lambda name: train_tokenizer(name, tmp_path_factory.mktemp(name))


WORDS = ["天气预报", "公园", "图书馆", "electrocardiogram", "▁雨伞", "##ology"]


@pytest.mark.parametrize(
    "name", ["GPT2Tokenizer", "LlamaTokenizer", "GemmaTokenizer", "T5Tokenizer", "BertTokenizer", "XLMRobertaTokenizer"]
)
def test_words_of_a_file_are_tokens_and_other_text_keeps_its_own(
    name: str, tokenizers_of: Callable[[str], Any], tmp_path: Path
) -> None:
    tokenizer = tokenizers_of(name)
    texts = [text for text in SENTENCES if "公园" not in text]
    before = [tokenizer.tokenize(text) for text in texts]
    size = len(tokenizer)
    (tmp_path / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    extend_tokenizer(tokenizer, read_pieces(tmp_path / "words.txt"))
    assert [tokenizer.tokenize(text) for text in texts] == before
    text = "我们看天气预报 electrocardiogram"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    new = [tokenizer.decode([each]).strip() for each in ids if each >= size]
    assert [each.replace(" ", "") for each in new if len(each) > 1] == ["天气预报", "electrocardiogram"]
    tokenizer.save_pretrained(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text, add_special_tokens=False)["input_ids"] == ids


def test_no_space_follows_a_new_token(tokenizers_of: Callable[[str], Any]) -> None:
    """As it does after tokens of ``add_tokens`` of SentencePiece tokenizers."""
    text = "今天天气很好"
    one, other = tokenizers_of("T5Tokenizer"), tokenizers_of("T5Tokenizer")
    extend_tokenizer(one, [Piece("天气".encode())])
    other.add_tokens(["天气"])
    assert one.decode(one(text, add_special_tokens=False)["input_ids"]) == text
    assert other.decode(other(text, add_special_tokens=False)["input_ids"]) != text


def test_a_sentencepiece_model_is_tokenized_as_by_itself(chinese: Path) -> None:
    tokenizer = transformers.LlamaTokenizer().train_new_from_iterator(SENTENCES[:1] * 4, 300, show_progress=False)
    extend_tokenizer(tokenizer, read_pieces(chinese))
    own: Any = sentencepiece.SentencePieceProcessor(model_file=str(chinese))
    for text in CHINESE:
        found, expected = tokenizer.tokenize(text), own.encode(text, out_type=str)
        assert [each for token in found if (each := token.lstrip("▁"))] == [
            each for token in expected if (each := token.lstrip("▁"))
        ]


def test_twenty_thousand_tokens_take_seconds(tokenizers_of: Callable[[str], Any]) -> None:
    words = [chr(0x4E00 + n // 150) + chr(0x6E00 + n % 150) for n in range(20_000)]
    tokenizer = tokenizers_of("LlamaTokenizer")
    old = Vocabulary(tokenizer)
    found = extend_tokenizer(tokenizer, [Piece(word.encode()) for word in words])
    assert len(found.tokens) == 20_000 + found.parts
    origins = find_origins(old, Vocabulary(tokenizer), rows=len(old.ids))
    assert tokenizer.tokenize(words[7] + words[19_000])[-2:] == [words[7], words[19_000]]
    assert len(origins.ids) == len(tokenizer)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"\xff\xfe\x00", "no tokens that can be read"), (None, "no tokens that can be read")],
)
def test_files_without_tokens_are_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_pieces(file)


# Another tokenizer.


def folder_of(tokenizer: Any, folder: Path) -> str:
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_tokens_that_both_have_keep_their_embeddings(tokenizers_of: Callable[[str], Any]) -> None:
    """In all spellings: ``Ġfox``, ``▁fox`` and ``fox``; and what is new is made of the old pieces."""
    old, new, words = map(tokenizers_of, ("GPT2Tokenizer", "NllbTokenizer", "BertTokenizer"))
    names = {number: token for token, number in old.get_vocab().items()}
    ids = new.get_vocab()
    found = find_origins(Vocabulary(old), Vocabulary(new)).ids
    both = [token for token in ids if token.startswith("▁") and f"Ġ{token[1:]}" in old.get_vocab()]
    assert len(both) > 10
    assert all([names[each] for each in found[ids[token]]] == [f"Ġ{token[1:]}"] for token in both)
    assert [old.decode(found[ids[token]]) for token in ("天", "</s>")] == ["天", "<|endoftext|>"]
    names = {number: token for token, number in new.get_vocab().items()}
    ids = words.get_vocab()
    found = find_origins(Vocabulary(new), Vocabulary(words)).ids
    both = [token for token in ids if token.isascii() and token.isalpha() and f"▁{token}" in new.get_vocab()]
    assert len(both) > 10
    assert all([names[each] for each in found[ids[token]]] == [f"▁{token}"] for token in both)
    assert [names[found[ids[token]][0]] for token in ("##e", "[SEP]", "[PAD]")] == ["e", "</s>", "<pad>"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart", "marian", "m2m_100", "gemma3"])
def test_a_renumbered_vocabulary_is_the_same_model(family: str, checkpoint: Checkpoint) -> None:
    """Embeddings, output layer, tied weights and the bias of logits move together."""
    seq2seq = family in ("t5", "bart", "marian", "m2m_100")
    kind: Any = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    one, other = (kind.from_pretrained(checkpoint(family)) for _ in range(2))
    for model in (one, other):
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.copy_(torch.arange(model.final_logits_bias.shape[-1])[None] / 100)
    count = one.get_input_embeddings().weight.shape[0]
    order: Sequence[int] = range(count - 1, -1, -1)
    for extra in ([], [[5, 7], []]):
        model = other if not extra else kind.from_pretrained(checkpoint(family))
        if extra and hasattr(model, "final_logits_bias"):
            model.final_logits_bias.copy_(one.final_logits_bias)
        rebuild_embeddings(model, [*([each] for each in order), *extra])
        ids = torch.tensor([[11, 12, 13]])
        expected = logits(one, ids)
        found = logits(model, count - 1 - ids)
        torch.testing.assert_close(found[..., :count].flip(-1), expected)
        if extra:  # logits are linear in the embeddings
            torch.testing.assert_close(found[..., count], expected[..., [5, 7]].mean(-1))


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_chinese_bert_vocabulary_replaces_another(
    family: str,
    adapter: dict[str, Any] | None,
    checkpoint: Checkpoint,
    tmp_path: Path,
    tokenizers_of: Callable[[str], Any],
) -> None:
    other = folder_of(tokenizers_of("BertTokenizer"), tmp_path / "bert")
    sections: dict[str, Any] = {} if adapter is None else {"adapter": adapter}
    trainer = finetune(recipe_of(checkpoint(family), tmp_path, tokenizer={"name_or_path": other}, **sections))
    mine = loaded(tmp_path / "out")
    ids = ids_of(mine.tokenizer)
    expected = logits(trainer.model, ids)
    torch.testing.assert_close(logits(mine.model, ids), expected)
    plain, tokenizer = in_plain_libraries(tmp_path / "out")
    encoded = tokenizer(f"The fox {CHINESE[2]} <new>", add_special_tokens=False, return_tensors="pt")
    assert encoded["input_ids"].tolist() == ids.tolist()
    with torch.no_grad():  # without token types, which GPT-2 would add as the embeddings of tokens
        torch.testing.assert_close(plain.eval()(**encoded).logits, expected)
    assert tokenizer.sep_token_id in (
        ends if isinstance(ends := mine.model.generation_config.eos_token_id, list) else [ends]
    )
    assert mine.model.config.eos_token_id == tokenizer.sep_token_id
    if adapter is not None:
        merge(str(tmp_path / "out"), tmp_path / "merged")
        merged, _ = in_plain_libraries(tmp_path / "merged")
        torch.testing.assert_close(logits(merged, ids), expected, rtol=1e-3, atol=1e-3)
        assert merged.generation_config.eos_token_id == mine.model.generation_config.eos_token_id


def opened(recipe: Recipe) -> Any:
    return open_model(recipe, open_task(recipe), weights=False).tokenizer


@pytest.mark.parametrize("name", ["MarianTokenizer", "M2M100Tokenizer"])
def test_a_tokenizer_of_one_kind_of_model_is_refused(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With the files that Marian and M2M100 have: vocab.json beside SentencePiece models."""
    (other := tmp_path / "other").mkdir()
    train_tokenizer(name, other).save_pretrained(other)
    assert (other / "vocab.json").is_file()
    recipe = recipe_of(checkpoint("llama"), tmp_path, tokenizer={"name_or_path": str(other)})
    with pytest.raises(UsageError, match=rf"a {name} \(.*fits only models.*name a tokenizer that has a tokenizer.json"):
        opened(recipe)


def test_a_tokenizer_json_alone_has_the_roles_of_the_old_special_tokens(
    checkpoint: Checkpoint, tmp_path: Path, chinese: Path
) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=["<s>", "</s>"], vocab_size=200)
    made.train_from_iterator(CHINESE, trainer)
    made.save(str(file := tmp_path / "chinese.json"))
    recipe = recipe_of(checkpoint("llama"), tmp_path, tokenizer={"name_or_path": str(file)})
    tokenizer = opened(recipe)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", None)
    assert len(tokenizer("今天天气")["input_ids"]) <= 3
    recipe = recipe_of(checkpoint("llama"), tmp_path, tokenizer={"name_or_path": str(chinese)})
    with pytest.raises(UsageError, match=r"chinese.model is not a tokenizer.json; name a folder with it as tokenizer"):
        opened(recipe)


def test_the_chat_template_stays_if_the_tokenizer_has_none(
    checkpoint: Checkpoint, tmp_path: Path, tokenizers_of: Callable[[str], Any]
) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    model = llmkit.load("generate", str(checkpoint("llama", chat=template)), device="cpu").loaded
    marks = ["<|im_start|>", "<|im_end|>"]
    model.tokenizer.add_special_tokens({"additional_special_tokens": marks})
    model.model.resize_token_embeddings(len(model.tokenizer))
    for each in (model.model, model.tokenizer):
        each.save_pretrained(tmp_path / "chat")
    section: dict[str, Any] = {"name_or_path": folder_of(tokenizers_of("BertTokenizer"), tmp_path / "bert")}
    with pytest.raises(UsageError, match=r"lacks <\|im_start\|>, <\|im_end\|>, which the chat template uses; add them"):
        opened(recipe_of(tmp_path / "chat", tmp_path, tokenizer=section))
    tokenizer = opened(recipe_of(tmp_path / "chat", tmp_path, tokenizer={**section, "add_tokens": marks}))
    assert tokenizer.chat_template == template
    assert tokenizer.tokenize("<|im_start|>fox")[0] == "<|im_start|>"


def test_a_tokenizer_is_trained_for_a_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    section = {"train": {"vocab_size": 300, "min_frequency": 1}}
    trainer = finetune(recipe_of(checkpoint("bart"), tmp_path, tokenizer=section))
    mine = loaded(tmp_path / "out")
    ids = ids_of(mine.tokenizer)
    torch.testing.assert_close(logits(mine.model, ids), logits(trainer.model, ids))
    config = mine.model.config
    assert config.vocab_size == len(mine.tokenizer) == 300
    assert (config.eos_token_id, config.pad_token_id) == (mine.tokenizer.eos_token_id, mine.tokenizer.pad_token_id)


# What cannot be done.


@pytest.mark.parametrize("model_type", ["fsmt", "blt", "moshi"])
def test_models_whose_vocabulary_cannot_change_are_refused_in_one_line(model_type: str, tmp_path: Path) -> None:
    head = Head.SEQ2SEQ if model_type == "fsmt" else Head.CAUSAL
    build(head, model_type, tmp_path / model_type)
    recipe = recipe_of(tmp_path / model_type, tmp_path, adapter=LORA, tokenizer={"add_tokens": ["<new>"]})
    with pytest.raises(UsageError) as refused:
        list(dry_run(recipe))
    assert "\n" not in str(refused.value)


def test_positions_that_start_at_the_padding_id_are_not_moved(
    checkpoint: Checkpoint, tmp_path: Path, tokenizers_of: Callable[[str], Any]
) -> None:
    other = folder_of(tokenizers_of("BertTokenizer"), tmp_path / "bert")
    rows = write_rows(tmp_path / "rows.jsonl", [{"question": "Who?", "context": "The fox", "answers": "fox"}] * 2)
    recipe = make_recipe("question-answering", checkpoint("xlm-roberta"), rows, tokenizer={"name_or_path": other})
    with pytest.raises(UsageError, match="counts positions from the id of its padding token, which is 1, and 0 in"):
        list(dry_run(recipe))


def test_shared_embeddings_of_an_encoder_decoder_are_not_trained_by_an_adapter(
    checkpoint: Checkpoint, tmp_path: Path, tokenizers_of: Callable[[str], Any]
) -> None:
    other = folder_of(tokenizers_of("BertTokenizer"), tmp_path / "bert")
    recipe = recipe_of(checkpoint("bart"), tmp_path, adapter=LORA, tokenizer={"name_or_path": other})
    with pytest.raises(UsageError, match=r"that both parts of BartForConditionalGeneration share; leave out the sec"):
        list(dry_run(recipe))
