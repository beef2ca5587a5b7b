"""Loading recipes: files, overrides from the command line, and errors with file and line.

Knows key names of other tools and older versions, and where built-in recipes are. The schema is declared in
`llmkit.config.recipe`.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llmkit.config.paths import shipped_recipes, user_path
from llmkit.config.recipe import VERSION, Recipe, recipe_adapter
from llmkit.config.yaml12 import Place, dump, parse
from llmkit.errors import InputError, UsageError

__all__ = [
    "MAY_RUN_CODE",
    "REMOVED",
    "RENAMED",
    "allowing",
    "find_recipe",
    "json_schema",
    "load_recipe",
    "make_recipe",
    "resolved_yaml",
    "shipped_recipes",
]

RENAMED: dict[str, str] = {
    # Removed by Transformers 5.
    "_n_gpu": "accelerate.num_processes",
    "adafactor": "train.optim: adafactor",
    "evaluation_strategy": "train.eval_strategy",
    "fp16_backend": "train.fp16",
    "fp16_opt_level": "train.fp16",
    "half_precision_backend": "train.bf16 or train.fp16",
    "fsdp_min_num_params": "accelerate.fsdp_config.fsdp_min_num_params",
    "fsdp_transformer_layer_cls_to_wrap": "accelerate.fsdp_config.fsdp_transformer_layer_cls_to_wrap",
    "group_by_length": "train.train_sampling_strategy: group_by_length",
    "jit_mode_eval": "train.torch_compile",
    "mp_parameters": "accelerate.fsdp_config",
    "no_cuda": "model.device: cpu",
    "use_cpu": "model.device: cpu",
    "use_mps_device": "model.device: mps",
    "per_gpu_eval_batch_size": "train.per_device_eval_batch_size",
    "per_gpu_train_batch_size": "train.per_device_train_batch_size",
    "push_to_hub_model_id": "train.hub_model_id",
    "push_to_hub_organization": "train.hub_model_id: ORGANIZATION/NAME",
    "torch_dtype": "model.dtype",
    "torchdynamo": "train.torch_compile",
    "warmup_ratio": "train.warmup_steps, where values below 1 are a fraction of all steps",
    "gradient_checkpointing": "train.activation_checkpointing",
    "load_in_4bit": "model.quantize: 4bit",
    "load_in_8bit": "model.quantize: 8bit",
    # The example scripts, TRL, and others.
    "model_name_or_path": "model.name_or_path",
    "tokenizer_name": "tokenizer.name_or_path",
    "model_revision": "model.revision",
    "train_file": "data.train",
    "validation_file": "data.validation",
    "dataset_name": "data.train",
    "dataset_config_name": "data.train.name",
    "validation_split_percentage": "data.validation_fraction",
    "max_train_samples": "data.train.max_rows",
    "max_seq_length": "data.max_length",
    "block_size": "data.max_length",
    "max_source_length": "data.max_length",
    "truncation_mode": "data.truncation_side",
    "preprocessing_num_workers": "data.num_proc",
    "completion_only_loss": "data.loss_on: target",
    "assistant_only_loss": "data.loss_on: target",
    "source_lang": "settings.source",
    "target_lang": "settings.target",
    "lora_r": "adapter.r",
    "lora_target_modules": "adapter.target_modules",
    "use_peft": "an adapter section",
    "resume_from_checkpoint": "`resume`",
    "data_seed": "data.seed",
    "deepspeed": "accelerate.fsdp_config, since DeepSpeed is not supported",
    "fsdp": "accelerate.fsdp_config",
    "do_eval": "train.eval_strategy",
    "logging_strategy": "train.logging_steps",
    # Axolotl and LLaMA-Factory.
    "base_model": "model.name_or_path",
    "dataset": "data.train",
    "datasets": "data.train",
    "test_datasets": "data.validation",
    "eval_dataset": "data.validation",
    "val_set_size": "data.validation_fraction",
    "val_size": "data.validation_fraction",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "max_samples": "data.train.max_rows",
    "dataset_text_field": "data.train.columns: {text: COLUMN}",
    "train_on_inputs": "data.loss_on: all, or target",
    "train_on_prompt": "data.loss_on: all, or target",
    "micro_batch_size": "train.per_device_train_batch_size",
    "eval_batch_size": "train.per_device_eval_batch_size",
    "sample_packing": "train.packing",
    "optimizer": "train.optim",
    "lr_scheduler": "train.lr_scheduler_type",
    "num_epochs": "train.num_train_epochs",
    "evals_per_epoch": "train.eval_strategy: epoch, or train.eval_steps",
    "saves_per_epoch": "train.save_strategy: epoch, or train.save_steps",
    "load_best_model": "train.load_best_model_at_end",
    "wandb_project": "train.report_to: [wandb]",
    "use_wandb": "train.report_to: [wandb]",
    "finetuning_type": "an adapter section, or none to train all weights",
    "lora_rank": "adapter.r",
    "lora_target": "adapter.target_modules",
    "lora_target_linear": "adapter.target_modules: all-linear",
    "lora_modules_to_save": "adapter.modules_to_save",
    "additional_target": "adapter.modules_to_save",
    "adapter_name_or_path": "model.name_or_path: the adapter",
    "lora_model_dir": "model.name_or_path: the adapter",
    "quantization_bit": "model.quantize",
    "flash_attention": "model.attn_implementation: flash_attention_2",
    "flash_attn": "model.attn_implementation: flash_attention_2",
    "template": "tokenizer.chat_template",
    "mixed_precision": "train.bf16 or train.fp16",
}
"""Key names of other tools and versions, and their replacement."""

REMOVED: dict[str, str] = {
    # Removed by Transformers 5.
    "include_inputs_for_metrics": "leave it out: the metrics of llmkit evaluate get each row",
    "include_tokens_per_second": "leave it out: tokens per second are always logged",
    "logging_dir": "leave it out: trackers write to the folder trackers in train.output_dir",
    "overwrite_output_dir": "leave it out: name another train.output_dir, or remove the folder",
    "past_index": "leave it out: models do not pass their state on to the next batch",
    "push_to_hub_token": "leave it out: log in with hf auth login, or set the environment variable HF_TOKEN",
    "ray_scope": "leave it out: a recipe is a single run, without hyperparameter search",
    "save_safetensors": "leave it out: weights are always saved as safetensors",
    "tpu_metrics_debug": "leave it out: llmkit does not train on TPUs",
    "tpu_num_cores": "leave it out: llmkit does not train on TPUs; accelerate.num_processes counts other devices",
    "use_legacy_prediction_loop": "leave it out: there is one evaluation loop",
    # Without effect or place here.
    "do_train": "leave it out: llmkit finetune trains",
    "do_predict": "leave it out: llmkit evaluate generates answers with the result",
    "early_stopping_threshold": "leave it out: every improvement counts",
    "generation_max_length": "leave it out: set `max_new_tokens` when generating answers",
    "gradient_checkpointing_kwargs": "leave it out: train.activation_checkpointing is not reentrant",
    "inference_mode": "leave it out: an adapter being trained is not in inference mode",
    "dataloader_num_workers": "leave it out: examples are prepared before the first update",
    "label_names": "leave it out: labels are made from the rows",
    "plot_loss": "leave it out: loss.png is always written",
    "predict_with_generate": "leave it out: train.metric_for_best_model generates where its metric needs it",
    "remove_unused_columns": "leave it out: unused columns are reported",
    "overwrite_cache": "leave it out: changed files are detected",
    "stage": "leave it out: recipes only do supervised training",
    "task_type": "leave it out: it follows from the model",
}
"""Key names of other tools and versions without a replacement, and what to do."""

_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""For each schema version, the function that converts to the next one."""


_WIDTH = 100
"""Maximum length of a wrong value in a message, in characters."""


# Files.


def load_recipe(name: str, overrides: Sequence[str] = (), *, trusted: Collection[str] = ()) -> Recipe:
    """Load a recipe from a file or by its built-in name, with overrides such as ``train.learning_rate=1e-4``.

    Paths in it are first resolved relative to its file; paths in ``overrides``, to the working directory.

    Args:
        name: path, or name of a built-in recipe.
        overrides: changes by the user, who may allow what the file itself cannot allow.
        trusted: keys in `MAY_RUN_CODE` that the file may set.

    Raises:
        UsageError: the first problem, with file and line, and the number of further problems.
    """
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start})", "save it as UTF-8", code="invalid_recipe"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{name} cannot be read ({error.strerror})", "check the path and its permissions", code="invalid_recipe"
        ) from error
    content, lines = parse(text, name)
    if not isinstance(content, dict):
        raise UsageError(
            f"{name} does not contain a recipe",
            "write keys and values, or start with: llmkit recipes copy NAME",
            code="invalid_recipe",
        )
    content = _migrate(content, name, lines)
    _beside(content, path.parent)
    _refuse_code(content, overrides, trusted, name, lines)
    return make_recipe(content, overrides, name=name, lines=lines)


MAY_RUN_CODE = ("trust_remote_code", "allow_pickle")
"""Keys of the model section that let code from others run."""


def allowing(**allowed: bool) -> list[str]:
    """The overrides by which the user allows a model's code to run, whether or not the recipe sets the keys."""
    return [f"model.{key}=true" for key in MAY_RUN_CODE if allowed[key]]


def _refuse_code(
    content: Mapping[str, Any],
    overrides: Sequence[str],
    trusted: Collection[str],
    name: str,
    lines: Mapping[Place, int],
) -> None:
    """Refuse a file that allows a model's code to run without the user's consent."""
    section = content.get("model")
    overridden = {override.partition("=")[0].strip() for override in overrides}
    for key in MAY_RUN_CODE:
        if isinstance(section, dict) and section.get(key) and key not in trusted and f"model.{key}" not in overridden:
            where = f"{name}:{lines.get(('model', key), 1)}"
            raise UsageError(
                f"{where}: model.{key} lets code of the model run, which a recipe cannot allow by itself",
                f"if you trust the model, give `overrides=model.{key}=true`",
                f"add `{key}=True`",
                code="code_not_trusted",
            )


def make_recipe(
    content: dict[str, Any],
    overrides: Sequence[str] = (),
    *,
    name: str = "the recipe",
    lines: Mapping[Place, int] | None = None,
) -> Recipe:
    """Validate the content of a recipe in the current schema version; the overrides change it in place.

    Args:
        name: what errors call it.
        lines: the line of each key in its file.

    Raises:
        UsageError: the first problem.
    """
    lines = lines or {}
    changed = [_override(content, override) for override in overrides]
    try:
        return recipe_adapter(content).validate_python(content)
    except ValidationError as error:
        if (texts := _as_texts(error, content, overrides, changed)) != list(overrides):
            return make_recipe(content, texts, name=name, lines=lines)
        raise _first_problem(error, content, name, lines, changed) from error


def _as_texts(
    error: ValidationError, content: Mapping[str, Any], overrides: Sequence[str], changed: Sequence[Place]
) -> Sequence[str]:
    """The overrides, with quotation marks around numbers where text is expected, such as a folder ``1e-4``."""
    problems = [each for each in error.errors(include_url=False) if each["type"] == "string_type"]
    places = [_place(each["loc"], content) for each in problems if isinstance(each["input"], bool | int | float)]
    parts = [override.partition("=") for override in overrides]
    return [
        f"{path}={json.dumps(text.strip())}" if place in places and '"' not in text else f"{path}={text}"
        for (path, _, text), place in zip(parts, changed, strict=True)
    ]


def find_recipe(name: str) -> Path:
    """The file of a recipe, by its path or built-in name."""
    path = user_path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    known = name.removesuffix(".yaml").removeprefix("recipes/")
    if known in shipped:
        return shipped[known]
    if path.is_dir():
        raise UsageError(
            f"{name} is a folder, not a recipe",
            "name the file of a recipe",
            code="invalid_recipe",
        )
    near = get_close_matches(known, shipped, n=1)
    fix = f"did you mean {near[0]}?" if near else "see: llmkit recipes list"
    raise UsageError(f"no recipe file or built-in recipe is named {name}", fix, code="recipe_not_found")


def _migrate(content: dict[str, Any], name: str, lines: Mapping[Place, int]) -> dict[str, Any]:
    """The content in the current schema version."""
    where = f"{name}:{lines.get(('version',), 1)}"
    if "version" not in content:
        raise UsageError(f"{where}: version is missing", f"add: version: {VERSION}", code="invalid_recipe")
    version = content["version"]
    if not isinstance(version, int) or isinstance(version, bool):
        raise UsageError(f"{where}: version is {version!r}", f"write version: {VERSION}", code="invalid_recipe")
    if version > VERSION:
        raise UsageError(
            f"{where}: this llmkit reads recipes up to version {VERSION}", "upgrade llmkit", code="invalid_recipe"
        )
    while version < VERSION:
        if version not in _MIGRATIONS:
            raise UsageError(
                f"{where}: version {version} is no longer supported",
                "start from a current one: llmkit recipes copy NAME",
                code="invalid_recipe",
            )
        content = _MIGRATIONS[version](content)
        version += 1
    return {**content, "version": VERSION}


def _beside(content: dict[str, Any], folder: Path) -> None:
    """Make paths that exist relative to the recipe's file absolute, in place."""

    def resolve(value: Any) -> Any:
        try:
            if not isinstance(value, str) or "{{" in value or "{%" in value or user_path(value).is_absolute():
                return value
        except InputError:  # the text of a template, or an error when it is opened
            return value
        near = folder / value
        matched = any(sign in value for sign in "*?[") and glob.glob(str(near), recursive=True)  # noqa: PTH207
        return str(near.resolve()) if os.path.exists(near) else str(folder.resolve() / value) if matched else value  # noqa: PTH110

    for section, key in (("model", "name_or_path"), ("tokenizer", "name_or_path"), ("tokenizer", "chat_template")):
        if isinstance(inner := content.get(section), dict) and key in inner:
            inner[key] = resolve(inner[key])
    data = content.get("data")
    for part in ("train", "validation"):
        if not isinstance(data, dict) or part not in data:
            continue
        several = data[part] if isinstance(data[part], list) else [data[part]]
        for number, source in enumerate(several):
            several[number] = resolve(source)
            if isinstance(source, dict):
                given = source.get("path")
                if given is not None:
                    source["path"] = [resolve(each) for each in given] if isinstance(given, list) else resolve(given)
                if isinstance(source.get("aligned"), dict):
                    source["aligned"] = {column: resolve(each) for column, each in source["aligned"].items()}
        data[part] = several if isinstance(data[part], list) else several[0]


_INDEX = re.compile("[0-9]{1,9}")


def _override(content: dict[str, Any], override: str) -> Place:
    """Set one key in place, and return its location."""
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        fix = "write KEY=VALUE, such as `overrides=train.learning_rate=1e-4`"
        raise UsageError(f"`overrides={override}` is not of the form KEY=VALUE", fix, code="invalid_recipe")
    value, _ = parse(text, f"`overrides={path}`")
    *parents, last = place = tuple(int(part) if _INDEX.fullmatch(part) else part for part in path.strip().split("."))
    inner: Any = content
    for depth, part in enumerate(parents):
        if isinstance(inner, dict):
            inner = inner.setdefault(str(part), {})
        elif isinstance(inner, list) and isinstance(part, int) and part < len(inner):
            inner = inner[part]
        else:
            inner = None
        if not isinstance(inner, dict | list):
            raise UsageError(
                f"`overrides={path}`: {'.'.join(map(str, place[: depth + 1]))} has no keys",
                "set its entire value",
                code="invalid_recipe_key",
            )
    if isinstance(inner, list):
        if not isinstance(last, int) or last >= len(inner):
            raise UsageError(
                f"`overrides={path}`: there is no item {last}",
                f"items are 0 to {len(inner) - 1}",
                code="invalid_recipe_key",
            )
        inner[last] = value
    else:
        inner[str(last)] = value
    return place


# What is wrong, and where.


def _first_problem(
    error: ValidationError, content: Mapping[str, Any], name: str, lines: Mapping[Place, int], changed: Sequence[Place]
) -> UsageError:
    problems = error.errors(include_url=False)
    # Report a misspelled key before the key that is missing because of it.
    problem = min(problems, key=lambda each: each["type"] not in ("extra_forbidden", "union_tag_invalid"))
    place = _place(problem["loc"], content, extra=problem["type"] in ("missing", "extra_forbidden"))
    tag = str(problem.get("ctx", {}).get("discriminator", "")).strip("'")
    # A value of a union type has one problem per type.
    problem_text, fix = _sentence(
        problem, place, [each for each in problems if _place(each["loc"], content) == place], content
    )
    # Conflicts between keys have no location except the key at the start of the message.
    named = place or tuple(problem_text.split(maxsplit=1)[0].split("."))
    where = _where((*named, *([tag] if tag else [])), name, lines, changed)
    more = len({_place(each["loc"], content) for each in problems}) - 1
    others = f" (and {more} more problem{'s' if more > 1 else ''})" if more > 0 else ""
    return UsageError(f"{where}: {problem_text}{others}", fix, code="invalid_recipe_key")


def _place(loc: Sequence[Any], content: Any, *, extra: bool = False) -> Place:
    """The part of pydantic's location that exists in the recipe, without its union tags and single-item lists."""
    place: list[str | int] = []
    inner = content
    for number, part in enumerate(loc):
        last = number == len(loc) - 1
        if isinstance(inner, Mapping) and (part in inner or (extra and last)):
            inner = inner.get(part)
        elif isinstance(inner, list) and isinstance(part, int) and part < len(inner):
            inner = inner[part]
        else:
            continue
        place.append(part)
    return tuple(place)


def _where(place: Place, name: str, lines: Mapping[Place, int], changed: Sequence[Place]) -> str:
    new = place not in lines  # the key, or a section created by an override
    for each in changed:
        if place[: len(each)] == each or (new and each[: len(place)] == place):
            return f"`overrides={'.'.join(map(str, each))}`"
    for length in range(len(place), 0, -1):
        if place[:length] in lines:
            return f"{name}:{lines[place[:length]]}"
    return name


def _sentence(problem: Any, place: Place, alike: Sequence[Any], content: Mapping[str, Any]) -> tuple[str, str]:
    """The problem and its fix, in words.

    Args:
        alike: all problems of the same value, including this one.
    """
    key, kind, context = ".".join(map(str, place)), problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {key}", _instead(str(place[-1]), place[:-1], content)
    if kind == "missing":
        return f"{key} is missing", "add it"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        name = str(context["discriminator"]).strip("'")
        choices = [choice.strip(" '") for choice in str(context.get("expected_tags", "")).split(",") if choice]
        choices = choices or list(_tags(name))
        return f"{'.'.join(filter(None, (key, name)))} is {context.get('tag', 'missing')}", _choose(
            str(context.get("tag", "")), choices
        )
    if kind == "literal_error":
        choices = [choice.strip(" '") for choice in re.split(r",| or ", str(context["expected"]))]
        return f"{key} is {_shown(problem['input'])}", _choose(str(problem["input"]), choices)
    if kind == "value_error":
        text, _, fix = str(context["error"]).partition("; ")
        return f"{key}: {text}" if key else text, fix
    if kind in _TYPES:
        wanted = [_TYPES.get(each["type"]) or str(each.get("ctx", {}).get("expected", "")) for each in alike]
        fix = _of_type(problem["input"], kind, " or ".join(filter(None, wanted)))
        required = any(
            key in section.model_fields and section.model_fields[key].is_required() for section in _sections()
        )
        return f"{key} is {_shown(problem['input'])}", fix.removesuffix(_OR_NOTHING) if required else fix
    message = str(problem["msg"])
    return f"{key} is {_shown(problem['input'])}", f"{message[:1].lower()}{message[1:]}"


_TYPES = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text in quotation marks",
    "list_type": "a list, such as [a, b]",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
}
"""Pydantic's error types, and the expected value."""
_OR_NOTHING = ", or leave it out"
_TRUE, _FALSE = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")


def _of_type(value: Any, kind: str, wanted: str) -> str:
    """The fix for a value of the wrong type: the same value in the right type, if possible."""
    text = str(value).strip().lower()
    if value is None:
        return f"write {wanted}{_OR_NOTHING}"
    if kind == "bool_type" and text in (*_TRUE, *_FALSE):
        return f"write {'true' if text in _TRUE else 'false'}, without quotation marks"
    if kind == "list_type" and isinstance(value, str) and value:
        return f"write a list: [{value}]"
    if kind in ("int_type", "int_from_float", "float_type") and not isinstance(value, bool):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if kind == "float_type" and math.isfinite(number):
            return f"write {text.replace('_', '')}, without quotation marks"
        if number.is_integer():
            return f"write {int(number)}, without quotation marks or a dot"
    return f"write {wanted}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}…"


def _choose(given: str, choices: Sequence[str]) -> str:
    near = [each for each in choices if each.lower() == given.lower()] or get_close_matches(given, choices, n=1)
    return f"{f'did you mean {near[0]}? ' if near else ''}choose from {', '.join(choices)}"


def _instead(name: str, parent: Place, content: Mapping[str, Any]) -> str:
    """The fix for an unknown key."""
    if name in RENAMED:
        return f"write {RENAMED[name]}"
    if name in REMOVED:
        return REMOVED[name]
    sections = tuple(part for part in parent if isinstance(part, str))
    here = _names(content).get(sections, set())
    if near := get_close_matches(name, here, n=1):
        return f"did you mean {near[0]}?"
    elsewhere = [".".join(path) for path, names in _names().items() if name in names and path != sections]
    if elsewhere:
        return f"it belongs to {elsewhere[0]}"
    return f"keys here are {', '.join(sorted(here))}" if here else "leave it out"


def _tags(name: str) -> Iterator[str]:
    """The values of a discriminator key."""
    found: dict[str, None] = {}
    pending = _sections()
    for section in pending:  # extended while iterating
        if name in section.model_fields:
            found |= dict.fromkeys(map(str, get_args(section.model_fields[name].annotation)))
        for field in section.model_fields.values():
            pending += _models(field.annotation)
    yield from found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections referenced by the annotation of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _sections(content: Mapping[str, Any] | None = None) -> list[type[BaseModel]]:
    return list(_models(recipe_adapter(content)._type))  # noqa: SLF001 - the union it was made of


def _names(content: Mapping[str, Any] | None = None) -> dict[tuple[str, ...], set[str]]:
    """The keys of each section by its path, in any recipe or with the PEFT method named in ``content``."""
    pending: list[tuple[tuple[str, ...], type[BaseModel]]] = [((), section) for section in _sections(content)]
    seen: dict[tuple[str, ...], set[str]] = {}
    while pending:
        path, section = pending.pop(0)
        seen.setdefault(path, set()).update(section.model_fields)
        for name, field in section.model_fields.items():
            pending += [((*path, name), inner) for inner in _models(field.annotation)]
    return seen


# Output.


def resolved_yaml(recipe: Recipe) -> str:
    """The complete recipe as YAML, including defaults; `load_recipe` can load it again."""
    return dump(recipe.model_dump(mode="json"))


def json_schema() -> dict[str, Any]:
    """The JSON schema of recipes, for editors (``# yaml-language-server: $schema=…``)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llmkit recipe",
        **recipe_adapter().json_schema(),
    }
