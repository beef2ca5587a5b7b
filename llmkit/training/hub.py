"""Giving a result to the Hub, by the Hub's own client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from llmkit.errors import LlmkitError, UsageError
from llmkit.models.reach import is_offline

__all__ = ["push", "reserve"]

T = TypeVar("T")

_LEFT_HERE = ["checkpoint-*", "checkpoint-*/**", ".*", ".*/**"]
"""What only a run that goes on needs."""


def reserve(repo: str, *, private: bool | None) -> str:
    """The full name of a repository that is there now, made if need be; asked before hours of training.

    Raises:
        UsageError: the Hub is not to be reached for.
        LlmkitError: it refused.
    """
    if is_offline():
        raise UsageError("nothing can be pushed to the Hub offline", "leave --push-to-hub or --offline out")
    return _ask(lambda hub: str(hub.create_repo(repo, private=private, exist_ok=True).repo_id), repo)


def push(folder: Path, repo: str, *, private: bool | None = None) -> str:
    """Upload a result, without its checkpoints. Returns the address of the commit.

    Raises:
        UsageError: the folder holds no model, or the Hub is not to be reached for.
        LlmkitError: it refused.
    """
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UsageError(f"{folder} holds no model", "give the folder that llmkit finetune or merge wrote")
    name = reserve(repo, private=private)
    done = _ask(
        lambda hub: hub.upload_folder(
            repo_id=name, folder_path=str(folder), ignore_patterns=_LEFT_HERE, commit_message="Upload by llmkit"
        ),
        name,
    )
    return str(done.commit_url)


def _ask(question: Callable[[Any], T], repo: str) -> T:
    from huggingface_hub import HfApi

    try:
        return question(HfApi())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LlmkitError(
            f"the Hub did not take {repo} ({reason})", "log in with: hf auth login, or check the name and your rights"
        ) from error
