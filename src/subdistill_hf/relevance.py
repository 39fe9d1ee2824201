"""Stream activations and contexts of the subtask margin, all layers in one pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from subdistill_hf.activations import Features, first_tensor, to_features


def subtask_margin(logits: Tensor) -> Tensor:
    """The largest minus the second-largest subtask logit (METHOD step 1; paper section 3).

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
    modules = dict(model.named_modules())
    handles = []

    def make_hook(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            if tensor is None:
                to_features(output, name)  # raises: says what was found
                raise AssertionError("unreachable")
            if with_context and not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
            recorded[name] = tensor
            return _with_first_tensor(output, tensor.clone())

        return hook

    try:
        for name in layers:
            handles.append(modules[name].register_forward_hook(make_hook(name)))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """The layer's output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, tuple) and type(output) is tuple:
        return (tensor, *output[1:])
    if isinstance(output, list):
        return [tensor, *output[1:]]
    first = next(iter(output.keys()))
    output[first] = tensor
    return output


def activations_and_contexts(
    forward: Callable[[Any], Tensor],
    model: nn.Module,
    layers: Sequence[str],
    batches: Iterable[Any],
    channels_last: Collection[str] = (),
    with_context: bool = True,
) -> Iterator[dict[str, tuple[Features, Features | None]]]:
    """Yield, batch by batch, each layer's activations and contexts c = d(margin)/d(activation).

    One forward pass and one backward pass to the activations serve all layers; parameters are never differentiated.

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
    was_training = model.training
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        for batch in batches:
            with _differentiable_outputs(model, layers, with_context) as recorded:
                with torch.set_grad_enabled(with_context):
                    logits = forward(batch)
                    gradients: Sequence[Tensor | None] = [None] * len(layers)
                    if with_context:
                        margins = subtask_margin(logits.float())
                        gradients = torch.autograd.grad(
                            margins.sum(),
                            [recorded[name] for name in layers],
                            allow_unused=True,
                            materialize_grads=True,
                        )
            yield {
                name: (
                    to_features(recorded[name].detach(), name, image_size_of(batch), name in channels_last),
                    None
                    if gradient is None
                    else to_features(gradient, name, image_size_of(batch), name in channels_last),
                )
                for name, gradient in zip(layers, gradients, strict=True)
            }
    finally:
        model.train(was_training)
        for parameter in parameters:
            parameter.requires_grad_(True)


def image_size_of(batch: Any) -> tuple[int, int] | None:
    """Height and width of the images of a batch: a tensor `(B, c, H, W)` or a mapping with `pixel_values`."""
    pixels = batch.get("pixel_values") if isinstance(batch, dict) else batch
    if isinstance(pixels, Tensor) and pixels.dim() == 4:
        return (int(pixels.shape[2]), int(pixels.shape[3]))
    return None
