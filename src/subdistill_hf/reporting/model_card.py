"""The model card of a trained expert: everything it says is read or computed from the report of the run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from subdistill_hf.config.methods import method_label
from subdistill_hf.formatting import (
    accuracy_with_error,
    count,
    difference_error,
    format_percent,
    joined,
    slug,
)
from subdistill_hf.reporting import card_notes, card_tables, markdown, on_device
from subdistill_hf.reporting.card_notes import adaptation_note, test_set
from subdistill_hf.reporting.local_paths import command_without_folders, file_name, without_folders
from subdistill_hf.reporting.markdown import hub_link
from subdistill_hf.reporting.report import TEACHER, ReportedStudent, ReportedTeacher, RunReport
from subdistill_hf.reporting.reported_images import ReportedDataset

# The Hub documents "adapter", "merge", "quantized" and "finetune"; "distill" was asked for
# (huggingface_hub#3985) but is not among them. The student shares no weight with the teacher, so the first
# three would be false; "finetune" is what the Hub assumes of a `base_model` anyway, and the card's tags and
# its first sentence say that the model is distilled.
BASE_MODEL_RELATION: Final = "finetune"

_MANY_CLASSES: Final = 8
_PLOT_SECTIONS: Final = {
    "training": "Training curves",
    "subspace": "Subspaces",
    "scores": "Scores of known and unknown images",
    "confusion": "Confusion matrix",
    "contact_sheet": "Training images of each class",
}


class _Dumper(yaml.Dumper):
    """Writes texts with line breaks of Unicode in double quotes: without, PyYAML does not read what it writes."""

    def represent_text(self, value: str) -> yaml.ScalarNode:
        """A text as a YAML scalar."""
        quoted = any(character in value for character in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", value, style='"' if quoted else None)


_Dumper.add_representer(str, _Dumper.represent_text)


class Metadata(ModelCardData):
    """The metadata of a card, which is read back as it was, whatever the names of classes hold."""

    def to_yaml(self, line_break: str | None = None, original_order: list[str] | None = None) -> str:
        """The metadata as YAML, with the keys in the order that is given."""
        super().to_yaml(line_break, original_order)  # which puts the keys in order
        values: dict[str, Any] = self.to_dict()  # type: ignore[no-untyped-call]
        dumped: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, line_break=line_break)
        return dumped.strip()


class StudentCard(ModelCard):
    """A model card with `Metadata`."""

    card_data_class = Metadata


def render_card(report: RunReport, plots: Iterable[str | Path | None] = (), name: str | None = None) -> ModelCard:
    """Render the model card of the published student.

    The template calls the functions of `card_tables` (as `tables`) and `card_notes` (as `notes`) on the report.

    Args:
        report: what was measured. Whatever it lacks is left out of the card.
        plots: image files beside the card (`None` for a plot that was skipped); the card refers to each by
            its file name alone, in the section that the name speaks of (training, subspaces, confusion, contact
            sheet).
        name: the model's name in the `model-index`, by default made of teacher, method and dataset.

    Returns:
        The card, with metadata that the Hub reads.

    Raises:
        ValueError: when the report holds the result of no student.

    Warns:
        UserWarning: when the teacher's license is unknown; the metadata then has none.
    """
    report = publishable(report)
    body = (
        card_environment()
        .get_template("model_card.md.jinja")
        .render(
            report=report,
            published=report.published_result,
            label=method_label(report.published_result.method),
            title=markdown.text(f"{report.dataset.name} expert: {class_phrase(report)}"),
            dataset=hub_link(report.dataset.name, report.dataset.hub_id, "datasets/"),
            teacher=hub_link(report.teacher.name, report.teacher.hub_id) + adaptation_note(report),
            standing=standing(report),
            tables=card_tables,
            notes=card_notes,
            device=on_device,
            device_plots={},
            plots=_plots(plots),
        )
    )
    return StudentCard(f"---\n{_card_data(report, name).to_yaml()}\n---\n\n{body}")


def render_on_device(report: RunReport, plots: Mapping[str, str] = MappingProxyType({})) -> str:
    """Render the section "On a device" of the card alone.

    Args:
        report: with exports.
        plots: format to the image file beside the card that shows its files.
    """
    report = publishable(report)
    template = card_environment().get_template("on_device.md.jinja")
    return template.render(report=report, device=on_device, device_plots=plots)


@cache
def card_environment() -> jinja2.Environment:
    """The templates of cards, with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("subdistill_hf.reporting"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {
        "count": count,
        "percent": format_percent,
        "text": markdown.text,
        "code": markdown.code,
        "fenced": markdown.fenced,
        "table": markdown.table,
    }
    return environment


def standing(report: RunReport) -> list[str]:
    """Say where the published student stands among the students and the teacher, flattering or not.

    Args:
        report: what was measured.

    Returns:
        Sentences: the student's accuracy, its distance to each other result, which distances the test is too
        small to resolve, and whether another student was more accurate.

    Raises:
        ValueError: when the report holds the result of no student.
    """
    published = report.published_result
    images, which = report.dataset.test_images, test_set(report.dataset)
    label, measured = method_label(published.method), accuracy_with_error(published.accuracy, images)
    sentences = [f"{label} classifies {measured} of the {images:,} images of the {which} correctly."]
    if report.dataset.labels_by_teacher:
        sentences = [f"{label} gives the teacher's answer to {measured} of the {images:,} images of the {which}."]
    if published.accuracy_of_classes is not None:
        of_classes = accuracy_with_error(published.accuracy_of_classes, images)
        right = "agree" if report.dataset.labels_by_teacher else "are correct"
        sentences.append(f'An answer "none of these" counts as wrong; passed over, {of_classes} {right}.')
    distances: list[str] = []
    unresolved: list[str] = []
    better: list[str] = []
    for result in report.results:
        if result.method == published.method or not report.measures(result):
            continue
        other = "the teacher" if result.method == TEACHER else method_label(result.method)
        difference = published.accuracy - result.accuracy
        error = difference_error(published.accuracy, result.accuracy, images)
        if abs(difference) <= 2 * error:
            unresolved.append(other)
        if round(difference * images) == 0:
            distances.append(f"level with {other}")
            continue
        side = "above" if difference > 0 else "below"
        distances.append(f"{100 * abs(difference):.1f} ± {100 * error:.1f} points {side} {other}")
        if difference < 0 and result.method != TEACHER:
            better.append(other)
    if distances:
        sentences.append(f"It is {joined(distances)}.")
    if unresolved:
        sentences.append(f"Within two standard errors, so not told apart by this test: {joined(unresolved)}.")
    if better:
        sentences.append(f"**In this run {joined(better)} scored higher than the published student.**")
    return sentences


def _card_data(report: RunReport, name: str | None) -> Metadata:
    """Collect the metadata that the Hub reads."""
    dataset, teacher, student, published = report.dataset, report.teacher, report.student, report.published_result
    # A student trained on labels alone owes the teacher nothing: neither its lineage nor its license.
    origins: list[ReportedTeacher | ReportedStudent] = [teacher] if published.method != "scratch" else []
    origins += [student] if student.hub_id else []
    bases = list(dict.fromkeys(origin.hub_id for origin in origins if origin.hub_id))
    license_id, reason = _license(origins)
    if reason is not None:
        warnings.warn(
            f"{reason}: the card's metadata has no license; add one before publishing", UserWarning, stacklevel=3
        )
    data = Metadata(
        library_name="transformers",
        pipeline_tag="image-classification",
        license=license_id,
        base_model=(bases if len(bases) > 1 else bases[0]) if bases else None,
        datasets=[dataset.hub_id] if dataset.hub_id else None,
        metrics=None if dataset.labels_by_teacher else ["accuracy"],
        tags=[
            "subdistill",
            *(["knowledge-distillation"] if teacher in origins else []),
            "image-classification",
        ],
        model_name=None
        if dataset.labels_by_teacher
        else name or slug("-".join([teacher.name.split("/")[-1], published.method, dataset.name])),
        eval_results=None  # the Hub has no metric for the agreement with a teacher
        if dataset.labels_by_teacher
        else [accuracy_on(dataset, f"{class_phrase(report)}{_marked(dataset)}", published.accuracy)],
    )
    if bases:
        data["base_model_relation"] = BASE_MODEL_RELATION
    return data


def accuracy_on(dataset: ReportedDataset, images: str, accuracy: float) -> EvalResult:
    """An accuracy as the Hub reads it.

    Args:
        dataset: the images.
        images: of which classes they are, in words.
        accuracy: on its test images.
    """
    return EvalResult(
        task_type="image-classification",
        task_name="Image classification",
        dataset_type=dataset.hub_id or slug(dataset.name),
        dataset_name=f"{dataset.name} ({images})",
        dataset_split=dataset.test_split,
        dataset_revision=dataset.revision,
        metric_type="accuracy",
        metric_name="Accuracy",
        metric_value=round(accuracy, 4),
    )


def _license(origins: list[ReportedTeacher | ReportedStudent]) -> tuple[str | None, str | None]:
    """The license of all that the student was made of, or why there is none to tell."""
    if not origins:
        return None, "a student trained from scratch takes no license from the teacher"
    for origin in origins:
        if origin.license is None:
            what, name = (
                ("teacher", origin.name)
                if isinstance(origin, ReportedTeacher)
                else (
                    "pretrained student",
                    origin.recipe,
                )
            )
            return None, f"the license of the {what} {name!r} is unknown"
    licenses = {str(origin.license) for origin in origins}
    if len(licenses) > 1:
        return None, f"teacher and pretrained student have different licenses ({', '.join(sorted(licenses))})"
    return licenses.pop(), None


def class_phrase(report: RunReport) -> str:
    """List the classes when they are few, else count them."""
    classes = report.classes
    return ", ".join(classes) if len(classes) <= _MANY_CLASSES else f"{len(classes)} classes"


def _marked(dataset: ReportedDataset) -> str:
    """A note behind the classes where the test images are not those of the dataset, but marked."""
    return f"; every image marked: {dataset.mark.name}" if dataset.mark else ""


def _plots(plots: Iterable[str | Path | None]) -> dict[str, list[str]]:
    """Turn image files into Markdown by the section that their name speaks of (`""` for the others)."""
    images: dict[str, list[str]] = {section: [] for section in (*_PLOT_SECTIONS, "")}
    for plot in plots:
        if plot is None:
            continue
        file = Path(plot).name
        section = next((key for key in _PLOT_SECTIONS if key in file), "")
        alternative = _PLOT_SECTIONS.get(section) or Path(plot).stem.replace("_", " ").capitalize()
        images[section].append(f"![{alternative}]({file})")
    return images


def publishable(report: RunReport) -> RunReport:
    """Take the folders of this machine out of a report; names of classes are not looked at."""
    teacher, student, usage = report.teacher, report.student, report.usage
    if not teacher.hub_id:
        teacher = replace(teacher, name=re.split(r"[\\/]", teacher.name.rstrip("\\/"))[-1])
    if teacher.base is not None:
        teacher = replace(teacher, base=replace(teacher.base, name=file_name(teacher.base.name)))
    return replace(
        report,
        dataset=replace(report.dataset, name=file_name(report.dataset.name)),
        teacher=teacher,
        student=replace(student, recipe=file_name(student.recipe)),
        hyperparameters=without_folders(report.hyperparameters),
        usage=None if usage is None else replace(usage, code=without_folders(usage.code)),
        command=None if report.command is None else command_without_folders(report.command),
    )
