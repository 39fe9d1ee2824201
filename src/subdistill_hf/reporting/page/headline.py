"""The figures at the top of a page, and what the student takes beside its teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from subdistill_hf.formatting import accuracy_with_error, count, file_size, format_percent, milliseconds, operations
from subdistill_hf.reporting import card_tables
from subdistill_hf.reporting.card_tables import Row, capitalised
from subdistill_hf.reporting.colours import SOFT
from subdistill_hf.reporting.markdown import code
from subdistill_hf.reporting.page.figures import STUDENT_COLOUR, style_of
from subdistill_hf.reporting.page.svg import element, percent
from subdistill_hf.reporting.report import TEACHER, MethodResult, RunReport


@dataclass(frozen=True)
class Headline:
    """A figure at the top.

    Attributes:
        name: of what was measured.
        value: with its unit.
        beside: what it is to be compared with; empty without it.
    """

    name: str
    value: str
    beside: str = ""


@dataclass(frozen=True)
class Share:
    """What the student takes of what its teacher takes.

    Attributes:
        name: of it.
        student: with its unit.
        teacher: with its unit.
        share: of the teacher's.
    """

    name: str
    student: str
    teacher: str
    share: float


def headlines(report: RunReport) -> list[Headline]:
    """The published student in a few figures, each as it stands on the card."""
    return list(_headlines(report))


def _headlines(report: RunReport) -> Iterator[Headline]:
    published, teacher, images = report.published_result, report.teacher_result, report.dataset.test_images
    beside = ""
    if teacher is not None and report.measures(teacher):
        beside = f"teacher {accuracy_with_error(teacher.accuracy, images)}"
    name = capitalised(report.figure)
    yield Headline(name, accuracy_with_error(published.accuracy, images), beside or f"of {count(images)} images")
    if published.accuracy_of_classes is not None:
        theirs = None if teacher is None or not report.measures(teacher) else teacher.accuracy_of_classes
        yield Headline(
            'Without "none of these"',
            accuracy_with_error(published.accuracy_of_classes, images),
            "" if theirs is None else f"teacher {accuracy_with_error(theirs, images)}",
        )
    if published.teacher_agreement is not None and not report.dataset.labels_by_teacher:
        share = format_percent(published.teacher_agreement)
        yield Headline("Agrees with teacher", str(share), "right or wrong")
    if published.calibration is not None:
        error = format_percent(published.calibration.expected_error)
        yield Headline("Calibration error", str(error), "0 % is best")
    for one in cost_shares(report):
        yield Headline(one.name, one.student, f"teacher {one.teacher}")
    if report.student.size_bytes is not None:
        yield Headline("On disk", file_size(report.student.size_bytes))


def cost_shares(report: RunReport) -> list[Share]:
    """Parameters, operations and time of the student as shares of the teacher's, as far as both are known."""
    published, teacher = report.published_result, report.teacher_result
    found = [
        Share(
            "Parameters",
            f"{report.student.parameters:,}",
            f"{report.teacher.parameters:,}",
            report.student.parameters / report.teacher.parameters,
        )
    ]
    if teacher is None:
        return found
    if published.operations and teacher.operations:
        own, theirs = operations(published.operations), operations(teacher.operations)
        share = published.operations / teacher.operations
        found.append(Share("Operations per image", str(own), str(theirs), share))
    if published.latency_ms is not None and teacher.latency_ms is not None:
        own, theirs = milliseconds(published.latency_ms.median), milliseconds(teacher.latency_ms.median)
        share = published.latency_ms.median / teacher.latency_ms.median
        found.append(Share("Time per image", own, theirs, share))
    return found


def models(report: RunReport) -> Sequence[MethodResult]:
    """The results with a confusion: the published student's, the teacher's, then the others."""
    shown = [result for result in report.results if result.confusion and report.measures(result)]
    return sorted(shown, key=lambda result: (result is not report.published_result, result.method != TEACHER))


def class_rows(report: RunReport) -> list[dict[str, str | Markup | None]]:
    """The rows of the card, with the teacher's accuracy and a drawing of both, which shows where the student lost."""
    teacher = report.teacher_result
    theirs = {} if teacher is None or not report.measures(teacher) else teacher.per_class_accuracy
    own_accuracies = report.published_result.per_class_accuracy
    low = math.floor(10 * min([0.9, *own_accuracies.values(), *theirs.values()])) / 10
    drawn = f"{percent(low)} to 100 %"
    rows: list[dict[str, str | Markup | None]] = []
    for name, row in zip(report.classes, card_tables.class_rows(report), strict=True):
        own = own_accuracies.get(name)
        cells: dict[str, str | Markup | None] = dict(row)
        taken_for = cells.pop("Most often taken for")
        cells["Teacher"] = format_percent(theirs.get(name))
        cells[drawn] = None if own is None else strip(own, theirs.get(name), low)
        rows.append(cells | {"Most often taken for": taken_for})
    return rows


def strip(student: float, teacher: float | None, low: float) -> Markup:
    """A line up to 100 % with a dot for the student and a hollow square for the teacher.

    Args:
        student: its accuracy.
        teacher: the teacher's, if it is known.
        low: where the line begins.
    """
    length, middle, edge = 120.0, 9.0, 7.0
    places = {
        share: edge + (share - low) / (1 - low) * (length - 2 * edge)
        for share in (student, teacher)
        if share is not None
    }
    drawn = [element("line", x1=edge, x2=length - edge, y1=middle, y2=middle, class_="grid")]
    if teacher is not None:
        across = places[teacher]
        drawn.append(element("line", x1=places[student], x2=across, y1=middle, y2=middle, class_="between"))
        corners = [(across, middle - 6), (across + 6, middle), (across, middle + 6), (across - 6, middle)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        drawn.append(element("polygon", points=points, class_="dot hollow", style=style_of(SOFT)))
    drawn.append(element("circle", cx=places[student], cy=middle, r=4.5, class_="dot", style=style_of(STUDENT_COLOUR)))
    viewed = f"0 0 {length:g} {2 * middle:g}"
    return element("svg", Markup("").join(drawn), viewBox=viewed, class_="strip", aria_hidden="true")


def option_rows(report: RunReport) -> list[Row]:
    """One row a hyper-parameter that differs from its default."""
    return [{"Name": code(name), "Value": code(value)} for name, value in report.hyperparameters.items()]
