"""The figure of a subspace analysis: accuracy against dimensions, one panel a layer, one line a basis."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from subdistill_hf.config.bases import BASES
from subdistill_hf.reporting.colours import INK, METHOD_COLOURS, OTHER_COLOURS, SOFT

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

PANEL: Final = (3.4, 2.9)  # inches
COLUMNS: Final = 4
BASIS_COLOURS: Final = {
    "prca": METHOD_COLOURS["subdistill"],
    "prca_signed": OTHER_COLOURS[3],
    "pca": METHOD_COLOURS["kd"],
    "gradient_pca": OTHER_COLOURS[0],
    "random": SOFT,
    "identity": OTHER_COLOURS[1],
}


@dataclass(frozen=True)
class Panel:
    """The curves of one layer.

    Attributes:
        heading: above it.
        dimensions: numbers of dimensions K, rising.
        accuracy: basis to the accuracy for each K.
        unprojected: the teacher's accuracy as it is.
        chance: the accuracy of a guess.
        errors: basis to the standard error for each K, where there is one.
    """

    heading: str
    dimensions: Sequence[int]
    accuracy: Mapping[str, Sequence[float]]
    unprojected: float
    chance: float
    errors: Mapping[str, Sequence[float]] | None = None


def plot_analysis(panels: Sequence[Panel], path: str | os.PathLike[str]) -> Path:
    """Draw the panels, at most four in a row, with one legend.

    Args:
        panels: at least one.
        path: the PNG file to write.

    Returns:
        The path.
    """
    from matplotlib.ticker import FixedLocator, NullLocator  # only who plots needs matplotlib

    from subdistill_hf.reporting.drawing import TEXT_SIZE, Percent, figure_of_panels, save_figure, set_heading

    columns = min(len(panels), COLUMNS)
    figure, axes = figure_of_panels(-(-len(panels) // columns), columns, PANEL if columns > 1 else (5.4, 3.4))
    for number, (panel, ax) in enumerate(zip(panels, axes, strict=False)):
        ax.axhline(panel.unprojected, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="teacher as it is")
        ax.axhline(panel.chance, color=SOFT, linewidth=1, linestyle=(0, (1, 2)), label="chance")
        for basis, accuracy in panel.accuracy.items():
            ours = basis == "prca"
            ax.errorbar(
                panel.dimensions,
                accuracy,
                None if panel.errors is None else panel.errors[basis],
                color=BASIS_COLOURS.get(basis, OTHER_COLOURS[2]),
                label=BASES[basis].label,
                linewidth=2.2 if ours else 1.3,
                elinewidth=0.8,
                marker="o",
                markersize=3.5 if ours else 2.5,
                zorder=3 if ours else 2,
            )
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(_ticks(panel.dimensions)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_ylim(0, 1.04)
        ax.yaxis.set_major_formatter(Percent())
        set_heading(ax, panel.heading)
        ax.set_xlabel("dimensions K")
        if number % columns == 0:
            ax.set_ylabel("accuracy on the subtask")
    _add_legend(figure, *axes[0].get_legend_handles_labels(), fontsize=TEXT_SIZE, labelcolor=INK)
    return save_figure(figure, path)


def _add_legend(figure: Figure, handles: list[Artist], labels: list[str], **style: Any) -> None:
    """One legend below all panels, of as many columns as the figure is wide."""
    for columns in range(len(labels), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, **style)
        if legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()


def _ticks(dimensions: Sequence[int]) -> list[int]:
    """The numbers that are written: those that are at least a doubling apart, from the largest down."""
    ticks: list[int] = []
    for k in reversed(dimensions):
        if not ticks or 2 * k <= ticks[-1]:
            ticks.append(k)
    return ticks
