"""Refuse tokens that are in another order than row by row, in models that say so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from subdistill_hf.core.activations import LayerError


def check_token_order(model: nn.Module, layer: str, positions: int) -> None:
    """Refuse the tokens of a layer whose order is not that of the image, row by row.

    Hiera keeps the patches that it will pool beside each other, and has a `reroll` that brings the tokens of a stage
    back to a map (Ryali et al., 2023, section 3). What that does to the numbers of the tokens is looked at.

    Args:
        model: any module; without `reroll`, all orders are taken as row by row.
        layer: name of a layer that returns tokens `(B, P, d)`.
        positions: number of tokens P.

    Raises:
        LayerError: with the grids at which the model's tokens are in order.
    """
    if not any(part.isdigit() for part in layer.split(".")):
        return  # before or after the blocks, such as what embeds the patches: these are not yet reordered
    grids = dict(_grids(model, layer))
    if all(in_order for grid, in_order in grids.items() if math.prod(grid) == positions):
        return
    usable = [f"{rows}x{columns}" for (rows, columns), in_order in grids.items() if in_order]
    remedy = f"choose layers that return {' or '.join(usable)} tokens" if usable else "none of its blocks can be used"
    raise LayerError(
        f"layer {layer!r} gives {positions} tokens that {type(model).__name__} keeps in the order in which it pools "
        f"them, and not row by row, so that they have no place on a grid: {remedy}"
    )


def _grids(model: nn.Module, layer: str) -> Iterator[tuple[tuple[int, int], bool]]:
    """The grid of each stage of the nearest module around a layer that has a `reroll`, and whether it is in order."""
    name = layer
    while name:
        name = name.rpartition(".")[0]
        around: Any = model.get_submodule(name)
        reroll = getattr(around, "reroll", None)
        # timm has a module of that name, transformers a method
        schedule = getattr(reroll, "schedule", getattr(around, "schedule", None))
        if callable(reroll) and isinstance(schedule, Mapping):
            break
    else:
        return
    for stage, (_, grid) in schedule.items():
        numbers = torch.arange(math.prod(grid), device="cpu")
        rerolled = reroll(numbers.view(1, -1, 1), stage)
        yield tuple(grid), torch.equal(rerolled.flatten(), numbers)
