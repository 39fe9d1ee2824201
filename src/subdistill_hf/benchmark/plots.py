"""The figures of a benchmark: accuracy against training images, paired differences, cost against accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes

from subdistill_hf.benchmark.config import Benchmark, is_share
from subdistill_hf.benchmark.jobs import size_in_words
from subdistill_hf.benchmark.mark_tables import has_mark
from subdistill_hf.benchmark.statistics import Comparison, Estimate
from subdistill_hf.benchmark.wording import images_in_words, label_of
from subdistill_hf.formatting import count
from subdistill_hf.reporting.colours import INK, SOFT, distinct_colours
from subdistill_hf.reporting.drawing import (
    CURVE_PANEL,
    TEXT_SIZE,
    Percent,
    figure_of_panels,
    label_ends,
    save_figure,
    set_heading,
)
from subdistill_hf.reporting.fonts import drawable
from subdistill_hf.reporting.local_paths import file_name

MARKERS: Final = "osD^vP*X"
LINE: Final = 0.28  # inches a method
End = tuple[float, float, str, str]  # of a curve: its place, label and colour
LONGEST_STUDENT: Final = 48  # characters of its name


def plot_benchmark(benchmark: Benchmark, comparisons: Sequence[Comparison], folder: Path) -> list[Path]:
    """Draw every figure that there is data for.

    Args:
        benchmark: the grid.
        comparisons: what its final runs say.
        folder: where the files go.

    Returns:
        The files written.
    """
    found = [comparison for comparison in comparisons if comparison.blocks]
    if not found:
        return []
    colours = distinct_colours((method, benchmark.kind(method)) for method in benchmark.methods)
    drawn = []
    with_reference = [comparison for comparison in found if benchmark.reference in comparison.accuracies]
    if len(benchmark.methods) > 1 and with_reference:
        drawn.append(_plot_differences(benchmark, with_reference, colours, folder / "paired_differences.png"))
    students = {comparison.student for comparison in found}
    if len(students) > 1:
        drawn.append(_plot_students(benchmark, found, colours, folder / "students.png"))
    if len(benchmark.methods) > 1 or len(students) == 1:  # of one method a panel would have one point
        drawn.append(_plot_costs(benchmark, found, colours, folder / "cost_against_accuracy.png"))
    if len({comparison.train_images for comparison in found}) > 1:
        path = folder / "accuracy_against_training_images.png"
        drawn.insert(0, _plot_accuracies(benchmark, found, colours, path))
    marked = [comparison for comparison in found if has_mark(comparison)]
    if len(marked) > 1:
        drawn.append(_plot_marks(benchmark, marked, colours, folder / "who_learned_the_mark.png"))
    return drawn


def _label(benchmark: Benchmark, method: str) -> str:
    """A method's name as figures show it."""
    return drawable(label_of(benchmark, method))


def _student(student: str) -> str:
    """Which student, as figures say it: of a folder its name alone."""
    return f"student {drawable(file_name(student), LONGEST_STUDENT)}"


def _plot_accuracies(
    benchmark: Benchmark, comparisons: Sequence[Comparison], colours: dict[str, str], path: Path
) -> Path:
    """One panel a student and condition: mean accuracy and standard error against training images."""
    panels = list(dict.fromkeys((comparison.student, comparison.condition) for comparison in comparisons))
    figure, axes = figure_of_panels(len(panels), 1, panel=(CURVE_PANEL[0] + 1.5, CURVE_PANEL[1] + 0.8))
    for ax, (student, condition) in zip(axes, panels, strict=True):
        of_student = sorted(
            (one for one in comparisons if (one.student, one.condition) == (student, condition)),
            key=lambda comparison: comparison.train_images,
        )
        sizes = [comparison.train_images for comparison in of_student]
        teacher = [statistics.mean(comparison.teacher) for comparison in of_student]
        ax.plot(range(len(sizes)), teacher, color=INK, linewidth=1, linestyle=":")
        ends: list[End] = [(len(sizes) - 1, teacher[-1], "Teacher", INK)]
        for method in benchmark.methods:
            found = [(place, one.accuracy(method)) for place, one in enumerate(of_student) if method in one.accuracies]
            ours = benchmark.kind(method) == "subdistill"
            ends += _curve(ax, found, _label(benchmark, method), colours[method], linewidth=2.2 if ours else 1.3)
        ax.yaxis.set_major_formatter(Percent())
        set_heading(
            ax, f"Test accuracy, {_student(student)}" + ("" if condition is None else f", {drawable(condition)}")
        )
        label_ends(ax, ends)
        ax.set_xticks(range(len(sizes)), [size_in_words(size) for size in sizes])
        ax.set_xlabel("training images" if any(map(is_share, sizes)) else "training images a class")
    return save_figure(figure, path)


def _curve(
    ax: Axes, found: Sequence[tuple[int, Estimate]], label: str, colour: str, linewidth: float = 1.3
) -> list[End]:
    """Draw a method's means with their standard errors, from place to place.

    Returns:
        The end of the curve, to be labelled; nothing of a method without figures.
    """
    if not found:
        return []
    places, estimates = zip(*found, strict=True)
    means = [estimate.mean for estimate in estimates]
    errors = np.nan_to_num([estimate.error for estimate in estimates])
    ax.errorbar(places, means, errors, color=colour, linewidth=linewidth, marker="o", ms=3.5)
    return [(places[-1], means[-1], label, colour)]


def _plot_differences(
    benchmark: Benchmark, comparisons: Sequence[Comparison], colours: dict[str, str], path: Path
) -> Path:
    """One panel a student and size: difference of each method to the reference, with its interval and every run."""
    methods = [method for method in benchmark.methods if method != benchmark.reference]
    columns = min(2, len(comparisons))
    height = 1.2 + LINE * len(methods)  # the heading and the name of the axis
    figure, axes = figure_of_panels(-(-len(comparisons) // columns), columns, panel=(5.6, height))
    for ax, comparison in zip(axes, comparisons, strict=False):
        for place, method in enumerate(reversed(methods)):
            if method in comparison.left_out:
                continue
            estimate = comparison.difference(method, benchmark.reference)
            pairs = zip(comparison.accuracies[method], comparison.accuracies[benchmark.reference], strict=True)
            every = [ours - theirs for ours, theirs in pairs]
            ax.scatter(every, [place] * len(every), s=7, color=colours[method], alpha=0.35, linewidths=0)
            interval = float(np.nan_to_num(estimate.interval))
            ax.errorbar(estimate.mean, place, xerr=interval, color=colours[method], marker="o", ms=5, capsize=2)
        ax.axvline(0, color=SOFT, linewidth=1)
        ax.set_yticks(range(len(methods)), [_label(benchmark, method) for method in reversed(methods)])
        ax.xaxis.set_major_formatter(Percent(sign=""))
        ax.set_xlabel("points")
        ax.margins(y=0.08)
        _two_lines(ax, f"Difference to {_label(benchmark, benchmark.reference)}", comparison)
    return save_figure(figure, path)


def _plot_costs(benchmark: Benchmark, comparisons: Sequence[Comparison], colours: dict[str, str], path: Path) -> Path:
    """One panel a student and size: mean accuracy against the median seconds of training."""
    columns = min(2, len(comparisons))
    figure, axes = figure_of_panels(-(-len(comparisons) // columns), columns, panel=(5.6, 3.6))
    for ax, comparison in zip(axes, comparisons, strict=False):
        ends = []
        for method, marker in zip(benchmark.methods, cycle(MARKERS), strict=False):
            if method in comparison.left_out:
                continue
            seconds, estimate = statistics.median(comparison.seconds[method]), comparison.accuracy(method)
            error = float(np.nan_to_num(estimate.error))
            ax.errorbar(seconds, estimate.mean, yerr=error, color=colours[method], marker=marker, markersize=5)
            ends.append((seconds, estimate.mean, _label(benchmark, method), colours[method]))
        ax.yaxis.set_major_formatter(Percent())
        _two_lines(ax, "Test accuracy against training time", comparison)
        label_ends(ax, ends)
        ax.margins(x=0.08)
        ax.autoscale(axis="x")
        ax.set_xlabel("median seconds of training")
    return save_figure(figure, path)


def _plot_students(
    benchmark: Benchmark, comparisons: Sequence[Comparison], colours: dict[str, str], path: Path
) -> Path:
    """One panel a size and condition: mean accuracy and standard error of each student, the smallest below."""
    panels = list(dict.fromkeys((comparison.train_images, comparison.condition) for comparison in comparisons))
    parameters = {one.student: _parameters_of(one) for one in comparisons}
    students = sorted(parameters, key=lambda student: parameters[student] or 0)
    step = 0.5 / len(benchmark.methods)  # between the methods of a student
    height = 1.6 + max(0.5, LINE * len(benchmark.methods)) * len(students)
    figure, axes = figure_of_panels(len(panels), 1, panel=(7.5, height))
    for ax, (size, condition) in zip(axes, panels, strict=True):
        shown = [one for one in comparisons if (one.train_images, one.condition) == (size, condition)]
        for number, (method, marker) in enumerate(zip(benchmark.methods, cycle(MARKERS), strict=False)):
            found = [one for one in shown if method in one.accuracies]
            estimates = [one.accuracy(method) for one in found]
            ax.errorbar(
                [estimate.mean for estimate in estimates],
                [students.index(one.student) - step * (number - (len(benchmark.methods) - 1) / 2) for one in found],
                xerr=np.nan_to_num([estimate.error for estimate in estimates]),
                color=colours[method],
                marker=marker,
                markersize=5,
                linestyle="",
                label=_label(benchmark, method),
            )
        names = [drawable(file_name(each), LONGEST_STUDENT) for each in students]
        known = [f"{count(parameters[each])} parameters" if parameters[each] else "" for each in students]
        ax.set_yticks(range(len(students)), [f"{name}\n{told}" for name, told in zip(names, known, strict=True)])
        ax.set_ylim(-0.6, len(students) - 0.4)
        ax.xaxis.set_major_formatter(Percent())
        told = images_in_words(size) + ("" if condition is None else f", {drawable(condition)}")
        set_heading(ax, f"Test accuracy of each student, {told}")
        if len(benchmark.methods) > 1:
            ax.legend(frameon=False, fontsize=TEXT_SIZE, loc="upper left", bbox_to_anchor=(1, 1))
    return save_figure(figure, path)


def _parameters_of(comparison: Comparison) -> int | None:
    """The student's number of parameters; `None` where no row has it."""
    found = (row.get("parameters") for rows in comparison.rows.values() for row in rows)
    return next((int(number) for number in found if number), None)


def _plot_marks(benchmark: Benchmark, comparisons: Sequence[Comparison], colours: dict[str, str], path: Path) -> Path:
    """A row a student and size, over the conditions: accuracy with and without the mark, and who follows it."""
    headings = {
        "test": "Accuracy, every test image marked",
        "clean_accuracy": "Accuracy, no test image marked",
        "mark_followed": "How often the mark is followed",
    }
    groups = list(dict.fromkeys((comparison.student, comparison.train_images) for comparison in comparisons))
    figure, axes = figure_of_panels(len(groups), len(headings), panel=(5.0, CURVE_PANEL[1] + 0.8))
    panels = iter(axes)
    for student, size in groups:
        of_group = [one for one in comparisons if (one.student, one.train_images) == (student, size)]
        for (column, heading), ax in zip(headings.items(), panels, strict=False):
            ends: list[End] = []
            for method in benchmark.methods:
                found = [
                    (place, one.estimate([row[column] for row in one.rows[method]]))
                    for place, one in enumerate(of_group)
                    if method in one.rows
                ]
                ends += _curve(ax, found, _label(benchmark, method), colours[method])
            ax.yaxis.set_major_formatter(Percent())
            told = "" if len(groups) == 1 else f"\n{images_in_words(size)}, {drawable(file_name(student))}"
            set_heading(ax, heading + told)
            label_ends(ax, ends)
            ax.set_xticks(range(len(of_group)), [drawable(str(one.condition)) for one in of_group])
    return save_figure(figure, path)


def _two_lines(ax: Axes, heading: str, comparison: Comparison) -> None:
    """A heading, and under it which runs: two more lines, for a narrow panel has no room for one long one."""
    set_heading(ax, f"{heading}\n\n")
    condition = "" if comparison.condition is None else f", {drawable(comparison.condition)}"
    ax.annotate(
        f"{images_in_words(comparison.train_images)}\n{_student(comparison.student)}{condition}",
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=TEXT_SIZE,
        color=INK,
    )
