"""What llmkit asks of a Hub and what it makes of the answers, against a Hub on this machine."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from huggingface_hub import close_session, constants
from huggingface_hub._tree_cache import _IN_MEMORY_TREE_CACHE

from llmkit.config.settings import LoadSettings
from llmkit.errors import (
    CheckpointError,
    HubUnreachableError,
    LlmkitError,
    ModelNotFoundError,
    NotEnoughMemoryError,
)
from llmkit.hub import client, reachability
from llmkit.models.locate import locate
from tests.hub.conftest import TINY, WEIGHTS, closed_port, names, one_line, refuse_connections
from tests.hub.fake_hub import FakeHub, point_at, safetensors


@pytest.fixture
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub waits between its tries."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def test_fetch_brings_config_tokenizer_and_weights(fake: FakeHub) -> None:
    model = fake.add("org/tiny", TINY)
    snapshot = client.fetch("org/tiny")
    assert snapshot.commit == model.commit
    assert names(snapshot) == set(TINY)
    assert (snapshot.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_names_are_not_patterns(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY | {"vocab[1].txt": b"", "vocab1.txt": b""})
    assert names(client.fetch("org/tiny")) == {*TINY, "vocab[1].txt", "vocab1.txt"}


def test_one_request_when_all_is_cached(fake: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    fake.add("org/tiny", TINY)
    first = client.fetch("org/tiny")
    reachability.forget_unreachable()  # as in a new process, over a cache that an older huggingface_hub has filled
    shutil.rmtree(first.folder.parents[1] / "trees")
    _IN_MEMORY_TREE_CACHE.clear()
    fake.requests.clear()
    caplog.clear()
    assert client.fetch("org/tiny") == first
    assert fake.requests == ["GET /api/models/org/tiny"]
    assert caplog.records == []


def test_each_file_is_downloaded_once_over_two_commits(fake: FakeHub) -> None:
    old = fake.add("org/tiny", TINY)
    client.fetch("org/tiny")
    fake.requests.clear()
    new = fake.add("org/tiny", TINY | {"README.md": b"new"})
    assert client.fetch("org/tiny").commit == new.commit != old.commit
    assert [r for r in fake.requests if r.startswith("GET") and "resolve" in r] == [
        f"GET /org/tiny/resolve/{new.commit}/README.md"
    ]


def test_the_size_is_said_before_a_download(fake: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    fake.add("org/tiny", TINY | {"vocab.txt": b"x" * 2_600_000})
    client.fetch("org/tiny")
    assert [r.getMessage() for r in caplog.records if r.name == "llmkit"] == [
        f"downloading org/tiny (2.6 MB) to {constants.HF_HUB_CACHE}"
    ]


def test_no_bar_off_a_terminal(fake: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    fake.add("org/tiny", TINY)
    client.fetch("org/tiny")
    assert capfd.readouterr() == ("", "")


def test_a_revision_is_kept_apart(fake: FakeHub) -> None:
    commit = "a" * 40
    fake.add("org/tiny", TINY, commit=commit, branches=("main", "v1", "refs/pr/1"))
    for revision in ("v1", commit, "refs/pr/1"):
        assert client.fetch("org/tiny", revision=revision).commit == commit
    assert client.is_cached("org/tiny", "v1")
    assert client.is_cached("org/tiny", commit)
    assert client.is_cached("org/tiny", "refs/pr/1")
    assert not client.is_cached("org/tiny")
    assert not client.is_cached("org/tiny", "v2")


def test_offline_opens_no_socket(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add("org/tiny", TINY)
    online = client.fetch("org/tiny")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with reachability.offline():
        _uses_no_network(online, monkeypatch)
    assert not reachability.is_offline()
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def _uses_no_network(online: client.Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reachability.is_offline()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    refuse_connections(monkeypatch)
    assert client.fetch("org/tiny") == online
    assert client.download("org/tiny") == online
    assert not reachability.hub_reachable()
    assert client.exists("org/tiny") is True
    assert client.exists("org/other") is None
    with pytest.raises(HubUnreachableError, match="offline mode is on and org/other is not in the cache") as error:
        client.fetch("org/other")
    assert one_line(error).endswith(
        "run `llmkit download org/other` on a machine with a network, or use `model=starter`"
    )
    with pytest.raises(HubUnreachableError, match="offline"):
        client.hub_parameter_counts("org/tiny")


def test_offline_says_nothing_when_it_was_asked_for(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake.add("org/tiny", TINY)
    client.fetch("org/tiny")
    caplog.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    client.fetch("org/tiny")
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
        client.fetch("org/tiny")
    assert "llmkit download org/tiny" in one_line(error)
    assert not client.is_cached("org/tiny")
    if "config.json" in have:
        assert client.fetch("org/tiny", weights=False).commit == "c0ffee"


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
    client.fetch("org/tiny")
    with pytest.raises(HubUnreachableError, match=r"without its (own|tok)\.py"):
        client.fetch("org/tiny", code=True)
    for name in ("own.py", "tok.py"):
        (folder / name).touch()
    client.fetch("org/tiny", code=True)


def test_offline_finds_a_gguf_file(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add("org/gguf", {"q/b-Q8.gguf": b"b", "a.gguf": b"a"})
    online = client.fetch("org/gguf", filename="q/b-Q8.gguf")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert client.fetch("org/gguf", filename="q/b-Q8.gguf") == online
    with pytest.raises(HubUnreachableError, match="not in the cache"):
        client.fetch("org/gguf", filename="a.gguf")


def test_offline_refuses_pickles_too(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached(["config.json", "pytorch_model.bin"])
    client.fetch("org/tiny")
    with pytest.raises(CheckpointError, match="pickled"):
        client.fetch("org/tiny", safetensors_only=True)


def test_a_file_whose_blob_is_gone_is_not_cached(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY)
    folder = client.fetch("org/tiny").folder
    (folder / "model.safetensors").resolve().unlink()
    assert not client.is_cached("org/tiny")
    assert (client.fetch("org/tiny").folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An endpoint where nothing listens."""
    endpoint = f"http://127.0.0.1:{closed_port()}"
    point_at(endpoint, monkeypatch, tmp_path)
    reachability.forget_unreachable()
    yield endpoint
    close_session()


def test_nothing_listens(closed: str) -> None:
    start = time.monotonic()
    assert not reachability.hub_reachable()
    assert time.monotonic() - start < 1
    with pytest.raises(HubUnreachableError, match=r"cannot reach the model hub .* and org/tiny is not in") as error:
        client.fetch("org/tiny", revision="v1")
    assert "`llmkit download org/tiny --revision v1`" in one_line(error)
    assert closed in str(error.value)
    with pytest.raises(HubUnreachableError):
        client.hub_parameter_counts("org/tiny")
    with pytest.raises(HubUnreachableError):
        client.download("org/tiny")


def test_download_asks_in_spite_of_the_memory(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY)
    reachability._remember(fake.endpoint, "was down")
    with pytest.raises(HubUnreachableError, match="was down, 0 s ago"):
        client.fetch("org/tiny")
    assert names(client.download("org/tiny")) == set(TINY)
    assert reachability.hub_reachable()


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_error_of_the_hub_leads_to_the_cache(fake: FakeHub, status: int, caplog: pytest.LogCaptureFixture) -> None:
    model = fake.add("org/tiny", TINY)
    snapshot = client.fetch("org/tiny")
    model.status = status
    assert client.fetch("org/tiny") == snapshot
    assert f"error {status}" in caplog.text
    fake.add("org/other", TINY, status=status)
    with pytest.raises(HubUnreachableError, match=f"error {status}") as error:
        client.fetch("org/other")
    assert one_line(error)


def test_what_is_no_hub_is_said_to_be_none(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY, info={"siblings": "log in first"})
    with pytest.raises(HubUnreachableError, match="does not answer like a model hub") as error:
        client.fetch("org/tiny")
    assert one_line(error)


@pytest.mark.parametrize("requests", [1, 2, 5])
def test_a_hub_that_drops_mid_way(fake: FakeHub, no_retries: None, requests: int) -> None:
    fake.add("org/tiny", TINY)
    fake.drop_after = requests
    with pytest.raises(HubUnreachableError, match="broke off") as error:
        client.fetch("org/tiny")
    assert "llmkit download org/tiny" in one_line(error)
    fake.drop_after = None
    assert names(client.fetch("org/tiny")) == set(TINY)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"status": 404, "code": "RepoNotFound"}, "the model org/tiny does not exist, or is private; check"),
        ({"status": 401, "code": ""}, "refused access to org/tiny .*hf auth login"),
        ({"status": 403, "code": "GatedRepo"}, "access to org/tiny is restricted; request it at .*hf auth login"),
        ({"file_status": 403, "file_code": "GatedRepo"}, "access to org/tiny is restricted"),
        ({"file_status": 401, "file_code": "GatedRepo"}, "access to org/tiny is restricted"),
        ({"status": 403, "code": ""}, "refused access to org/tiny"),
    ],
)
def test_a_refusal_is_one_line(fake: FakeHub, attributes: dict[str, Any], message: str) -> None:
    fake.add("org/tiny", TINY, **attributes)
    with pytest.raises(ModelNotFoundError, match=message) as error:
        client.fetch("org/tiny")
    assert one_line(error)


def test_a_rate_limit(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY, status=429)
    with pytest.raises(HubUnreachableError, match="limits the number of requests") as error:
        client.fetch("org/tiny")
    assert one_line(error)


def test_an_unknown_revision(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY)
    with pytest.raises(ModelNotFoundError, match="org/tiny has no revision 'v9'") as error:
        client.fetch("org/tiny", revision="v9")
    assert one_line(error)


@pytest.mark.parametrize("repo_id", ["a/b/c", "./folder", "two words", "org/--", "", "../.."])
def test_an_invalid_id_is_not_asked_for(fake: FakeHub, repo_id: str) -> None:
    with pytest.raises(ModelNotFoundError, match="neither a folder here nor a model id") as error:
        client.fetch(repo_id)
    assert one_line(error)
    assert client.exists(repo_id) is False
    assert not client.is_cached(repo_id)
    assert fake.requests == []


def test_a_withdrawn_model_stays_usable(fake: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    model = fake.add("org/tiny", TINY)
    snapshot = client.fetch("org/tiny")
    model.status, model.code = 404, "RepoNotFound"
    assert client.fetch("org/tiny") == snapshot
    assert "the model org/tiny does not exist, or is private; using the copy in the cache" in caplog.text


def test_a_disk_that_is_too_small(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add("org/tiny", TINY)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=200))
    with pytest.raises(NotEnoughMemoryError, match=r"needs 270 bytes on the disk and .* has 200 bytes free") as error:
        client.fetch("org/tiny")
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
        client.fetch("org/tiny")
    assert "HF_HOME" in one_line(error)


def test_exists(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY)
    fake.add("org/gated", TINY, status=403, code="GatedRepo")
    fake.add("org/broken", TINY, status=500)
    assert client.exists("org/tiny") is True
    assert client.exists("org/gated") is True
    assert client.exists("org/other") is False
    assert client.exists("org/broken") is None
    assert len(fake.requests) == 4


def test_parameter_counts_are_the_hubs_own(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY, info={"safetensors": {"parameters": {"BF16": 12}, "total": 12}})
    assert client.hub_parameter_counts("org/tiny") == {"BF16": 12}
    assert len(fake.requests) == 1


def test_parameter_counts_from_the_headers(fake: FakeHub) -> None:
    shards = {
        "model-00001-of-00002.safetensors": safetensors({"w": (4, 5), "b": (7,)}),
        "model-00002-of-00002.safetensors": safetensors({"x": (3,)}, "BF16", 2),
    }
    fake.add("org/tiny", {"model.safetensors.index.json": b"{}", **shards}, branches=("main", "v1"))
    assert client.hub_parameter_counts("org/tiny", "v1") == {"F32": 27, "BF16": 3}
    assert not Path(constants.HF_HUB_CACHE).exists()
    fake.add("org/old", {"pytorch_model.bin": b"x"})
    assert client.hub_parameter_counts("org/old") is None
    fake.add("org/broken", {"model.safetensors": b"x" * 64})
    with pytest.raises(CheckpointError) as error:
        client.hub_parameter_counts("org/broken")
    assert one_line(error)


def test_download_brings_the_base_of_an_adapter(fake: FakeHub) -> None:
    adapter = {"base_model_name_or_path": "org/base", "revision": "v1"}
    fake.add("org/base", TINY, branches=("main", "v1"))
    fake.add("org/lora", {"adapter_config.json": json.dumps(adapter).encode(), "adapter_model.safetensors": WEIGHTS})
    assert names(client.download("org/lora")) == {"adapter_config.json", "adapter_model.safetensors"}
    assert client.is_cached("org/base", "v1")
    assert client.is_cached("org/lora")


def test_an_adapter_beside_a_config_is_an_adapter(fake: FakeHub, tmp_path: Path) -> None:
    """As in a folder; trainers write the config of the whole model too."""
    adapter = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    fake.add("org/base", TINY)
    described = {"adapter_config.json": json.dumps(adapter).encode(), "config.json": TINY["config.json"]}
    fake.add("org/lora", described | {"adapter_model.safetensors": WEIGHTS, "model.safetensors": WEIGHTS})
    for weights in (False, True):
        source = locate(LoadSettings(model="org/lora"), "text-generation", weights=weights)
        assert source.adapter is not None
        assert "base" in str(source.folder)
        assert "model.safetensors" not in {path.name for path in source.adapter.iterdir()}


def test_a_child_process_uses_the_fake_hub(fake: FakeHub, tmp_path: Path) -> None:
    fake.add("org/tiny", TINY)
    program = "from llmkit.hub.client import download; import sys; print(download('org/tiny').folder)"
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


@pytest.mark.parametrize("module", ["client", "reachability", "repo_files"])
def test_importing_the_module_does_not_import_huggingface_hub(module: str) -> None:
    program = f"import sys, llmkit.hub.{module}; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_levels_are_heard_without_set_up() -> None:
    """Downloads are told with warning, which Python prints even where nobody configured logging."""
    assert logging.getLogger("llmkit").getEffectiveLevel() <= logging.WARNING


@pytest.mark.parametrize(
    ("endpoint", "hint"),
    [
        (None, "set HF_ENDPOINT to a mirror of the Hub"),
        ("http://127.0.0.1:9", "check HF_ENDPOINT, which is http://127.0.0.1:9"),
    ],
)
def test_a_hub_that_cannot_be_reached_names_the_mirror(
    endpoint: str | None, hint: str, fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise reachability.UnreachableError("no route")

    monkeypatch.setattr(constants, "ENDPOINT", endpoint or "https://huggingface.co")
    monkeypatch.setattr(client, "ask", fail)
    for call in (client.fetch, client.hub_parameter_counts):
        with pytest.raises(HubUnreachableError, match=re.escape(hint)) as error:
            call("org/tiny")
        assert error.value.code == "hub_unreachable"
