"""Uploading results to the Hub, with the Hub's own client."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from llmkit.config.paths import without_folders
from llmkit.errors import LlmkitError, UsageError
from llmkit.files import in_units, read_json
from llmkit.hub.reachability import is_offline
from llmkit.log import warn
from llmkit.models.source import ADAPTER_CONFIG
from llmkit.reporting.records import DATA, PAGE
from llmkit.training.accelerator import TRACKERS
from llmkit.training.checkpoint import STATE_FILES
from llmkit.training.provenance import RESOLVED, SHORT_RECIPE, published_recipe

__all__ = ["Upload", "plan_upload", "push", "reserve"]

T = TypeVar("T")

_LARGEST_FILE = 50_000_000_000
"""Bytes; the Hub's limit, for which it recommends shards."""
_NOT_PUSHED = [
    *("checkpoint-*", "checkpoint-*/**", ".*", ".*/**", f"{TRACKERS}/**", SHORT_RECIPE, *STATE_FILES),
    *(DATA, PAGE),
]
"""Files that only resuming needs, trackers' own files, the short recipe, which names local folders, and the report with
its rows of the data."""


def reserve(repo: str, *, private: bool | None) -> str:
    """Create a repository if it does not exist, before hours of training; returns its full name.

    Raises:
        UsageError: offline mode is on.
        LlmkitError: the Hub refused.
    """
    if is_offline():
        raise UsageError(
            "nothing can be pushed to the Hub offline",
            "leave `push_to_hub` or `offline` out",
            "unset HF_HUB_OFFLINE",
            code="offline",
        )
    return _ask(lambda hub: str(hub.create_repo(repo, private=private, exist_ok=True).repo_id), repo)


@dataclass(frozen=True)
class Upload:
    """What `push` uploads, or would upload."""

    repo: str
    files: dict[str, int]
    """Sizes in bytes by name."""
    left_out: tuple[str, ...]
    """Files of the folder that are not uploaded."""
    problems: tuple[str, ...] = ()
    """Why the Hub would refuse it, as far as that is known without the network."""
    url: str | None = None
    """Of the commit; None before the upload."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, as printed by ``--json``."""
        return asdict(self)


def push(folder: Path, repo: str, *, private: bool | None = None) -> Upload:
    """Upload a result, without its checkpoints and local paths.

    Raises:
        UsageError: the folder contains no model, or the network is disabled.
        LlmkitError: the Hub refused.
    """
    _check_model(folder)
    name = reserve(repo, private=private)
    with TemporaryDirectory(prefix="llmkit-push-") as staging:
        _stage(folder, Path(staging))
        done = _ask(
            lambda hub: hub.upload_folder(
                repo_id=name, folder_path=staging, ignore_patterns=_NOT_PUSHED, commit_message="Upload by llmkit"
            ),
            name,
        )
        return replace(_planned(folder, name, Path(staging)), url=str(done.commit_url))


def plan_upload(folder: Path, repo: str) -> Upload:
    """What `push` would upload, without using the network.

    Raises:
        UsageError: the folder contains no model.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    _check_model(folder)
    problems = []
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        problems.append(" ".join(str(error).split()))
    if get_token() is None:
        problems.append("not logged in; run: hf auth login")
    with TemporaryDirectory(prefix="llmkit-push-") as staging:
        _stage(folder, Path(staging))
        plan = _planned(folder, repo, Path(staging))
    problems += [
        f"{name} has {in_units(size)}, more than the {in_units(_LARGEST_FILE)} of a file"
        for name, size in plan.files.items()
        if size > _LARGEST_FILE
    ]
    return replace(plan, problems=tuple(problems))


def _check_model(folder: Path) -> None:
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise UsageError(
            f"{folder} contains no model",
            "name a folder that llmkit finetune or llmkit merge wrote",
            code="model_not_found",
        )


def _planned(folder: Path, repo: str, staging: Path) -> Upload:
    files = {
        path.relative_to(staging).as_posix(): path.stat().st_size
        for path in sorted(staging.rglob("*"))
        if path.is_file()
    }
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return Upload(repo, files, tuple(name for name in names if name not in files))


def _stage(folder: Path, staging: Path) -> None:
    """Stage the upload: links to files, and edited copies of files that contain local paths."""
    from huggingface_hub.utils._paths import filter_repo_objects

    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    kept = list(filter_repo_objects(names, ignore_patterns=_NOT_PUSHED))
    places = dict(place for name in kept if name.endswith(".json") for place in _places(_read_any(folder / name)))
    for name in kept:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        _put(folder / name, staging / name, places)
    if ADAPTER_CONFIG in kept and str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")) in places:
        warn("local_base", "the base model of %s is a local folder; to load it elsewhere, name a base model", folder)


def _read_any(file: Path) -> Any:
    """The JSON content of a file; None if it is not JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None


def _places(value: Any) -> Iterator[tuple[str, str]]:
    """The local paths in settings, each with its published name.

    Not in lists, which contain the tokens of a vocabulary.
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
        except OSError:  # not permitted on Windows for most users
            shutil.copyfile(file, target)


def _ask(question: Callable[[Any], T], repo: str) -> T:
    from huggingface_hub import HfApi

    try:
        return question(HfApi())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LlmkitError(
            f"upload to {repo} failed ({reason})",
            "log in with: hf auth login, or check the name and your rights",
            code="upload_failed",
        ) from error
