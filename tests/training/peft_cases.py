"""Every PEFT method on tiny models of every head: trained, resumed, loaded, merged, generating, in two processes.

Each step is compared with the same thing done another way: the loaded and the resumed model with the trained one, the
merged model with the adapter, rows of a batch with single rows, two processes with one.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import llmkit
from llmkit.config.peft_methods import peft_methods
from llmkit.config.recipe import Recipe
from llmkit.errors import LlmkitError
from llmkit.heads import head_of
from llmkit.models.logits import difference
from llmkit.training.merge import logits_of, merge
from llmkit.training.run import finetune
from tests.training.recipes import make_recipe, write_rows

__all__ = ["CASES", "COLUMNS", "FAMILIES", "NO_DROPOUT", "Case", "Outcome", "measure"]

FAMILIES = ("llama", "gpt2", "t5", "bart", "bert")
"""A decoder with separate projections, one with Conv1D, two encoder-decoders, a span model."""
NO_DROPOUT: dict[str, dict[str, Any]] = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "t5": {"dropout_rate": 0.0},
    "bart": {"dropout": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
"""Two processes cannot have the dropout of one."""
COLUMNS = ("train", "load", "resume", "generate", "batch", "merge", "processes")

_TEXTS = ("The quick brown fox.", "What is the meaning of life? The meaning of life is forty two.", "numbers 12345")
_SPANS = [
    {
        "question": "What is it?",
        "context": text,
        "answers": {"text": [text.split()[-1]], "answer_start": [text.rindex(text.split()[-1])]},
    }
    for text in _TEXTS
]
_WRITTEN = ("The lazy dog.", "fox", "The brown dog jumps.")
_TRAINED: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "llama": ("text-generation", [{"prompt": a, "completion": b} for a, b in zip(_TEXTS, _WRITTEN, strict=True)]),
    "t5": ("summarization", [{"document": a, "summary": b} for a, b in zip(_TEXTS, _WRITTEN, strict=True)]),
    "bert": ("question-answering", _SPANS),
}
_TRAINED |= {"gpt2": _TRAINED["llama"], "bart": _TRAINED["t5"]}
_TOLERANCE = 1e-4
"""Of the largest logit."""

_SIZES: dict[str, dict[str, Any]] = {
    "ADAMSS": {"r": 4, "num_subspaces": 2},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "C3A": {"block_size": 16},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "FOURIERFT": {"n_frequency": 16},
    "GRALORA": {"r": 8},
    "LILY": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 4},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": list(range(4, 60))},
    "VBLORA": {"num_vectors": 8, "vector_length": 4},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 16},
}
"""Settings that tiny models need."""
_VARIANTS: dict[str, dict[str, Any]] = {
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA fast": {"init_lora_weights": "pissa_niter_4"},
    "OLoRA": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "EVA": {"init_lora_weights": "eva"},
    "CorDA": {"init_lora_weights": "corda"},
    "LoRA-GA": {"init_lora_weights": "lora_ga"},
    "LoftQ": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
    "MiCA": {"init_lora_weights": "mica"},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {r"0\..*": 2}, "alpha_pattern": {r"1\..*": 4}},
    "layers_to_transform": {"layers_to_transform": [1]},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "lora_only"},
}
"""LoRA with settings that change how it starts, what it computes or where it is."""


@dataclass(frozen=True)
class Case:
    name: str
    adapter: dict[str, Any]


CASES: dict[str, Case] = {
    method: Case(method, {"peft_type": method, **_SIZES.get(method, {})}) for method in peft_methods()
} | {name: Case(name, {"peft_type": "LORA", "r": 4, **settings}) for name, settings in _VARIANTS.items()}


@dataclass
class Outcome:
    """What became of a case. A column is ``yes``, ``–`` where it does not apply, or the reason."""

    columns: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    """Column → traceback, for errors that are not refusals."""

    @property
    def trained(self) -> bool:
        return self.columns["train"] == "yes"

    @property
    def failed(self) -> list[str]:
        """Columns that are neither right nor refused by llmkit."""
        return [name for name in self.columns if name in self.details]


class DifferenceError(Exception):
    """Two things that should be the same are not."""


def recipe_for(case: Case, family: str, model: Path, folder: Path, out: str, **train: Any) -> Recipe:
    task, rows = _TRAINED[family]
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "output_dir": str(folder / out),
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.02,
        "save_strategy": "no",
        "bf16": False,
        **train,
    }
    return make_recipe(
        task,
        {"name_or_path": str(model), "offline": True, "device": "cpu"},
        write_rows(folder / "rows.jsonl", rows * 2),
        train=settings,
        adapter=case.adapter,
    )


def measure(case: Case, family: str, model: Path, folder: Path, columns: tuple[str, ...] = COLUMNS) -> Outcome:
    """Run a case.

    Args:
        model: a tiny checkpoint of the family.
        folder: for its files.
    """
    found, state = Outcome(), _State(case, family, model, folder)
    steps: dict[str, Callable[[], object]] = {name: getattr(state, name) for name in COLUMNS}
    for column in columns:
        if column not in ("train",) and not found.trained:
            break
        try:
            result = steps[column]()
            found.columns[column] = result if isinstance(result, str) else "yes"
        except LlmkitError as error:
            found.columns[column] = f"refused: {error}"
        except ValidationError as error:
            found.columns[column] = f"refused: {error.errors()[-1]['msg']}"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the table says
            found.columns[column] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            found.details[column] = traceback.format_exc()
    return found


class _State:
    def __init__(self, case: Case, family: str, model: Path, folder: Path) -> None:
        self.case, self.family, self.model, self.folder = case, family, model, folder
        self.task = _TRAINED[family][0]
        self.trained: torch.Tensor
        self.log: list[dict[str, Any]] = []

    def _recipe(self, out: str, **train: Any) -> Recipe:
        return recipe_for(self.case, self.family, self.model, self.folder, out, **train)

    def _pipeline(self, folder: Path) -> Any:
        pipeline = llmkit.load(self.task, str(folder), offline=True, device="cpu", dtype="float32")
        if self.family != "bert":
            short: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6, "min_new_tokens": None, "num_beams": 1}
            pipeline.settings = replace(pipeline.settings, **short)
        return pipeline

    def _logits(self, model: Any) -> torch.Tensor:
        from llmkit.models.tables import HEADS

        kinds = {"bert": "span", "t5": "seq2seq", "bart": "seq2seq"}
        head = head_of(next(head for head in HEADS if str(head) == kinds.get(self.family, "causal")))
        ids = torch.arange(4, 60).view(2, 28)  # among them are tokens of the rows, which alone some methods change
        return logits_of(head, model.eval(), head.probe(ids))

    def train(self) -> None:
        before = self._logits(self._pipeline(self.model).loaded.model)
        trainer = finetune(self._recipe("out", save_strategy="steps", save_steps=1, load_best_model_at_end=False))
        self.trained, self.log = self._logits(trainer.model), trainer.progress.log
        place = before.dim() - (1 if self.family == "bert" else 2)  # of the tokens; virtual ones come first
        if not difference(before, self.trained.narrow(place, -before.shape[place], before.shape[place])) > 1e-5:
            raise DifferenceError("training changed nothing")

    def load(self) -> None:
        self._same(self._logits(self._pipeline(self.folder / "out").loaded.model), "loaded")

    def resume(self) -> None:
        shutil.copytree(self.folder / "out", self.folder / "resumed", ignore=shutil.ignore_patterns("checkpoint-2"))
        for path in (self.folder / "resumed").iterdir():
            if path.is_file() and path.name not in ("resolved.yaml", "recipe.yaml"):
                path.unlink()
        again = finetune(self._recipe("resumed", save_strategy="steps", save_steps=1), resume=True)
        if again.progress.log != self.log:
            raise DifferenceError(f"the log is {again.progress.log}, not {self.log}")
        self._same(self._logits(again.model), "resumed")

    def generate(self) -> object:
        """Greedy answers with the KV cache are those without."""
        if self.family == "bert":
            return "–"
        model, ids = self._pipeline(self.folder / "out").loaded.model, torch.tensor([[5, 9, 12, 17, 6]])
        mask = torch.ones_like(ids)
        options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 1}
        options |= {"eos_token_id": None, "forced_eos_token_id": None, "suppress_tokens": None}
        with torch.no_grad():
            found = model.generate(input_ids=ids, attention_mask=mask, **options)
            start = found[:, :1] if model.config.is_encoder_decoder else ids
            expected, target = start, "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
            for _ in range(5):
                inputs = {"input_ids": ids, "attention_mask": mask, target: expected}
                if target == "input_ids":
                    inputs["attention_mask"] = torch.ones_like(expected)
                logits = model(**inputs, use_cache=False).logits
                expected = torch.cat([expected, logits[:, -1:].argmax(-1)], dim=1)
        if found.tolist() != expected.tolist():
            raise DifferenceError(f"{found.tolist()} by generate, {expected.tolist()} by single steps")
        return None

    def batch(self) -> None:
        pipeline = self._pipeline(self.folder / "out")
        rows: list[Any] = list(_TEXTS)
        if self.family == "bert":
            rows = [{"question": row["question"], "context": row["context"]} for row in _SPANS]
        for one, other in zip((pipeline(row) for row in rows), list(pipeline.map(rows)), strict=True):
            if one.text != other.text or abs((one.score or 0) - (other.score or 0)) > _TOLERANCE:
                raise DifferenceError(f"{one.text!r} alone, {other.text!r} in a batch")

    def merge(self) -> None:
        merge(str(self.folder / "out"), self.folder / "merged")
        self._same(self._logits(self._pipeline(self.folder / "merged").loaded.model), "merged", 1e-3)

    def processes(self) -> None:
        """Two processes train what one does."""
        # Adam would make an update of rounding errors, where a gradient is 0.
        half: dict[str, Any] = {"per_device_train_batch_size": 2, "optim": "sgd"}
        log = in_two_processes(self._recipe("two", **half))
        alone = finetune(self._recipe("one", optim="sgd"))
        self.trained, mine = self._logits(alone.model), _losses(alone)
        try:
            self._same_run(mine, log, self._logits(self._pipeline(self.folder / "two").loaded.model), "two processes")
        except DifferenceError as error:
            divided = finetune(self._recipe("divided", **half, gradient_accumulation_steps=2))
            try:
                self._same_run(mine, _losses(divided), self._logits(divided.model), "two micro-batches in one process")
            except DifferenceError as other:
                raise DifferenceError(f"{error}; {other}") from error
            raise

    def _same_run(self, mine: list[float], losses: list[float], logits: torch.Tensor, what: str) -> None:
        if len(mine) != len(losses) or max(abs(a - b) for a, b in zip(mine, losses, strict=True)) > 1e-4 * max(mine):
            raise DifferenceError(f"losses of {what} are {losses}, not {mine}")
        if not (apart := difference(self.trained, logits)) <= 1e-2:
            raise DifferenceError(f"logits of {what} differ by {apart:.1e} of the largest")

    def _same(self, found: torch.Tensor, what: str, tolerance: float = _TOLERANCE) -> None:
        if not (apart := difference(self.trained, found)) <= tolerance:
            raise DifferenceError(f"the {what} model's logits differ by {apart:.1e} of the largest")


def _losses(trainer: Any) -> list[float]:
    return [each["loss"] for each in trainer.progress.log]


def in_two_processes(recipe: Recipe) -> list[float]:
    """The losses of a run in two forks of this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context: Any = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]
    workers = [
        context.Process(target=_worker, args=(recipe, rank, port, sender)) for rank, (_, sender) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    try:
        results = list(_results(pipes, workers))
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    for result in results:
        if isinstance(result, str):
            raise DifferenceError(result)
    losses: list[float] = results[0]
    return losses


def _results(pipes: Any, workers: Any) -> Iterator[Any]:
    for (receiver, sender), _worker in zip(pipes, workers, strict=True):
        sender.close()
        try:
            yield receiver.recv() if receiver.poll(400) else "a process did not end"
        except EOFError:
            yield "a process crashed"


def _worker(recipe: Recipe, rank: int, port: int, sender: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # of the runs before the fork
    try:
        sender.send(_losses(finetune(recipe)))
    except Exception as error:  # noqa: BLE001 - passed on
        sender.send(f"{type(error).__name__}: {error} {traceback.format_exc()}")
    finally:
        sender.close()
    os._exit(0)
