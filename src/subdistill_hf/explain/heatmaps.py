"""Heat maps in the frame of the image: where a network's input lies in it, and relevances summed over a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subdistill_hf.data.preprocessing import process

NEARLY_WHOLE = 0.01
"""A part of the image that differs from all of it by less than this share of a side is taken for all of it."""


@dataclass(frozen=True)
class Seen:
    """The part of an image that a network's input shows, in shares of its height and width.

    Attributes:
        top: its upper edge.
        bottom: its lower edge.
        left: its left edge.
        right: its right edge.
    """

    top: float = 0.0
    bottom: float = 1.0
    left: float = 0.0
    right: float = 1.0


WHOLE = Seen()


def seen_by(processor: Any, height: int, width: int) -> Seen:
    """The part of an image that an image processor leaves, found by showing it a ramp.

    Args:
        processor: the image processor.
        height: of the image.
        width: of the image.
    """
    rows = ((torch.arange(height) + 0.5) / height * 255).round().to(torch.uint8)
    columns = ((torch.arange(width) + 0.5) / width * 255).round().to(torch.uint8)
    ramp = torch.stack([rows[:, None].expand(-1, width), columns.expand(height, -1), rows[:, None].expand(-1, width)])
    flat = [torch.full((3, height, width), level, dtype=torch.uint8) for level in (0, 255)]
    shown = [process(processor, [image])[0].double() for image in (ramp, *flat)]
    middle = [level.mean(dim=(1, 2)) if level is not shown[0] else level for level in shown]
    share = (shown[0] - middle[1][:, None, None]) / (middle[2] - middle[1])[:, None, None]
    vertical, horizontal = share[0].median(dim=1).values, share[1].median(dim=0).values
    return Seen(*_edges(vertical), *_edges(horizontal))


def _edges(positions: Tensor) -> tuple[float, float]:
    """Where a row of pixels begins and ends, of the places `(n,)` that they show; a line through those inside."""
    count = len(positions)
    inside = torch.arange(count, dtype=torch.float64)[count // 4 : count - count // 4]
    if len(inside) < 2:
        return 0.0, 1.0
    values = positions[inside.long()]
    slope = float(
        ((inside - inside.mean()) * (values - values.mean())).sum() / (inside - inside.mean()).square().sum()
    )
    start = float(values.mean()) - slope * (float(inside.mean()) + 0.5)
    end = start + slope * count
    return (0.0, 1.0) if abs(start) < NEARLY_WHOLE and abs(end - 1) < NEARLY_WHOLE else (start, end)


def on_grid(relevance: Tensor, seen: Seen, rows: int, columns: int) -> Tensor:
    """Relevances summed over the cells of a grid that covers the image, `(N, rows, columns)`.

    A pixel that lies in several cells is shared by area, so that what lies in the image keeps its sum.

    Args:
        relevance: of the pixels of a network's input, `(N, H, W)`.
        seen: where this input lies in the image.
        rows: of the grid.
        columns: of the grid.
    """
    vertical = _overlaps(relevance.shape[1], seen.top, seen.bottom, rows).to(relevance)
    horizontal = _overlaps(relevance.shape[2], seen.left, seen.right, columns).to(relevance)
    return vertical @ relevance @ horizontal.T


def _overlaps(pixels: int, start: float, end: float, cells: int) -> Tensor:
    """The share of each of some pixels from `start` to `end` that lies in each cell of 0 to 1, `(cells, pixels)`."""
    edges = start + (end - start) * torch.arange(pixels + 1, dtype=torch.float64) / pixels
    borders = torch.arange(cells + 1, dtype=torch.float64) / cells
    low = torch.maximum(edges[None, :-1], borders[:-1, None])
    high = torch.minimum(edges[None, 1:], borders[1:, None])
    return (high - low).clamp(min=0) * pixels / (end - start)
