"""Rows from a small file (few-shot examples): JSON Lines, JSON, CSV or TSV, chosen by suffix.

Names file and line in every error. Reads the whole file; large inputs are not its job.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from llmkit.data.text import read_text_file
from llmkit.errors import InputError

__all__ = ["read_rows"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a file, as mappings from column to value."""
    text = read_text_file(path)
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            rows = _json_lines(path, text)
        case ".json":
            rows = _json(path, text)
        case ".csv":
            rows = _table(path, text, ",")
        case ".tsv":
            rows = _table(path, text, "\t")
        case suffix:
            raise InputError(f"{path} has the suffix {suffix or '(none)'}", "give .jsonl, .json, .csv or .tsv")
    if not rows:
        raise InputError(f"{path} holds no rows", "add at least one")
    return rows


def _json_lines(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    # Not splitlines(): U+2028 and its like are legal inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number} is not JSON ({error.msg})", "mend the line") from error
            rows.append(_mapping(row, f"{path}:{number}"))
    return rows


def _json(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno} is not JSON ({error.msg})", "mend the line") from error
    if not isinstance(content, list):
        raise InputError(f"{path} does not hold a list", "give a JSON list of objects, or JSON Lines as .jsonl")
    return [_mapping(row, f"{path}, item {number}") for number, row in enumerate(content, start=1)]


def _mapping(row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{where} is not an object", 'write rows as {"column": "value"}')
    return row


def _table(path: Path, text: str, delimiter: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, Any]] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{path}:{reader.line_num} does not have the {len(reader.fieldnames or ())} columns of the header",
                    "quote fields that contain the separator",
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num} cannot be read ({error})", "mend the line") from error
    return rows
