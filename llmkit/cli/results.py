"""Commands for a tuned model: ``llmkit merge``, ``llmkit export`` and ``llmkit push``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmkit.cli.options import declared
from llmkit.cli.output import AsJson
from llmkit.cli.streams import echo
from llmkit.config.settings import DType, LoadSettings
from llmkit.errors import without_password
from llmkit.files import in_units

__all__ = ["export", "merge", "push"]


def merge(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder or Hub id of a PEFT adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder for the model.")],
    dtype: Annotated[DType, declared(LoadSettings, "dtype", help="Weight dtype; auto keeps the base's.")] = "auto",
    base: Annotated[str | None, declared(LoadSettings, "base")] = None,
    threads: Annotated[int | None, declared(LoadSettings, "threads", min=1)] = None,
    offline: Annotated[bool, declared(LoadSettings, "offline")] = False,
    allow_pickle: Annotated[bool, declared(LoadSettings, "allow_pickle")] = False,
    trust_remote_code: Annotated[bool, declared(LoadSettings, "trust_remote_code")] = False,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base model.

    Logits are compared before and after; if they differ, the merged model is not saved.

    Examples:
        llmkit merge runs/papers --output models/papers
    """
    from llmkit.management import merge as merge_adapter

    merged = merge_adapter(
        adapter,
        output,
        dtype=dtype,
        base=base,
        threads=threads,
        offline=offline,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    echo(json.dumps(asdict(merged), default=str, ensure_ascii=False) if as_json else str(merged.folder))


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, or folder of a model, a run or an adapter.")],
    to: Annotated[
        Literal["safetensors", "gguf", "ctranslate2", "onnx"],
        typer.Option(
            "--to", help="Format: of Transformers and vLLM, llama.cpp, CTranslate2, or ONNX (extractive models)."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="A new folder.",
            show_default="the model's name and the format",
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="Weight dtype; auto keeps the model's. Also q8_0 for gguf, and int8, int16 … for ctranslate2.",
        ),
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
    base: Annotated[str | None, declared(LoadSettings, "base")] = None,
    threads: Annotated[int | None, declared(LoadSettings, "threads", min=1)] = None,
    offline: Annotated[bool, declared(LoadSettings, "offline")] = False,
    allow_pickle: Annotated[bool, declared(LoadSettings, "allow_pickle")] = False,
    trust_remote_code: Annotated[bool, declared(LoadSettings, "trust_remote_code")] = False,
    as_json: AsJson = False,
) -> None:
    """Export a model to the format of other programs.

    An adapter is merged. The exported model is compared with its source; if it differs, it is not saved.

    Examples:
        llmkit export runs/papers --to gguf --dtype q8_0
        llmkit export runs/papers --to safetensors --output models/papers
    """
    from llmkit.management import export as export_model

    done = export_model(
        model,
        to,
        output,
        dtype=dtype,
        overwrite=overwrite,
        base=base,
        threads=threads,
        offline=offline,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    echo(json.dumps(asdict(done), default=str, ensure_ascii=False) if as_json else str(done.folder))


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a model or an adapter.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Name on the Hub, such as me/my-model.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be uploaded, without using the network.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a tuned model to the Hub, without its checkpoints.

    Examples:
        llmkit push runs/papers me/papers --private
        llmkit push runs/papers me/papers --dry-run
    """
    from llmkit.management import push as upload

    done = upload(folder, repo, private=private or None, dry_run=dry_run)
    if as_json:
        echo(json.dumps(done.to_dict(), ensure_ascii=False))
    elif done.url is not None:
        echo(without_password(done.url))
    else:
        echo(f"to {done.repo}")
        for name, size in done.files.items():
            echo(f"  {in_units(size):>8}  {name}")
        echo(f"{len(done.files)} files, {in_units(sum(done.files.values()))}; {len(done.left_out)} files left out")
        for problem in done.problems:
            echo(f"would be refused: {problem}")
