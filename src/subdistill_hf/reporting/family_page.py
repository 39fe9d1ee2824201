"""The index of a family: a table of its experts, a plot, and what went wrong, from the reports of their runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Final

from subdistill_hf.config.extras import has_extra_or_note
from subdistill_hf.config.output_folder import written_whole
from subdistill_hf.formatting import accuracy_with_error, count, joined
from subdistill_hf.hub.files import CARD_FILE
from subdistill_hf.reporting import markdown
from subdistill_hf.reporting.local_paths import command_without_folders, file_name, without_folders
from subdistill_hf.reporting.markdown import hub_link
from subdistill_hf.reporting.model_card import card_environment
from subdistill_hf.reporting.optional import plot_is_optional
from subdistill_hf.reporting.report import RunReport

PLOT_FILE: Final = "accuracies.png"


@dataclass(frozen=True)
class ExpertEntry:
    """An expert in the index.

    Attributes:
        name: of its folder.
        classes: of its subtask, as they were asked for.
        report: of its run; `None` where there is no expert.
        error: why there is none.
    """

    name: str
    classes: tuple[str, ...]
    report: RunReport | None
    error: str | None = None


@dataclass(frozen=True)
class FamilyIndex:
    """What the index tells.

    Attributes:
        title: of the family.
        entries: its experts.
        commands: how to make it again, one after the other.
    """

    title: str
    entries: tuple[ExpertEntry, ...]
    commands: tuple[str, ...] = ()

    @property
    def reports(self) -> dict[str, RunReport]:
        """Name to report of the experts that are there."""
        return {entry.name: entry.report for entry in self.entries if entry.report is not None}


def told_result(report: RunReport) -> str:
    """An expert's result in a few words: the teacher's figure, the student's, and the difference in points."""
    teacher, student = accuracies_of(report)
    if teacher is None:
        return f"{report.figure} {100 * student:.1f} %"
    return f"teacher {100 * teacher:.1f} %, student {100 * student:.1f} %, {_points(student - teacher)}"


def write_index(index: FamilyIndex, folder: Path) -> None:
    """Write `README.md` of a family, and its plot; whatever happens to the plot, the table is there."""
    _write(index, folder, plot=None)
    if index.reports and has_extra_or_note("plots", "the index has no plot"):
        with plot_is_optional(PLOT_FILE):
            from subdistill_hf.reporting.family_plot import plot_family  # only who plots needs matplotlib

            accuracies = {name: accuracies_of(one) for name, one in index.reports.items()}
            plot_family(accuracies, folder / PLOT_FILE, next(iter(index.reports.values())).figure)
            _write(index, folder, plot=PLOT_FILE)


def _write(index: FamilyIndex, folder: Path, plot: str | None) -> None:
    with written_whole(folder / CARD_FILE) as part:
        part.write_text(render_index(index, plot) + "\n", encoding="utf-8")


def render_index(index: FamilyIndex, plot: str | None = None) -> str:
    """The index as Markdown.

    Args:
        index: what it tells.
        plot: the file of the plot, beside the page.
    """
    reports = list(index.reports.values())
    first = reports[0] if reports else None
    commands = [command_without_folders(command) for command in index.commands]
    teacher = dataset = None
    if first is not None:
        name = first.teacher.name if first.teacher.hub_id else file_name(first.teacher.name)
        teacher = hub_link(name, first.teacher.hub_id)
        dataset = hub_link(file_name(first.dataset.name), first.dataset.hub_id, "datasets/")
    template = card_environment().get_template("family.md.jinja")
    return template.render(
        title=markdown.text(index.title),
        teacher=teacher,
        dataset=dataset,
        experts=_experts_in_words(len(reports), len(index.entries)),
        rows=[_row(entry) for entry in index.entries if entry.report is not None],
        mean=_means(reports),
        figure=first.figure if first is not None else "accuracy",
        answered=first is not None and first.dataset.others is not None and first.dataset.others.answered,
        failed={entry.name: _reason(entry) for entry in index.entries if entry.report is None},
        plot=plot,
        command="\n".join(commands),
    ).rstrip()


def _experts_in_words(there: int, planned: int) -> str:
    """How many experts there are, and of how many."""
    named = "expert" if planned == 1 else "experts"
    return f"{planned} {named}" if there == planned else f"{there} of {planned} {named}"


def _row(entry: ExpertEntry) -> dict[str, str | None]:
    report = entry.report
    assert report is not None
    images = report.dataset.test_images
    teacher, student = accuracies_of(report)
    return {
        "Expert": f"[{markdown.text(entry.name)}]({entry.name}/{CARD_FILE})",
        "Classes": markdown.text(joined(report.classes)),
        "Test images": count(images),
        "Teacher": None if teacher is None else accuracy_with_error(teacher, images),
        "Student": accuracy_with_error(student, images),
        "Difference": None if teacher is None else _points(student - teacher),
        "Parameters": count(report.student.parameters),
    }


def _means(reports: list[RunReport]) -> str | None:
    """The mean of the experts in words; `None` with fewer than two."""
    if len(reports) < 2:
        return None
    pairs = [accuracies_of(report) for report in reports]
    student = mean(accuracy for _, accuracy in pairs)
    known = [accuracy for accuracy, _ in pairs if accuracy is not None]
    if len(known) < len(reports):
        return f"The students have {100 * student:.1f} % in the mean."
    return (
        f"In the mean the teacher has {100 * mean(known):.1f} % and the students {100 * student:.1f} %, a difference "
        f"of {_points(student - mean(known))}."
    )


def accuracies_of(report: RunReport) -> tuple[float | None, float]:
    """The accuracies of teacher and student; that of the teacher is `None` where it always agrees with itself."""
    result = report.teacher_result
    teacher = result.accuracy if result is not None and report.measures(result) else None
    return teacher, report.published_result.accuracy


def _reason(entry: ExpertEntry) -> str:
    """Why an expert is not there, without the folders of this machine."""
    return markdown.text(without_folders(entry.error)) if entry.error else "not finished"


def _points(difference: float) -> str:
    """A difference of accuracies in points."""
    return f"{100 * difference + 0.0:+.1f} points"
