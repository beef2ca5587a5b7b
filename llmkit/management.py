"""The functions of `import llmkit` that manage models and data: inspect, check_data, export, merge, push, serve …

Thin: the work is done in `llmkit.models` and `llmkit.training`; the commands of the same names call these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from llmkit.config.declaration import split_options
from llmkit.config.settings import DType, LoadOptions, LoadSettings, delimiter_character
from llmkit.config.signatures import with_settings
from llmkit.errors import MissingDependencyError
from llmkit.pages.words import PageLanguage
from llmkit.server.settings import ServeOptions, ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmkit.exporters.run import Exported, Target
    from llmkit.models.inspect import ModelReport
    from llmkit.training.data_check import DataCheck
    from llmkit.training.merge import Merged
    from llmkit.training.push import Upload

__all__ = [
    "asgi_app",
    "check_data",
    "download",
    "export",
    "inspect",
    "merge",
    "push",
    "report",
    "serve",
    "start_server",
]

_Path = str | Path


def inspect(
    model: _Path, *, revision: str | None = None, base: str | None = None, exact: bool = False, offline: bool = False
) -> ModelReport:
    """A model's architecture, supported tasks and known issues, from its small files; no weights are loaded.

    ``print`` the report for a page of text; ``to_dict()`` is its JSON.

    Args:
        model: Hub id, folder (also of a run or of one of its checkpoints), adapter folder, GGUF file, or ``starter``.
        revision: branch, tag or commit on the Hub.
        base: the base model of an adapter, instead of the one it names.
        exact: count parameters by building the model on the meta device, if no file header states their number.
        offline: never use the network.

    Raises:
        ModelNotFoundError: no such model, or no access to it.
        HubUnreachableError: the Hub is needed and cannot be reached.
        CheckpointError: a file is missing or damaged.
    """
    from llmkit.hub.client import hub_parameter_counts
    from llmkit.hub.reachability import is_offline
    from llmkit.hub.reachability import offline as without_network
    from llmkit.models.inspect import inspect_source
    from llmkit.models.locate import locate
    from llmkit.models.tuned import run_folder

    folder, update = run_folder(Path(model))
    name = str(model) if update is None else str(folder)
    with without_network(offline):
        source = locate(LoadSettings(model=name, revision=revision, base=base), weights=False)
        on_hub = source.commit and not source.adapter and not source.gguf_file and not is_offline()
        counts = hub_parameter_counts(str(model), revision) if on_hub else None
        return inspect_source(source, exact=exact, hub_counts=counts, update=update)


@with_settings(LoadSettings)
def check_data(
    data: Any,
    task: str | None = None,
    *,
    model: str | None = None,
    source: str | None = None,
    target: str | None = None,
    validation: Any = None,
    encoding: str | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_rows: int | None = None,
    max_length: int | None = None,
    samples: int = 2,
    overrides: Sequence[str] = (),
    **options: Unpack[LoadOptions],
) -> DataCheck:
    """How a model would see training data: the mapping of columns, lengths, duplicates, bad rows, examples.

    Args:
        data: a recipe; or files, a folder, a pattern or a Hub id, a `datasets.Dataset`, a data frame, an Arrow table or
            an iterable of mappings, for which a mapping is proposed.
        task: the task of the data; a recipe names its own.
        model: the model whose tokenizer is used; ``starter`` by default.
        source: translation: source language.
        target: translation: target language.
        validation: validation data, beside data that is not a recipe.
        encoding: of the files, if not UTF-8.
        header: CSV and TSV: whether the first row names the columns; by default it is detected.
        delimiter: CSV and TSV: the character that separates the fields; by default it is detected.
        columns: the column of each field of the task, as far as they are not to be detected.
        max_rows: use only the first rows of the files.
        max_length: longest example in tokens.
        samples: examples in the report.
        overrides: changes to a recipe, such as ``data.max_length=256``.
        **options: the fields of `LoadSettings`.

    Returns:
        The proposal (part of a recipe) and the report; ``to_dict()`` is its JSON.

    Raises:
        UsageError: no task was named, or a setting has no effect on a recipe.
        InputError: the data cannot be used.
    """
    from llmkit.training.data_check import check_data as check
    from llmkit.training.python_data import data_source

    form: dict[str, Any] = {"encoding": encoding, "header": header, "columns": columns, "max_rows": max_rows}
    form["delimiter"] = None if delimiter is None else delimiter_character(delimiter)
    form = {name: value for name, value in form.items() if value is not None}
    return check(
        {**data_source(data), **form},
        split_options({**options, "model": model}, LoadSettings)[0],
        task=task,
        languages={"source": source, "target": target},
        validation=None if validation is None else {**data_source(validation), **form},
        max_length=max_length,
        samples=samples,
        overrides=overrides,
    )


def merge(
    adapter: _Path,
    output: _Path,
    *,
    dtype: DType = "auto",
    base: str | None = None,
    threads: int | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Merged:
    """Merge an adapter into its base model. Logits are compared before and after.

    Args:
        adapter: folder or Hub id of a PEFT adapter.
        output: a new folder for the model.
        dtype: of the weights; ``auto`` keeps the base model's.
        base: the base model, instead of the one that the adapter names.
        threads: number of CPU threads.
        offline: never use the network.
        allow_pickle: load pickled weights, which can run code.
        trust_remote_code: run code that comes with the base model.

    Returns:
        The folder, and by how much logits differ.

    Raises:
        UsageError: it is not an adapter, cannot be merged, or the folder is not empty.
        CheckpointError: the merged model computes something else; it is not saved.
    """
    from llmkit.hub.reachability import offline as without_network
    from llmkit.training.merge import merge as merge_adapter

    settings = LoadSettings(
        model=str(adapter),
        base=base,
        threads=threads,
        offline=offline,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    with without_network(offline):
        return merge_adapter(str(adapter), Path(output), dtype=dtype, settings=settings)


def report(
    folder: _Path, evaluations: Sequence[_Path] = (), *, output: _Path | None = None, language: PageLanguage = "en"
) -> Path:
    """Write a page about a training run; returns its path.

    Args:
        folder: of a run, or of one of its checkpoints.
        evaluations: folders that ``evaluate`` wrote, of the run's model.
        output: a file; by default ``report.html`` in the folder of the run.
        language: ``en`` or ``zh``.

    Raises:
        InputError: a folder is none of a run, or of an evaluation.
    """
    from llmkit.reporting.report import write_page

    return write_page(Path(folder), [*map(Path, evaluations)], None if output is None else Path(output), language)


def export(
    model: _Path,
    to: Target,
    output: _Path | None = None,
    *,
    dtype: str = "auto",
    overwrite: bool = False,
    base: str | None = None,
    threads: int | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Exported:
    """Export a model to the format of other programs. An adapter is merged; the result is compared with its source.

    Args:
        model: Hub id, folder of a model or a run, adapter folder, GGUF file, or ``starter``.
        to: ``safetensors`` (plain Transformers, vLLM), ``gguf`` (llama.cpp), ``ctranslate2``, or ``onnx``, which is
            for extractive models.
        output: a new folder; by default the model's name and the format, beside the model or in the current folder.
        dtype: of the weights; ``auto`` keeps the model's. Besides ``float32``, ``bfloat16`` and ``float16``, GGUF has
            ``q8_0``, and CTranslate2 ``int8``, ``int16``, ``int8_float32`` and others.
        overwrite: replace the folder, if it exists.
        base: the base model, instead of the one that an adapter names.
        threads: number of CPU threads.
        offline: never use the network.
        allow_pickle: load pickled weights, which can run code.
        trust_remote_code: run code that comes with the model.

    Returns:
        The folder, and how the exported model was compared.

    Raises:
        UsageError: the folder exists, or the format does not suit the model.
        MissingDependencyError: the converter is not installed.
        CheckpointError: the exported model computes something else; it is not saved.
    """
    from llmkit.exporters.run import export as export_model
    from llmkit.hub.reachability import offline as without_network

    settings = LoadSettings(
        model=str(model),
        base=base,
        threads=threads,
        offline=offline,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    folder = None if output is None else Path(output)
    with without_network(offline):
        return export_model(str(model), to, folder, dtype=dtype, overwrite=overwrite, settings=settings)


def push(folder: _Path, repo: str, *, private: bool | None = None, dry_run: bool = False) -> Upload:
    """Upload a tuned model to the Hub, without its checkpoints and without paths of this machine.

    Args:
        folder: of a model or an adapter.
        repo: name on the Hub, such as ``me/my-model``; created if it does not exist.
        private: whether a new repository is private; None is the default of the account.
        dry_run: list what would be uploaded, and write nothing.

    Returns:
        The files with their sizes, and the URL of the commit.

    Raises:
        UsageError: the folder contains no model, or the network is disabled.
        LlmkitError: the Hub refused.
    """
    from llmkit.training.push import plan_upload
    from llmkit.training.push import push as upload

    return plan_upload(Path(folder), repo) if dry_run else upload(Path(folder), repo, private=private)


def download(model: str, *, revision: str | None = None, to: _Path | None = None) -> Path:
    """Download a model, and the base model of an adapter, for use without a network.

    Args:
        model: Hub id, GGUF file on the Hub (``owner/name/file.gguf``), or an embedded model such as ``starter``.
        revision: branch, tag or commit on the Hub.
        to: a new folder for a copy of all files, to be moved to another machine; None leaves them in the cache.

    Returns:
        The folder, which any function takes as ``model``.

    Raises:
        ModelNotFoundError: no such model, or no access to it.
        HubUnreachableError: the Hub cannot be reached.
        NotEnoughMemoryError: the disk is full.
    """
    from llmkit.models.download import download_model

    return download_model(model, revision=revision, to=None if to is None else Path(to))


@with_settings(LoadSettings, ServeSettings)
def serve(
    *models: _Path,
    adapters: Mapping[str, _Path] | None = None,
    on_start: Callable[[str], None] = lambda _: None,
    **options: Unpack[ServeOptions],
) -> None:
    """Answer requests over HTTP until SIGINT or SIGTERM: OpenAI's API, and each task.

    Args:
        models: Hub ids, folders of models or runs, adapter folders, GGUF files, or ``starter``.
        adapters: folders or Hub ids of adapters of the only model, by the names that they are served under. The model
            is loaded once.
        on_start: called with the address when requests are accepted.
        **options: the fields of `ServeSettings` and `LoadSettings`.

    Raises:
        UsageError: another than a loopback address, and no API key.
        CheckpointError: an adapter does not fit the model, or cannot share it.
        MissingDependencyError: the extra ``serve`` is not installed.
    """
    load, settings = split_options(options, LoadSettings, ServeSettings)
    start_server([str(model) for model in models], load, settings, on_start, _as_text(adapters))


def start_server(
    models: Sequence[str],
    load: LoadSettings,
    settings: ServeSettings,
    on_start: Callable[[str], None],
    adapters: Mapping[str, str],
) -> None:
    """As `serve`, with settings that have been checked."""
    with _server_packages():
        from llmkit.server.run import serve as run
    run(models, load, settings, on_start, adapters)


@with_settings(LoadSettings, ServeSettings)
def asgi_app(*models: _Path, adapters: Mapping[str, _Path] | None = None, **options: Unpack[ServeOptions]) -> FastAPI:
    """The application of `serve`, for an ASGI server, which then decides on host, port and drain."""
    load, settings = split_options(options, LoadSettings, ServeSettings)
    with _server_packages():
        from llmkit.server.app import make_app
        from llmkit.server.models import load_models
        from llmkit.server.run import api_key
    served = load_models([str(model) for model in models], load, settings, _as_text(adapters))
    return make_app(served, settings, api_key(settings))


def _as_text(adapters: Mapping[str, _Path] | None) -> dict[str, str]:
    return {name: str(folder) for name, folder in (adapters or {}).items()}


@contextmanager
def _server_packages() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"the server needs {error.name}, which is not installed", 'pip install "llmkit[serve]"'
        ) from error
