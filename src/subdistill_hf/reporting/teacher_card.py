"""The card of an adapted teacher, and the figures that it is made of."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from huggingface_hub import ModelCard

from subdistill_hf.config.output_folder import written_whole
from subdistill_hf.formatting import accuracy_with_error, count, format_percent, slug
from subdistill_hf.reporting import markdown
from subdistill_hf.reporting.card_notes import adapted_to, test_set, what_was_changed
from subdistill_hf.reporting.local_paths import command_without_folders, file_name
from subdistill_hf.reporting.markdown import hub_link
from subdistill_hf.reporting.model_card import (
    BASE_MODEL_RELATION,
    Metadata,
    StudentCard,
    accuracy_on,
    card_environment,
)
from subdistill_hf.reporting.report import MethodResult, ReportedTeacher
from subdistill_hf.reporting.reported_images import ReportedDataset

REPORT_FILE: Final = "adapted_teacher.json"


@dataclass(frozen=True, kw_only=True)
class AdaptedTeacher:
    """A teacher that was fitted to classes that it lacked.

    Attributes:
        created: the day, `YYYY-MM-DD`.
        dataset: the images.
        classes: the C class names, in the order of its outputs.
        teacher: the model that was adapted, and how.
        image_size: height and width of what it reads.
        result: on the test images.
        versions: package to version.
        command: how to run this again.
    """

    created: str
    dataset: ReportedDataset
    classes: tuple[str, ...]
    teacher: ReportedTeacher
    image_size: tuple[int, int]
    result: MethodResult
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None

    def save(self, folder: str | Path) -> None:
        """Write the figures to `adapted_teacher.json` of a folder, without the folders of this machine."""
        with written_whole(Path(folder, REPORT_FILE)) as part:
            part.write_text(json.dumps(asdict(_publishable(self)), indent=1) + "\n", encoding="utf-8")


def render_teacher_card(report: AdaptedTeacher) -> ModelCard:
    """Render the card of an adapted teacher.

    Args:
        report: what was measured.

    Warns:
        UserWarning: when the license of the model that was adapted is unknown; the metadata then has none.
    """
    report = _publishable(report)
    adaptation, dataset = report.teacher.adaptation, report.dataset
    assert adaptation is not None
    body = (
        card_environment()
        .get_template("teacher_card.md.jinja")
        .render(
            report=report,
            title=markdown.text(f"{report.teacher.name}, adapted to {dataset.name}"),
            dataset=hub_link(dataset.name, dataset.hub_id, "datasets/"),
            teacher=hub_link(report.teacher.name, report.teacher.hub_id),
            changed=what_was_changed(adaptation),
            images=adapted_to(adaptation),
            rows=[
                {
                    "Images": f"{count(adaptation.validation_images)} for validation",
                    "Accuracy": accuracy_with_error(adaptation.validation_accuracy, adaptation.validation_images),
                    "Balanced accuracy": None,
                },
                {
                    "Images": f"{count(dataset.test_images)} of the {test_set(dataset)}",
                    "Accuracy": accuracy_with_error(report.result.accuracy, dataset.test_images),
                    "Balanced accuracy": format_percent(report.result.balanced_accuracy),
                },
            ],
            class_rows=[
                {
                    "Class": markdown.text(name),
                    "Training images": count(dataset.train_images_per_class.get(name)),
                    "Accuracy": format_percent(report.result.per_class_accuracy.get(name)),
                }
                for name in report.classes
            ],
        )
    )
    return StudentCard(f"---\n{_card_data(report).to_yaml()}\n---\n\n{body}")


def _card_data(report: AdaptedTeacher) -> Metadata:
    """The metadata that the Hub reads."""
    teacher, dataset = report.teacher, report.dataset
    if teacher.license is None:
        warnings.warn(
            f"the license of the teacher {teacher.name!r} is unknown: the card's metadata has no license; add one "
            "before publishing",
            UserWarning,
            stacklevel=3,
        )
    further: dict[str, Any] = {"base_model": teacher.hub_id} if teacher.hub_id else {}
    data = Metadata(
        library_name="transformers",
        pipeline_tag="image-classification",
        license=teacher.license,
        datasets=[dataset.hub_id] if dataset.hub_id else None,
        metrics=["accuracy"],
        tags=["subdistill", "image-classification"],
        model_name=slug(f"{teacher.name.split('/')[-1]}-{dataset.name}"),
        eval_results=[accuracy_on(dataset, f"{len(report.classes)} classes", report.result.accuracy)],
        **further,
    )
    if teacher.hub_id:
        data["base_model_relation"] = BASE_MODEL_RELATION
    return data


def _publishable(report: AdaptedTeacher) -> AdaptedTeacher:
    """Take the folders of this machine out of a report."""
    teacher = report.teacher
    if not teacher.hub_id:
        teacher = replace(teacher, name=file_name(teacher.name))
    return replace(
        report,
        dataset=replace(report.dataset, name=file_name(report.dataset.name)),
        teacher=teacher,
        command=None if report.command is None else command_without_folders(report.command),
    )
