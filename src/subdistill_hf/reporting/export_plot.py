"""The figure of an export: size, time and accuracy of its files, side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes

from subdistill_hf.formatting import file_size, format_percent, milliseconds
from subdistill_hf.reporting.colours import INK, METHOD_COLOURS, SOFT
from subdistill_hf.reporting.drawing import TEXT_SIZE, figure_of_panels, save_figure, set_heading
from subdistill_hf.reporting.exported import ReportedExport

PANEL: Final = (3.1, 1.7)  # inches
_COLOURS: Final = {"torch": SOFT, "float32": METHOD_COLOURS["subdistill"], "int8": METHOD_COLOURS["kd"]}


def plot_export(export: ReportedExport, path: str | os.PathLike[str]) -> Path | None:
    """Draw the size, the time and the accuracy of each file, or its agreement with torch where there are no labels.

    Args:
        export: what was measured.
        path: the PNG file to write.

    Returns:
        The path, or `None` where there is one file alone, which nothing is compared with; nothing is written then.
    """
    files = export.files
    if len(files) < 2:
        return None
    names = [file.precision for file in files]
    figure, (sizes, times, shares) = figure_of_panels(1, 3, panel=PANEL)
    _bars(sizes, "Size", names, [file.size_bytes for file in files], [file_size(file.size_bytes) for file in files])
    medians = [file.latency_ms.median for file in files]
    highs = [file.latency_ms.high for file in files]
    _bars(times, "Time per image, 1 thread", names, medians, [milliseconds(value) for value in medians], highs)
    spread = [
        [file.latency_ms.median - file.latency_ms.low for file in files],
        [file.latency_ms.high - file.latency_ms.median for file in files],
    ]
    times.errorbar(medians, range(len(files)), xerr=spread, fmt="none", ecolor=INK, elinewidth=1.0, capsize=2)
    accuracies = [file.accuracy for file in files]
    labelled = [value for value in (export.torch_accuracy, *accuracies) if value is not None]
    if len(labelled) == len(files) + 1:
        _bars(shares, "Accuracy", ["torch", *names], labelled, [str(format_percent(value)) for value in labelled])
    else:
        same = [file.agreement for file in files]
        _bars(shares, "Same class as torch", names, same, [str(format_percent(value)) for value in same])
    return save_figure(figure, path)


def _bars(
    ax: Axes, heading: str, names: list[str], values: list[Any], labels: list[str], ends: list[Any] | None = None
) -> None:
    """Horizontal bars from the top, each with its value in words, behind the end of what is drawn of it."""
    ends = values if ends is None else ends
    ax.barh(range(len(values)), values, color=[_COLOURS.get(name, SOFT) for name in names], height=0.6)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.5 * max(ends))
    ax.set_xticks([])
    ax.grid(visible=False)
    for place, (end, label) in enumerate(zip(ends, labels, strict=True)):
        ax.annotate(
            label,
            (end, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=TEXT_SIZE,
            color=INK,
        )
    set_heading(ax, heading)
