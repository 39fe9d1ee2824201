"""The figure of a family: the accuracy of teacher and student, for each expert."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from subdistill_hf.reporting.colours import GRID, METHOD_COLOURS, SOFT
from subdistill_hf.reporting.drawing import TEXT_SIZE, Percent, figure_of_panels, save_figure
from subdistill_hf.reporting.fonts import drawable_all

ROW: Final = 0.24  # inches
MOST_NAMED: Final = 120


def plot_family(
    accuracies: Mapping[str, tuple[float | None, float]], path: str | os.PathLike[str], figure_name: str = "accuracy"
) -> Path:
    """Draw two points for each expert, the teacher's accuracy and the student's.

    Args:
        accuracies: name to both; that of the teacher is `None` where it says nothing.
        path: the PNG file to write.
        figure_name: what is drawn: see `RunReport.figure`.

    Returns:
        The path.
    """
    names = drawable_all(list(accuracies))
    rows = range(len(names))
    height = max(1.6, ROW * min(len(names), MOST_NAMED) + 0.9)
    figure, (ax,) = figure_of_panels(1, 1, panel=(5.4, height))
    for row, (teacher, student) in zip(rows, accuracies.values(), strict=True):
        if teacher is not None:
            ax.plot([teacher, student], [row, row], color=GRID, linewidth=2.0, zorder=1)
            ax.plot([teacher], [row], "o", color=SOFT, markersize=5, label="teacher" if row == 0 else None)
        colour = METHOD_COLOURS["subdistill"]
        ax.plot([student], [row], "o", color=colour, markersize=5, label="student" if row == 0 else None)
    if len(names) <= MOST_NAMED:
        ax.set_yticks(rows, names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(Percent())
    ax.set_xlabel(f"{figure_name} on the test images")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=TEXT_SIZE, borderaxespad=0.2)
    return save_figure(figure, path)
