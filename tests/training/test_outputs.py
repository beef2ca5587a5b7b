"""What a run leaves: a card, a curve, figures, where it came from; and what is given to the Hub and to trackers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml

from llmkit.cli.app import main
from llmkit.errors import MissingDependencyError, UsageError
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows


def run(checkpoint: Checkpoint, folder: Path, **train: Any) -> Path:
    rows = write_rows(folder / "行.jsonl", [{"text": f"The fox {number}."} for number in range(10)])
    usual = {"output_dir": str(folder / "out"), "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-3}
    data = {"train": [{"path": [str(rows)], "license": "cc-by-4.0"}], "validation_fraction": 0.2}
    adapter = {"peft_type": "LORA", "r": 4}
    finetune(make_recipe("text-generation", checkpoint("llama"), rows, data=data, train=usual | train, adapter=adapter))
    return folder / "out"


def test_the_folder_tells_what_it_came_from_and_how_it_went(checkpoint: Checkpoint, tmp_path: Path) -> None:
    out = run(checkpoint, tmp_path)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["updates"] == 2
    assert metrics["tokens"] > 0
    assert metrics["eval_loss"] == metrics["best_eval_loss"]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    resolved = (out / "resolved.yaml").read_text(encoding="utf-8")
    told = yaml.safe_load("".join(line[2:] for line in resolved.splitlines(keepends=True) if line.startswith("# ")))
    assert set(told["versions"]) >= {"llmkit", "torch", "transformers", "peft"}
    expected = hashlib.sha256((tmp_path / "行.jsonl").read_bytes()).hexdigest()
    assert told["data"] == [{"name": str(tmp_path / "行.jsonl"), "part": "train", "hash": expected}]
    card = (out / "README.md").read_text(encoding="utf-8")
    _, matter, text = card.split("---\n", 2)
    assert yaml.safe_load(matter)["library_name"] == "peft"
    assert f"| 行.jsonl | train | cc-by-4.0 | `{expected[:16]}` |" in text
    assert "r: 4" in text
    assert "lora_alpha" not in text  # a default
    assert f"| eval_loss | {metrics['eval_loss']:.6g} |" in text


def test_a_card_holds_no_markup_of_data_and_no_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from markdown_it import MarkdownIt

    hostile = "a|b `c` <img src=x> [l](http:x) # h ![i](y) \x1b[31m\u202e.jsonl"
    rows = [{"text": f"The fox {number}.", "co|l\n# H\n```\n<b>": "x"} for number in range(4)]
    file = write_rows(tmp_path / hostile, rows)
    recipe = make_recipe(
        "text-generation",
        checkpoint("llama"),
        file,
        data={"train": [{"path": [str(file)], "license": "x |\n\n# H\n<script>"}]},
        prompt={"system": f"/no_think {'long ' * 100}\n```\n# H\n", "raw": False},
        train={"output_dir": str(tmp_path / "# *out* <b>"), "max_steps": 1},
    )
    finetune(recipe)
    card = (tmp_path / "# *out* <b>" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    flat = [each for token in tokens for each in (token, *(token.children or ()))]
    headings = [tokens[index + 1].content for index, token in enumerate(tokens) if token.type == "heading_open"]
    assert len(headings) == 4
    assert not [token for token in flat if token.type in ("html_inline", "html_block", "link_open")]
    assert [token.attrs["src"] for token in flat if token.type == "image"] == ["loss.png"]
    shown = "a|b `c` <img src=x> [l](http:x) # h ![i](y) \\x1b[31m\\u202e.jsonl"
    cells = [tokens[index + 1] for index, token in enumerate(tokens) if token.type == "td_open"]
    assert "".join(each.content for each in cells[0].children or ()) == shown


class Hub:
    """Takes what is uploaded."""

    calls: list[tuple[str, dict[str, Any]]]

    def create_repo(self, name: str, **options: Any) -> Any:
        self.calls.append(("create", {"name": name, **options}))
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, **options: Any) -> Any:
        from huggingface_hub.utils._paths import filter_repo_objects

        folder = Path(options["folder_path"])
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        kept = filter_repo_objects(names, ignore_patterns=options["ignore_patterns"])
        content = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.calls.append(("upload", {"repo": options["repo_id"], "names": sorted(kept), "content": content}))
        return SimpleNamespace(commit_url="https://hub/commit/1")


def test_the_hub_is_asked_before_training_and_gets_no_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="nothing can be pushed to the Hub offline"):
        run(checkpoint, tmp_path, push_to_hub=True)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("llmkit.training.push.is_offline", lambda: False)
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(Hub, "calls", calls, raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    out = run(checkpoint, tmp_path, push_to_hub=True, hub_private_repo=True)
    assert [name for name, _ in calls] == ["create", "create", "upload"]
    assert calls[0][1] == {"name": "out", "private": True, "exist_ok": True}
    assert calls[2][1]["repo"] == "me/out"
    assert {"adapter_model.safetensors", "llmkit.json", "README.md", "loss.png"} <= set(calls[2][1]["names"])
    assert not [name for name in calls[2][1]["names"] if name.startswith(("checkpoint", "."))]
    told = [name for name, content in calls[2][1]["content"].items() if str(tmp_path.parent).encode() in content]
    assert not told, "folders of this machine were uploaded"
    assert (
        json.loads(calls[2][1]["content"]["adapter_config.json"])["base_model_name_or_path"] == checkpoint("llama").name
    )
    assert str(checkpoint("llama")) in (out / "adapter_config.json").read_text(), "here the adapter finds its base"
    assert main(["push", str(out), "me/other"]) == 0
    assert capsys.readouterr().out == "https://hub/commit/1\n"
    assert main(["push", str(tmp_path), "me/other"]) == 2


def test_trackers_get_every_figure(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import tracking

    class Tracker(tracking.GeneralTracker):  # type: ignore[misc]
        name = "tensorboard"
        requires_logging_directory = True
        logged: ClassVar[list[tuple[int, set[str]]]] = []
        stored: ClassVar[dict[str, Any]] = {}

        def __init__(self, run_name: str, logging_dir: str, **_: Any) -> None:
            super().__init__()
            assert (run_name, Path(logging_dir)) == ("out", tmp_path / "out" / "trackers")

        @property
        def tracker(self) -> None:
            return None

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.stored.update(values)

        def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
            self.logged.append((step or 0, set(values)))

    with pytest.raises(MissingDependencyError, match="clearml is not installed; pip install clearml"):
        run(checkpoint, tmp_path, report_to=["clearml"])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [tracking.LoggerType.TENSORBOARD])
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD])
    run(checkpoint, tmp_path, report_to=["tensorboard"])
    assert (1, {"loss", "learning_rate", "grad_norm"}) in Tracker.logged
    assert any(values == {"eval_loss"} for _, values in Tracker.logged)
    assert Tracker.stored["train.max_steps"] == 2
    assert Tracker.stored["adapter.r"] == 4


def test_two_runs_do_not_share_a_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(UsageError, match="another process is writing to"):
        run(checkpoint, tmp_path)
