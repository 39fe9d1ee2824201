"""What an evaluation takes of a student's answer: its logits, and what else it says of each image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from accelerate.utils import convert_to_fp32
from torch import Tensor, nn

from subdistill_hf.core.activations import logits_of


def outputs_per_image(output: Any) -> dict[str, Any]:
    """The logits of a model's output, and its further outputs of each image, by name; in float32 where it was less.

    Args:
        output: what a classifier returns: logits `(B, C)`, or a mapping or tuple with them. Further outputs are
            tensors `(B, ...)`, or tuples of some; those of a tuple are named by their places.
    """
    logits = logits_of(output)
    named: Mapping[str, Any] = {}
    if isinstance(output, Mapping):
        named = {name: value for name, value in output.items() if name not in ("loss", "logits")}
    elif isinstance(output, tuple | list) and output[0] is logits:
        named = {f"output_{place}": value for place, value in enumerate(output) if place}
    further = {name: value for name, value in named.items() if _is_per_image(value, len(logits))}
    outputs: dict[str, Any] = convert_to_fp32({"logits": logits, **further})
    return outputs


def _is_per_image(value: Any, images: int) -> bool:
    """Whether a value is a tensor with a row for each image, or is made of such."""
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == images
    parts = list(value.values()) if isinstance(value, Mapping) else value
    return isinstance(parts, tuple | list) and bool(parts) and all(_is_per_image(part, images) for part in parts)


def predictions_of(outputs: Mapping[str, Any], model: nn.Module, ignored: Collection[str] | None = None) -> Any:
    """The outputs as `Trainer.predict` gives them: a tuple that begins with the logits, or these alone.

    Args:
        outputs: see `outputs_per_image`.
        model: says in its configuration what is left out, where `ignored` does not.
        ignored: names of outputs that are left out.
    """
    if ignored is None:
        ignored = getattr(getattr(model, "config", None), "keys_to_ignore_at_inference", None) or ()
    kept = tuple(value for name, value in outputs.items() if name not in ignored and name != "loss")
    return kept[0] if len(kept) == 1 else kept
