"""How every figure looks: colours, panels, headings, names beside curves, the file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.optimize import isotonic_regression

DPI: Final = 150

# Colours of Okabe and Ito, which colour-blind readers tell apart; there are seven, so the rarer methods share shades.
METHOD_COLOURS: Final = {
    "scratch": "#777777",
    "kd": "#D55E00",
    "ce_kd": "#F2A673",
    "dkd": "#8A3D00",
    "fitnet": "#009E73",
    "attention_transfer": "#CC79A7",
    "vid": "#56B4E9",
    "vkd": "#E69F00",
    "spkd": "#B7A800",
    "subdistill": "#0072B2",
}
VARIANT_COLOURS: Final = ("#6BAED6", "#08306B", "#5B5BD6", "#00A6A6", "#B39DDB", "#7A9E00")
OTHER_COLOURS: Final = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, SOFT, GRID = "#333333", "#777777", "#E5E5E5"
TITLE_SIZE, TEXT_SIZE = 10.0, 8.5
PERCENT: Final = PercentFormatter(1.0, decimals=0, symbol=" %")
CURVE_PANEL: Final = (5.4, 3.1)  # inches


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


def short_names(names: Sequence[str]) -> list[str]:
    """Shorten dotted layer names to what tells them apart, with the one shared part before it."""
    split = [name.split(".") for name in names]
    if len(split) == 1:
        return [".".join(split[0][-2:])]
    shared = 0
    while split and len({tuple(parts[: shared + 1]) for parts in split}) == 1 and shared < len(split[0]):
        shared += 1
    return [".".join(parts[max(0, shared - 1) :]) for parts in split]


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure, without its empty panels, as a PNG that depends on the report alone."""
    for ax in figure.axes:
        if not ax.has_data():
            ax.remove()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=DPI, format="png", metadata={"Software": None})
    return target
