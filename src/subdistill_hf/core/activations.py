"""Bring what layers and classifiers return to one form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subdistill_hf.errors import SubDistillError

MAX_PREFIX_TOKENS = 16


class LayerError(SubDistillError):
    """A layer name or a layer output that cannot be used."""


@dataclass(frozen=True)
class Features:
    """The output of a layer in one form, whatever the architecture.

    Attributes:
        values: activations `(B, d, P)`: B images, d channels, P positions.
        grid: height and width of the spatial grid, `P == prefix + height * width`.
        prefix: number of leading positions that are not on the grid (class and register tokens).
    """

    values: Tensor
    grid: tuple[int, int]
    prefix: int = 0

    def with_values(self, values: Tensor) -> Features:
        """The same geometry with other values `(B, d', P)`."""
        return Features(values, self.grid, self.prefix)

    def without_prefix(self) -> Features:
        """The grid positions alone, `(B, d, height * width)`."""
        if self.prefix == 0:
            return self
        return Features(self.values[:, :, self.prefix :], self.grid)

    def pooled(self, grid: tuple[int, int]) -> Features:
        """Average the grid down to `grid` (adaptive average pooling); prefix tokens stay as they are."""
        if grid == self.grid:
            return self
        height, width = self.grid
        maps = self.values[:, :, self.prefix :].reshape(*self.values.shape[:2], height, width)
        values = nn.functional.adaptive_avg_pool2d(maps, grid).flatten(2)
        if self.prefix:
            values = torch.cat([self.values[:, :, : self.prefix], values], dim=2)
        return Features(values, grid, self.prefix)


Geometry = tuple[tuple[int, int], int]  # grid and prefix


def unpack(features: Sequence[Features]) -> tuple[list[Tensor], tuple[Geometry, ...]]:
    """The values of features, and their geometries."""
    return [each.values for each in features], tuple((each.grid, each.prefix) for each in features)


def pack(values: Sequence[Tensor], geometries: Sequence[Geometry]) -> list[Features]:
    """Features of values and geometries."""
    return [Features(tensor, *geometry) for tensor, geometry in zip(values, geometries, strict=True)]


def token_geometry(positions: int, image_size: tuple[int, int] | None = None) -> tuple[int, tuple[int, int]]:
    """Split a token count into prefix tokens and a grid.

    Args:
        positions: number of tokens P.
        image_size: height and width of the model's input in pixels; with it, the grid must cut the image into
            equal square patches, without it the grid must be square.

    Returns:
        The number of prefix (class, register) tokens, the smallest that fits, and the grid (height, width).

    Raises:
        LayerError: when no grid with at most `MAX_PREFIX_TOKENS` prefix tokens fits.
    """
    height, width = image_size or (1, 1)
    for prefix in range(min(MAX_PREFIX_TOKENS, positions - 1) + 1):
        rows = math.isqrt((positions - prefix) * height // width)
        if rows == 0 or (positions - prefix) % rows:
            continue
        columns = (positions - prefix) // rows
        same_patch = rows * width == columns * height
        if same_patch and (image_size is None or height % rows == 0):
            return prefix, (rows, columns)
    raise LayerError(
        f"cannot place {positions} tokens on a grid for an input of {height}x{width} pixels: expected at "
        f"most {MAX_PREFIX_TOKENS} class and register tokens followed by one token per square patch"
    )


def to_features(
    output: Any,
    name: str,
    image_size: tuple[int, int] | None = None,
    channels_last: bool = False,
) -> Features:
    """Bring a layer's output to the form `(B, d, P)`.

    Args:
        output: a map `(B, d, H, W)`, a channels-last map `(B, H, W, d)`, tokens `(B, P, d)`, or a tuple, list
            or `ModelOutput` whose first element is one of these.
        name: the layer's name, for messages.
        image_size: height and width of the model's input in pixels, to place tokens on their grid.
        channels_last: whether four-dimensional outputs are `(B, H, W, d)` (as in timm's Swin).

    Raises:
        LayerError: when the output is not a floating point tensor of 3 or 4 dimensions.
    """
    tensor = first_tensor(output)
    if tensor is None or tensor.dim() not in (3, 4) or not tensor.is_floating_point():
        found = type(output).__name__ if tensor is None else f"a {tensor.dtype} tensor of shape {tuple(tensor.shape)}"
        raise LayerError(
            f"layer {name!r} gives {found}: expected a map (B, d, H, W) or tokens (B, P, d). "
            "Choose a layer that returns hidden states, such as a block or a stage"
        )
    if tensor.dim() == 4:
        if channels_last:
            tensor = tensor.permute(0, 3, 1, 2)
        return Features(tensor.flatten(2), (tensor.shape[2], tensor.shape[3]))
    prefix, grid = token_geometry(tensor.shape[1], image_size)
    return Features(tensor.transpose(1, 2), grid, prefix)


def height_and_width(pixels: Tensor) -> tuple[int, int]:
    """Height and width of a batch of images `(B, c, H, W)`, in pixels."""
    return int(pixels.shape[-2]), int(pixels.shape[-1])


def first_tensor(output: Any) -> Tensor | None:
    """The tensor itself, or the first element of a tuple, list or mapping when that is a tensor."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (list, tuple)) and output:  # `list | tuple` breaks graphs that torch 2.9 compiles
        output = output[0]
    return output if isinstance(output, Tensor) else None


def logits_of(output: Any) -> Tensor:
    """The logits of a classifier's output: its `logits`, the tensor itself, or a tuple's first element.

    Raises:
        TypeError: when there are none.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(logits, tuple | list) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"expected the model to return logits (B, C), or an output with `logits`, found {type(output).__name__}"
        )
    return logits


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """The layer's output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, tuple):
        changed = (tensor, *output[1:])
        return changed if type(output) is tuple else type(output)(*changed)  # a named tuple
    if isinstance(output, list):
        return [tensor, *output[1:]]
    first = next(iter(output.keys()))
    output[first] = tensor
    return output


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which operations on `device` keep the precision of their inputs."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


def at_least_float32(features: Features) -> Features:
    """Half-precision features in float32; others as they are."""
    if features.values.dtype in (torch.float16, torch.bfloat16):
        return features.with_values(features.values.float())
    return features
