"""Project a layer's output on a subspace while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from subdistill_hf.core.activations import LayerError, first_tensor, with_first_tensor
from subdistill_hf.core.hooks import hooked, named_layers
from subdistill_hf.core.subspaces import Subspace


@contextmanager
def projected(
    model: nn.Module, layer: str, subspaces: Sequence[Subspace], channels_last: bool = False
) -> Iterator[None]:
    """Inside the context `model` continues with μ + UUᵀ(a - μ) where a layer returns a.

    Source: docs/method.md, "Subspace analysis". Every position is projected, class and register tokens included. With
    n subspaces the model continues with the batch projected on the first, on the second ...: with `(n B, ...)`. More
    than one is for models that join the layer's output with nothing that they computed before it. On exit the model is
    as it was.

    Args:
        model: any module.
        layer: name of the layer, which returns a map `(B, d, H, W)`, a channels-last map `(B, H, W, d)`, tokens
            `(B, P, d)`, or a tuple, list or `ModelOutput` whose first element is one of these.
        subspaces: of each the mean μ `(d,)` and the orthonormal U `(d, K)`, at least one.
        channels_last: whether four-dimensional outputs are `(B, H, W, d)`.

    Raises:
        LayerError: for an unknown name; and, when the layer runs, for an output that is no hidden state of d channels.
    """

    def hook(layer: str, inputs: Any, output: Any) -> Any:
        tensor = first_tensor(output)
        if tensor is None or tensor.dim() not in (3, 4) or not tensor.is_floating_point():
            found = type(output).__name__ if tensor is None else f"a {tensor.dtype} tensor {tuple(tensor.shape)}"
            raise LayerError(f"layer {layer!r} gives {found}: expected a map (B, d, H, W) or tokens (B, P, d)")
        channels = 1 if tensor.dim() == 4 and not channels_last else tensor.dim() - 1
        for subspace in subspaces:
            if tensor.shape[channels] != subspace.width:
                raise LayerError(
                    f"layer {layer!r} gives {tensor.shape[channels]} channels, and the subspace is of "
                    f"{subspace.width}: project the layer that it was fitted to"
                )
        return with_first_tensor(output, torch.cat([_nearest(tensor, one, channels) for one in subspaces]))

    with hooked(named_layers(model, [layer]), hook):
        yield


def _nearest(tensor: Tensor, subspace: Subspace, channels: int) -> Tensor:
    """The nearest activations in the subspace, computed in at least float32; `channels` is the axis of d."""
    by_channel = tensor.movedim(channels, 1)  # (B, d, ...)
    values = by_channel.flatten(2).to(torch.promote_types(tensor.dtype, torch.float32))
    nearest = subspace.reconstruct(subspace.project(values))
    return nearest.to(tensor.dtype).reshape(by_channel.shape).movedim(1, channels)
