"""The local paths in a recipe: relative to its file when it is loaded, and when it is written."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmkit.config.declaration import file_settings
from llmkit.config.paths import user_path
from llmkit.errors import InputError
from llmkit.tasks import PromptOptions

__all__ = ["relative_paths", "resolve_paths"]


def resolve_paths(content: dict[str, Any], folder: Path) -> None:
    """Make paths that exist relative to a folder absolute, in place; others are relative to the working directory."""

    def resolve(value: Any) -> Any:
        try:
            if not isinstance(value, str) or "{{" in value or "{%" in value or user_path(value).is_absolute():
                return value
        except InputError:  # the text of a template, or an error when it is opened
            return value
        near = folder / value
        matched = any(sign in value for sign in "*?[") and glob.glob(str(near), recursive=True)  # noqa: PTH207
        return str(near.resolve()) if os.path.exists(near) else str(folder.resolve() / value) if matched else value  # noqa: PTH110

    _replace_paths(content, resolve)


def relative_paths(content: dict[str, Any], folder: Path) -> None:
    """Make absolute paths relative to a folder, in place, so that `resolve_paths` finds them again."""

    def relative(value: Any) -> Any:
        if not isinstance(value, str) or not os.path.isabs(value):  # noqa: PTH117 - a template may be too long for a path
            return value
        try:
            return Path(os.path.relpath(value, folder.resolve())).as_posix()
        except ValueError:  # another drive
            return value

    _replace_paths(content, relative)


def _replace_paths(content: dict[str, Any], replace: Callable[[Any], Any]) -> None:
    prompt = [("prompt", name) for name in file_settings(PromptOptions)]
    tokenizer = [("tokenizer", name) for name in ("name_or_path", "add_tokens", "chat_template")]
    models = [("model", "name_or_path"), ("teacher", "name_or_path"), ("train", "resume_from_checkpoint")]
    for section, key in (*models, *tokenizer, *prompt):
        if isinstance(inner := content.get(section), dict) and key in inner:
            inner[key] = replace(inner[key])
    data = content.get("data")
    for part in ("train", "validation"):
        if not isinstance(data, dict) or part not in data:
            continue
        several = data[part] if isinstance(data[part], list) else [data[part]]
        for number, source in enumerate(several):
            several[number] = replace(source)
            if isinstance(source, dict):
                path = source.get("path")
                if path is not None:
                    source["path"] = [replace(each) for each in path] if isinstance(path, list) else replace(path)
                if isinstance(source.get("aligned"), dict):
                    source["aligned"] = {column: replace(each) for column, each in source["aligned"].items()}
        data[part] = several if isinstance(data[part], list) else several[0]
