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

USUAL_PREFIX_TOKENS = 5  # a class token and four registers; more are rare, and explain too many token counts
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


def token_geometry(
    positions: int, image_size: tuple[int, int] | None = None, layer: str | None = None
) -> tuple[int, tuple[int, int]]:
    """Split a token count into prefix tokens and a grid.

    Args:
        positions: number of tokens P.
        image_size: height and width of the model's input in pixels; with it, the grid must be one of square patches,
            where what is left over at the lower and right border may be cut off or padded to a patch; without it
            the grid must be square.
        layer: the layer's name, for messages.

    Returns:
        The number of prefix (class, register) tokens and the grid (height, width): the smallest number that fits, and
        of up to `USUAL_PREFIX_TOKENS` one that leaves nothing over before others.

    Raises:
        LayerError: when no grid with at most `MAX_PREFIX_TOKENS` prefix tokens fits.
    """
    for most in (USUAL_PREFIX_TOKENS, MAX_PREFIX_TOKENS):
        for exact in (True, False):
            for prefix in range(min(most, positions - 1) + 1):
                grid = _grid_of(positions - prefix, image_size, exact)
                if grid is not None:
                    return prefix, grid
    of_layer = "" if layer is None else f" of layer {layer!r}"
    of_input = "" if image_size is None else f" for an input of {image_size[0]}x{image_size[1]} pixels"
    raise LayerError(
        f"cannot place {positions} tokens{of_layer} on a grid{of_input}: expected at most "
        f"{MAX_PREFIX_TOKENS} class and register tokens followed by one token per square patch, row by row"
    )


def _grid_of(tokens: int, image_size: tuple[int, int] | None, exact: bool) -> tuple[int, int] | None:
    """The grid of square patches that has so many tokens, if there is one.

    Args:
        tokens: how many, without class and register tokens.
        image_size: height and width in pixels; `None` for a square of unknown size.
        exact: whether the patches must leave nothing of the image over.
    """
    height, width = image_size or (1, 1)
    # rounded sides are at most one from this; on the longer side it could be more
    near = math.isqrt(tokens * min(height, width) // max(height, width))
    for shorter in (near, near + 1, near - 1):
        if shorter < 1 or tokens % shorter:
            continue
        grid = (shorter, tokens // shorter) if height <= width else (tokens // shorter, shorter)
        if exact:
            same_patch = grid[0] * width == grid[1] * height
            fits = same_patch and (image_size is None or height % grid[0] == 0)
        else:
            fits = image_size is not None and _has_patch(grid, image_size)
        if fits:
            return grid
    return None


def _has_patch(grid: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether some patch of whole pixels gives this grid, where each side is rounded down or up.

    Both are needed: a model may cut off what is left of the image, and then pad the grid when it shrinks it.
    """
    if image_size[0] == image_size[1] and grid[0] != grid[1]:
        return False
    longest = max(image_size)
    for down_rows in (True, False):
        for down_columns in (True, False):
            rows = _patches(grid[0], image_size[0], down_rows, longest)
            columns = _patches(grid[1], image_size[1], down_columns, longest)
            if max(rows[0], columns[0]) <= min(rows[1], columns[1]):
                return True
    return False


def _patches(count: int, length: int, down: bool, longest: int) -> tuple[int, int]:
    """The smallest and the largest patch, in pixels, that cut a length into `count`, rounded down or up.

    No patch is larger than `longest`, the longer side of the image.
    """
    if down:  # length // patch == count
        return length // (count + 1) + 1, length // count
    return -(-length // count), (length - 1) // (count - 1) if count > 1 else longest  # -(-length // patch) == count


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
    prefix, grid = token_geometry(tensor.shape[1], image_size, name)
    return Features(tensor.transpose(1, 2), grid, prefix)


def height_and_width(pixels: Tensor) -> tuple[int, int]:
    """Height and width of a batch of images `(B, c, H, W)`, in pixels."""
    return int(pixels.shape[-2]), int(pixels.shape[-1])


def first_tensor(output: Any) -> Tensor | None:
    """The tensor itself, or the one that is the first element of a tuple, list or mapping, however deep."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (list, tuple)) and output:  # `list | tuple` breaks graphs that torch 2.9 compiles
        return first_tensor(output[0])
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
        changed = (with_first_tensor(output[0], tensor), *output[1:])
        return changed if type(output) is tuple else type(output)(*changed)  # a named tuple
    if isinstance(output, list):
        return [with_first_tensor(output[0], tensor), *output[1:]]
    first = next(iter(output.keys()))
    output[first] = with_first_tensor(output[first], tensor)
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
