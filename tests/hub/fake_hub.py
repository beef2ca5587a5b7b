"""A Hugging Face Hub on 127.0.0.1, for tests without a network.

It answers what huggingface_hub 2.4 asks to look a model up and download it, from a dictionary of files:

    with FakeHub() as hub:
        hub.add("org/name", {"config.json": b"{}", "model.safetensors": safetensors({"w": (2, 3)})})
        subprocess.run([...], env=hub.environment(tmp_path))

In the same process ``hub.use(monkeypatch, tmp_path)`` points huggingface_hub at it instead: the environment is read
when huggingface_hub is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf")


def safetensors(shapes: dict[str, tuple[int, ...]], dtype: str = "F32", width: int = 4) -> bytes:
    """A safetensors file of zeros."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, size = end, width
        for length in shape:
            size *= length
        end = start + size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(end)


@dataclass
class FakeModel:
    """One repository. ``status`` and ``code`` make every request for it fail, ``file_status`` those for its files."""

    files: dict[str, bytes]
    commit: str
    branches: tuple[str, ...] = ("main",)
    status: int = 200
    code: str = ""
    file_status: int = 200
    file_code: str = ""
    info: dict[str, Any] = field(default_factory=dict)

    def blob(self, name: str) -> str:
        content = self.files[name]
        if name.endswith(LFS_SUFFIXES):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def describe(self, name: str, key: str, digest: str) -> dict[str, Any]:
        entry: dict[str, Any] = {key: name, "size": len(self.files[name]), digest: self.blob(name)}
        if name.endswith(LFS_SUFFIXES):
            # /api/models calls the hash sha256, /tree calls it oid.
            lfs = {"size": len(self.files[name]), "pointerSize": 130, "sha256": self.blob(name), "oid": self.blob(name)}
            entry["lfs"] = lfs
        return entry


class FakeHub:
    """Serves its ``models`` until closed; ``requests`` lists what was asked, as "METHOD /path"."""

    def __init__(self) -> None:
        self.models: dict[str, FakeModel] = {}
        self.requests: list[str] = []
        self.drop_after: int | None = None
        """Cut the connection without an answer after this many requests."""
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, repo_id: str, files: dict[str, bytes], **attributes: Any) -> FakeModel:
        """Put a model on the Hub, in place of the one of that name; its commit follows from its files."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.models[repo_id] = FakeModel(files, attributes.pop("commit", digest), **attributes)
        return self.models[repo_id]

    def add_folder(self, repo_id: str, folder: Path, **attributes: Any) -> FakeModel:
        """Put the files of a folder on the Hub, such as one written by ``save_pretrained``."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return self.add(
            repo_id, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, **attributes
        )

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that make a child process use this Hub, and caches below ``home``, without a proxy or a token."""
        dropped = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_OFFLINE")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(dropped) and not name.lower().endswith("_proxy")
        }
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home / "hf"),
            "LLMKIT_CACHE": str(home / "llmkit"),
            "NO_PROXY": "127.0.0.1",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Make this process use this Hub, and caches below ``home``."""
        point_at(self.endpoint, monkeypatch, home)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> FakeHub:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Make this process use the Hub at that address, and caches below ``home``, without a proxy or a token."""
    values = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hf" / "hub"),
        "HF_TOKEN_PATH": str(home / "hf" / "token"),
        "HF_HUB_OFFLINE": False,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("LLMKIT_CACHE", str(home / "llmkit"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    close_session()  # its client has read the proxies


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: FakeHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet, or the second waits 40 ms for an acknowledgement
    timeout = 5  # a kept-alive connection ends by itself if its client forgets to close it

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.hub.requests.append(f"{self.command} {path}")
        if self.server.hub.drop_after is not None and len(self.server.hub.requests) > self.server.hub.drop_after:
            self.close_connection = True
            return
        parts = path.strip("/").split("/")
        if parts == [""]:
            self.send(200, b"a hub")
        elif parts[:2] == ["api", "models"]:
            self.api(parts[2:])
        elif "resolve" in parts:
            at = parts.index("resolve")
            self.resolve("/".join(parts[:at]), "/".join(parts[at + 1 :]))
        else:
            self.fail(404, "EntryNotFound")

    def api(self, parts: list[str]) -> None:
        """``ID``, ``ID/revision/REVISION`` and ``ID/tree/REVISION``."""
        at = next((i for i, part in enumerate(parts) if part in ("revision", "tree")), len(parts))
        model = self.server.hub.models.get("/".join(parts[:at]))
        kind, revision = (parts[at], "/".join(parts[at + 1 :])) if at < len(parts) else ("revision", "main")
        if model is None:
            self.fail(404, "RepoNotFound")
        elif model.status != 200:
            self.fail(model.status, model.code)
        elif revision not in (*model.branches, model.commit):
            self.fail(404, "RevisionNotFound")
        elif kind == "tree":
            self.send_json([{"type": "file", **model.describe(name, "path", "oid")} for name in model.files])
        else:
            siblings = [model.describe(name, "rfilename", "blobId") for name in model.files]
            self.send_json({"id": "/".join(parts[:at]), "sha": model.commit, "siblings": siblings, **model.info})

    def resolve(self, repo_id: str, rest: str) -> None:
        model = self.server.hub.models.get(repo_id)
        if model is None:
            return self.fail(404, "RepoNotFound")
        if model.file_status != 200:
            return self.fail(model.file_status, model.file_code)
        revision = next((r for r in (model.commit, *model.branches) if rest.startswith(f"{r}/")), None)
        if revision is None:
            return self.fail(404, "RevisionNotFound")
        name = rest[len(revision) + 1 :]
        if name not in model.files:
            return self.fail(404, "EntryNotFound", {"X-Repo-Commit": model.commit})
        content = model.files[name]
        headers = {"ETag": f'"{model.blob(name)}"', "X-Repo-Commit": model.commit, "Accept-Ranges": "bytes"}
        if name.endswith(LFS_SUFFIXES):
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
        return self.send_range(content, headers)

    def send_range(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = self.headers.get("Range", "")
        if not wanted.startswith("bytes="):
            return self.send(200, content, headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return self.send(206, content[start : end + 1], headers)

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send(status, b'{"error": "no"}', {"X-Error-Code": code, **(headers or {})})

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass
