"""Models on the Hugging Face Hub: downloading into its local cache, looking up there, and listing files.

Knows repositories, the cache, and what a refusal means for the user. Leaves connections to `reachability` and the
choice of files to `repo_files`. Knows nothing of tasks, tensors or how a model is loaded: it returns a folder.
"""

from __future__ import annotations

import errno
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.errors import (
    CheckpointError,
    ErrorCode,
    HubUnreachableError,
    LlmkitError,
    ModelNotFoundError,
    NotEnoughMemoryError,
)
from llmkit.files import in_units, read_json, write_whole
from llmkit.hub.reachability import (
    UnreachableError,
    ask,
    forget_unreachable,
    hub_address,
    hub_name,
    is_offline,
    mirror_hint,
    reason,
)
from llmkit.hub.repo_files import Wanted, choose, weights_of
from llmkit.log import log, warn
from llmkit.progress import display

# huggingface_hub is imported inside functions: it costs 0.3 s, and a local folder never needs it.
if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

__all__ = ["Snapshot", "download", "exists", "fetch", "hub_parameter_counts", "is_cached"]

_CONFIGS = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class Snapshot:
    """A model's local files, and their commit."""

    folder: Path
    commit: str | None


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
    return _fetch(Wanted(repo_id, revision, filename, safetensors_only, code, weights))


def download(model: str, *, revision: str | None = None, code: bool = False) -> Snapshot:
    """Download a whole model, and the base model of an adapter, even if the Hub was unreachable a moment ago.

    ``code`` downloads the Python files of the repositories too.
    """
    forget_unreachable()
    snapshot = _fetch(Wanted(model, revision, code=code, patient=True))
    adapter = snapshot.folder / "adapter_config.json"
    if adapter.is_file():
        config = read_json(adapter)
        base = config.get("base_model_name_or_path")
        if base and not Path(str(base)).exists():
            _fetch(Wanted(str(base), config.get("revision"), code=code, patient=True))
    return snapshot


def _fetch(wanted: Wanted) -> Snapshot:
    if not _is_valid(wanted.repo_id):
        raise ModelNotFoundError(
            f"{wanted.repo_id!r} is neither a folder here nor a model id", "give a folder, or an id such as org/name"
        )
    try:
        return _from_hub(wanted)
    except UnreachableError as error:
        if is_offline():
            return _from_cache(wanted, "offline mode is on", code="offline")
        snapshot = _from_cache(wanted, f"cannot reach {hub_name()} ({error})", mirror_hint(), code="hub_unreachable")
        warn(
            "cached_copy_used",
            "cannot reach %s (%s); using %s as it is in the cache",
            hub_name(),
            error,
            wanted.repo_id,
        )
        return snapshot
    except ModelNotFoundError as error:
        # What was once downloaded stays usable when it is withdrawn, renamed, or the log-in has expired.
        if (folder := _cached_folder(wanted)) is None or _lacking(wanted, folder):
            raise
        warn("cached_copy_used", "%s; using the copy in the cache", error.problem)
        return Snapshot(folder, folder.name)


def _is_valid(repo_id: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        return False
    return True


def _from_hub(wanted: Wanted) -> Snapshot:
    info, files = _info(wanted)
    names = choose(wanted, {name: file.size or 0 for name, file in files.items()})
    folder = _repo_folder(wanted.repo_id) / "snapshots" / str(info.sha)
    missing = [files[name] for name in names if not (folder / name).is_file()]
    if missing:
        _check_space(wanted, missing)
        _download(wanted, str(info.sha), names)
    if absent := [name for name in names if not (folder / name).is_file()]:
        # snapshot_download returns a partial folder, without an error, where the Hub fails half-way.
        raise HubUnreachableError(
            f"the download of {wanted.repo_id} broke off before {absent[0]}",
            _again(wanted),
            code="download_interrupted",
        )
    _note_revision(wanted, str(info.sha))
    return Snapshot(folder, info.sha)


def _info(wanted: Wanted) -> tuple[ModelInfo, dict[str, RepoSibling]]:
    """The Hub's information on a model, from one request, and its files by name."""
    with _explained(wanted):
        info = ask(
            lambda api, seconds: api.model_info(
                wanted.repo_id, revision=wanted.revision, files_metadata=True, timeout=seconds
            ),
            patient=wanted.patient,
        )
    if not info.sha:
        raise UnreachableError("it does not answer like a model hub")
    return info, {file.rfilename: file for file in info.siblings or ()}


def _repo_folder(repo_id: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo_id, repo_type="model")


def _check_space(wanted: Wanted, missing: list[RepoSibling]) -> None:
    """Log the size of the download, and refuse one that does not fit on the disk.

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
            f"{wanted.repo_id} needs {in_units(size)} on the disk and {place} has {in_units(free)} free",
            "free some space, or set HF_HOME to a folder on a larger disk",
            code="disk_full",
        )
    if size:
        log.warning("downloading %s (%s) to %s", wanted.repo_id, in_units(size), repo.parent)


def _download(wanted: Wanted, commit: str, names: list[str]) -> None:
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
    """Progress bars on a terminal only, and no log line for each retry: a final failure is reported once.

    huggingface_hub draws the bar that counts files even into a log file, unless bars are off altogether.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    forced = constants.HF_HUB_DISABLE_PROGRESS_BARS is False
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        with nullcontext() if forced or (display.bars and sys.stderr.isatty()) else disable_progress_bars():
            yield
    finally:
        logger.setLevel(level)


def _note_revision(wanted: Wanted, commit: str) -> None:
    """Record the commit of a branch, as huggingface_hub does unless it is called with the commit.

    Done when all files are complete, so that offline use finds the last complete download.
    """
    revision = wanted.revision or "main"
    ref = _repo_folder(wanted.repo_id) / "refs" / revision
    with suppress(OSError):  # a cache that others fill may be read-only
        if revision == commit or (ref.is_file() and ref.read_text() == commit):
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_whole(ref, commit)


def is_cached(repo_id: str, revision: str | None = None) -> bool:
    """Whether a model, with its weights, can be used without a network."""
    wanted = Wanted(repo_id, revision)
    return _is_valid(repo_id) and (folder := _cached_folder(wanted)) is not None and not _lacking(wanted, folder)


def _cached_folder(wanted: Wanted) -> Path | None:
    """The snapshot folder of a model in the cache, complete or not."""
    from huggingface_hub import constants, try_to_load_from_cache

    for name in filter(None, (wanted.filename, *_CONFIGS)):
        path = try_to_load_from_cache(wanted.repo_id, name, cache_dir=constants.HF_HUB_CACHE, revision=wanted.revision)
        if isinstance(path, str):
            return Path(path).parents[name.count("/")]
    return None


def _lacking(wanted: Wanted, folder: Path) -> str:
    """What a cached snapshot lacks, in a few words; empty if it can be used."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    weights = weights_of(wanted, names)
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


def _from_cache(wanted: Wanted, why: str, *fixes: str, code: ErrorCode) -> Snapshot:
    folder = _cached_folder(wanted)
    if folder is not None and not (lacking := _lacking(wanted, folder)):
        return Snapshot(folder, folder.name)
    state = "is not in the cache" if folder is None else f"is in the cache without its {lacking}"
    raise HubUnreachableError(
        f"{why} and {wanted.repo_id} {state}",
        f"run `{wanted.command}` on a machine with a network",
        *fixes,
        "use `model=starter`",
        code=code,
    )


def exists(repo_id: str) -> bool | None:
    """Whether a model of that name exists, in the cache or on the Hub; None if unknown."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if not _is_valid(repo_id):
        return False
    if is_cached(repo_id):
        return True
    try:
        ask(lambda api, seconds: api.model_info(repo_id, expand=["sha"], timeout=seconds))
    except GatedRepoError:
        return True
    except RepositoryNotFoundError:
        return False
    except (UnreachableError, HfHubHTTPError):
        return None
    return True


def hub_parameter_counts(repo_id: str, revision: str | None = None) -> dict[str, int] | None:
    """How many parameters of which dtype a model has, without its weights; None if it has no safetensors.

    The Hub counts those of the default branch itself; of another revision the file headers are read.
    """
    from huggingface_hub.errors import SafetensorsParsingError

    wanted = Wanted(repo_id, revision)
    counts: Counter[str] = Counter()
    try:
        info, files = _info(wanted)
        if info.safetensors and revision is None:
            return dict(info.safetensors.parameters)
        for name in weights_of(wanted, files):
            if name.endswith(".safetensors"):
                with _explained(wanted):
                    counts.update(_header_counts(repo_id, name, str(info.sha)))
    except UnreachableError as error:
        raise HubUnreachableError(
            f"cannot reach {hub_name()} ({error})", mirror_hint(), f"run `{wanted.command}` on a machine with a network"
        ) from error
    except SafetensorsParsingError as error:
        raise CheckpointError(f"{repo_id} has a damaged safetensors file", "choose another revision") from error
    return dict(counts) or None


def _header_counts(repo_id: str, name: str, commit: str) -> dict[str, int]:
    metadata = ask(
        lambda api, seconds: api.parse_safetensors_file_metadata(repo_id, name, revision=commit, timeout=seconds)
    )
    return {str(dtype): count for dtype, count in metadata.parameter_count.items()}


def _again(wanted: Wanted) -> str:
    return f"run `{wanted.command}`: it continues where it stopped"


@contextmanager
def _explained(wanted: Wanted) -> Iterator[None]:
    """Context manager that converts HTTP errors of the Hub to errors of llmkit."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise _refusal(wanted, error) from error


def _refusal(wanted: Wanted, error: HfHubHTTPError) -> LlmkitError:
    """What a status code of the Hub means for the user."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, status = wanted.repo_id, error.response.status_code
    page = f"{hub_address()}/{repo}"
    if isinstance(error, GatedRepoError):
        return ModelNotFoundError(
            f"access to {repo} is restricted", f"request it at {page}, then run: hf auth login", code="access_denied"
        )
    if isinstance(error, DisabledRepoError):
        return ModelNotFoundError(f"{repo} was disabled by the Hub", "choose another model")
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFoundError(f"{repo} has no revision {wanted.revision!r}", f"see {page}/commits/main")
    if isinstance(error, EntryNotFoundError):
        return ModelNotFoundError(f"a file of {repo} no longer exists on the Hub", f"see {page}/tree/main")
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return ModelNotFoundError(
            f"the model {repo} does not exist, or is private", "check the spelling, or run: hf auth login"
        )
    if status in (401, 403):
        return ModelNotFoundError(
            f"{hub_name()} refused access to {repo} ({status})", "run: hf auth login", code="access_denied"
        )
    if status == 429:
        return HubUnreachableError(f"{hub_name()} limits the number of requests", "wait a few minutes")
    return HubUnreachableError(f"{hub_name()} returned the error {status} for {repo}", _again(wanted))


def _download_error(wanted: Wanted, error: BaseException) -> LlmkitError:
    """What ended a download: the disk, or the connection."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    match getattr(error, "errno", None):
        case errno.ENOSPC | errno.EDQUOT:
            return NotEnoughMemoryError(
                f"the disk of {cache} is full while downloading {wanted.repo_id}",
                "free some space, or set HF_HOME to a folder on a larger disk",
                code="disk_full",
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return LlmkitError(f"{cache} cannot be written to", "set HF_HOME to a folder of yours", code="not_writable")
    return HubUnreachableError(
        f"the download of {wanted.repo_id} broke off ({reason(error.__cause__ or error)})",
        _again(wanted),
        code="download_interrupted",
    )
