"""Structured output: the schemas of tests/schemas.py with the starter, and what compiling difficult grammars takes.

    python -m benchmarks.structured >> benchmarks/serving.md

Prints two tables. Times are CPU time of the thread that compiles, so that other programs do not count.
"""

from __future__ import annotations

import random
import subprocess
import time
from typing import Any

import llmkit
from llmkit.config.settings import GenerationSettings
from llmkit.errors import UsageError
from llmkit.inference.pipeline import Pipeline
from tests.schemas import REFUSED, SCHEMAS, restricted, validate

PROMPT = "Give an example in JSON."


def words(count: int, first: int, last: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(chr(draw.randint(first, last)) for _ in range(draw.randint(3, 9))) for _ in range(count)]


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def many(count: int, about: str) -> Any:
    one = {"type": "object", "description": about, "properties": {"a": {"type": "string"}}, "required": ["a"]}
    return {"type": "object", "properties": {f"property_{number}": one for number in range(count)}}


DIFFICULT: dict[str, dict[str, Any]] = {
    "enum of 20,000 words": {"json_schema": {"enum": words(20_000, 97, 122)}},
    "enum of 20,000 Chinese words": {"json_schema": {"enum": words(20_000, 0x4E00, 0x9FA5)}},
    "choice of 20,000": {"choice": tuple(words(20_000, 97, 122))},
    "nested 50 times": {"json_schema": nested(50)},
    "nested 300 times": {"json_schema": nested(300)},
    "1 MB, 300 properties": {"json_schema": many(300, "x" * 3300)},
    "1 MB, 8,000 properties": {"json_schema": many(8000, "")},
    "minItems 1,000,000,000": {"json_schema": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}},
    "`(a?){5000}`": {"regex": "(a?){5000}"},
    "`(a?){5000}a{5000}`": {"regex": "(a?){5000}a{5000}"},
    "`((a{100}){100}){100}`": {"regex": "((a{100}){100}){100}"},
    "`(x+x+)+y`": {"regex": "(x+x+)+y"},
    "`[ab]*a[ab]{20}`": {"regex": "[ab]*a[ab]{20}"},
    "regex of 1 MB": {"regex": "ab" * 500_000},
}


def compile_difficult(pipeline: Pipeline) -> None:
    pipeline.engine.check(GenerationSettings(regex="a"))  # prepares the tokenizer
    print("| grammar | s | |\n|---|---|---|")
    for name, settings in DIFFICULT.items():
        begun, result = time.thread_time(), "compiled"
        try:
            pipeline.engine.check(GenerationSettings(**settings))
        except UsageError as error:
            result = f"refused: {error.problem[:100]}"
        print(f"| {name} | {time.thread_time() - begun:.2f} | {result} |")


def generate(pipeline: Pipeline) -> None:
    outputs = list(restricted(pipeline, SCHEMAS, PROMPT))
    print("\n| schema | tokens | ended | output |\n|---|---|---|---|")
    for name, output in outputs:
        ended = "at max_new_tokens"
        if output.finish_reason == "stop":
            validate(output.text, SCHEMAS[name])
            ended = "valid"
        text = output.text.replace("|", "\\|").replace("`", "'").replace("\n", " ")
        print(f"| {name} | {output.usage.completion_tokens} | {ended} | `{text[:60]}` |")
    finished = sum(output.finish_reason == "stop" for _, output in outputs)
    print(
        f"\n{finished} of {len(outputs)} outputs ended, all of them valid; {len(REFUSED)} further schemas are refused."
    )


def main() -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    print(f"## Structured output\n\nCommit {commit.stdout.strip()}, `python -m benchmarks.structured`, on a CPU.\n")
    pipeline = llmkit.load("generate", "starter", device="cpu", max_new_tokens=96, temperature=0)
    compile_difficult(pipeline)
    generate(pipeline)


if __name__ == "__main__":
    main()
