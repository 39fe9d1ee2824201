"""The figures at the top of a page, and what the student takes beside its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from subdistill_hf.formatting import accuracy_with_error, count, file_size, format_percent, milliseconds, operations
from subdistill_hf.reporting.card_tables import Row
from subdistill_hf.reporting.markdown import code
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
    name = report.figure[0].upper() + report.figure[1:]
    yield Headline(name, accuracy_with_error(published.accuracy, images), beside or f"of {count(images)} images")
    if published.teacher_agreement is not None and not report.dataset.labels_by_teacher:
        share = format_percent(published.teacher_agreement)
        yield Headline("Agrees with teacher", str(share), "right or wrong, on the test images")
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


def option_rows(report: RunReport) -> list[Row]:
    """One row a hyper-parameter that differs from its default."""
    return [{"Name": code(name), "Value": code(value)} for name, value in report.hyperparameters.items()]
