"""The figures of a page, each with a legend and a table of its data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Final

from markupsafe import Markup

from subdistill_hf.config.methods import method_label, short_label
from subdistill_hf.formatting import count, format_percent, short_names
from subdistill_hf.reporting.card_tables import Row, capitalised
from subdistill_hf.reporting.colours import METHOD_COLOURS, SOFT, distinct_colours, other_colours
from subdistill_hf.reporting.curves import (
    FURTHER_COLOURS,
    LAYER_PART,
    PART_COLOURS,
    TOTAL,
    Curves,
    accuracy_curves,
    loss_curves,
    loss_labels,
    unit_of,
)
from subdistill_hf.reporting.markdown import text
from subdistill_hf.reporting.page.svg import (
    DASHES,
    SHARES,
    Axis,
    Plot,
    both_papers,
    element,
    linear_axis,
    log_axis,
    mixed,
    percent,
)
from subdistill_hf.reporting.report import TEACHER, MethodResult, ReportedSubspace, RunReport

STUDENT_COLOUR: Final = METHOD_COLOURS["subdistill"]
LARGEST_DOT: Final = 11.0
LEAST_DOT: Final = 2.5
_FIRST_LAYER, _LAST_LAYER = "#7b3fb5", "#2fa877"


@dataclass(frozen=True)
class Key:
    """An entry of a legend.

    Attributes:
        name: of what is drawn.
        style: that it is drawn in, as CSS.
        dash: of its line; `None` for points.
        square: whether its points are squares.
        last: its last value.
    """

    name: str
    style: str
    dash: str | None = ""
    square: bool = False
    last: str | None = None

    @property
    def sample(self) -> Markup:
        """What it looks like."""
        if self.dash is not None:
            inner = element("path", d="M1 7H33", class_="line", style=self.style, stroke_dasharray=self.dash or None)
        elif self.square:
            inner = element("polygon", points="17,1 23,7 17,13 11,7", class_="dot hollow", style=self.style)
        else:
            inner = element("circle", cx=17, cy=7, r=5, class_="dot", style=self.style)
        return element("svg", inner, viewBox="0 0 34 14", class_="sample", aria_hidden="true")


@dataclass(frozen=True)
class Figure:
    """A figure with its data.

    Attributes:
        title: what it shows.
        drawing: SVG.
        legend: of it; empty where one thing is drawn.
        rows: its data, as rows of a table.
        note: how it is to be read.
    """

    title: str
    drawing: Markup
    legend: Sequence[Key]
    rows: Sequence[Row]
    note: str | None = None


def training_figures(report: RunReport) -> list[Figure]:
    """Each method's accuracy on the validation images, and its training loss with the named parts."""
    logs = report.histories
    unit = unit_of(logs)
    published = report.published_result.method
    accuracies = accuracy_curves(logs, unit)
    accuracies = {published: accuracies.pop(published)} | accuracies if published in accuracies else accuracies
    figures = [_accuracies(accuracies, unit, report.figure)] if accuracies else []
    losses = {method: parts for method, log in logs.items() if (parts := loss_curves(log, unit))}
    first = [published] if published in losses else []
    return figures + [_losses(method, losses[method], unit) for method in dict.fromkeys([*first, *losses])]


def _accuracies(accuracies: Curves, unit: str, figure: str) -> Figure:
    colours = distinct_colours((method, method) for method in accuracies)
    keys = {
        method: Key(
            short_label(method), style_of(colours[method]), dash, last=format_percent(float(accuracies[method][1][-1]))
        )
        for method, dash in zip(accuracies, _dashes(), strict=False)
    }
    values = [float(value) for _, y in accuracies.values() for value in y]
    low = math.floor(10 * min(values)) / 10
    y_axis = Axis(low, 1.0, [tick for tick in linear_axis(low, 1.0).ticks if tick <= 1], percent)
    title = f"{figure.capitalize()} on the validation images"
    return _of_curves(title, accuracies, keys, unit, y_axis, figure, format_percent)


def _losses(method: str, parts: Curves, unit: str) -> Figure:
    names = loss_labels(list(parts))
    colours = _part_colours(list(parts))
    keys = {
        part: Key(
            names[part], style_of(colours[part], thick=part == TOTAL), dash, last=_loss(float(parts[part][1][-1]))
        )
        for part, dash in zip(parts, _dashes(), strict=False)
    }
    values = [float(value) for _, y in parts.values() for value in y if math.isfinite(value)]
    if values and min(values) > 0 and max(values) > min(values):
        y_axis, scale = log_axis(min(values), max(values)), "loss, parts weighted, logarithmic"
    else:
        y_axis, scale = linear_axis(min([0.0, *values]), max([0.0, *values])), "loss, parts weighted"
    return _of_curves(f"Training loss: {short_label(method)}", parts, keys, unit, y_axis, scale, _loss)


def _loss(value: float) -> str:
    return f"{value:.4g}"


def _part_colours(parts: Sequence[str]) -> dict[str, str]:
    layers = [part for part in parts if part.startswith(LAYER_PART)]
    shares = [place / max(len(layers) - 1, 1) for place in range(len(layers))]
    colours = {part: mixed(_FIRST_LAYER, _LAST_LAYER, share) for part, share in zip(layers, shares, strict=True)}
    others = [part for part in parts if part not in layers and part not in PART_COLOURS]
    return PART_COLOURS | colours | dict(zip(others, chain(FURTHER_COLOURS, other_colours()), strict=False))


def _of_curves(
    title: str,
    curves: Curves,
    keys: Mapping[str, Key],
    unit: str,
    y_axis: Axis,
    y_title: str,
    written: object,
) -> Figure:
    assert callable(written)
    last = max(float(x[-1]) for x, _ in curves.values())
    first = min(0.0, *(float(x[0]) for x, _ in curves.values()))
    plot = Plot(linear_axis(first, last, whole=last - first > 3), y_axis, unit, y_title)
    for name, (x, y) in reversed(curves.items()):  # the first on top
        points = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
        if points:
            key = keys[name]
            plot.line(
                [a for a, _ in points], [b for _, b in points], style=key.style, stroke_dasharray=key.dash or None
            )
    times = sorted({float(value) for x, _ in curves.values() for value in x})
    at = {name: dict(zip(map(float, x), map(float, y), strict=True)) for name, (x, y) in curves.items()}
    rows = [
        {unit.capitalize(): f"{time:g}"}
        | {text(keys[name].name): written(at[name][time]) if time in at[name] else None for name in curves}
        for time in times
    ]
    described = "; ".join(f"{keys[name].name} ends at {keys[name].last}" for name in curves)
    return Figure(title, plot.drawn(f"{title}, over {unit}s. {described}."), list(keys.values()), rows)


def calibration_figure(report: RunReport) -> Figure:
    """Accuracy against the probability of the answer, of the published student and its teacher."""
    results = _student_and_teacher(report)
    right = "the teacher's" if report.dataset.labels_by_teacher else "right"
    plot = Plot(SHARES, SHARES, "probability of the answer", f"share that is {right}", width=400, height=400)
    plot.line([0, 1], [0, 1], style=f"--c: {both_papers(SOFT)}", stroke_dasharray="3 4")
    rows: list[Row] = []
    keys: list[Key] = []
    for result in reversed(results):  # the student on top
        assert result.calibration is not None
        teacher = result.method == TEACHER
        style = style_of(SOFT if teacher else STUDENT_COLOUR)
        most = max(one.images for one in result.calibration.bins)
        mark = plot.square if teacher else plot.dot
        for one in result.calibration.bins:
            if one.confidence is None or one.accuracy is None:
                continue
            radius = LEAST_DOT + (LARGEST_DOT - LEAST_DOT) * math.sqrt(one.images / most)
            said = f"{short_label(result.method)}: {count(one.images)} images at {format_percent(one.confidence)}, "
            said += f"{format_percent(one.accuracy)} {right}"
            mark(one.confidence, one.accuracy, radius, said, style=style, class_="dot hollow" if teacher else "dot")
        keys.insert(0, Key(short_label(result.method), style, None, square=teacher))
    for place, one in enumerate(results[0].calibration.bins if results[0].calibration else ()):
        row: Row = {"Probability of the answer": f"{format_percent(one.low)} to {format_percent(one.high)}"}
        for result in results:
            assert result.calibration is not None
            of, name = result.calibration.bins[place], short_label(result.method)
            row[f"{name}: images"] = count(of.images)
            row[f"{name}: mean probability"] = format_percent(of.confidence)
            row[f"{name}: {right}"] = format_percent(of.accuracy)
        rows.append(row)
    described = "Reliability diagram. " + " ".join(
        f"{short_label(one.method)}: expected calibration error {format_percent(one.calibration.expected_error)}."
        for one in results
        if one.calibration
    )
    note = (
        f"On the dashed line, answers are {right} as often as they are sure. Below it they are too sure, above it not "
        "sure enough. The area of a point goes with its number of images."
    )
    return Figure("Reliability diagram", plot.drawn(described), keys, rows, note)


def calibration_rows(report: RunReport) -> list[Row]:
    """One row a model: how sure it is, its accuracy, and how far the two are apart."""
    rows: list[Row] = []
    for result in report.results:
        if result.calibration is None or not report.measures(result):
            continue
        counted = [one for one in result.calibration.bins if one.confidence is not None]
        images = sum(one.images for one in counted)
        sure = sum(one.images * (one.confidence or 0.0) for one in counted) / max(images, 1)
        rows.append(
            {
                "Model": method_label(result.method),
                "Expected calibration error": format_percent(result.calibration.expected_error),
                "Mean probability of the answer": format_percent(sure),
                capitalised(report.figure): format_percent(result.accuracy),
            }
        )
    return rows


def _student_and_teacher(report: RunReport) -> list[MethodResult]:
    """Those with a calibration."""
    teacher = report.teacher_result
    shown = [report.published_result, *([teacher] if teacher is not None and report.measures(teacher) else [])]
    return [result for result in shown if result.calibration is not None]


def spectrum_figure(subspace: ReportedSubspace) -> Figure | None:
    """The eigenvalues of a subspace, in order; `None` where there are none."""
    values = subspace.eigenvalues
    if not values:
        return None
    log = min(values) > 0 and max(values) > 10 * min(values)
    y_axis = log_axis(min(values), max(values)) if log else linear_axis(min([0.0, *values]), max(values))
    plot = Plot(linear_axis(0, len(values), whole=True), y_axis, "direction", "eigenvalue" + ", logarithmic" * log)
    style = style_of(STUDENT_COLOUR)
    numbers = range(1, len(values) + 1)
    plot.line(numbers, values, style=style)
    for number, value in zip(numbers, values, strict=True):
        plot.dot(number, value, 3, f"direction {number}: {value:.4g}", style=style)
    rows: list[Row] = [
        {"Direction": str(number), "Eigenvalue": f"{value:.4g}"} for number, value in zip(numbers, values, strict=True)
    ]
    described = f"Eigenvalues of {len(values)} directions, from {values[0]:.3g} to {values[-1]:.3g}."
    return Figure("Spectrum", plot.drawn(described), (), rows)


def energy_figure(subspace: ReportedSubspace) -> Figure | None:
    """The share of the variance in the first k directions, beside what random ones would keep; `None` without any."""
    if not subspace.energies or not subspace.total_energy:
        return None
    kept = [0.0, *(energy / subspace.total_energy for energy in accumulate(subspace.energies))]
    directions = list(range(len(kept)))
    random = [number / subspace.width for number in directions]
    plot = Plot(linear_axis(0, directions[-1], whole=True), SHARES, "directions", "energy kept")
    keys = [
        Key(subspace.kind, style_of(STUDENT_COLOUR, thick=True), "", last=format_percent(kept[-1])),
        Key("random", style_of(SOFT), DASHES[1], last=format_percent(random[-1])),
    ]
    for key, values in zip(keys, (kept, random), strict=True):
        plot.line(directions, values, style=key.style, stroke_dasharray=key.dash or None)
    rows: list[Row] = [
        {
            "Directions": str(number),
            "Energy kept": format_percent(kept[number]),
            "Random": format_percent(random[number]),
        }
        for number in directions
    ]
    described = (
        f"The first {directions[-1]} of {subspace.width} directions keep {format_percent(kept[-1])} of the energy; as "
        f"many random ones would keep {format_percent(random[-1])}."
    )
    return Figure("Energy kept", plot.drawn(described), keys, rows)


@dataclass(frozen=True)
class SubspacePage:
    """A pair of layers, with its figures.

    Attributes:
        name: of the teacher's layer, short.
        subspace: what was compared.
        figures: of it.
    """

    name: str
    subspace: ReportedSubspace
    figures: Sequence[Figure]


def subspace_pages(report: RunReport) -> list[SubspacePage]:
    """One page for each pair of layers."""
    names = short_names([subspace.teacher_layer for subspace in report.subspaces]) if report.subspaces else []
    return [
        SubspacePage(name, one, [f for f in (spectrum_figure(one), energy_figure(one)) if f is not None])
        for name, one in zip(names, report.subspaces, strict=True)
    ]


def _dashes() -> Iterator[str]:
    """The dashes of lines, again and again."""
    while True:
        yield from DASHES


def style_of(colour: str, thick: bool = False) -> str:
    """The colour of a line or a point, as CSS."""
    return f"--c: {both_papers(colour)}" + ("; stroke-width: 2.6" if thick else "")
