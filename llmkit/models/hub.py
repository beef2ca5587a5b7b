"""The one place where llmkit meets a network: fetches models from the Hugging Face Hub into its local cache.

Knows repositories, the names of files, and what can go wrong between here and the Hub. Knows nothing of tasks,
tensors or how a model is loaded: what it returns is a folder.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llmkit.errors import (
    CheckpointError,
    HubUnreachableError,
    LlmkitError,
    ModelNotFoundError,
    NotEnoughMemoryError,
)
from llmkit.log import log
from llmkit.models.cache import cache_dir
from llmkit.models.source import read_json

# huggingface_hub is imported inside functions: it costs 0.3 s, and a local folder never needs it.
if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

__all__ = [
    "Snapshot",
    "download",
    "exists",
    "fetch",
    "forget_unreachable",
    "go_offline",
    "hub_parameter_counts",
    "hub_reachable",
    "is_cached",
    "is_offline",
]

DEADLINE = 4.5
"""Seconds for the first answer of the Hub in a process: a DNS failure alone can take 23, a silent host 110."""
PATIENCE = 30.0
"""Seconds for an answer once the Hub is known to be up, or when the user asked for nothing but a download."""
REMEMBERED = 600.0
"""Seconds for which an unreachable Hub is not tried again, by any process of this user."""

_SMALL = 100_000_000  # bytes; some repositories keep their training text as .txt or .json
_SMALL_FILES = (
    *("*.json", "*.jinja", "*.model", "*.spm", "*.txt", "*.bpe", "*.codes", "*.tiktoken"),
    *("tokenizer*", "vocab*", "merges*", "README.md", "LICENSE*", "additional_chat_templates/*.jinja"),
)
_CONFIGS = ("config.json", "adapter_config.json")

_reached: set[str] = set()  # endpoints that answered this process

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """A model's files on this machine, and the commit they are of."""

    folder: Path
    commit: str | None


@dataclass(frozen=True)
class _Wanted:
    """What a caller asked for."""

    repo_id: str
    revision: str | None = None
    filename: str | None = None
    safetensors_only: bool = False
    code: bool = False
    weights: bool = True
    patient: bool = False

    @property
    def command(self) -> str:
        return f"llmkit download {self.repo_id}" + (f" --revision {self.revision}" if self.revision else "")


class _UnreachableError(Exception):
    """The Hub did not answer, or not like a Hub; the text says why."""


# ---------------------------------------------------------------------------------------------- reaching the Hub


def is_offline() -> bool:
    """Whether no network may be used (``--offline``, ``HF_HUB_OFFLINE``, ``TRANSFORMERS_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def go_offline() -> None:
    """Use no network from now on, in this process and those it starts."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"


def hub_reachable() -> bool:
    """Whether the Hub answers, found out within `DEADLINE`; a "no" is remembered for `REMEMBERED` seconds."""
    from huggingface_hub import constants, get_session

    if constants.ENDPOINT in _reached and not is_offline():
        return True
    try:
        _ask(lambda api, seconds: get_session().head(api.endpoint, timeout=seconds))
    except _UnreachableError:
        return False
    return True


def forget_unreachable() -> None:
    """Forget which endpoints did and did not answer, so that the next question is asked."""
    _reached.clear()
    with suppress(OSError):
        _memory().unlink(missing_ok=True)


def _memory() -> Path:
    return cache_dir() / "unreachable.json"


def _remembered(endpoint: str) -> str | None:
    """Why the endpoint was unreachable lately, None if it was not. A damaged memory counts as none."""
    try:
        entry = json.loads(_memory().read_text(encoding="utf-8"))[endpoint]
        age, why = time.time() - entry["at"], str(entry["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return f"{why}, {age:.0f} s ago" if 0 <= age < REMEMBERED else None


def _remember(endpoint: str, why: str) -> None:
    _reached.discard(endpoint)
    with suppress(OSError):
        _memory().parent.mkdir(parents=True, exist_ok=True)
        _memory().write_text(json.dumps({endpoint: {"at": time.time(), "why": why}}), encoding="utf-8")


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call, or TimeoutError: a name look-up obeys no timeout of its own.

    A daemon thread, unlike one of an executor, does not hold up the end of the process.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            future.set_exception(error)

    threading.Thread(target=run, name="llmkit-hub", daemon=True).start()
    return future.result(seconds)


def _ask(question: Callable[[HfApi, float], T], *, patient: bool = False) -> T:
    """Put one question to the Hub. The first of a process is the probe as well, so that no other is needed.

    Raises:
        _UnreachableError: no answer, now or lately, or none that makes sense.
        HfHubHTTPError: the Hub answered and refused.
    """
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    endpoint = constants.ENDPOINT
    if is_offline():
        raise _UnreachableError("offline mode is on")
    if endpoint not in _reached and (why := _remembered(endpoint)):
        raise _UnreachableError(why)
    seconds = PATIENCE if patient or endpoint in _reached else DEADLINE
    try:
        answer = _within(seconds, lambda: question(HfApi(endpoint=endpoint, library_name="llmkit"), seconds))
    except (httpx2.RequestError, httpx2.InvalidURL, TimeoutError) as error:
        why = _reason(error)
        _remember(endpoint, why)
        raise _UnreachableError(why) from error
    except HfHubHTTPError as error:
        _reached.add(endpoint)
        if error.response.status_code >= 500:
            raise _UnreachableError(f"it answered with an error {error.response.status_code}") from error
        raise
    except UnicodeError as error:
        raise _UnreachableError("HF_TOKEN or HF_ENDPOINT holds a character that cannot be sent") from error
    except (ValueError, KeyError, TypeError) as error:
        # A log-in page of a hotel, or an HF_ENDPOINT that is something else.
        raise _UnreachableError(f"{endpoint} does not answer like a model hub") from error
    _reached.add(endpoint)
    return answer


def _reason(error: BaseException) -> str:
    """A few words on a failed connection."""
    import httpx2

    text = " ".join(str(error).split())
    if isinstance(error, (TimeoutError, httpx2.TimeoutException)):
        return "no answer in time"
    if isinstance(error, httpx2.ProxyError):
        return f"the proxy failed, see HTTPS_PROXY: {text}"
    if isinstance(error, httpx2.LocalProtocolError):
        return "the request cannot be sent, see HF_TOKEN"  # its own text would quote the token
    if "SSL" in text:
        return f"its certificate was not accepted, see SSL_CERT_FILE: {text}"
    return text or type(error).__name__


def _hub() -> str:
    """How messages call the Hub: by its address where that is not the usual one."""
    from huggingface_hub import constants

    return "the model hub" + ("" if constants.ENDPOINT == "https://huggingface.co" else f" {constants.ENDPOINT}")


# ------------------------------------------------------------------------------------------------ choosing files


def _model_files(names: Collection[str], stem: str, kind: str) -> list[str]:
    """The files of a complete model: one file, or every shard that the names of those present announce."""
    if f"{stem}.{kind}" in names:
        return [f"{stem}.{kind}"]
    totals = [match[1] for name in names if (match := re.fullmatch(rf"{stem}-\d{{5}}-of-(\d{{5}})\.{kind}", name))]
    if not totals:
        return []
    total = max(totals)
    return [f"{stem}.{kind}.index.json", *(f"{stem}-{i:05}-of-{total}.{kind}" for i in range(1, int(total) + 1))]


def _weights(wanted: _Wanted, names: Collection[str]) -> list[str]:
    """The weight files to have: safetensors before pickles, no variants and no other frameworks' files."""
    if not wanted.weights:
        return []
    if wanted.filename:
        return [wanted.filename]
    found = {
        kind: _model_files(names, stem, kind) + [name for name in (f"adapter_model.{kind}",) if name in names]
        for stem, kind in (("model", "safetensors"), ("pytorch_model", "bin"))
    }
    if wanted.safetensors_only and found["bin"] and not found["safetensors"]:
        raise CheckpointError(
            f"{wanted.repo_id} has only pickled weights ({found['bin'][-1]}) and safetensors are asked for",
            "choose a model with safetensors, or allow .bin weights",
        )
    return found["safetensors"] or found["bin"]


def _small_files(wanted: _Wanted, sizes: dict[str, int]) -> list[str]:
    """Configuration, tokenizer and the like; Python files only where their code is to be run."""
    return [
        name
        for name, size in sizes.items()
        if (wanted.code and name.endswith(".py"))
        or (size <= _SMALL and any(fnmatchcase(name, p) and name.count("/") == p.count("/") for p in _SMALL_FILES))
    ]


def _choose(wanted: _Wanted, sizes: dict[str, int]) -> list[str]:
    """The files to have of a repository on the Hub."""
    weights = _weights(wanted, sizes)
    if wanted.weights and not weights:
        ggufs = [name for name in sizes if name.endswith(".gguf")]
        fix = f"name one of its GGUF files: {wanted.repo_id}/{ggufs[0]}" if ggufs else "choose another model"
        raise CheckpointError(f"{wanted.repo_id} has no weights as safetensors or .bin", fix)
    for name in weights:
        if name not in sizes and name == wanted.filename:
            near = ", ".join(other for other in sizes if Path(other).suffix == Path(name).suffix) or "none"
            raise ModelNotFoundError(f"{wanted.repo_id} has no file {name}", f"files of that kind: {near}")
        if name not in sizes:
            raise CheckpointError(f"{wanted.repo_id} lacks {name} on the hub", "choose another revision or model")
    return list(dict.fromkeys([*_small_files(wanted, sizes), *weights]))


# ------------------------------------------------------------------------------------------------------ fetching


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    filename: str | None = None,
    safetensors_only: bool = False,
    code: bool = False,
    weights: bool = True,
) -> Snapshot:
    """The files of a model, downloaded as far as they are not in the cache.

    Args:
        repo_id: an id such as ``org/name``.
        revision: branch, tag or commit; the default branch if None.
        filename: the one weight file to have (a GGUF file), beside configuration and tokenizer.
        safetensors_only: refuse a model whose weights are pickles.
        code: fetch the model's own Python files too.
        weights: False leaves the weights out.

    Raises:
        ModelNotFoundError: no such model, revision or file, or no access to it.
        HubUnreachableError: the Hub is needed and cannot be used.
        CheckpointError: the repository has no weights of a kind that can be used.
        NotEnoughMemoryError: the disk is too small.
    """
    return _fetch(_Wanted(repo_id, revision, filename, safetensors_only, code, weights))


def download(model: str, *, revision: str | None = None) -> Snapshot:
    """Fetch a whole model, and the base model of an adapter, asking the Hub even if it was unreachable lately."""
    forget_unreachable()
    snapshot = _fetch(_Wanted(model, revision, patient=True))
    adapter = snapshot.folder / "adapter_config.json"
    if adapter.is_file():
        config = read_json(adapter)
        base = config.get("base_model_name_or_path")
        if base and not Path(str(base)).exists():
            _fetch(_Wanted(str(base), config.get("revision"), patient=True))
    return snapshot


def _fetch(wanted: _Wanted) -> Snapshot:
    if not _is_valid(wanted.repo_id):
        raise ModelNotFoundError(
            f"{wanted.repo_id!r} is neither a folder here nor a model id", "give a folder, or an id such as org/name"
        )
    try:
        return _from_hub(wanted)
    except _UnreachableError as error:
        if is_offline():
            return _from_cache(wanted, "offline mode is on")
        snapshot = _from_cache(wanted, f"cannot reach {_hub()} ({error})")
        log.warning("cannot reach %s (%s); using %s as it is in the cache", _hub(), error, wanted.repo_id)
        return snapshot
    except ModelNotFoundError as error:
        # What was once downloaded stays usable when it is withdrawn, renamed, or the log-in has expired.
        if (folder := _cached_folder(wanted)) is None or _lacking(wanted, folder):
            raise
        log.warning("%s; using the copy in the cache", error.problem)
        return Snapshot(folder, folder.name)


def _is_valid(repo_id: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        return False
    return True


def _from_hub(wanted: _Wanted) -> Snapshot:
    info, files = _info(wanted)
    names = _choose(wanted, {name: file.size or 0 for name, file in files.items()})
    folder = _repo_folder(wanted.repo_id) / "snapshots" / str(info.sha)
    missing = [files[name] for name in names if not (folder / name).is_file()]
    if missing:
        _check_space(wanted, missing)
        _download(wanted, str(info.sha), names)
    if absent := [name for name in names if not (folder / name).is_file()]:
        # snapshot_download returns a partial folder, without an error, where the Hub fails half-way.
        raise HubUnreachableError(f"the download of {wanted.repo_id} broke off before {absent[0]}", _again(wanted))
    _note_revision(wanted, str(info.sha))
    return Snapshot(folder, info.sha)


def _info(wanted: _Wanted) -> tuple[ModelInfo, dict[str, RepoSibling]]:
    """What the Hub says of a model, in one request; its files by name."""
    with _explained(wanted):
        info = _ask(
            lambda api, seconds: api.model_info(
                wanted.repo_id, revision=wanted.revision, files_metadata=True, timeout=seconds
            ),
            patient=wanted.patient,
        )
    if not info.sha:
        raise _UnreachableError("it does not answer like a model hub")
    return info, {file.rfilename: file for file in info.siblings or ()}


def _repo_folder(repo_id: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo_id, repo_type="model")


def _check_space(wanted: _Wanted, missing: list[RepoSibling]) -> None:
    """Say how much will be downloaded, and refuse what does not fit.

    The sizes are known from the one request, where a dry run would ask for each file. A blob can be there already
    without its file: of an earlier commit.
    """
    repo = _repo_folder(wanted.repo_id)
    blobs = {file.lfs.sha256 if file.lfs else file.blob_id: file.size or 0 for file in missing}
    size = sum(size for blob, size in blobs.items() if not (repo / "blobs" / str(blob)).exists())
    place = next(folder for folder in (repo, *repo.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if size > free:
        raise NotEnoughMemoryError(
            f"{wanted.repo_id} needs {_size(size)} on the disk and {place} has {_size(free)} free",
            "free some space, or set HF_HOME to a folder on a larger disk",
        )
    if size:
        log.warning("downloading %s (%s) to %s", wanted.repo_id, _size(size), repo.parent)


def _size(count: int) -> str:
    if count >= 1_000_000_000:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1_000_000 else f"{count / 1e3:.0f} kB"


def _download(wanted: _Wanted, commit: str, names: list[str]) -> None:
    import httpx2
    from huggingface_hub import constants, snapshot_download

    try:
        with _explained(wanted), _quietly():
            snapshot_download(
                wanted.repo_id,
                revision=commit,
                allow_patterns=[escape(name) for name in names],
                cache_dir=constants.HF_HUB_CACHE,
                endpoint=constants.ENDPOINT,
                library_name="llmkit",
            )
    except (OSError, httpx2.HTTPError, RuntimeError, ValueError) as error:
        raise _download_error(wanted, error) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Bars on a terminal only, and no word of each retry of each file: what failed in the end is said once.

    huggingface_hub draws the bar that counts files even into a log file, unless bars are off altogether.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    forced = constants.HF_HUB_DISABLE_PROGRESS_BARS is False
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        with nullcontext() if forced or sys.stderr.isatty() else disable_progress_bars():
            yield
    finally:
        logger.setLevel(level)


def _note_revision(wanted: _Wanted, commit: str) -> None:
    """Write down which commit a branch stood for, as huggingface_hub does unless it is given the commit.

    Only once all files are there, so that offline the last complete download is found.
    """
    revision = wanted.revision or "main"
    ref = _repo_folder(wanted.repo_id) / "refs" / revision
    with suppress(OSError):  # a cache that others fill may be read-only
        if revision == commit or (ref.is_file() and ref.read_text() == commit):
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        temporary = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
        temporary.write_text(commit)
        temporary.replace(ref)


# ----------------------------------------------------------------------------------------------------- the cache


def is_cached(repo_id: str, revision: str | None = None) -> bool:
    """Whether a model, with its weights, can be used without a network."""
    wanted = _Wanted(repo_id, revision)
    return _is_valid(repo_id) and (folder := _cached_folder(wanted)) is not None and not _lacking(wanted, folder)


def _cached_folder(wanted: _Wanted) -> Path | None:
    """The snapshot folder of a model in the cache, complete or not."""
    from huggingface_hub import constants, try_to_load_from_cache

    for name in filter(None, (wanted.filename, *_CONFIGS)):
        path = try_to_load_from_cache(wanted.repo_id, name, cache_dir=constants.HF_HUB_CACHE, revision=wanted.revision)
        if isinstance(path, str):
            return Path(path).parents[name.count("/")]
    return None


def _lacking(wanted: _Wanted, folder: Path) -> str:
    """What a cached snapshot lacks, in a few words; empty if it can be used."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    weights = _weights(wanted, names)
    if wanted.weights and not weights:
        return "weights"
    needed = [*weights, *(_code_files(folder) if wanted.code else ())]
    return next((name for name in needed if name not in names), "")


def _code_files(folder: Path) -> set[str]:
    """The Python files that a config.json names as the model's own code."""
    path = folder / "config.json"
    values = (read_json(path).get("auto_map") or {}).values() if path.is_file() else ()
    classes = [name for value in values for name in (value if isinstance(value, list) else [value]) if name]
    # "org/other--module.Class" is the code of another repository.
    return {name.rpartition(".")[0].replace(".", "/") + ".py" for name in classes if "--" not in name}


def _from_cache(wanted: _Wanted, why: str) -> Snapshot:
    folder = _cached_folder(wanted)
    if folder is not None and not (lacking := _lacking(wanted, folder)):
        return Snapshot(folder, folder.name)
    state = "is not in the cache" if folder is None else f"is in the cache without its {lacking}"
    raise HubUnreachableError(
        f"{why} and {wanted.repo_id} {state}",
        f"run `{wanted.command}` on a machine with a network, or use --model starter",
    )


# ---------------------------------------------------------------------------------------- questions without files


def exists(repo_id: str) -> bool | None:
    """Whether there is a model of that name, in the cache or on the Hub; None if that cannot be told."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if not _is_valid(repo_id):
        return False
    if is_cached(repo_id):
        return True
    try:
        _ask(lambda api, seconds: api.model_info(repo_id, expand=["sha"], timeout=seconds))
    except GatedRepoError:
        return True
    except RepositoryNotFoundError:
        return False
    except (_UnreachableError, HfHubHTTPError):
        return None
    return True


def hub_parameter_counts(repo_id: str, revision: str | None = None) -> dict[str, int] | None:
    """How many parameters of which dtype a model has, without its weights; None if it has no safetensors.

    The Hub counts those of the default branch itself; of another revision the file headers are read.
    """
    from huggingface_hub.errors import SafetensorsParsingError

    wanted = _Wanted(repo_id, revision)
    counts: Counter[str] = Counter()
    try:
        info, files = _info(wanted)
        if info.safetensors and revision is None:
            return dict(info.safetensors.parameters)
        for name in _weights(wanted, files):
            if name.endswith(".safetensors"):
                with _explained(wanted):
                    counts.update(_header_counts(repo_id, name, str(info.sha)))
    except _UnreachableError as error:
        raise HubUnreachableError(
            f"cannot reach {_hub()} ({error})", f"run `{wanted.command}` on a machine with a network"
        ) from error
    except SafetensorsParsingError as error:
        raise CheckpointError(f"{repo_id} has a damaged safetensors file", "choose another revision") from error
    return dict(counts) or None


def _header_counts(repo_id: str, name: str, commit: str) -> dict[str, int]:
    metadata = _ask(
        lambda api, seconds: api.parse_safetensors_file_metadata(repo_id, name, revision=commit, timeout=seconds)
    )
    return {str(dtype): count for dtype, count in metadata.parameter_count.items()}


# ---------------------------------------------------------------------------------------------------- what failed


def _again(wanted: _Wanted) -> str:
    return f"run `{wanted.command}`: it goes on where it stopped"


@contextmanager
def _explained(wanted: _Wanted) -> Iterator[None]:
    """Turn a refusal of the Hub into an error of llmkit."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(wanted, error) from error


def _refusal(wanted: _Wanted, error: HfHubHTTPError) -> LlmkitError:
    """What a status code of the Hub means for the user."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, status = wanted.repo_id, error.response.status_code
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, GatedRepoError):
        return ModelNotFoundError(f"access to {repo} must be granted", f"ask for it at {page}, then run: hf auth login")
    if isinstance(error, DisabledRepoError):
        return ModelNotFoundError(f"{repo} was disabled by the hub", "choose another model")
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFoundError(f"{repo} has no revision {wanted.revision!r}", f"see {page}/commits/main")
    if isinstance(error, EntryNotFoundError):
        return ModelNotFoundError(f"a file of {repo} is gone from the hub", f"see {page}/tree/main")
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return ModelNotFoundError(
            f"there is no model {repo}, or it is private", "check the spelling, or run: hf auth login"
        )
    if status in (401, 403):
        return ModelNotFoundError(f"{_hub()} refused access to {repo} ({status})", "run: hf auth login")
    if status == 429:
        return HubUnreachableError(f"{_hub()} allows no more requests for now", "wait a few minutes")
    return HubUnreachableError(f"{_hub()} answered with an error {status} for {repo}", _again(wanted))


def _download_error(wanted: _Wanted, error: BaseException) -> LlmkitError:
    """What ended a download: the disk, or the connection."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    match getattr(error, "errno", None):
        case errno.ENOSPC | errno.EDQUOT:
            return NotEnoughMemoryError(
                f"the disk of {cache} is full while downloading {wanted.repo_id}",
                "free some space, or set HF_HOME to a folder on a larger disk",
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return LlmkitError(f"{cache} cannot be written to", "set HF_HOME to a folder of yours")
    return HubUnreachableError(
        f"the download of {wanted.repo_id} broke off ({_reason(error.__cause__ or error)})", _again(wanted)
    )
