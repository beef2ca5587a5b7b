"""The mistakes in a recipe, with file and line: what is wrong, and what to write instead.

All mistakes are found at once: after a validation by the schema (`llmkit.config.recipe`), wrong keys are left out of a
copy, which is validated again, so that conflicts between the other keys are found too.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llmkit.config.key_names import REMOVED, RENAMED
from llmkit.config.peft_methods import peft_methods
from llmkit.config.recipe import ConflictError, recipe_adapter
from llmkit.config.yaml12 import Place
from llmkit.errors import InvalidRecipeError, UsageError
from llmkit.tasks import TASKS

__all__ = ["keys_by_section", "recipe_error", "recipe_place"]

_WIDTH = 100
"""Maximum length of a wrong value in a message, in characters."""
_ROUNDS = 5
"""Maximum number of validations; each finds mistakes that those before it hid."""
_PLACEHOLDERS: dict[Place, Any] = {
    ("model",): {"name_or_path": "x"},
    ("data",): {"train": "x"},
    ("data", "train"): "x",
    ("train",): {"output_dir": "x"},
    ("train", "output_dir"): "x",
}
"""Values for required keys, so that the others can be validated."""


@dataclass(frozen=True)
class _Mistake:
    place: Place
    """Of the key; for conflicts, of the first key that the message names."""
    text: str
    fix: str
    may_follow: bool = False
    """Whether a misspelled key can be the cause: a missing key, or a conflict."""

    def names(self) -> set[str]:
        """Its key, and the words of its text that may be keys."""
        return {str(self.place[-1])} | set(re.findall(r"\w+", self.text)) - {"model", "data", "train"}


def recipe_error(
    error: ValidationError, content: Mapping[str, Any], name: str, lines: Mapping[Place, int], changed: Sequence[Place]
) -> UsageError:
    """The error for all mistakes in a recipe, in the order of its lines.

    Args:
        error: of the first validation.
        name: the recipe's name in messages.
        lines: the line of each key in its file.
        changed: keys set by overrides.
    """
    found = _all_mistakes(error, content)
    # A key that is missing because it is misspelled is one mistake.
    unknown = [each.fix for each in found if each.text.startswith("unknown key")]
    meant = {name.rpartition(".")[2] for fix in unknown for name in re.findall(r"(?:write|did you mean) ([\w.]+)", fix)}
    found = [each for each in found if not (each.may_follow and each.names() & meant)]
    found.sort(key=lambda each: (_line(each.place, lines, changed), each.may_follow))
    errors = [
        UsageError(f"{_where(each.place, name, lines, changed)}: {each.text}", each.fix, code="invalid_recipe_key")
        for each in found
    ]
    return errors[0] if len(errors) == 1 else InvalidRecipeError.of(errors)


def _line(place: Place, lines: Mapping[Place, int], changed: Sequence[Place]) -> float:
    if place in changed:
        return math.inf
    return next((lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in lines), math.inf)


def _all_mistakes(error: ValidationError, content: Mapping[str, Any]) -> list[_Mistake]:
    found: list[_Mistake] = []
    tried: dict[str, Any] = copy.deepcopy(dict(content))
    replaced: set[Place] = set()
    for _ in range(_ROUNDS):
        groups = _grouped(error, tried)
        for place, problems in groups:
            found += (each for each in _mistakes_of(place, problems, tried) if not _follows(each, replaced, found))
        before = copy.deepcopy(tried)
        for place, problems in groups:
            _leave_out(tried, place, problems[0])
            replaced.add(place)
        if tried == before:
            break
        try:
            recipe_adapter(tried).validate_python(tried)
            break
        except ValidationError as again:
            error = again
    return found


def _grouped(error: ValidationError, content: Mapping[str, Any]) -> list[tuple[Place, list[Any]]]:
    """The problems of each key. A value of a union type has one problem per type."""
    groups: dict[Place, list[Any]] = {}
    for problem in error.errors(include_url=False):
        place = recipe_place(problem["loc"], content, extra=problem["type"] in ("missing", "extra_forbidden"))
        if problem["type"].startswith("union_tag"):
            place = (*place, str(problem["ctx"]["discriminator"]).strip("'"))
        groups.setdefault(place, []).append(problem)
    return list(groups.items())


def _mistakes_of(place: Place, problems: Sequence[Any], content: Mapping[str, Any]) -> Iterator[_Mistake]:
    problem = problems[0]
    cause = problem.get("ctx", {}).get("error")
    if problem["type"] == "value_error" and isinstance(cause, ConflictError):
        for message in cause.messages:
            text, _, fix = message.partition("; ")
            key = ".".join(map(str, place))
            # In a section, the message starts with its key; in the recipe, with the complete path.
            first = tuple(text.split(maxsplit=1)[0].rstrip(":,").split("."))
            yield _Mistake((*place, *first), f"{key}: {text}" if key else text, fix, may_follow=True)
        return
    text, fix = _sentence(problem, place, problems, content)
    yield _Mistake(place, text, fix, may_follow=problem["type"] == "missing")


def _follows(mistake: _Mistake, replaced: set[Place], found: Sequence[_Mistake]) -> bool:
    """Whether a mistake was found before, or follows from a value that was left out."""
    if mistake.place in replaced or mistake in found:
        return True
    names = {str(place[-1]) for place in replaced if place}
    return any(re.search(rf"\b{re.escape(name)}\b", f"{mistake.text} {mistake.fix}") for name in names)


def _leave_out(content: dict[str, Any], place: Place, problem: Any) -> None:
    """Remove a wrong key in place, or replace it if it is required."""
    if problem["type"].startswith("union_tag"):
        if place == ("task",):
            content["task"] = next(iter(TASKS))
            content.pop("settings", None)
        else:
            content.pop(str(place[0]), None)
        return
    if not place:
        return
    section, depth = content, 1
    while depth < len(place) and isinstance(inner := section.get(str(place[depth - 1])), dict):
        section, depth = inner, depth + 1
    section.pop(str(place[depth - 1]), None)  # all of a list
    if place[:depth] in _PLACEHOLDERS:
        section[str(place[depth - 1])] = copy.deepcopy(_PLACEHOLDERS[place[:depth]])


def recipe_place(loc: Sequence[Any], content: Any, *, extra: bool = False) -> Place:
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
        return f"unknown key {key}", _instead(str(place[-1]), place[:-1], problem["input"], content)
    if kind == "missing":
        return f"{key} is missing", "add it"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        choices = [choice.strip(" '") for choice in str(context.get("expected_tags", "")).split(",") if choice]
        choices = choices or list(_tags(str(place[-1])))
        return f"{key} is {context.get('tag', 'missing')}", _choose(str(context.get("tag", "")), choices)
    if kind == "literal_error":
        choices = [choice.strip(" '") for choice in re.split(r",| or ", str(context["expected"]))]
        return f"{key} is {_shown(problem['input'])}", _choose(str(problem["input"]), choices)
    if kind == "value_error":
        text, _, fix = str(context["error"]).partition("; ")
        return f"{key}: {text}" if key else text, fix
    if kind in _TYPES and (fix := _shorthand(place, problem["input"])):
        return f"{key} is {_shown(problem['input'])}", fix
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
    near = [each for each in choices if each.lower() == given.lower()]
    near = (
        near or [each for each in choices if given and each.startswith(given)] or get_close_matches(given, choices, n=1)
    )
    return f"{f'did you mean {near[0]}? ' if near else ''}choose from {', '.join(choices)}"


def _instead(name: str, parent: Place, value: Any, content: Mapping[str, Any]) -> str:
    """The fix for an unknown key."""
    sections = tuple(part for part in parent if isinstance(part, str))
    if new := RENAMED.get(".".join((*sections, name)), RENAMED.get(name)):
        is_key = re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", new) and isinstance(value, str | int | float)
        return f"write {new}: {value}" if is_key and value != "" else f"write {new}"
    if name in REMOVED:
        return REMOVED[name]
    here = keys_by_section(content).get(sections, set())
    if near := get_close_matches(name, here, n=1):
        return f"did you mean {near[0]}?"
    elsewhere = [".".join(path) for path, names in keys_by_section().items() if name in names and path != sections]
    if elsewhere:
        return f"it belongs to {elsewhere[0]}"
    return f"keys here are {', '.join(sorted(here))}" if here else "leave it out"


def _shorthand(place: Place, value: Any) -> str:
    """The fix for a section that was given as one value, such as ``model: starter``; empty for other values."""
    if not isinstance(value, str) or not value:
        return ""
    match place:
        case ("adapter",) if value.lower() in ("none", "null", "full", "false", "no"):
            return "leave the section adapter out, to train all weights"
        case ("adapter",) if value.lower() == "qlora":
            return "write adapter: {peft_type: LORA} and model.quantize: 4bit"
        case ("adapter",):
            near = get_close_matches(value.upper(), peft_methods(), n=1) or ["LORA"]
            return f"write adapter: {{peft_type: {near[0]}}}"
        case ("model",):
            return f"write model: {{name_or_path: {value}}}"
        case ("data",):
            return f"write data: {{train: {value}}}"
        case ("train",):
            return f"write train: {{output_dir: {value}}}; training rows are data.train"
    return ""


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


def keys_by_section(content: Mapping[str, Any] | None = None) -> dict[tuple[str, ...], set[str]]:
    """The keys of each section by its path, in any recipe or with the PEFT method named in ``content``."""
    pending: list[tuple[tuple[str, ...], type[BaseModel]]] = [((), section) for section in _sections(content)]
    seen: dict[tuple[str, ...], set[str]] = {}
    while pending:
        path, section = pending.pop(0)
        seen.setdefault(path, set()).update(section.model_fields)
        for name, field in section.model_fields.items():
            pending += [((*path, name), inner) for inner in _models(field.annotation)]
    return seen
