"""The sections of a page: what each is called, and why a report may lack it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from subdistill_hf.config.methods import METHODS, method_label
from subdistill_hf.reporting.report import RunReport

EARLIER: Final = "This run was made by an earlier version, which did not measure it. A new run has it."


@dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
        name: of its template, and in the page's addresses.
        title: its heading.
        absent: why a report has nothing for it; `None` where it has something. Of explanations the folder knows.
        without_labels: its heading where no image had a label, if that is another one.
    """

    name: str
    title: str
    absent: Callable[[RunReport], str | None] = lambda report: None
    without_labels: str | None = None

    def title_of(self, report: RunReport) -> str:
        """The heading in the page of a report."""
        return self.without_labels or self.title if report.dataset.labels_by_teacher else self.title


def _without_curves(report: RunReport) -> str | None:
    logged = any("loss" in entry or "eval_accuracy" in entry for log in report.histories.values() for entry in log)
    return None if logged else "The report holds no log of a training."


def _without_confusion(report: RunReport) -> str | None:
    return None if report.published_result.confusion else EARLIER


def _without_calibration(report: RunReport) -> str | None:
    return None if report.published_result.calibration else EARLIER


def _without_exports(report: RunReport) -> str | None:
    return None if report.exports else "The student was not exported: subdistill export makes files for devices."


def _without_subspaces(report: RunReport) -> str | None:
    if report.subspaces:
        return None
    method = report.published_result.method
    uses = method in METHODS and METHODS[method].uses_subspaces
    return EARLIER if uses else f"{method_label(method)} compares nothing in subspaces."


SECTIONS: Final = (
    Section("results", "Results"),
    Section("training", "Training curves", _without_curves),
    Section("confusion", "Confusion", _without_confusion),
    Section("classes", "Classes and worst errors", without_labels="Classes and other answers than the teacher's"),
    Section("calibration", "Calibration", _without_calibration),
    Section("cost", "Cost"),
    Section("device", "On a device", _without_exports),
    Section("explanations", "Explanations"),
    Section("subspaces", "Subspaces", _without_subspaces),
    Section("provenance", "Provenance"),
)
"""In the order of the page."""
