"""The figures of a model card, from the report of the run: training curves, subspaces, scores, confusion matrix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter

from subdistill_hf.config.methods import method_label, short_label
from subdistill_hf.config.unknown_images import UNKNOWN_IMAGES
from subdistill_hf.formatting import format_percent, short_names
from subdistill_hf.reporting.colours import GRID, INK, METHOD_COLOURS, SOFT, distinct_colours, other_colours
from subdistill_hf.reporting.curves import (
    FURTHER_COLOURS,
    LAYER_PART,
    PART_COLOURS,
    Array,
    Curves,
    Log,
    accuracy_curves,
    loss_curves,
    loss_labels,
    unit_of,
)
from subdistill_hf.reporting.drawing import (
    CURVE_PANEL,
    TEXT_SIZE,
    Percent,
    figure_of_panels,
    label_ends,
    save_figure,
    set_heading,
)
from subdistill_hf.reporting.fonts import drawable, drawable_all, width_in_characters
from subdistill_hf.reporting.optional import plot_is_optional
from subdistill_hf.reporting.report import ReportedSubspace, RunReport

__all__ = ["PLOTS", "plot_all", "plot_confusion", "plot_scores", "plot_subspaces", "plot_training"]

_SCORE_COLOURS: Final = {
    "known": METHOD_COLOURS["subdistill"],
    "near": "#E69F00",
    "far": "#D55E00",
    "elsewhere": "#CC79A7",
    "unchosen": "#E69F00",
}
_MOST_LAYER_LABELS: Final = 6
_MOST_COUNTED_CLASSES: Final = 30
_MOST_NAMED_CLASSES: Final = 90
_MOST_SUBSPACES: Final = 24


def plot_training(report: RunReport, path: str | os.PathLike[str]) -> Path | None:
    """Draw each method's accuracy on the validation images, and its training loss with the named parts.

    Args:
        report: what was measured; its `histories` are drawn.
        path: the PNG file to write.

    Returns:
        The path, or `None` when there is no history to draw; nothing is written then.
    """
    logs: Mapping[str, Log] = report.histories
    unit = unit_of(logs)
    accuracies = accuracy_curves(logs, unit)
    losses = {method: parts for method, log in logs.items() if (parts := loss_curves(log, unit))}
    panels = [*(["accuracy"] if accuracies else []), *losses]
    if not panels:
        return None
    columns = min(len(panels), 2)
    figure, axes = figure_of_panels(-(-len(panels) // columns), columns, panel=CURVE_PANEL)
    for panel, ax in zip(panels, axes, strict=False):
        if panel == "accuracy":
            _draw_accuracies(ax, accuracies, report.figure)
        else:
            _draw_losses(ax, drawable(method_label(panel)), losses[panel])
        ax.set_xlabel(unit)
    return save_figure(figure, path)


def plot_subspaces(subspaces: Sequence[ReportedSubspace], path: str | os.PathLike[str]) -> Path | None:
    """Draw, for each teacher layer, the spectrum of its subspace and the energy that its directions keep.

    Args:
        subspaces: of the layers, in their order.
        path: the PNG file to write.

    Returns:
        The path, or `None` when there is no subspace to draw; nothing is written then.
    """
    subspaces = [subspace for subspace in subspaces if subspace.energies]
    if not subspaces:
        return None
    if len(subspaces) > _MOST_SUBSPACES:
        spread = np.linspace(0, len(subspaces) - 1, _MOST_SUBSPACES).round().astype(int)
        subspaces = [subspaces[place] for place in spread]
    has_spectra = any(subspace.eigenvalues for subspace in subspaces)
    rows, columns = (2 if has_spectra else 1), min(len(subspaces), 4)
    bands = -(-len(subspaces) // columns)
    figure, axes = figure_of_panels(rows * bands, columns, panel=(3.0 if columns > 1 else 4.8, 2.5))
    names = [drawable(name) for name in short_names([subspace.teacher_layer for subspace in subspaces])]
    for index, (name, subspace) in enumerate(zip(names, subspaces, strict=True)):
        band, column = divmod(index, columns)
        panels = [axes[(rows * band + row) * columns + column] for row in range(rows)]
        if subspace.eigenvalues:
            _draw_spectrum(panels[0], subspace.eigenvalues)
        head = panels[0] if subspace.eigenvalues else panels[-1]
        set_heading(head, f"{name}: K = {subspace.dimensions} of {subspace.width}")
        _draw_energy_kept(panels[-1], subspace)
        panels[-1].set_xlabel("number of directions")
        if column == 0:
            panels[0].set_ylabel("eigenvalue")
            panels[-1].set_ylabel("energy kept")
    return save_figure(figure, path)


def plot_confusion(report: RunReport, path: str | os.PathLike[str]) -> Path | None:
    """Draw what the published student takes the test images of each class for.

    Args:
        report: what was measured.
        path: the PNG file to write.

    Returns:
        The path, or `None` when the report has no confusion matrix of the published student; nothing is written
        then.

    Raises:
        ValueError: when the report holds the result of no student.
    """
    published = report.published_result
    if not published.confusion:
        return None
    counts = np.asarray(published.confusion)  # (C, C)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    number = len(report.classes)
    counted, named = number <= _MOST_COUNTED_CLASSES, number <= _MOST_NAMED_CLASSES
    classes = drawable_all(report.classes) if named else []
    name_width = 0.08 * max((width_in_characters(name) for name in classes), default=6)  # inches, about
    cell = max(0.45, min(name_width + 0.1, 0.9)) if number <= 8 else 0.42 if counted else 0.14
    side = max(1.6, cell * min(number, _MOST_NAMED_CLASSES))
    slanted = named and name_width > cell
    width, height = side + name_width + 1.7, side + (0.7 * name_width if slanted else 0.1) + 0.9
    figure, (ax,) = figure_of_panels(1, 1, panel=(width, height), compress=True)
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest" if named else "antialiased")
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.grid(visible=False)
    if named:
        ax.set_xticks(range(number), classes)
        ax.set_yticks(range(number), classes)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_locator(FixedLocator([index - 0.5 for index in range(number + 1)]))
        ax.grid(which="minor", color=GRID, linewidth=0.6)
    else:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(10, integer=True))
    if slanted:
        ax.set_xticks(ax.get_xticks(), classes, rotation=45, ha="right", rotation_mode="anchor")
    ax.tick_params(which="both", length=0, labelsize=TEXT_SIZE if counted or not named else 6)
    ax.set_xlabel("predicted class" if named else "number of the predicted class, from 0")
    true_class = "teacher's class" if report.dataset.labels_by_teacher else "true class"
    ax.set_ylabel(true_class if named else f"number of the {true_class}, from 0")
    if counted:
        for true, predicted in np.argwhere(counts):
            colour = "white" if shares[true, predicted] > 0.55 else INK
            count = counts[true, predicted]
            ax.text(predicted, true, count, ha="center", va="center", color=colour, fontsize=TEXT_SIZE)
    bar = figure.colorbar(image, ax=ax, shrink=min(1.0, 3 / side), aspect=20, format=Percent())
    bar.set_label(f"share of the {true_class}", color=INK, fontsize=TEXT_SIZE)
    bar.ax.tick_params(labelsize=TEXT_SIZE, colors=INK, length=0)
    bar.outline.set_visible(False)
    set_heading(ax, f"{_short_label(published.method)}: {counts.sum():,} test images")
    return save_figure(figure, path)


def plot_scores(report: RunReport, path: str | os.PathLike[str]) -> Path | None:
    """Draw how many known and unknown test images have which score, and the threshold between them.

    Args:
        report: what was measured.
        path: the PNG file to write.

    Returns:
        The path, or `None` when no threshold was measured; nothing is written then.
    """
    rejection = report.rejection
    if rejection is None or not rejection.histograms:
        return None
    figure, (ax,) = figure_of_panels(1, 1, panel=CURVE_PANEL)
    for kind, counts in rejection.histograms.items():
        shares = np.asarray(counts) / max(sum(counts), 1)
        edges = np.linspace(0, 1, len(counts) + 1)
        label = UNKNOWN_IMAGES.get(kind, "images of the classes")
        ax.stairs(shares, edges, color=_SCORE_COLOURS[kind], linewidth=1.6, label=label)
    ax.axvline(rejection.threshold, color=INK, linewidth=1.2, linestyle=(0, (3, 2)), label="threshold")
    ax.set_xlim(0, 1)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(Percent())
    answered = rejection.score == "none of these"
    ax.set_xlabel('best class against "none of these"' if answered else rejection.score)
    ax.set_ylabel("share of the images")
    # in the middle, where few images are
    ax.legend(edgecolor="none", framealpha=1, fontsize=TEXT_SIZE, labelcolor=INK, loc="upper center")
    set_heading(ax, f"{_short_label(report.published)}: known and unknown images")
    return save_figure(figure, path)


PLOTS: Final[dict[str, Callable[[RunReport, str | os.PathLike[str]], Path | None]]] = {
    "training_curves.png": plot_training,
    "subspaces.png": lambda report, path: plot_subspaces(report.subspaces, path),
    "scores.png": plot_scores,
    "confusion.png": plot_confusion,
}


def plot_all(report: RunReport, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw every figure that the report has data for; one that fails is reported in a line.

    Args:
        report: what was measured.
        folder: where the files go, under the names in `PLOTS`.

    Returns:
        The files written.
    """
    drawn: list[Path | None] = []
    for name, plot in PLOTS.items():
        with plot_is_optional(name):
            drawn.append(plot(report, Path(folder) / name))
    return [path for path in drawn if path is not None]


def _draw_accuracies(ax: Axes, accuracies: Curves, figure: str) -> None:
    """Draw one labelled curve a method."""
    colours = distinct_colours((method, method) for method in accuracies)
    ends = []
    for method, (x, accuracy) in accuracies.items():
        colour = colours[method]
        width = 2.2 if method == "subdistill" else 1.5
        ax.plot(x, accuracy, color=colour, linewidth=width, marker="o" if len(x) == 1 else None)
        ends.append((x[-1], accuracy[-1], f"{_short_label(method)} {format_percent(accuracy[-1])}", colour))
    ax.yaxis.set_major_formatter(Percent())
    set_heading(ax, f"{figure.capitalize()} on the validation images")
    label_ends(ax, ends)


def _draw_losses(ax: Axes, label: str, parts: Curves) -> None:
    """Draw the total loss and its parts, the layers from dark to light with their depth."""
    layers = [name for name in parts if name.startswith(LAYER_PART)]
    shades = colormaps["viridis"](np.linspace(0.15, 0.65, max(len(layers), 1)))
    further = [name for name in parts if name not in PART_COLOURS and name not in layers]
    colours = dict(zip(layers, shades, strict=False)) | PART_COLOURS
    colours |= dict(zip(further, chain(FURTHER_COLOURS, other_colours()), strict=False))
    labels = loss_labels(list(parts))
    unlabelled = layers[1:-1] if len(layers) > _MOST_LAYER_LABELS else []
    ends = []
    for name, (x, loss) in parts.items():
        colour = colours[name]
        width = 1.8 if name == "loss" else 1.2
        ax.plot(x, loss, color=colour, linewidth=width, marker="o" if len(x) == 1 else None)
        if name not in unlabelled and len(parts) > 1:
            ends.append((x[-1], loss[-1], drawable(labels[name]) if name in layers else labels[name], colour))
    if all((loss > 0).all() for _, loss in parts.values()):
        _log_scale(ax, np.concatenate([loss for _, loss in parts.values()]))
    ax.set_ylabel("loss, parts weighted")
    set_heading(ax, f"Training loss: {label}")
    label_ends(ax, ends)


def _draw_spectrum(ax: Axes, eigenvalues: Sequence[float]) -> None:
    """Draw the eigenvalues in order; on a log axis when they span more than one order of magnitude."""
    directions = np.arange(1, len(eigenvalues) + 1)
    ax.plot(directions, eigenvalues, color=METHOD_COLOURS["subdistill"], linewidth=1.2, marker="o", markersize=3)
    if min(eigenvalues) > 0 and max(eigenvalues) > 10 * min(eigenvalues):
        _log_scale(ax, np.asarray(eigenvalues, dtype=np.float64))
    elif min(eigenvalues) > 0:
        ax.set_ylim(bottom=0)
    ax.set_xlim(0, len(eigenvalues) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _draw_energy_kept(ax: Axes, subspace: ReportedSubspace) -> None:
    """Draw the share of the variance in the first k directions, beside what random directions would keep."""
    kept = np.concatenate([[0.0], np.cumsum(subspace.energies) / subspace.total_energy])
    directions = np.arange(len(kept))
    chance = directions / subspace.width
    ax.plot(directions, chance, color=SOFT, linewidth=1.0, linestyle=(0, (3, 2)))
    ax.plot(directions, kept, color=METHOD_COLOURS["subdistill"], linewidth=2.0)
    end: dict[str, Any] = {"textcoords": "offset points", "fontsize": TEXT_SIZE, "ha": "right", "va": "bottom"}
    ax.annotate(str(format_percent(kept[-1])), (directions[-1], kept[-1]), xytext=(0, 3), color=INK, **end)
    if kept[-1] - chance[-1] > 0.3:
        ax.annotate("random", (directions[-1], chance[-1]), xytext=(0, 2), color=SOFT, **end)
    ax.set_ylim(0, 1.18)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.yaxis.set_major_formatter(Percent())
    ax.set_xlim(0, len(kept) - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _short_label(method: str) -> str:
    """Name a method without the remark in brackets."""
    return drawable(short_label(method))


def _log_scale(ax: Axes, values: Array) -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2, 5 or, over many decades, at powers of ten."""
    decades = np.log10(values.max() / values.min())
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
