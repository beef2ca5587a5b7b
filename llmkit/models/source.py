"""Locations of a model's files on this machine, and what its JSON files say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkit.errors import CheckpointError
from llmkit.files import read_json

__all__ = ["ADAPTER_CONFIG", "CONTRACT_FILE", "Origin", "Source"]

ADAPTER_CONFIG = "adapter_config.json"
"""A folder with this file is an adapter, whatever else is in it."""
CONTRACT_FILE = "llmkit.json"
"""What a model was tuned for (`llmkit.inference.tuned_config`)."""


_TYPES = {"model_type": str, "architectures": list, "auto_map": dict, "task_specific_params": dict}
"""Types of the keys of config.json that are used before Transformers checks any."""


@dataclass(frozen=True)
class Origin:
    """The Hub model that an embedded model was made from."""

    embedded: str
    """Name of the embedded model in llmkit."""
    hub_id: str
    changes: str
    """How its weights differ from those on the Hub; empty if they do not."""


@dataclass(frozen=True)
class Source:
    """A model on disk. Every loader reads from here, so that only `llmkit.hub` uses the network."""

    name: str
    """What the user called it: a Hub id, a path, or ``starter``."""
    folder: Path
    """Holds config.json, tokenizer and weights (of the base model, if ``adapter`` is set)."""
    commit: str | None = None
    """Commit hash of the Hub snapshot, None for local files."""
    gguf_file: str | None = None
    """Name of the GGUF file inside ``folder``."""
    adapter: Path | None = None
    """Folder of the PEFT adapter to apply."""
    adapter_commit: str | None = None
    base: str | None = None
    """The name by which the adapter's base was found."""
    origin: Origin | None = None
    """Of an embedded model, or an embedded base."""
    token_ids: Mapping[str, Any] | None = field(default=None, compare=False)
    """Settings of config.json that another tokenizer changes."""

    @property
    def named_commit(self) -> str | None:
        """Commit of what the user named: the adapter, if there is one."""
        return self.commit if self.adapter is None else self.adapter_commit

    @property
    def virtual_tokens(self) -> int:
        """Positions occupied by the adapter's virtual tokens (prompt tuning, prefix tuning, p-tuning)."""
        if self.adapter is None:
            return 0
        return int(read_json(self.adapter / "adapter_config.json").get("num_virtual_tokens") or 0)

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        path = self.folder / "config.json"
        if not path.is_file():
            raise CheckpointError(
                f"{self.name} has no config.json",
                "give a folder written by save_pretrained",
                code="incomplete_checkpoint",
            )
        config = read_json(path)
        for key, kind in _TYPES.items():
            if (value := config.get(key)) is not None and not isinstance(value, kind):
                problem = f"{path} has {key}: {str(value)[:40]}, where a {kind.__name__} is expected"
                raise CheckpointError(problem, "correct it, or download the checkpoint again")
        if other := [each for each in config.get("architectures") or () if not isinstance(each, str)]:
            problem = f"{path} has architectures: {str(other)[:40]}, where texts are expected"
            raise CheckpointError(problem, "correct it, or download the checkpoint again")
        return config | self.config_overrides()

    def config_overrides(self) -> dict[str, Any]:
        """Settings of the base's config that llmkit changed to train the adapter."""
        path = None if self.adapter is None else self.adapter / CONTRACT_FILE
        overrides = read_json(path).get("config_overrides") if path is not None and path.is_file() else None
        return (overrides if isinstance(overrides, dict) else {}) | dict(self.token_ids or {})

    @property
    def generation_folder(self) -> Path:
        """Where generation_config.json is: with an adapter, if another tokenizer changed it."""
        own = self.adapter is not None and (self.adapter / "generation_config.json").is_file()
        return self.adapter if own and self.adapter is not None else self.folder

    @property
    def lasting_base(self) -> str:
        """The base in a new adapter's config, as PEFT finds it: a Hub id, or a folder by its absolute path."""
        if self.origin is not None:
            return self.origin.hub_id
        name, place = self.base or self.name, self.folder / (self.gguf_file or "")
        local = Path(name).expanduser()
        return str(place.absolute()) if local.exists() and local.samefile(place) else name

    def stamp(self) -> list[tuple[str, int, int, int]]:
        """Path, inode, size and time of each file, which show whether any was replaced."""
        folders = (self.folder, self.adapter) if self.adapter is not None else (self.folder,)
        paths = sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_file())
        found = ((path, path.stat()) for path in paths)
        return [(str(path), each.st_ino, each.st_size, each.st_ctime_ns) for path, each in found]
