"""Teachers that are stored in float16 and load in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def save_in_half(model: Any, folder: Path) -> None:
    """Write a model's weights in float16, and a configuration that loads them as float32.

    Args:
        model: of transformers; its own weights become float16.
        folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.to(memory_format=torch.contiguous_format).half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "model.safetensors").chmod(0o644)
