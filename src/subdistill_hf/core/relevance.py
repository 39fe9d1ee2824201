"""Stream activations and contexts of the subtask margin, all layers in one pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from subdistill_hf.core.activations import (
    Features,
    LayerError,
    first_tensor,
    height_and_width,
    to_features,
    with_first_tensor,
)
from subdistill_hf.core.hooks import evaluation_mode, hooked, named_layers
from subdistill_hf.errors import SubspaceError


def subtask_margin(logits: Tensor) -> Tensor:
    """The largest minus the second-largest subtask logit (docs/method.md, "Margin and context").

    Args:
        logits: the teacher's logits of the subtask's classes `(B, C)`, C at least 2.

    Returns:
        Margins `(B,)`, never negative. No label is needed.

    Raises:
        ValueError: for fewer than two classes.
    """
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"expected logits (B, C) of at least two classes, found shape {tuple(logits.shape)}")
    top = logits.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


@contextmanager
def _differentiable_outputs(
    model: nn.Module, layers: Sequence[str], with_context: bool
) -> Iterator[dict[str, Tensor]]:
    """Hook `layers` so that the margin can be differentiated to their outputs and to nothing else.

    The first hooked layer becomes a leaf: nothing before it is kept for, or recomputed in, the backward pass.
    Later layers get a clone, so in-place operations never touch what is recorded.
    """
    recorded: dict[str, Tensor] = {}

    def hook(name: str, inputs: Any, output: Any) -> Any:
        tensor = first_tensor(output)
        if tensor is None:
            to_features(output, name)  # raises: says what was found
            raise AssertionError("unreachable")
        if with_context and not torch.is_grad_enabled():
            raise SubspaceError(
                f"the teacher's layer {name!r} runs under torch.no_grad or torch.inference_mode, so the margin has no "
                "gradient, which the bases prca and the like need: leave that out of the teacher's forward, or choose "
                "basis pca"
            )
        if with_context and not tensor.requires_grad:
            tensor = tensor.detach().requires_grad_()
        recorded[name] = tensor
        return with_first_tensor(output, tensor.clone())

    with hooked(named_layers(model, layers), hook):
        yield recorded


def activations_and_contexts(
    forward: Callable[[Any], Tensor],
    model: nn.Module,
    layers: Sequence[str],
    batches: Iterable[Any],
    channels_last: Collection[str] = (),
    with_context: bool = True,
) -> Iterator[dict[str, tuple[Features, Features | None]]]:
    """Yield, batch by batch, each layer's activations and contexts c = d(margin)/d(activation).

    One forward pass and one backward pass to the activations serve all layers; parameters are never
    differentiated.

    Args:
        forward: maps a batch to the subtask's logits `(B, C)`; it must run `model`.
        model: the teacher; its mode is set to evaluation for the passes and restored after them.
        layers: module names.
        batches: what `forward` takes; a mapping with `pixel_values` tells the input size, for token grids.
        channels_last: layers whose four-dimensional outputs are `(B, H, W, d)`.
        with_context: `False` skips the backward pass and yields `None` for the contexts.

    Yields:
        Layer name to `(activation, context)`, both `(B, d, P)` with the same geometry.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        with evaluation_mode(model):
            for batch in batches:
                outputs = _outputs_and_gradients(forward, model, layers, batch, with_context)
                size = image_size_of(batch)
                yield {
                    name: (
                        to_features(output, name, size, name in channels_last),
                        None if gradient is None else to_features(gradient, name, size, name in channels_last),
                    )
                    for name, (output, gradient) in outputs.items()
                }
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _outputs_and_gradients(
    forward: Callable[[Any], Tensor], model: nn.Module, layers: Sequence[str], batch: Any, with_context: bool
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Each layer's output for one batch and the margin's gradient to it (zero where there is no path)."""
    with (
        _differentiable_outputs(model, layers, with_context) as recorded,
        torch.set_grad_enabled(with_context),
    ):
        logits = forward(batch)
        if missing := [name for name in layers if name not in recorded]:
            raise LayerError(f"layer {missing[0]!r} did not run in a forward pass, so it has no output to record")
        outputs = [recorded[name] for name in layers]
        gradients: Sequence[Tensor | None] = [None] * len(layers)
        if with_context:
            total = subtask_margin(logits.float()).sum()
            if total.requires_grad:
                gradients = torch.autograd.grad(total, outputs, allow_unused=True, materialize_grads=True)
            else:  # the logits depend on none of the layers
                gradients = [torch.zeros_like(output) for output in outputs]
    return {
        name: (output.detach(), gradient) for name, output, gradient in zip(layers, outputs, gradients, strict=True)
    }


def image_size_of(batch: Any) -> tuple[int, int] | None:
    """Height and width of the images of a batch: a tensor `(B, c, H, W)` or a mapping with `pixel_values`."""
    pixels = batch.get("pixel_values") if isinstance(batch, Mapping) else batch
    if isinstance(pixels, Tensor) and pixels.dim() == 4:
        return height_and_width(pixels)
    return None
