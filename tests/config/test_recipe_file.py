"""Recipes as files: YAML that means what it says, and errors that say where and what to write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.config import recipe_file
from llmkit.config.key_names import REMOVED, RENAMED
from llmkit.config.recipe_errors import keys_by_section
from llmkit.config.recipe_file import json_schema, load_recipe, resolved_yaml, shipped_recipes
from llmkit.errors import InvalidRecipeError, UsageError

TEXT = """\
version: 1
task: translation
settings: {source: no, target: zh}
model:
  name_or_path: starter
adapter: {peft_type: LORA, r: 8}
data:
  train: rows.jsonl
train:
  output_dir: out
  learning_rate: 1e-4
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(text: str, *overrides: str) -> Any:
        Path("a.yaml").write_text(text, encoding="utf-8")
        return load_recipe("a.yaml", overrides)

    return write


def test_yaml_means_what_it_says(load: Any) -> None:
    recipe = load(TEXT + "  adam_epsilon: 1E-9\n  seed: 010\n")
    assert recipe.settings.source == "no"
    assert (recipe.train.learning_rate, recipe.train.adam_epsilon, recipe.train.seed) == (1e-4, 1e-9, 10)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning_rate", "learning_rat", "a.yaml:11: unknown key train.learning_rat; did you mean learning_rate?"),
        ("model:", "modle:", "a.yaml:4: unknown key modle; did you mean model?"),
        ("r: 8", "rr: 8", "a.yaml:6: unknown key adapter.rr; did you mean r?"),
        ("rows.jsonl", "{pathh: a}", "a.yaml:8: unknown key data.train.pathh; did you mean path?"),
        ("output_dir: out", "output_dir: out\n  max_length: 5", "a.yaml:11: unknown key train.max_length; it belongs"),
        ("output_dir: out", "output_dir: out\n  warmup_ratio: 0.1", "a.yaml:11: unknown key train.warmup_ratio; write"),
        (
            "output_dir: out",
            "output_dir: out\n  optim: adamw",
            "a.yaml:11: train.optim is 'adamw'; did you mean adam",
        ),
        ("output_dir: out", "output_dir: out\n  weight_decay: -1", "a.yaml:11: train.weight_decay is -1; input should"),
        ("output_dir: out", "output_dir: a\n  output_dir: b", "a.yaml:11: duplicate key train.output_dir"),
        ("  output_dir: out\n", "", "a.yaml:9: train.output_dir is missing; add it"),
        (
            "  train: rows.jsonl",
            "  train:\n    path: rows.jsonl\n    columns:\n      sorce: en",
            "a.yaml:11: data.train.columns.sorce is not a field of translation; did you mean source? choose",
        ),
        (
            "  train: rows.jsonl",
            "  train: rows.jsonl\n  validation: {path: rows.jsonl, columns: {document: en}}",
            "a.yaml:9: data.validation.columns.document is not a field of translation; choose from source, target",
        ),
        ("LORA", "LORAA", "a.yaml:6: adapter.peft_type is LORAA; did you mean LORA?"),
        ("translation", "translatoin", "a.yaml:2: task is translatoin; did you mean translation?"),
        ("version: 1\n", "", "a.yaml:1: version is missing; add: version: 1"),
        ("version: 1", "version: 99", "a.yaml:1: this llmkit reads recipes up to version 1; upgrade"),
        ("version: 1", "version: 0", "a.yaml:1: version 0 is no longer supported"),
        ("data:", "data: [", "a.yaml:9: expected"),
        (TEXT, "", "a.yaml does not contain a recipe"),
        (TEXT, "- 1", "a.yaml does not contain a recipe"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, said: str, load: Any) -> None:
    assert old in TEXT
    with pytest.raises(UsageError) as caught:
        load(TEXT.replace(old, new))
    assert str(caught.value).startswith(said)


def test_an_old_version_is_migrated(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def migrate(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "train": {"output_dir": content["train"]["output"]}}

    monkeypatch.setitem(recipe_file._MIGRATIONS, 0, migrate)
    old = (
        TEXT.replace("version: 1", "version: 0").replace("output_dir", "output").replace("  learning_rate: 1e-4\n", "")
    )
    assert load(old).train.output_dir == "out"


def test_overrides_win_in_order_and_are_typed(load: Any) -> None:
    recipe = load(TEXT, "train.learning_rate=1e-3", "train.learning_rate=2e-3", "adapter=null", "data.train=[a, b.txt]")
    assert recipe.train.learning_rate == 2e-3
    assert recipe.adapter is None
    assert [source.path for source in recipe.data.train] == [["a"], ["b.txt"]]
    assert load(TEXT, "data.train=[a, b]", "data.train.1=c").data.train[1].path == ["c"]
    assert load(TEXT, "data.train.max_rows=5").data.train[0].model_dump(exclude_defaults=True) == {
        "path": ["rows.jsonl"],
        "max_rows": 5,
    }
    assert load(TEXT, "data.train=[a, b]", "data.train.1.weight=2").data.train[1].weight == 2


def test_short_forms_are_accepted(load: Any) -> None:
    recipe = load(TEXT.replace("task: translation", "task: translate"), "train.report_to=wandb")
    assert (recipe.task, recipe.train.report_to) == ("translation", ["wandb"])
    assert load(TEXT, "train.report_to=none").train.report_to == []


def test_all_mistakes_are_named_at_once(load: Any) -> None:
    """Misspelled and foreign keys, wrong values and conflicts, in the order of the lines."""
    wrong = """\
version: 1
task: sumarization
name: my-run
model:
  name: starter
adapter: lora
epochs: 3
data:
  train: s.jsonl
  validation: s.jsonl
  validation_fraction: 0.1
  on_overflow: cut
train:
  lr: 1e-4
  output_dir: out
  fp16: true
  bf16: true
  eval_steps: 10
  max_steps: "ten"
tokenizer:
  train: {}
"""
    with pytest.raises(InvalidRecipeError) as caught:
        load(wrong, "train.batch_size=4")
    assert str(caught.value).splitlines() == [
        "a.yaml:2: task is sumarization; did you mean summarization? choose from text-generation, summarization, "
        "question-answering, dialogue, translation",
        "a.yaml:3: unknown key name; write train.output_dir, whose last part is the name of the run",
        "a.yaml:5: unknown key model.name; write model.name_or_path: starter",
        "a.yaml:6: adapter is 'lora'; write adapter: {peft_type: LORA}",
        "a.yaml:7: unknown key epochs; write train.num_train_epochs: 3",
        "a.yaml:10: data: validation and validation_fraction are mutually exclusive; give one of them",
        "a.yaml:12: data.on_overflow is 'cut'; choose from error, truncate, chunk, drop",
        "a.yaml:14: unknown key train.lr; write train.learning_rate: 0.0001",
        "a.yaml:17: train: bf16 and fp16 are mutually exclusive; set one of them",
        "a.yaml:18: train: eval_steps requires eval_strategy: steps and vice versa; give both or neither",
        "a.yaml:19: train.max_steps is 'ten'; write a whole number",
        "`overrides=train.batch_size`: unknown key train.batch_size; write train.per_device_train_batch_size: 4",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "train.lerning_rate=1",
            "`overrides=train.lerning_rate`: unknown key train.lerning_rate; did you mean learning_rate?",
        ),
        ("foo.bar=1", "`overrides=foo.bar`: unknown key foo"),
        ("train.max_steps=x", "`overrides=train.max_steps`: train.max_steps is 'x'; write a whole number"),
        ("task.0.path=x", "`overrides=task.0.path`: task has no keys"),
        ("train.seed", "`overrides=train.seed` is not of the form KEY=VALUE"),
        ("train.seed=!!int x", "`overrides=train.seed` has a value that cannot be read (invalid literal for int()"),
        ("train.seed=!!bool maybe", "`overrides=train.seed` has a value that cannot be read"),
        (
            "train.seed=!!timestamp 2001-99-99",
            "`overrides=train.seed` has a value that cannot be read (month must be in",
        ),
        (f"train.seed={'9' * 5000}", "`overrides=train.seed` has a value that cannot be read (Exceeds the limit"),
        ("train.seed=&a [*a]", "`overrides=train.seed`:1: an alias contains itself"),
        (f"train.seed={'[' * 900}", "`overrides=train.seed` is nested too deeply"),
        ("train.\u00b2=1", "`overrides=train.\u00b2`: unknown key train.\u00b2"),
        (f"train.seed={list(range(1000))}", "`overrides=train.seed`: train.seed is [0, 1, 2"),
        (f"train.seed={2**32}", "`overrides=train.seed`: train.seed is 4294967296; input should be less than"),
        (
            "train.learning_rate=.inf",
            "`overrides=train.learning_rate`: train.learning_rate is inf; input should be a finite",
        ),
        ("train.freeze=['(']", "`overrides=train.freeze`: train.freeze.0: '(' is not a regular expression"),
    ],
)
def test_a_wrong_override_is_named(override: str, said: str, load: Any) -> None:
    with pytest.raises(UsageError) as caught:
        load(TEXT, override)
    assert str(caught.value).startswith(said)


def test_paths_are_looked_for_beside_the_recipe_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "a.yaml").write_text(TEXT.replace("rows.jsonl", "[rows.jsonl, '*.txt', owner/name]"), encoding="utf-8")
    (folder / "rows.jsonl").touch()
    (folder / "one.txt").touch()
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("recipes/a.yaml")
    assert [source.path for source in recipe.data.train] == [
        [str(folder / "rows.jsonl")],
        [str(folder / "*.txt")],
        ["owner/name"],
    ]
    assert recipe.train.output_dir == "out"
    assert load_recipe("recipes/a.yaml", ["data.train=rows.jsonl"]).data.train[0].path == ["rows.jsonl"]


@pytest.mark.parametrize("given", ["{% for m in messages %}[*]{{ m.content }}{% endfor %}", "chatml", "x" * 5000])
def test_a_chat_template_is_looked_for_beside_the_recipe_and_a_text_is_no_path(given: str, tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_text(TEXT, encoding="utf-8")
    (tmp_path / "chat.jinja").touch()
    for value, expected in ((given, given), ("chat.jinja", str(tmp_path / "chat.jinja"))):
        recipe.write_text(f"{TEXT}\ntokenizer: {json.dumps({'chat_template': value})}\n", encoding="utf-8")
        assert load_recipe(str(recipe)).tokenizer.chat_template == expected


def test_renamed_names_are_no_keys_and_their_replacements_are() -> None:
    keys = keys_by_section()
    train_keys = keys[("train",)] | keys[("data",)] | keys[("model",)]
    assert not REMOVED.keys() & (train_keys | RENAMED.keys())
    for old, new in RENAMED.items():
        assert old not in train_keys, old
        path = new.partition(":")[0].partition(",")[0].partition(" ")[0]
        if "." in path:
            *section, name = path.split(".")
            assert name in keys[tuple(section)], new


REMOVED_BY_V5 = {
    "_n_gpu": "accelerate.num_processes",
    "adafactor": "train.optim: adafactor",
    "fp16_backend": "train.fp16",
    "fp16_opt_level": "train.fp16",
    "fsdp_min_num_params": "accelerate.fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "accelerate.fsdp_config",
    "group_by_length": "train.train_sampling_strategy: group_by_length",
    "half_precision_backend": "train.bf16",
    "include_inputs_for_metrics": "llmkit evaluate",
    "include_tokens_per_second": "always logged",
    "jit_mode_eval": "train.torch_compile",
    "logging_dir": "train.output_dir",
    "mp_parameters": "accelerate.fsdp_config",
    "no_cuda": "model.device: cpu",
    "overwrite_output_dir": "another train.output_dir",
    "past_index": "leave it out",
    "per_gpu_eval_batch_size": "train.per_device_eval_batch_size",
    "per_gpu_train_batch_size": "train.per_device_train_batch_size",
    "push_to_hub_model_id": "train.hub_model_id",
    "push_to_hub_organization": "train.hub_model_id: ORGANIZATION/NAME",
    "push_to_hub_token": "HF_TOKEN",
    "ray_scope": "leave it out",
    "save_safetensors": "always saved as safetensors",
    "torchdynamo": "train.torch_compile",
    "tpu_metrics_debug": "leave it out",
    "tpu_num_cores": "accelerate.num_processes",
    "use_legacy_prediction_loop": "leave it out",
    "use_mps_device": "model.device: mps",
    "warmup_ratio": "train.warmup_steps",
}
"""The fields of ``Seq2SeqTrainingArguments`` in 4.57.6 that 5.23 has not."""


@pytest.mark.parametrize("name", REMOVED_BY_V5)
def test_a_name_that_transformers_5_removed_is_told_its_replacement(name: str, load: Any) -> None:
    assert len(REMOVED_BY_V5) == 29
    with pytest.raises(UsageError) as caught:
        load(TEXT, f"train.{name}=1")
    assert REMOVED_BY_V5[name] in caught.value.fix
    assert "did you mean" not in caught.value.fix


@pytest.mark.parametrize(
    ("written", "fix"),
    [
        ('train.learning_rate="1e-4"', "write 1e-4, without quotation marks"),
        ("train.max_steps=1e3", "write 1000, without"),
        ("train.bf16=yes", "write true, without"),
        ('train.fp16="false"', "write false, without"),
        ("train.packing=often", "write true or false or 'auto'"),
        ("train.per_device_train_batch_size=null", "write a whole number, or leave it out"),
        ("train=null", "write keys and values"),
        ("train.freeze=embed", "write a list: [embed]"),
        ("adapter={r: 8}", "choose from ADALORA, ADAMSS"),
        ("adapter={peft_type: IA3, use_dora: true}", "keys here are exclude_modules, fan_in_fan_out"),
        ("adapter.peft_type=lora", "did you mean LORA?"),
        ("train.deepspeed=zero3.json", "accelerate.fsdp_config"),
        ("lora_rank=8", "write adapter.r"),
        ("sequence_len=8", "write data.max_length"),
        ("adapter=none", "leave the section adapter out"),
        ("model=starter", "write model: {name_or_path: starter}"),
        ("data=a.csv", "write data: {train: a.csv}"),
        ("dataset_train_split=train", "write data.train.split"),
        ("wandb_name=x", "WANDB_NAME"),
    ],
)
def test_what_other_programs_write_is_told_as_it_is_written_here(written: str, fix: str, load: Any) -> None:
    with pytest.raises(UsageError) as caught:
        load(TEXT, written)
    assert caught.value.fix.startswith(fix) or fix in caught.value.fix.removeprefix("write ")
    assert not caught.value.fix.endswith(("choose from ", " or "))


def test_every_shipped_recipe_is_valid_and_opens_with_its_command() -> None:
    shipped = shipped_recipes()
    assert len(shipped) >= 19
    for name, path in shipped.items():
        first, second, *_ = path.read_text(encoding="utf-8").splitlines()
        assert first == f"# llmkit finetune {name}"
        assert second.startswith("# ")
        recipe = load_recipe(name)
        assert name.startswith(f"{recipe.task}/")
        for source in recipe.data.train:
            for file in (*(source.path or ()), *(source.aligned or {}).values()):
                assert Path(file).is_file(), file


def test_all_sample_data_is_used() -> None:
    shipped = shipped_recipes()
    used = "".join(path.read_text(encoding="utf-8") for path in shipped.values())
    folder = next(iter(shipped.values())).parent.parent / "data"
    files = [path.name for path in folder.iterdir() if path.name != "README.md"]
    assert len(files) >= 7
    assert all(f"../data/{name}" in used for name in files)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_resolved_recipe_reads_back_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "resolved.yaml")) == recipe


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="is a folder, not a recipe"):
        load_recipe(".")
    with pytest.raises(UsageError, match="did you mean summarization/starter-lora"):
        load_recipe("summarization/starter-lorra")


def test_the_schema_knows_all_tasks() -> None:
    schema = json.dumps(json_schema())
    assert all(task in schema for task in ("text-generation", "summarization", "dialogue", "translation"))
    assert "A path, a source, or a list of them" in schema


def test_aliases_that_expand_to_very_much_are_refused_at_once(load: Any) -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(UsageError, match="expands to more than 100,000 values; write fewer, or no aliases"):
        load(TEXT + "\n".join(lines))


def test_an_alias_stands_for_its_value(load: Any) -> None:
    text = TEXT.replace("train: rows.jsonl", "train: &rows [rows.jsonl]\n  validation: *rows")
    assert load(text).data.validation == load(text).data.train


@pytest.mark.parametrize("name", ["1e-4", "2024", "010", "true", "1e-4 "])
def test_a_number_is_a_text_where_one_belongs(name: str, load: Any) -> None:
    recipe = load(TEXT, f"train.output_dir={name}", "train.learning_rate=1e-3")
    assert (recipe.train.output_dir, recipe.train.learning_rate) == (name.strip(), 1e-3)
    assert load(resolved_yaml(recipe)) == recipe


def test_a_number_that_a_later_override_gives_in_a_section_is_refused(load: Any) -> None:
    with pytest.raises(UsageError, match=r"train\.output_dir is 5; write text in quotation marks"):
        load(TEXT, "train.output_dir=4", "train={output_dir: 5}")
