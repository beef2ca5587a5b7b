"""Giving a result to the Hub, by the Hub's own client."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from llmkit.config.paths import without_folders
from llmkit.errors import LlmkitError, UsageError
from llmkit.log import warn
from llmkit.models.reachability import is_offline
from llmkit.models.source import ADAPTER_CONFIG, read_json
from llmkit.training.accelerator import TRACKERS
from llmkit.training.provenance import RESOLVED, published_recipe

__all__ = ["push", "reserve"]

T = TypeVar("T")

_LEFT_HERE = ["checkpoint-*", "checkpoint-*/**", ".*", ".*/**", f"{TRACKERS}/**"]
"""What only a run that goes on needs, and what trackers wrote for themselves."""


def reserve(repo: str, *, private: bool | None) -> str:
    """The full name of a repository that is there now, made if need be; asked before hours of training.

    Raises:
        UsageError: the Hub is not to be reached for.
        LlmkitError: it refused.
    """
    if is_offline():
        raise UsageError(
            "nothing can be pushed to the Hub offline", "leave `push_to_hub` or `offline` out", code="offline"
        )
    return _ask(lambda hub: str(hub.create_repo(repo, private=private, exist_ok=True).repo_id), repo)


def push(folder: Path, repo: str, *, private: bool | None = None) -> str:
    """Upload a result, without its checkpoints and the folders of this machine. Returns the address of the commit.

    Raises:
        UsageError: the folder holds no model, or the Hub is not to be reached for.
        LlmkitError: it refused.
    """
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise UsageError(
            f"{folder} holds no model", "give the folder that llmkit finetune or merge wrote", code="model_not_found"
        )
    name = reserve(repo, private=private)
    with TemporaryDirectory(prefix="llmkit-push-") as staging:
        _stage(folder, Path(staging))
        done = _ask(
            lambda hub: hub.upload_folder(
                repo_id=name, folder_path=staging, ignore_patterns=_LEFT_HERE, commit_message="Upload by llmkit"
            ),
            name,
        )
    return str(done.commit_url)


def _stage(folder: Path, staging: Path) -> None:
    """What is uploaded: links to the files, and copies of those that name folders of this machine."""
    from huggingface_hub.utils._paths import filter_repo_objects

    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    kept = list(filter_repo_objects(names, ignore_patterns=_LEFT_HERE))
    places = dict(place for name in kept if name.endswith(".json") for place in _places(_read_any(folder / name)))
    for name in kept:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        _put(folder / name, staging / name, places)
    if ADAPTER_CONFIG in kept and str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")) in places:
        warn("local_base", "the base model of %s is a folder here: whoever loads it names the base with `base`", folder)


def _read_any(file: Path) -> Any:
    """The JSON of a file, None if it is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None


def _places(value: Any) -> Iterator[tuple[str, str]]:
    """The folders and files of this machine that settings name, with what they are called elsewhere.

    Not in lists, which hold the words of a vocabulary.
    """
    for each in value.values() if isinstance(value, dict) else ():
        if isinstance(each, str) and (name := without_folders(each)) != each:
            yield each, name
        yield from _places(each)


def _put(file: Path, target: Path, places: dict[str, str]) -> None:
    if file.name == RESOLVED:
        target.write_text(published_recipe(file.read_text(encoding="utf-8")), encoding="utf-8")
    elif places and file.suffix in (".json", ".md"):
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
        for place, name in sorted(places.items(), key=lambda item: -len(item[0])):
            text = text.replace(json.dumps(place), json.dumps(name)).replace(place, name)
        target.write_text(text, encoding="utf-8", errors="surrogateescape")
    else:
        try:
            target.symlink_to(file.absolute())
        except OSError:  # Windows allows it to few
            shutil.copyfile(file, target)


def _ask(question: Callable[[Any], T], repo: str) -> T:
    from huggingface_hub import HfApi

    try:
        return question(HfApi())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LlmkitError(
            f"the Hub did not take {repo} ({reason})",
            "log in with: hf auth login, or check the name and your rights",
            code="upload_failed",
        ) from error
