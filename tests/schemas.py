"""JSON Schemas as people send them to models: keywords in use, and the kinds that were reported to other servers.

`SCHEMAS` can be enforced. `REFUSED` cannot; each has a word of the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Annotated, Any, Literal

from jsonschema import validators
from pydantic import BaseModel, Field

from llmkit.config.settings import GenerationSettings
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.scheduler import Scheduler
from llmkit.tasks import PromptOptions
from llmkit.tasks.output import Output

__all__ = ["REFUSED", "SCHEMAS", "restricted", "validate"]


def validate(text: str, schema: Mapping[str, Any]) -> None:
    """Check an output with the package jsonschema, formats included."""
    kind = validators.validator_for(schema)
    kind(schema, format_checker=kind.FORMAT_CHECKER).validate(json.loads(text))


def restricted(
    pipeline: Pipeline, schemas: Mapping[str, Any], prompt: str, **settings: Any
) -> Iterator[tuple[str, Output]]:
    """The output of a prompt for each schema, all in one batch, as a server generates them."""
    settings = {name: getattr(pipeline.settings, name) for name in ("max_new_tokens", "temperature")} | settings
    pipelines = [
        Pipeline(pipeline.task, pipeline.engine, GenerationSettings(json_schema=schema, **settings), PromptOptions())
        for schema in schemas.values()
    ]
    scheduler = Scheduler(pipeline.engine.session(rows=64, interrupted=lambda: False), own_settings=True)
    jobs = [each.start(prompt) for each in pipelines]
    for job in jobs:
        scheduler.add(job)
    while scheduler.busy:
        scheduler.step()
    for name, one, job in zip(schemas, pipelines, jobs, strict=True):
        output = one.result(job)
        if not isinstance(output, Output):
            raise output
        yield name, output


class _Address(BaseModel):
    street: Annotated[str, Field(max_length=20)]
    postcode: Annotated[str, Field(pattern=r"^\d{5}$")]


class _Mood(Enum):
    GOOD = "好"
    BAD = "坏"


class _Person(BaseModel):
    name: Annotated[str, Field(min_length=1, max_length=12)]
    age: Annotated[int, Field(ge=0, le=130)]
    mood: _Mood
    address: _Address | None
    tags: Annotated[list[Annotated[str, Field(max_length=8)]], Field(max_length=2)] = []


class _Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class _Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


class _Pets(BaseModel):
    pet: Annotated[_Cat | _Dog, Field(discriminator="kind")]


class _Node(BaseModel):
    value: bool
    children: Annotated[list[_Node], Field(max_length=1)]


def _text(most: int = 8, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": most, **more}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    names = list(required or properties)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _array(items: Any, most: int = 3, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": most, **more}


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(depth):
        schema = _object(a=schema)
    return schema


SCHEMAS: dict[str, dict[str, Any]] = {
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "integer in bounds": {"type": "integer", "minimum": -7, "maximum": 12},
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
    "number in bounds": {"type": "number", "minimum": 0, "maximum": 1},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 1000},
    "draft 4 bounds": {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 0,
                       "maximum": 2, "exclusiveMinimum": True},
    "string of limited length": _text(5, minLength=2),
    "pattern": {"type": "string", "pattern": r"^[A-Z]{2}-\d{3}$"},
    "pattern and length (vllm 45592)": _array({"type": "string", "pattern": "^[ -~]+$", "maxLength": 8}, 2),
    "pattern without anchors (llama.cpp 22314)": _object(s={"type": "string", "pattern": r"\d\S", "maxLength": 6}),
    "pattern of many states (sglang 40373)": {"type": "string", "pattern": "^[ab]*a[ab]{6}$", "maxLength": 12},
    "date": {"type": "string", "format": "date"},
    "date-time": {"type": "string", "format": "date-time"},
    "time": {"type": "string", "format": "time"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "email": {"type": "string", "format": "email", "maxLength": 30},
    "enum": {"enum": ["red", "green", "blue"]},
    "enum in Chinese": {"enum": ["晴天", "雨天", "下雪"]},
    "enum of several types": {"enum": ["a", 1, 2.5, None, True, {"x": [1]}, []]},
    "enum of emoji and quotes": {"enum": ['a "b"', "🙂", "line\nbreak", "back\\slash"]},
    "enum cut by length": {"enum": ["a", "bbb"], "maxLength": 2},
    "const": {"const": {"version": 1, "名": ["x", None]}},
    "object": _object(name=_text(), age={"type": "integer", "minimum": 0, "maximum": 99}),
    "object without properties (llama.cpp 25923)": {"type": "object", "properties": {}, "additionalProperties": False},
    "object with optional properties": _object("b", a=_text(), b={"type": "boolean"}, c={"type": "null"}),
    "object with typed further properties": {"type": "object", "additionalProperties": {"type": "boolean"},
                                             "maxProperties": 2},
    "pattern properties (outlines-core 148)": {"type": "object", "patternProperties": {"^(yes|no)$": _text(4)},
                                               "additionalProperties": False, "maxProperties": 2},
    "least properties": {**_object("a", a={"type": "null"}, b={"type": "null"}), "minProperties": 2},
    "unicode names": _object(**{"名前": _text(3), "a \"b\" 🙂": {"type": "boolean"}, "": {"type": "null"}}),
    "nested objects": _object(a=_object(b=_object(c=_object(d={"type": "integer", "minimum": 0, "maximum": 9})))),
    "nested deeply": _nested(30),
    "array of limited length": _array({"type": "integer", "minimum": 0, "maximum": 9}, 3, minItems=2),
    "array of objects (vllm 16880)": _array(_object(name={"enum": ["f", "g"]}, x=_text(3)), 2, minItems=1),
    "array of 10 to 1000 (llama.cpp 6555)": _array({"type": "integer", "minimum": 0, "maximum": 9}, 1000, minItems=10),
    "array of arrays": _array(_array({"type": "boolean"}, 2, minItems=1), 2, minItems=1),
    "tuple": {"type": "array", "prefixItems": [{"type": "integer", "minimum": 0, "maximum": 9}, _text(4)],
              "items": False, "minItems": 2},
    "tuple of draft 7": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "minItems": 2,
                         "items": [{"type": "null"}, {"type": "boolean"}], "additionalItems": False},
    "nullable": _object(a={"type": ["string", "null"], "maxLength": 4}, b={"type": ["integer", "null"], "minimum": 0,
                                                                         "maximum": 5}),
    "anyOf": {"anyOf": [{"type": "boolean"}, _array({"type": "null"}, 2)]},
    "anyOf beside properties": {**_object("k", k={"enum": ["x", "y"]}, a={"type": "null"}, b={"type": "null"}),
                                "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 40}]},
    "allOf of references": {"$defs": {"p": _object(a={"type": "boolean"})}, "allOf": [{"$ref": "#/$defs/p"}]},
    "oneOf of two types": {"oneOf": [{"type": "boolean"}, _text(3)]},
    "anyOf number and reference (xgrammar 192)": {
        "$defs": {"place": _array({"type": "integer", "minimum": 0, "maximum": 1000}, 2, minItems=2)},
        **_object(point={"anyOf": [{"type": "integer", "minimum": 0, "maximum": 500}, {"$ref": "#/$defs/place"}]}),
    },
    "recursion": {"$defs": {"n": _object("v", v={"type": "boolean"}, next={"$ref": "#/$defs/n"})},
                  "$ref": "#/$defs/n"},
    "anything": {"maxLength": 6, "type": ["string", "boolean", "null"]},
    "true as a property": _object(a={"enum": [1]}, b={"anyOf": [False, {"type": "null"}]}),
    "pydantic": _Person.model_json_schema(),
    "pydantic with a discriminator": _Pets.model_json_schema(),
    "pydantic with recursion": _Node.model_json_schema(),
    "annotations only": {"title": "T", "description": "d", "default": "x", "examples": ["y"], "deprecated": True,
                         "readOnly": True, "$comment": "c", "type": "boolean"},
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unique items": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "negation": ({"not": {"type": "string"}}, "not"),
    "condition": ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if"),
    "contains": ({"type": "array", "contains": {"type": "null"}}, "contains"),
    "names of properties": ({"type": "object", "propertyNames": {"pattern": "^a"}}, "propertyNames"),
    "dependencies": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    "unevaluated": ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    "overlapping oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    "oneOf by reference": (
        {"$defs": {"a": {"type": "string"}}, "oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}, "oneOf",
    ),
    "unknown format": ({"type": "string", "format": "phone"}, "phone"),
    "look-ahead": ({"type": "string", "pattern": "^(?=a)b"}, "look-around"),
    "elsewhere": ({"$ref": "https://example.com/schema.json"}, "example.com"),
    "no such definition": ({"$ref": "#/$defs/x"}, "x"),
    "unknown type": ({"type": "strin"}, "strin"),
    "wrong value of a keyword": ({"type": "object", "required": "a"}, "required"),
    "nothing conforms": ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    "itself": ({"$ref": "#"}, "no first token"),
    "leniency asked for by the schema": ({"x-guidance": {"lenient": True}, "uniqueItems": True}, "uniqueItems"),
    "oneOf loosened by the schema": (
        {"x-guidance": {"coerce_one_of": True}, "oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf",
    ),
    "repeated names": ({"type": "object", "minProperties": 2}, "minProperties"),
    "nested 300 times": (_nested(300), "recursion limit"),
    "enormous multiple": ({"type": "integer", "multipleOf": 99_999_989}, "multipleOf"),
    "many combinations": (
        {"allOf": [{"anyOf": [_object(**{f"p{n}": {"type": "null"}}), _object(**{f"q{n}": {"type": "null"}})]}
                   for n in range(12)]}, "schema too large",
    ),
}  # fmt: skip
