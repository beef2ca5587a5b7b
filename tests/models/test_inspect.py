"""``inspect`` tells the truth about a checkpoint, from its small files and without torch."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

import llmkit
from llmkit.config.settings import LoadSettings
from llmkit.errors import CheckpointError
from llmkit.models.inspect import ModelReport, TaskFit, inspect_source, render
from llmkit.models.locate import locate
from llmkit.models.source import Source
from llmkit.models.tokenizer import load_tokenizer
from llmkit.models.tokenizer_files import SpecialToken
from llmkit.tasks import TASKS
from tests import tiny
from tests.conftest import Checkpoint
from tests.models.test_checkpoint import write_gguf

GENERATIVE = set(TASKS)


def write(folder: Path, name: str = "config.json", **content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    if name == "tokenizer_config.json":
        (folder / "vocab.txt").touch()
    return folder


def look(folder: Path, name: str = "owner/model", **options: Any) -> ModelReport:
    """As a Hub snapshot that was fetched without its weights."""
    return inspect_source(Source(name, folder, commit="c" * 40), **options)


def known_issues(folder: Path, name: str = "owner/model") -> str:
    return "\n".join(look(folder, name).known_issues)


def with_status(report: ModelReport, status: str) -> set[str]:
    return {name for name, fit in report.tasks.items() if fit.status == status}


# Checkpoints written by Transformers.


@pytest.mark.parametrize(
    ("family", "architecture", "ready"),
    [
        ("gpt2", "GPT2LMHeadModel", GENERATIVE),
        ("llama", "LlamaForCausalLM", GENERATIVE),
        ("t5", "T5ForConditionalGeneration", GENERATIVE),
        ("bart", "BartForConditionalGeneration", GENERATIVE),
        ("marian", "MarianMTModel", {"translation", "text-generation"}),
        ("bert", "BertForQuestionAnswering", {"question-answering"}),
        ("roberta", "RobertaForQuestionAnswering", {"question-answering"}),
        ("distilbert", "DistilBertForQuestionAnswering", {"question-answering"}),
    ],
)
def test_a_saved_checkpoint(checkpoint: Checkpoint, family: str, architecture: str, ready: set[str]) -> None:
    folder = checkpoint(family)
    report = inspect_source(Source("mine", folder))
    assert report.architecture == architecture
    assert report.library == "transformers"
    assert report.weights == "safetensors"
    assert with_status(report, "ready") == ready
    assert {fit.model_class for fit in report.tasks.values() if fit.status == "ready"} == {architecture}
    model = getattr(transformers, tiny.FAMILIES[family][0]).from_pretrained(folder)
    if family != "marian":  # its sinusoidal positions are computed, never saved
        assert report.parameters == sum(p.numel() for p in model.parameters())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for kind in ("bos", "eos", "pad", "unk"):
        text, number = getattr(tokenizer, f"{kind}_token"), getattr(tokenizer, f"{kind}_token_id")
        if text is not None:
            assert report.special_tokens[kind].text == text
            assert report.special_tokens[kind].ids[:1] in ((number,), ())
        else:
            assert kind not in report.special_tokens or report.special_tokens[kind].text is None


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart", "bert", "roberta", "distilbert"])
def test_exact_equals_the_header(checkpoint: Checkpoint, family: str, tmp_path: Path) -> None:
    folder = tmp_path / "no weights"
    shutil.copytree(checkpoint(family), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    source = Source("mine", folder)
    assert inspect_source(source).parameters is None
    exact = inspect_source(source, exact=True)
    assert exact.parameters == inspect_source(Source("mine", checkpoint(family))).parameters
    assert exact.memory["bfloat16"] == 2 * (exact.parameters or 0)


def test_exact_counts_the_saved_architecture_and_not_the_head_that_would_be_loaded(tmp_path: Path) -> None:
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )
    model.config.save_pretrained(tmp_path)
    write(tmp_path, **(json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}))
    assert look(tmp_path, exact=True).parameters == sum(p.numel() for p in model.parameters())


def test_exact_of_a_config_that_builds_nothing_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=7, num_attention_heads=2)
    with pytest.raises(CheckpointError, match="omit `exact`") as caught:
        look(tmp_path, exact=True)
    assert "\n" not in str(caught.value)


def test_exact_runs_no_code_of_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, model_type="mine", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match="requires its own code"):
        look(tmp_path, exact=True)


HEAVY = ("torch", "transformers", "peft", "datasets", "accelerate", "evaluate")


def test_nothing_heavy_is_imported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    llama = tmp_path / "llama"
    shutil.copytree(checkpoint("llama"), llama)
    (llama / "README.md").write_text("---\nlicense: mit\n---\n")
    script = (
        "import sys; from pathlib import Path; from llmkit.models.source import Source\n"
        "from llmkit.models.inspect import inspect_source, render\n"
        f"print(render(inspect_source(Source('a', Path({str(llama)!r})))))\n"
        f"print(render(inspect_source(Source('b', Path({str(tmp_path)!r}), gguf_file='tiny.gguf'))))\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_a_corrupt_header_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("gpt2"), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*download it again"):
        inspect_source(Source("mine", folder))


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
def test_a_small_file_that_is_no_json_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, model_type="gpt2")
    (tmp_path / name).write_text("{")
    with pytest.raises(CheckpointError, match=name):
        look(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_saved_with_a_byte_order_mark_are_refused(
    name: str, encoding: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("gpt2"), folder)
    (folder / name).write_text((folder / name).read_text("utf-8"), encoding)
    for use in (lambda: inspect_source(Source("mine", folder)), lambda: llmkit.load("generate", str(folder))):
        with pytest.raises(CheckpointError, match=rf"{name} begins with a byte order mark.*; save it as UTF-8 without"):
            use()


def test_json_keys_are_stable_and_go_round(checkpoint: Checkpoint) -> None:
    plain = inspect_source(Source("mine", checkpoint("llama", chat=True))).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == [
        "schema_version",
        "model",
        "commit",
        "library",
        "architecture",
        "model_type",
        "parameters",
        "parameters_by_dtype",
        "weights",
        "context_length",
        "context_is_hard",
        "tasks",
        "chat_template",
        "special_tokens",
        "languages",
        "direction",
        "license",
        "memory",
        "known_issues",
        "commands",
        "adapter",
        "tuned",
    ]
    assert plain["schema_version"] == 1
    assert list(plain["tasks"]) == list(TASKS)
    assert plain["tasks"]["dialogue"] == {
        "status": "ready",
        "head": "causal",
        "auto_class": "AutoModelForCausalLM",
        "model_class": "LlamaForCausalLM",
    }


# Commands.


def test_commands_are_of_ready_tasks_only(checkpoint: Checkpoint) -> None:
    commands = inspect_source(Source("mine", checkpoint("distilbert"))).commands
    assert [shlex.split(command)[1] for command in commands] == ["answer"]
    verbs = [shlex.split(command)[1] for command in inspect_source(Source("mine", checkpoint("gpt2"))).commands]
    assert verbs == [task.verb for task in TASKS.values()]


def test_a_name_with_spaces_is_quoted(checkpoint: Checkpoint) -> None:
    name = "my models/it's this one"
    for command in inspect_source(Source(name, checkpoint("gpt2"))).commands:
        words = shlex.split(command)
        assert words[words.index("--model") + 1] == name


def test_no_command_for_what_cannot_run(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for number, pattern in enumerate(("*.safetensors", "tokenizer*")):
        folder = tmp_path / str(number)
        shutil.copytree(checkpoint("gpt2"), folder, ignore=shutil.ignore_patterns(pattern, "vocab*", "merges*"))
        report = inspect_source(Source("mine", folder))
        assert report.commands == ()
        assert "it cannot run" in report.known_issues[0]
        assert render(report).endswith("nothing yet")


def test_hub_models_run_although_their_weights_are_not_here_yet(tmp_path: Path) -> None:
    write(tmp_path, model_type="llama", architectures=["LlamaForCausalLM"])
    write(tmp_path, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    write(tmp_path, "model.safetensors.index.json", weight_map={"a": "model-00001-of-00002.safetensors"})
    report = look(tmp_path)
    assert len(report.commands) == 5
    assert "no weights" not in "".join(report.known_issues)


# Shapes from the Hub, as their config.json has them.


def qwen3(folder: Path) -> Path:
    write(
        folder,
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        bos_token_id=151643,
        eos_token_id=151645,
        max_position_embeddings=40960,
        sliding_window=None,
        tie_word_embeddings=True,
        rope_theta=1000000,
        vocab_size=151936,
        torch_dtype="bfloat16",
    )
    write(folder, "generation_config.json", bos_token_id=151643, eos_token_id=[151645, 151643], pad_token_id=151643)
    return write(
        folder,
        "tokenizer_config.json",
        added_tokens_decoder={"151643": {"content": "<|endoftext|>"}, "151645": {"content": "<|im_end|>"}},
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template="{{ messages }}",
        model_max_length=131072,
        tokenizer_class="Qwen2Tokenizer",
    )


def test_qwen3(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlibrary_name: transformers\nlicense: apache-2.0\n---\n# Qwen3")
    report = look(qwen3(tmp_path), "Qwen/Qwen3-0.6B", hub_counts={"BF16": 751632384})
    assert report.parameters == 751632384
    assert report.parameters_by_dtype == {"bfloat16": 751632384}
    assert report.memory == {"float32": 3006529536, "bfloat16": 1503264768, "int8": 751632384, "int4": 375816192}
    assert (report.context_length, report.context_is_hard) == (40960, True)
    assert report.special_tokens["eos"] == SpecialToken(text="<|im_end|>", ids=(151645, 151643))
    assert report.special_tokens["pad"] == SpecialToken(text="<|endoftext|>", ids=(151643,))
    assert report.chat_template
    assert report.license == "apache-2.0"
    assert with_status(report, "ready") == GENERATIVE
    # Its padding is one of the tokens that generation stops at, yet no text is trained to end in it.
    assert "share a token" not in "".join(report.known_issues)


def test_gemma3_with_a_text_config(tmp_path: Path) -> None:
    write(
        tmp_path,
        architectures=["Gemma3ForConditionalGeneration"],
        model_type="gemma3",
        eos_token_id=[1, 106],
        text_config={
            "model_type": "gemma3_text",
            "sliding_window": 1024,
            "max_position_embeddings": 131072,
            "pad_token_id": 0,
        },
        vision_config={"model_type": "siglip_vision_model"},
    )
    write(tmp_path, "tokenizer_config.json", tokenizer_class="GemmaTokenizer")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    report = look(tmp_path, "google/gemma-3-4b-it")
    assert report.context_length == 131072
    assert report.chat_template
    assert report.special_tokens["pad"].ids == (0,)
    assert report.special_tokens["eos"].ids == (1, 106)


def test_nllb(tmp_path: Path) -> None:
    write(
        tmp_path,
        architectures=["M2M100ForConditionalGeneration"],
        model_type="m2m_100",
        is_encoder_decoder=True,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        decoder_start_token_id=2,
        tokenizer_class="NllbTokenizer",
    )
    write(tmp_path, "tokenizer_config.json", tokenizer_class="NllbTokenizer", eos_token="</s>", pad_token="<pad>")
    (tmp_path / "README.md").write_text(
        "---\nlanguage:\n- ace\n- acm\n- no\nlicense: cc-by-nc-4.0\n---\n", encoding="utf-8"
    )
    report = look(tmp_path, "facebook/nllb-200-distilled-600M")
    assert report.languages == ("multilingual (codes in the tokenizer)",)
    assert report.license == "cc-by-nc-4.0"
    assert with_status(report, "ready") == {"translation", "text-generation"}
    assert with_status(report, "needs fine-tuning") == {"summarization", "question-answering", "dialogue"}
    assert "the output language is a forced first token" in "".join(report.known_issues)
    write(tmp_path, "generation_config.json", forced_bos_token_id=256057)
    assert "forced first token" not in known_issues(tmp_path)


def test_opus_mt(tmp_path: Path) -> None:
    write(
        tmp_path,
        architectures=["MarianMTModel"],
        model_type="marian",
        is_encoder_decoder=True,
        max_position_embeddings=512,
        eos_token_id=0,
        pad_token_id=65000,
    )
    write(tmp_path, "tokenizer_config.json", target_lang="eng", source_lang="zho")
    write(tmp_path, "vocab.json", **{"</s>": 0, "<pad>": 65000})
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    report = look(tmp_path, "Helsinki-NLP/opus-mt-zh-en")
    assert report.direction == ("zh", "en")
    assert report.languages == ("zh", "en")
    assert "zh → en" in render(report)
    assert report.weights == "bin"
    assert "weights_only=True" in "".join(report.known_issues)
    assert report.parameters is None
    assert look(tmp_path, "/models/my-best-zh-model").direction == ("zho", "eng")
    assert look(tmp_path, "Helsinki-NLP/opus-mt-tc-big-en-fr").direction == ("en", "fr")


def test_opus_mt_into_several_languages(tmp_path: Path) -> None:
    write(tmp_path, architectures=["MarianMTModel"], model_type="marian", is_encoder_decoder=True)
    write(tmp_path, "vocab.json", **{"</s>": 0, ">>fra<<": 1})
    assert "several target languages" in known_issues(tmp_path, "Helsinki-NLP/opus-mt-en-ROMANCE")
    write(tmp_path, "vocab.json", **{"</s>": 0, ">": 1, "»": 2})
    assert "several target languages" not in known_issues(tmp_path)


def test_byt5(tmp_path: Path) -> None:
    write(
        tmp_path,
        architectures=["T5ForConditionalGeneration"],
        model_type="t5",
        is_encoder_decoder=True,
        tokenizer_class="ByT5Tokenizer",
        eos_token_id=1,
        pad_token_id=0,
    )
    write(tmp_path, "tokenizer_config.json", tokenizer_class="ByT5Tokenizer", pad_token={"content": "<pad>"})
    report = look(tmp_path, "google/byt5-small")
    assert (report.context_length, report.context_is_hard) == (None, False)
    assert "no character offsets" in "".join(report.known_issues)
    assert report.special_tokens["pad"] == SpecialToken(text="<pad>", ids=(0,))
    assert report.tasks["question-answering"].head == "seq2seq"
    assert "unknown (no limit in the files)" in render(report)


def test_canine_cannot_mark_answers(tmp_path: Path) -> None:
    write(tmp_path, model_type="canine", architectures=["CanineForQuestionAnswering"], max_position_embeddings=16384)
    write(tmp_path, "tokenizer_config.json")
    report = look(tmp_path)
    assert report.tasks["question-answering"] == TaskFit(status="no")
    assert "CanineTokenizer has no character offsets" in "".join(report.known_issues)


def test_encoder_only(tmp_path: Path) -> None:
    write(tmp_path, model_type="bert", architectures=["BertForMaskedLM"], max_position_embeddings=512, pad_token_id=0)
    write(tmp_path, "tokenizer_config.json", model_max_length=512)
    report = look(tmp_path)
    assert with_status(report, "needs fine-tuning") == {"question-answering"}
    assert with_status(report, "ready") == set()
    assert "encoder-only: Transformers also loads it as BertLMHeadModel" in "".join(report.known_issues)
    assert report.commands == ()


# Traps: each shown where it is, and not where it is not.


def tokenizer(folder: Path, **content: Any) -> Path:
    write(folder, architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=100, eos_token_id=2)
    return write(folder, "tokenizer_config.json", **content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"eos_token": "</s>", "pad_token": "</s>"}, True),
        ({"eos_token": {"content": "</s>"}, "pad_token": "</s>"}, True),
        ({"eos_token": "</s>", "pad_token": "<pad>"}, False),
    ],
)
def test_padding_that_is_the_end_of_text(tmp_path: Path, content: dict[str, Any], expected: bool) -> None:
    assert ("share a token" in known_issues(tokenizer(tmp_path, **content))) is expected


def test_padding_that_is_the_end_of_text_by_id(tmp_path: Path) -> None:
    write(tmp_path, model_type="llama", eos_token_id=2, pad_token_id=2)
    write(tmp_path, "tokenizer_config.json")
    assert "share a token" in known_issues(tmp_path)
    write(tmp_path, model_type="llama", eos_token_id=2, pad_token_id=0)
    assert "share a token" not in known_issues(tmp_path)


def test_missing_padding(tmp_path: Path) -> None:
    assert "no padding token" in known_issues(tokenizer(tmp_path, eos_token="</s>"))
    assert "no padding token" in known_issues(tokenizer(tmp_path, eos_token="</s>", pad_token=None))
    assert "no padding token" not in known_issues(tokenizer(tmp_path, eos_token="</s>", pad_token="<pad>"))
    write(tmp_path, "special_tokens_map.json", pad_token="<pad>")
    assert "no padding token" not in known_issues(tokenizer(tmp_path, eos_token="</s>"))


def test_chat_template(tmp_path: Path) -> None:
    tokenizer(tmp_path)
    assert "\nno chat template: prompts are continued as plain text" in "\n" + known_issues(tmp_path, "owner/base-7b")
    for name in ("HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-2b-it", "x/llama-2-7b-chat-hf"):
        assert "although its name says" in known_issues(tmp_path, name)
    assert "although" not in known_issues(tmp_path, "owner/digit-recogniser")
    assert "chat template" not in known_issues(tokenizer(tmp_path, chat_template="{{ messages }}"))
    assert "chat template" not in known_issues(
        tokenizer(tmp_path, chat_template=[{"name": "default", "template": "x"}])
    )


def test_generation_that_does_not_stop_at_the_end_token(tmp_path: Path) -> None:
    added = {"2": {"content": "</s>"}, "7": {"content": "<|im_end|>"}}
    tokenizer(tmp_path, eos_token="<|im_end|>", added_tokens_decoder=added)
    assert "ends a text with token 7, and its generation settings name only 2" in known_issues(tmp_path)
    write(tmp_path, "generation_config.json", eos_token_id=[2, 7])
    assert "name only" not in known_issues(tmp_path)


def test_generation_settings_that_are_replaced(tmp_path: Path) -> None:
    tokenizer(tmp_path, eos_token="</s>")
    write(tmp_path, "generation_config.json", eos_token_id=50256, do_sample=True, temperature=0.0, top_p="0.9")
    found = known_issues(tmp_path)
    assert "generation_config.json: eos_token_id 50256 is not among the model's 100 tokens" in found
    assert "temperature 0 sele" in found
    assert "top_p" not in found


def test_more_tokens_than_embeddings(tmp_path: Path) -> None:
    assert "ids up to 100 and the model 100" in known_issues(
        tokenizer(tmp_path, added_tokens_decoder={"100": {"content": "<new>"}})
    )
    assert "ids up to" not in known_issues(tokenizer(tmp_path, added_tokens_decoder={"99": {"content": "<old>"}}))


def test_of_two_files_that_disagree_the_one_that_is_loaded_counts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("llama"), folder)
    write(folder, "special_tokens_map.json", eos_token="<unk>")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for listed in (False, True):
        write(folder, "tokenizer_config.json", **settings, **({"added_tokens_decoder": {}} if listed else {}))
        loaded = load_tokenizer(folder)
        assert look(folder).special_tokens["eos"].text == loaded.eos_token


def test_a_processors_chat_template_is_the_tokenizers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("llama", chat=True), folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    write(folder, "chat_template.json", chat_template=template)
    assert look(folder).chat_template
    assert load_tokenizer(folder).chat_template == template


def test_a_tokenizer_without_its_vocabulary(tmp_path: Path) -> None:
    tokenizer(tmp_path, eos_token="<end>")
    (tmp_path / "vocab.txt").unlink()
    assert "no tokenizer files: it cannot run" in known_issues(tmp_path)
    write(tmp_path, "tokenizer_config.json", tokenizer_class="ByT5Tokenizer")
    (tmp_path / "vocab.txt").unlink()
    assert "no tokenizer files" not in known_issues(tmp_path)


def test_added_tokens_are_read_from_a_large_tokenizer_json_too(tmp_path: Path) -> None:
    tokenizer(tmp_path, eos_token="<end>")
    added = [{"id": 50, "content": "<end>", "special": True}]
    vocabulary = {f"token{number}": number for number in range(150_000)}
    text = json.dumps({"version": "1.0", "added_tokens": added, "model": {"vocab": vocabulary}}, indent=1)
    assert len(text) > 2_000_000
    (tmp_path / "tokenizer.json").write_text(text)
    assert look(tmp_path).special_tokens["eos"] == SpecialToken(text="<end>", ids=(50, 2))


def test_own_code(tmp_path: Path) -> None:
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    write(tmp_path, model_type="mine", architectures=["MineForCausalLM"], auto_map=code)
    write(tmp_path, "tokenizer_config.json")
    assert "`trust_remote_code=True`" in known_issues(tmp_path)
    assert look(tmp_path).commands == ()
    write(tmp_path, model_type="phi3", architectures=["Phi3ForCausalLM"], auto_map=code)
    assert "trust_remote_code" not in known_issues(tmp_path)
    assert look(tmp_path).commands


def test_quantized(tmp_path: Path) -> None:
    write(tmp_path, model_type="llama", quantization_config={"quant_method": "gptq", "bits": 4})
    write(tmp_path, "tokenizer_config.json")
    report = look(tmp_path, hub_counts={"I32": 5, "F16": 7})
    assert report.parameters is None
    assert report.memory == {"float32": None, "bfloat16": None, "int8": None, "int4": None}
    assert "quantized (gptq)" in "".join(report.known_issues)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "opt"}, "packed training examples attend to each other"),
        ({"model_type": "llama", "tie_word_embeddings": True}, "embeddings are tied"),
        ({"model_type": "mistral", "sliding_window": 64, "max_position_embeddings": 512}, "window of 64 tokens"),
        ({"model_type": "llama", "rope_parameters": {"rope_theta": 500000.0}}, "rope_theta 500000"),
        ({"model_type": "mbart", "is_encoder_decoder": True}, "forced first token"),
        ({"model_type": "t5", "task_specific_params": {"summarization": {"prefix": "summarize: "}}}, "'summarize: '"),
    ],
)
def test_family_issues(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    write(tmp_path, "tokenizer_config.json")
    assert expected in known_issues(write(tmp_path, **config))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False, "max_position_embeddings": 512},
        {"model_type": "mistral", "sliding_window": 512, "max_position_embeddings": 512},
        {"model_type": "llama", "rope_parameters": {"rope_theta": 10000.0}},
        {"model_type": "llama", "rope_parameters": {"rope_theta": 500000.0}, "rope_theta": 500000.0},
        {"model_type": "llama", "tie_word_embeddings": False},
        {
            "model_type": "bart",
            "is_encoder_decoder": True,
            "task_specific_params": {"summarization": {"min_length": 5}},
        },
    ],
)
def test_no_family_issues_where_there_are_none(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path, "tokenizer_config.json", pad_token="<pad>", eos_token="</s>", chat_template="x")
    assert known_issues(write(tmp_path, **config)) == ""


def test_a_forced_first_token_that_transformers_5_does_not_read(tmp_path: Path) -> None:
    write(tmp_path, model_type="bart", is_encoder_decoder=True, forced_bos_token_id=0)
    write(tmp_path, "generation_config.json", eos_token_id=2)
    assert "only in config.json" in known_issues(tmp_path)
    write(tmp_path, "generation_config.json", eos_token_id=2, forced_bos_token_id=0)
    assert "only in config.json" not in known_issues(tmp_path)


# Licence, languages, counts of the Hub.


@pytest.mark.parametrize(
    ("readme", "files", "expected"),
    [
        ("---\nlicense: mit\n---\n", [], "mit"),
        ("---\r\nlicense: mit\r\n---\r\n# Windows", [], "mit"),
        ("\ufeff---\nlicense: mit\n---", [], "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", [], "mit, apache-2.0"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", [], "qwen-research"),
        ("---\nlicense: other\n---\n", ["LICENSE"], "see LICENSE"),
        ("---\nlicense: other\n---\n", [], "other"),
        ("# no front matter\n---\nlicense: mit\n---\n", ["LICENCE.txt"], "see LICENCE.txt"),
        ("---\nlicense: {broken\n---\n", [], "unknown"),
        ("---\n- a list\n---\n", [], "unknown"),
        (None, [], "unknown"),
    ],
)
def test_the_licence(tmp_path: Path, readme: str | None, files: list[str], expected: str) -> None:
    write(tmp_path, model_type="gpt2")
    if readme is not None:
        (tmp_path / "README.md").write_text(readme, encoding="utf-8", newline="")
    for name in files:
        (tmp_path / name).write_text("…")
    assert look(tmp_path).license == expected


@pytest.mark.parametrize(
    ("language", "expected"),
    [("en", ("en",)), ("[en, no, fr]", ("en", "no", "fr")), ("no", ("no",)), ("", ())],
)
def test_languages_and_the_code_that_yaml_reads_as_false(
    tmp_path: Path, language: str, expected: tuple[str, ...]
) -> None:
    write(tmp_path, model_type="gpt2")
    (tmp_path / "README.md").write_text(f"---\nlanguage: {language}\n---\n")
    assert look(tmp_path).languages == expected


def test_a_long_list_of_languages_is_cut_on_the_terminal(tmp_path: Path) -> None:
    write(tmp_path, model_type="gpt2")
    (tmp_path / "README.md").write_text(f"---\nlanguage: [{', '.join(f'l{n}' for n in range(100))}]\n---\n")
    assert "l7 and 92 more" in render(look(tmp_path))
    assert len(look(tmp_path).languages) == 100


def test_a_header_on_this_machine_wins_over_the_hub(checkpoint: Checkpoint) -> None:
    report = look(checkpoint("gpt2"), hub_counts={"F32": 5})
    assert report.parameters == sum(report.parameters_by_dtype.values()) != 5


# Adapters and GGUF.


@pytest.fixture
def adapter(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    model = transformers.GPT2LMHeadModel.from_pretrained(checkpoint("gpt2"))
    tuned = get_peft_model(
        model, LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    )
    tuned.save_pretrained(str(tmp_path))
    write(tmp_path, "adapter_config.json", **(json.loads((tmp_path / "adapter_config.json").read_text())
                                              | {"base_model_name_or_path": "owner/base"}))  # fmt: skip
    return tmp_path


def test_an_adapter(checkpoint: Checkpoint, adapter: Path) -> None:
    source = Source("mine", checkpoint("gpt2"), adapter=adapter, adapter_commit="a" * 40)
    report = inspect_source(source, hub_counts={"F32": 5})
    assert report.library == "peft"
    assert report.adapter is not None
    assert (report.adapter.base, report.adapter.method, report.adapter.rank) == ("owner/base", "LORA", 4)
    # c_attn is 16 → 48 in each of two layers
    assert report.adapter.parameters == 2 * 4 * (16 + 48)
    assert report.architecture == "GPT2LMHeadModel"
    assert report.parameters == inspect_source(Source("base", checkpoint("gpt2"))).parameters
    assert "LORA of rank 4 on owner/base, 512 parameters (aaaaaaaaaaaa)" in render(report)
    assert all(command.endswith("--model mine") for command in report.commands)


def test_a_partial_adapter_is_refused(checkpoint: Checkpoint, adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors.*download it again"):
        inspect_source(Source("mine", checkpoint("gpt2"), adapter=adapter))


def test_the_tokenizer_of_an_adapter_is_the_one_loaded(checkpoint: Checkpoint, adapter: Path) -> None:
    write(adapter, "tokenizer_config.json", chat_template="{{ messages }}", pad_token="<own>")
    report = inspect_source(Source("mine", checkpoint("gpt2"), adapter=adapter))
    assert report.chat_template
    assert report.special_tokens["pad"].text == "<own>"


def test_an_adapter_may_bring_the_head(tmp_path: Path) -> None:
    base = write(tmp_path / "base", model_type="bert", architectures=["BertForMaskedLM"])
    own = write(tmp_path / "own", "adapter_config.json", peft_type="LORA", task_type="QUESTION_ANS")
    source = Source("mine", base, commit="c" * 40, adapter=own, adapter_commit="a" * 40)
    assert inspect_source(source).tasks["question-answering"].status == "ready"
    write(own, "adapter_config.json", peft_type="LORA", task_type="CAUSAL_LM")
    assert inspect_source(source).tasks["question-answering"].status == "needs fine-tuning"


@pytest.mark.parametrize(
    ("method", "expected"),
    [("PREFIX_TUNING", "packed examples"), ("PROMPT_TUNING", "virtual tokens"), ("LORA", None)],
)
def test_adapter_methods_with_traps(tmp_path: Path, method: str, expected: str | None) -> None:
    base = write(tmp_path / "base", model_type="gpt2")
    own = write(tmp_path / "own", "adapter_config.json", peft_type=method)
    found = "".join(
        inspect_source(Source("mine", base, commit="c" * 40, adapter=own, adapter_commit="a" * 40)).known_issues
    )
    assert (expected or "no chat template") in found
    assert expected or "merged" not in found


def test_a_gguf_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a b.gguf")
    report = inspect_source(Source("a b.gguf", tmp_path, gguf_file="a b.gguf"))
    assert report.library == report.weights == "gguf"
    assert report.parameters == 12 * 64 + 4 * 32
    assert report.parameters_by_dtype == {"f32": 12 * 64, "q8_0": 4 * 32}
    assert report.context_length == 2048
    assert report.license == "apache-2.0"
    assert report.languages == ("en", "fr")
    assert report.chat_template
    assert report.special_tokens == {"bos": SpecialToken(ids=(1,)), "eos": SpecialToken(ids=(2,))}
    assert with_status(report, "ready") == GENERATIVE
    assert {fit.head for fit in report.tasks.values()} == {"causal"}
    assert report.commands[0].endswith("--model 'a b.gguf'")


def test_a_gguf_t5_is_an_encoder_decoder(tmp_path: Path) -> None:
    write_gguf(tmp_path / "t5.gguf", "t5")
    report = inspect_source(Source("t5.gguf", tmp_path, gguf_file="t5.gguf"))
    assert {fit.head for fit in report.tasks.values()} == {"seq2seq"}
    assert not report.context_is_hard


def test_a_gguf_architecture_that_transformers_lacks_is_shown_as_it_is(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", "plamo9")
    report = inspect_source(Source("x.gguf", tmp_path, gguf_file="x.gguf"))
    assert report.architecture == "plamo9"
    assert with_status(report, "no") == set(TASKS)
    assert report.commands == ()


# The text.


def test_the_text_is_short_and_says_what_a_beginner_asks_first(tmp_path: Path) -> None:
    text = render(look(qwen3(tmp_path), "Qwen/Qwen3-0.6B", hub_counts={"BF16": 751632384}))
    lines = text.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 120
    assert "parameters      752 M (bfloat16)" in lines
    assert "context         40,960 tokens" in lines
    assert "memory          float32 3.01 GB, bfloat16 1.5 GB, int8 752 MB, int4 376 MB (weights only)" in lines
    assert "model           Qwen/Qwen3-0.6B (cccccccccccc)" in lines


@pytest.mark.parametrize(
    ("number", "expected"),
    [(999, "999"), (1_000, "1 k"), (134_515_008, "135 M"), (999_999_999, "1 B"), (8_030_261_248, "8.03 B")],
)
def test_sizes_have_three_digits(checkpoint: Checkpoint, number: int, expected: str) -> None:
    report = replace(look(checkpoint("gpt2")), parameters=number, parameters_by_dtype={"float32": number})
    assert f"parameters      {expected} (float32)" in render(report)


def test_what_is_unknown_says_how_to_know(tmp_path: Path) -> None:
    write(tmp_path, model_type="gpt2")
    assert "unknown (not in a safetensors header; `exact` counts on the meta device)" in render(look(tmp_path))


def test_an_adapter_on_itself_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, base in ((one, two), (two, one), (tmp_path / "self", tmp_path / "self"), (tmp_path / "odd", 5)):
        folder.mkdir(exist_ok=True)
        content = {"peft_type": "LORA", "base_model_name_or_path": base if base == 5 else str(base)}
        (folder / "adapter_config.json").write_text(json.dumps(content), encoding="utf-8")
    for name in ("one", "two", "self", "odd"):
        with pytest.raises(CheckpointError, match=r"is an adapter itself|names no base model"):
            locate(LoadSettings(model=str(tmp_path / name)), "text-generation", weights=False)


@pytest.mark.parametrize("key", ["model_type", "architectures", "auto_map", "task_specific_params"])
def test_a_config_with_a_value_of_another_type_is_refused(key: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {"model_type": "llama", key: 1.5}
    write(tmp_path, **content)
    with pytest.raises(CheckpointError, match=rf"config.json has {key}: 1.5, where a \w+ is expected; correct it"):
        Source(name="odd", folder=tmp_path).config()
