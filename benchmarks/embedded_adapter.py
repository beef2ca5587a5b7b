"""The adapter that ``llmkit answer`` uses without a model hub, from a run of ``quality/minilm-squad-lora.yaml``.

    python benchmarks/quality.py DATA minilm-squad-lora
    python benchmarks/embedded_adapter.py benchmarks/quality/runs/minilm-squad-lora

Writes ``llmkit/models/minilm_squad``: the weights in float16, which halves them, the configs as they are, and a model
card. Its figures are those of ``quality.md``, measured on what is written here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from llmkit.models.minilm import MINILM

PACKED = Path(__file__).parent.parent / "llmkit" / "models" / "minilm_squad"


def pack(run: Path) -> None:
    PACKED.mkdir(exist_ok=True)
    weights = load_file(run / "adapter_model.safetensors")
    target = PACKED / "adapter_model.safetensors"
    save_file({name: tensor.half() for name, tensor in weights.items()}, target, metadata={"format": "pt"})
    target.chmod(0o644)
    config = json.loads((run / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = MINILM.hub_id
    config["target_modules"] = sorted(config["target_modules"])  # a set, in an order that changes
    write(PACKED / "adapter_config.json", config)
    write(PACKED / "llmkit.json", json.loads((run / "llmkit.json").read_text(encoding="utf-8")))


def write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
