"""How every figure looks: panels, headings, ticks, names beside curves, the file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import Formatter, MaxNLocator
from scipy.optimize import isotonic_regression

from subdistill_hf.reporting.colours import GRID, INK, SOFT
from subdistill_hf.reporting.fonts import families

DPI: Final = 150

TITLE_SIZE, TEXT_SIZE = 10.0, 8.5
CURVE_PANEL: Final = (5.4, 3.1)  # inches


class Percent(Formatter):
    """Ticks of shares in percent, with as many decimals as say where they are, and no negative zero.

    Args:
        sign: what follows each number.
    """

    def __init__(self, sign: str = " %") -> None:
        self.sign = sign

    def __call__(self, x: float, pos: int | None = None) -> str:
        """One tick by itself."""
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """All ticks of an axis."""
        percent = sorted(100 * value for value in values)
        step = min((after - before for before, after in pairwise(percent) if after > before), default=1.0)
        for decimals in range(7):
            rounded = [round(100 * value, decimals) + 0.0 for value in values]
            if all(abs(shown - 100 * value) < step / 100 for shown, value in zip(rounded, values, strict=True)):
                break
        return [f"{value:.{decimals}f}{self.sign}" for value in rounded]


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, Any]]) -> None:
    """Name each curve beside its end, in its colour, moving names apart as little as possible."""
    ax.margins(x=0)
    first, last = ax.get_xlim()
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=last - first > 3))
    if not ends:
        return
    ax.set_ylim(ax.get_ylim())
    to_axes = ax.transScale + ax.transLimits
    ends = sorted(ends, key=lambda end: end[1])
    height = np.array([to_axes.transform((x, y))[1] for x, y, _, _ in ends])
    # Least squares under "each name at least one line above the one before" is an isotonic regression.
    line = 1.3 * TEXT_SIZE / 72 / (0.7 * CURVE_PANEL[1])
    steps = line * np.arange(len(ends))
    places = isotonic_regression(height - steps).x.clip(0, max(0.0, 1 - steps[-1])) + steps
    for (x, y, text, colour), place in zip(ends, places, strict=True):
        ax.annotate(
            text,
            xy=(x, y),
            xytext=(1.05, place),
            textcoords="axes fraction",
            annotation_clip=False,
            color=colour,
            fontsize=TEXT_SIZE,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def figure_of_panels(
    rows: int, columns: int, panel: tuple[float, float], compress: bool = False
) -> tuple[Figure, list[Axes]]:
    """Make a figure of equal panels, sized in inches, without touching pyplot's global state."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.03, compress=compress)
    figure = Figure(figsize=(columns * panel[0], rows * panel[1]), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(SOFT)
        ax.grid(color=GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(which="both", labelsize=TEXT_SIZE, colors=INK, length=2)
        for label in (ax.xaxis.label, ax.yaxis.label):
            label.set(fontsize=TEXT_SIZE, color=INK)
    return figure, axes


def set_heading(ax: Axes, text: str) -> None:
    """Head a panel from its left edge."""
    ax.set_title(text, loc="left", fontsize=TITLE_SIZE, color=INK, fontweight="bold")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure, without its empty panels, as a PNG; no text is read as a formula."""
    for ax in figure.axes:
        if not ax.has_data():
            ax.remove()
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
        if not text.get_text().isascii():
            text.set_fontfamily(families(text.get_text()))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=DPI, format="png", metadata={"Software": None})
    return target
