"""What llmkit asks of a Hub and what it makes of the answers, against a Hub on this machine."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import pytest
from huggingface_hub import close_session, constants
from huggingface_hub._tree_cache import _IN_MEMORY_TREE_CACHE

from llmkit.errors import (
    CheckpointError,
    HubUnreachableError,
    LlmkitError,
    ModelNotFoundError,
    NotEnoughMemoryError,
)
from llmkit.models import hub
from tests.models.fake_hub import FakeHub, point_at, safetensors

CONFIG = b'{"model_type": "llama"}'
WEIGHTS = safetensors({"w": (4, 5), "b": (7,)})
TINY = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    hub.forget_unreachable()
    with FakeHub() as server:
        server.use(monkeypatch, tmp_path)
        yield server
        close_session()
    hub.forget_unreachable()


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub waits between its tries."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def names(snapshot: hub.Snapshot) -> set[str]:
    return {path.relative_to(snapshot.folder).as_posix() for path in snapshot.folder.rglob("*") if path.is_file()}


def refuse_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: object) -> NoReturn:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


def one_line(error: pytest.ExceptionInfo[LlmkitError]) -> str:
    """The message, which must be one line that ends in what to do."""
    assert error.value.fix
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- which files


def test_fetch_brings_config_tokenizer_and_weights(fake: FakeHub) -> None:
    model = fake.add("org/tiny", TINY)
    snapshot = hub.fetch("org/tiny")
    assert snapshot.commit == model.commit
    assert names(snapshot) == set(TINY)
    assert (snapshot.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_safetensors_are_preferred_and_nothing_unused_is_fetched(fake: FakeHub) -> None:
    unused = [
        *("pytorch_model.bin", "model.fp16.safetensors", "tf_model.h5", "flax_model.msgpack", "training_args.bin"),
        *("onnx/model.onnx", "onnx/config.json", "original/consolidated.safetensors", "openvino/openvino_model.bin"),
        *(".gitattributes", "modeling_own.py", "rust_model.ot", "model.gguf"),
    ]
    small = ["merges.txt", "source.spm", "spiece.model", "chat_template.jinja", "README.md", "LICENSE", "bpe.codes"]
    small += ["additional_chat_templates/tool.jinja", "tokenizer.model.v3"]
    fake.add("org/tiny", TINY | dict.fromkeys([*unused, *small], b"x"))
    assert names(hub.fetch("org/tiny")) == {*TINY, *small}


def test_shards_come_with_their_index(fake: FakeHub) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": WEIGHTS for i in (1, 2)}
    files = {"config.json": CONFIG, "model.safetensors.index.json": b"{}", **shards}
    fake.add("org/tiny", files | {"pytorch_model.bin": b"x"})
    assert names(hub.fetch("org/tiny")) == set(files)


def test_a_missing_shard_is_an_error(fake: FakeHub) -> None:
    fake.add("org/tiny", {"model.safetensors.index.json": b"{}", "model-00001-of-00002.safetensors": WEIGHTS})
    with pytest.raises(CheckpointError, match="model-00002-of-00002") as error:
        hub.fetch("org/tiny")
    assert one_line(error)


def test_pickles_only_where_nothing_else_is(fake: FakeHub) -> None:
    fake.add("org/old", {"config.json": CONFIG, "pytorch_model.bin": b"x"})
    assert names(hub.fetch("org/old")) == {"config.json", "pytorch_model.bin"}


def test_safetensors_only_refuses_pickles(fake: FakeHub) -> None:
    fake.add("org/old", {"config.json": CONFIG, "pytorch_model.bin": b"x"})
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\)") as error:
        hub.fetch("org/old", safetensors_only=True)
    assert one_line(error)
    assert len(fake.requests) == 1


def test_an_adapter_is_fetched(fake: FakeHub) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}
    fake.add("org/lora", files | {"adapter_model.bin": b"x"})
    assert names(hub.fetch("org/lora")) == set(files)


def test_code_comes_only_when_asked_for(fake: FakeHub) -> None:
    fake.add("org/own", TINY | {"modeling_own.py": b"", "lib/util.py": b""})
    assert names(hub.fetch("org/own")) == set(TINY)
    assert names(hub.fetch("org/own", code=True)) == {*TINY, "modeling_own.py", "lib/util.py"}


def test_without_weights(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY)
    assert names(hub.fetch("org/tiny", weights=False)) == {"config.json", "tokenizer.json"}


def test_one_gguf_file(fake: FakeHub) -> None:
    fake.add("org/gguf", {"a-Q4.gguf": b"a", "q/b-Q8.gguf": b"b", "config.json": CONFIG})
    snapshot = hub.fetch("org/gguf", filename="q/b-Q8.gguf")
    assert names(snapshot) == {"q/b-Q8.gguf", "config.json"}


def test_gguf_repositories_need_a_file_name(fake: FakeHub) -> None:
    fake.add("org/gguf", {"a-Q4.gguf": b"a", "b-Q8.gguf": b"b"})
    with pytest.raises(CheckpointError, match=r"org/gguf/a-Q4\.gguf") as error:
        hub.fetch("org/gguf")
    assert one_line(error)
    with pytest.raises(ModelNotFoundError, match=r"no file c\.gguf; .*a-Q4\.gguf, b-Q8\.gguf"):
        hub.fetch("org/gguf", filename="c.gguf")


def test_names_are_not_patterns(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY | {"vocab[1].txt": b"", "vocab1.txt": b""})
    assert names(hub.fetch("org/tiny")) == {*TINY, "vocab[1].txt", "vocab1.txt"}


def test_large_text_is_not_a_tokenizer(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_SMALL", 100)
    fake.add("org/tiny", TINY | {"wiki.txt": b"x" * 101})
    assert names(hub.fetch("org/tiny")) == set(TINY)


# ---- requests


def test_one_request_when_all_is_cached(fake: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    fake.add("org/tiny", TINY)
    first = hub.fetch("org/tiny")
    hub.forget_unreachable()  # as in a new process, over a cache that an older huggingface_hub has filled
    shutil.rmtree(first.folder.parents[1] / "trees")
    _IN_MEMORY_TREE_CACHE.clear()
    fake.requests.clear()
    caplog.clear()
    assert hub.fetch("org/tiny") == first
    assert fake.requests == ["GET /api/models/org/tiny"]
    assert caplog.records == []


def test_each_file_is_downloaded_once_over_two_commits(fake: FakeHub) -> None:
    old = fake.add("org/tiny", TINY)
    hub.fetch("org/tiny")
    fake.requests.clear()
    new = fake.add("org/tiny", TINY | {"README.md": b"new"})
    assert hub.fetch("org/tiny").commit == new.commit != old.commit
    assert [r for r in fake.requests if r.startswith("GET") and "resolve" in r] == [
        f"GET /org/tiny/resolve/{new.commit}/README.md"
    ]


def test_the_size_is_said_before_a_download(fake: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    fake.add("org/tiny", TINY | {"vocab.txt": b"x" * 2_600_000})
    hub.fetch("org/tiny")
    assert [r.getMessage() for r in caplog.records if r.name == "llmkit"] == [
        f"downloading org/tiny (3 MB) to {constants.HF_HUB_CACHE}"
    ]


def test_no_bar_off_a_terminal(fake: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    fake.add("org/tiny", TINY)
    hub.fetch("org/tiny")
    assert capfd.readouterr() == ("", "")


def test_a_revision_is_kept_apart(fake: FakeHub) -> None:
    commit = "a" * 40
    fake.add("org/tiny", TINY, commit=commit, branches=("main", "v1", "refs/pr/1"))
    for revision in ("v1", commit, "refs/pr/1"):
        assert hub.fetch("org/tiny", revision=revision).commit == commit
    assert hub.is_cached("org/tiny", "v1")
    assert hub.is_cached("org/tiny", commit)
    assert hub.is_cached("org/tiny", "refs/pr/1")
    assert not hub.is_cached("org/tiny")
    assert not hub.is_cached("org/tiny", "v2")


# ---- offline


def test_offline_opens_no_socket(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add("org/tiny", TINY)
    online = hub.fetch("org/tiny")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.go_offline()
    assert hub.is_offline()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    refuse_connections(monkeypatch)
    assert hub.fetch("org/tiny") == online
    assert hub.download("org/tiny") == online
    assert not hub.hub_reachable()
    assert hub.exists("org/tiny") is True
    assert hub.exists("org/other") is None
    with pytest.raises(HubUnreachableError, match="offline mode is on and org/other is not in the cache") as error:
        hub.fetch("org/other")
    assert one_line(error).endswith(
        "run `llmkit download org/other` on a machine with a network, or use --model starter"
    )
    with pytest.raises(HubUnreachableError, match="offline"):
        hub.hub_parameter_counts("org/tiny")


def test_offline_says_nothing_when_it_was_asked_for(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake.add("org/tiny", TINY)
    hub.fetch("org/tiny")
    caplog.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.fetch("org/tiny")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("have", "lacking"),
    [
        (["config.json"], "weights"),
        (["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"], "model-00002-of-00002"),
        (["config.json", "model-00001-of-00001.safetensors"], "model.safetensors.index.json"),
        (["adapter_config.json"], "weights"),
    ],
)
def test_a_partial_cache_is_found_out(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, have: list[str], lacking: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(have)
    with pytest.raises(HubUnreachableError, match=f"is in the cache without its {lacking}") as error:
        hub.fetch("org/tiny")
    assert "llmkit download org/tiny" in one_line(error)
    assert not hub.is_cached("org/tiny")
    if "config.json" in have:
        assert hub.fetch("org/tiny", weights=False).commit == "c0ffee"


def cached(files: list[str], content: str = "{}") -> Path:
    """Put files into the cache as a download that was cut off leaves them."""
    repo = Path(constants.HF_HUB_CACHE, "models--org--tiny")
    folder = repo / "snapshots" / "c0ffee"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text(content)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0ffee")
    return folder


def test_offline_misses_code_that_the_config_names(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    auto_map = {"AutoConfig": "own.Config", "AutoTokenizer": ["tok.Slow", None], "AutoModel": "org/x--far.Model"}
    folder = cached(["config.json", "model.safetensors"], json.dumps({"auto_map": auto_map}))
    hub.fetch("org/tiny")
    with pytest.raises(HubUnreachableError, match=r"without its (own|tok)\.py"):
        hub.fetch("org/tiny", code=True)
    for name in ("own.py", "tok.py"):
        (folder / name).touch()
    hub.fetch("org/tiny", code=True)


def test_offline_finds_a_gguf_file(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add("org/gguf", {"q/b-Q8.gguf": b"b", "a.gguf": b"a"})
    online = hub.fetch("org/gguf", filename="q/b-Q8.gguf")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch("org/gguf", filename="q/b-Q8.gguf") == online
    with pytest.raises(HubUnreachableError, match="not in the cache"):
        hub.fetch("org/gguf", filename="a.gguf")


def test_offline_refuses_pickles_too(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(["config.json", "pytorch_model.bin"])
    hub.fetch("org/tiny")
    with pytest.raises(CheckpointError, match="pickled"):
        hub.fetch("org/tiny", safetensors_only=True)


def test_a_file_whose_blob_is_gone_is_not_cached(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY)
    folder = hub.fetch("org/tiny").folder
    (folder / "model.safetensors").resolve().unlink()
    assert not hub.is_cached("org/tiny")
    assert (hub.fetch("org/tiny").folder / "model.safetensors").read_bytes() == WEIGHTS


# ---- the Hub is down


def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An endpoint where nothing listens."""
    endpoint = f"http://127.0.0.1:{closed_port()}"
    point_at(endpoint, monkeypatch, tmp_path)
    hub.forget_unreachable()
    yield endpoint
    close_session()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """An endpoint that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        point_at(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch, tmp_path)
        hub.forget_unreachable()
        yield server
    close_session()


def test_nothing_listens(closed: str) -> None:
    start = time.monotonic()
    assert not hub.hub_reachable()
    assert time.monotonic() - start < 1
    with pytest.raises(HubUnreachableError, match=r"cannot reach the model hub .* and org/tiny is not in") as error:
        hub.fetch("org/tiny", revision="v1")
    assert "`llmkit download org/tiny --revision v1`" in one_line(error)
    assert closed in str(error.value)
    with pytest.raises(HubUnreachableError):
        hub.hub_parameter_counts("org/tiny")
    with pytest.raises(HubUnreachableError):
        hub.download("org/tiny")


def test_a_silent_hub_is_given_up_in_time(silent: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.DEADLINE < 5
    monkeypatch.setattr(hub, "DEADLINE", 0.05)
    start = time.monotonic()
    assert not hub.hub_reachable()
    assert hub.exists("org/tiny") is None
    assert time.monotonic() - start < 1


def test_a_name_look_up_that_hangs_is_given_up_in_time(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx's timeouts do not cover getaddrinfo."""
    release = threading.Event()
    monkeypatch.setattr(hub, "DEADLINE", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: release.wait(5) and [])
    start = time.monotonic()
    assert not hub.hub_reachable()
    assert time.monotonic() - start < 1
    release.set()


def test_unreachable_is_remembered_for_ten_minutes(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake.add("org/tiny", TINY)
    snapshot = hub.fetch("org/tiny")
    fake.requests.clear()
    now = time.time()
    point_at(f"http://127.0.0.1:{closed_port()}", monkeypatch, Path(constants.HF_HUB_CACHE).parents[1])
    assert not hub.hub_reachable()

    with monkeypatch.context() as patch:
        refuse_connections(patch)
        patch.setattr(time, "time", lambda: now + 599)
        caplog.clear()
        assert not hub.hub_reachable()
        assert hub.fetch("org/tiny") == snapshot
        assert "using org/tiny as it is in the cache" in caplog.text

    monkeypatch.setattr(time, "time", lambda: now + 602)
    asked: list[object] = []
    monkeypatch.setattr(hub, "_within", lambda seconds, call: asked.append(call))
    assert hub.hub_reachable()
    assert len(asked) == 1


def test_the_memory_is_of_one_endpoint(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert not hub.hub_reachable()
    monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
    assert hub.hub_reachable()


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"ENDPOINT": 3}', '{"ENDPOINT": {"at": "x", "why": ""}}', "\0\xff"]
)
def test_a_damaged_memory_is_ignored(fake: FakeHub, tmp_path: Path, content: str) -> None:
    (tmp_path / "llmkit").mkdir()
    (tmp_path / "llmkit" / "unreachable.json").write_bytes(content.replace("ENDPOINT", fake.endpoint).encode("latin-1"))
    assert hub.hub_reachable()


def test_a_memory_from_the_future_is_ignored(fake: FakeHub, tmp_path: Path) -> None:
    hub._remember(fake.endpoint, "was down")
    assert not hub.hub_reachable()
    entry = {fake.endpoint: {"at": time.time() + 3600, "why": "was down"}}
    (tmp_path / "llmkit" / "unreachable.json").write_text(json.dumps(entry))
    assert hub.hub_reachable()


def test_reachable_is_asked_once_a_process(fake: FakeHub) -> None:
    assert hub.hub_reachable()
    assert hub.hub_reachable()
    assert fake.requests == ["HEAD /"]


def test_download_asks_in_spite_of_the_memory(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY)
    hub._remember(fake.endpoint, "was down")
    with pytest.raises(HubUnreachableError, match="was down, 0 s ago"):
        hub.fetch("org/tiny")
    assert names(hub.download("org/tiny")) == set(TINY)
    assert hub.hub_reachable()


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_error_of_the_hub_leads_to_the_cache(fake: FakeHub, status: int, caplog: pytest.LogCaptureFixture) -> None:
    model = fake.add("org/tiny", TINY)
    snapshot = hub.fetch("org/tiny")
    model.status = status
    assert hub.fetch("org/tiny") == snapshot
    assert f"error {status}" in caplog.text
    fake.add("org/other", TINY, status=status)
    with pytest.raises(HubUnreachableError, match=f"error {status}") as error:
        hub.fetch("org/other")
    assert one_line(error)


def test_what_is_no_hub_is_said_to_be_none(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY, info={"siblings": "log in first"})
    with pytest.raises(HubUnreachableError, match="does not answer like a model hub") as error:
        hub.fetch("org/tiny")
    assert one_line(error)


@pytest.mark.parametrize("requests", [1, 2, 5])
def test_a_hub_that_drops_mid_way(fake: FakeHub, no_retries: None, requests: int) -> None:
    fake.add("org/tiny", TINY)
    fake.drop_after = requests
    with pytest.raises(HubUnreachableError, match="broke off") as error:
        hub.fetch("org/tiny")
    assert "llmkit download org/tiny" in one_line(error)
    fake.drop_after = None
    assert names(hub.fetch("org/tiny")) == set(TINY)


def test_a_proxy_that_fails(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv("HTTPS_PROXY", fake.endpoint)  # does not know CONNECT
    close_session()
    with pytest.raises(HubUnreachableError, match="HTTPS_PROXY") as error:
        hub.fetch("org/tiny")
    assert one_line(error)


def test_a_certificate_that_is_not_one(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint.replace("http:", "https:"))
    with pytest.raises(HubUnreachableError, match="SSL_CERT_FILE") as error:
        hub.fetch("org/tiny")
    assert one_line(error)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:1", "http://[", "http://127.0.0.1:port", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_no_address(fake: FakeHub, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(HubUnreachableError) as error:
        hub.fetch("org/tiny")
    assert one_line(error)


def test_a_token_is_never_quoted(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sécret")
    with pytest.raises(HubUnreachableError, match="HF_TOKEN") as error:
        hub.fetch("org/tiny")
    assert "cret" not in one_line(error)
    assert "cret" not in hub._reason(httpx2.LocalProtocolError("Illegal header value b'Bearer hf_secret'"))


# ---- refusals


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"status": 404, "code": "RepoNotFound"}, "no model org/tiny, or it is private; check the spelling"),
        ({"status": 401, "code": ""}, "refused access to org/tiny .*hf auth login"),
        ({"status": 403, "code": "GatedRepo"}, "access to org/tiny must be granted; ask for it at .*hf auth login"),
        ({"file_status": 403, "file_code": "GatedRepo"}, "access to org/tiny must be granted"),
        ({"file_status": 401, "file_code": "GatedRepo"}, "access to org/tiny must be granted"),
        ({"status": 403, "code": ""}, "refused access to org/tiny"),
    ],
)
def test_a_refusal_is_one_line(fake: FakeHub, attributes: dict[str, Any], message: str) -> None:
    fake.add("org/tiny", TINY, **attributes)
    with pytest.raises(ModelNotFoundError, match=message) as error:
        hub.fetch("org/tiny")
    assert one_line(error)


def test_a_rate_limit(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY, status=429)
    with pytest.raises(HubUnreachableError, match="no more requests") as error:
        hub.fetch("org/tiny")
    assert one_line(error)


def test_an_unknown_revision(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY)
    with pytest.raises(ModelNotFoundError, match="org/tiny has no revision 'v9'") as error:
        hub.fetch("org/tiny", revision="v9")
    assert one_line(error)


@pytest.mark.parametrize("repo_id", ["a/b/c", "./folder", "two words", "org/--", "", "../.."])
def test_an_invalid_id_is_not_asked_for(fake: FakeHub, repo_id: str) -> None:
    with pytest.raises(ModelNotFoundError, match="neither a folder here nor a model id") as error:
        hub.fetch(repo_id)
    assert one_line(error)
    assert hub.exists(repo_id) is False
    assert not hub.is_cached(repo_id)
    assert fake.requests == []


def test_a_withdrawn_model_stays_usable(fake: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    model = fake.add("org/tiny", TINY)
    snapshot = hub.fetch("org/tiny")
    model.status, model.code = 404, "RepoNotFound"
    assert hub.fetch("org/tiny") == snapshot
    assert "there is no model org/tiny, or it is private; using the copy in the cache" in caplog.text


def test_a_disk_that_is_too_small(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add("org/tiny", TINY)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=200))
    with pytest.raises(NotEnoughMemoryError, match=r"needs 0 kB on the disk and .* has 0 kB free") as error:
        hub.fetch("org/tiny")
    assert "HF_HOME" in one_line(error)
    assert len(fake.requests) == 1
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("number", "kind", "words"), [(28, NotEnoughMemoryError, "full"), (13, LlmkitError, "cannot be written to")]
)
def test_a_disk_that_fails(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[LlmkitError], words: str
) -> None:
    def fail(*arguments: object, **options: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    fake.add("org/tiny", TINY)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(kind, match=words) as error:
        hub.fetch("org/tiny")
    assert "HF_HOME" in one_line(error)


# ---- questions without files


def test_exists(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY)
    fake.add("org/gated", TINY, status=403, code="GatedRepo")
    fake.add("org/broken", TINY, status=500)
    assert hub.exists("org/tiny") is True
    assert hub.exists("org/gated") is True
    assert hub.exists("org/other") is False
    assert hub.exists("org/broken") is None
    assert len(fake.requests) == 4


def test_parameter_counts_are_the_hubs_own(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY, info={"safetensors": {"parameters": {"BF16": 12}, "total": 12}})
    assert hub.hub_parameter_counts("org/tiny") == {"BF16": 12}
    assert len(fake.requests) == 1


def test_parameter_counts_from_the_headers(fake: FakeHub) -> None:
    shards = {
        "model-00001-of-00002.safetensors": safetensors({"w": (4, 5), "b": (7,)}),
        "model-00002-of-00002.safetensors": safetensors({"x": (3,)}, "BF16", 2),
    }
    fake.add("org/tiny", {"model.safetensors.index.json": b"{}", **shards}, branches=("main", "v1"))
    assert hub.hub_parameter_counts("org/tiny", "v1") == {"F32": 27, "BF16": 3}
    assert not Path(constants.HF_HUB_CACHE).exists()
    fake.add("org/old", {"pytorch_model.bin": b"x"})
    assert hub.hub_parameter_counts("org/old") is None
    fake.add("org/broken", {"model.safetensors": b"x" * 64})
    with pytest.raises(CheckpointError) as error:
        hub.hub_parameter_counts("org/broken")
    assert one_line(error)


def test_download_brings_the_base_of_an_adapter(fake: FakeHub) -> None:
    adapter = {"base_model_name_or_path": "org/base", "revision": "v1"}
    fake.add("org/base", TINY, branches=("main", "v1"))
    fake.add("org/lora", {"adapter_config.json": json.dumps(adapter).encode(), "adapter_model.safetensors": WEIGHTS})
    assert names(hub.download("org/lora")) == {"adapter_config.json", "adapter_model.safetensors"}
    assert hub.is_cached("org/base", "v1")
    assert hub.is_cached("org/lora")


# ---- another process


def test_a_child_process_uses_the_fake_hub(fake: FakeHub, tmp_path: Path) -> None:
    fake.add("org/tiny", TINY)
    program = "from llmkit.models.hub import download; import sys; print(download('org/tiny').folder)"
    program += "; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=fake.environment(tmp_path / "child"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(tmp_path / "child")
    assert run.stderr.startswith("downloading org/tiny (")
    assert run.stderr.count("\n") == 1


def test_importing_the_module_does_not_import_huggingface_hub() -> None:
    program = "import sys, llmkit.models.hub; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_levels_are_heard_without_set_up() -> None:
    """Downloads are told with warning, which Python prints even where nobody configured logging."""
    assert logging.getLogger("llmkit").getEffectiveLevel() <= logging.WARNING
