"""The tables and lists of facts of the model card; a cell that is unknown is `None`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from subdistill_hf.config.methods import method_label
from subdistill_hf.formatting import (
    accuracy_with_error,
    count,
    duration,
    energy,
    format_percent,
    joined,
    milliseconds,
    operations,
)
from subdistill_hf.reporting.card_notes import lora_note, test_set, unlabelled_fact
from subdistill_hf.reporting.exported import Latency
from subdistill_hf.reporting.markdown import code, hub_link, text
from subdistill_hf.reporting.report import TEACHER, MethodResult, RunReport

Row = dict[str, str | None]
LOG_ROWS: Final = 12


def result_rows(report: RunReport) -> list[Row]:
    """One row a model, in the report's order, the published student in bold."""
    images, published = report.dataset.test_images, report.published_result
    rows = []
    for result in report.results:
        measured = report.measures(result)
        row = {
            "Model": method_label(result.method),
            "Parameters": count(result.parameters),
            capitalised(report.figure): accuracy_with_error(result.accuracy, images) if measured else None,
            'Without "none of these"': format_percent(result.accuracy_of_classes) if measured else None,
            "Accuracy without the mark": format_percent(result.clean_accuracy),
            "Follows the mark": format_percent(result.mark_followed),
            "The same without the mark": format_percent(result.followed_without_mark),
            f"Balanced {report.short_figure}": format_percent(result.balanced_accuracy) if measured else None,
            "Agrees with teacher": None if report.dataset.labels_by_teacher else _agreement(result),
            "Operations per image": operations(result.operations),
            "Time per image": latency_cell(result.latency_ms),
            "Training": duration(result.training_seconds),
            "Energy of the training": energy(result.training_kilowatt_hours),
        }
        if result is published:
            row = {column: cell and f"**{cell}**" for column, cell in row.items()}
        rows.append(row)
    return rows


def _agreement(result: MethodResult) -> str | None:
    """The share of images that a student and the teacher put in the same class."""
    return None if result.method == TEACHER else format_percent(result.teacher_agreement)


def capitalised(figure: str) -> str:
    """A figure's name as a heading begins."""
    return figure[0].upper() + figure[1:]


def latency_cell(latency: Latency | None) -> str | None:
    """A median with its quartiles in brackets."""
    if latency is None:
        return None
    low, high = milliseconds(latency.low), milliseconds(latency.high)
    return f"{milliseconds(latency.median)} ({low.removesuffix(' ms')} to {high.removesuffix(' ms')})"


def unknown_rows(report: RunReport) -> list[Row]:
    """One row a model and score: how well it tells images of none of the classes.

    The teacher is left out for images that it chose itself.
    """
    return [
        {
            "Model": method_label(result.method),
            "Score": text(unknown.score),
            "Unknown images": f"{unknown.kind}, {count(unknown.images)}",
            "AUROC": f"{unknown.auroc:.3f} ± {unknown.auroc_error:.3f}",
            "Taken for known, with 95 % of the known kept": format_percent(unknown.false_positives),
        }
        for result in report.results
        for unknown in result.unknown
        if unknown.kind != "unchosen" or report.measures(result)
    ]


def class_rows(report: RunReport) -> list[Row]:
    """One row a class: its images, its accuracy and what it is most often taken for."""
    published = report.published_result
    rows: list[Row] = []
    for index, name in enumerate(report.classes):
        counts = None if published.confusion is None else published.confusion[index]
        images = sum(counts) if counts else 0
        accuracy = published.per_class_accuracy.get(name)
        measured = format_percent(accuracy)
        if images and accuracy is not None:
            measured = accuracy_with_error(accuracy, images)
        rows.append(
            {
                "Class": text(name),
                "Training images": count(report.dataset.train_images_per_class.get(name)),
                "Test images": None if counts is None else count(images),
                capitalised(report.figure): measured,
                "Most often taken for": None if counts is None else _taken_for(report.classes, counts, index),
            }
        )
    return rows


def _taken_for(classes: Sequence[str], counts: Sequence[int], true: int) -> str | None:
    """Name the wrong class that most images of a class are put in, with their number."""
    errors = [0 if index == true else images for index, images in enumerate(counts)]
    most = max(errors)
    if most == 0:
        return "none" if counts[true] else None
    names = [text(classes[index]) for index, images in enumerate(errors) if images == most]
    return f"{', '.join(names)} ({most}{' each' if len(names) > 1 else ''})"


def subspace_rows(report: RunReport) -> list[Row]:
    """One row a pair of layers."""
    return [
        {
            "Teacher layer": code(subspace.teacher_layer),
            "Student layer": code(subspace.student_layer),
            "Basis": code(subspace.kind),
            "Width of the teacher layer": count(subspace.width),
            "Directions K": count(subspace.dimensions),
            "Energy kept": format_percent(subspace.energy_fraction),
        }
        for subspace in report.subspaces
    ]


def training_log_rows(report: RunReport) -> list[Row]:
    """Some evaluations of the published student's training, evenly spread, with the loss before each."""
    rows: list[Row] = []
    loss: float | None = None
    for entry in report.histories.get(report.published_result.method, ()):
        loss = entry.get("loss", loss)
        if "eval_accuracy" in entry:
            rows.append(
                {
                    "Step": count(entry.get("step")),
                    "Epoch": None if entry.get("epoch") is None else f"{entry['epoch']:.1f}",
                    "Training loss": None if loss is None else f"{loss:.4g}",
                    f"Validation {report.short_figure}": format_percent(entry["eval_accuracy"]),
                }
            )
    last = len(rows) - 1
    kept = sorted({round(place * last / (LOG_ROWS - 1)) for place in range(LOG_ROWS)}) if last >= LOG_ROWS else None
    return rows if kept is None else [rows[place] for place in kept]


def teacher_facts(report: RunReport) -> list[str]:
    """The rows that identify the teacher."""
    teacher = report.teacher
    return _known(
        {
            "Model": hub_link(teacher.name, teacher.hub_id),
            "Revision": _code(teacher.revision),
            "SHA-256 of its weights": _code(teacher.digest),
            "Class": _code(teacher.model_class),
            "Parameters": count(teacher.parameters),
            "Classes it was trained for": count(teacher.teacher_classes),
            "Classes in words, in": joined([code(prompt) for prompt in teacher.prompts]) if teacher.prompts else None,
            "Texts of none of the classes": joined([code(prompt) for prompt in teacher.other_prompts]) or None,
            "License": None if teacher.license is None else text(teacher.license),
        }
    )


def data_facts(report: RunReport) -> list[str]:
    """The rows of the images that the student was trained and tested on."""
    dataset = report.dataset
    return _known(
        {
            "Dataset": hub_link(dataset.name, dataset.hub_id, "datasets/"),
            "Revision": _code(dataset.revision),
            "Training images": count(dataset.train_images),
            "Training images without labels": unlabelled_fact(dataset),
            "Validation images": count(dataset.validation_images),
            f"Test images ({test_set(dataset)})": count(dataset.test_images),
            "Augmentation": text(dataset.augmentation or "") or None,
        }
    )


def student_facts(report: RunReport) -> list[str]:
    """The rows of the student: kind, start of its weights, and how it and the students beside it were trained."""
    student = report.student
    height, width = student.image_size
    facts = [
        f"Student: {code(student.recipe)} ({code(student.model_class)}), images of {height} × {width} pixels"  # noqa: RUF001
        + lora_note(report)
    ]
    if student.hub_id:
        revision = f", revision {code(student.revision)}" if student.revision else ""
        facts.append(f"It started from the weights of {hub_link(student.recipe, student.hub_id)}{revision}")
    return facts + _learning_rates(report)


def _learning_rates(report: RunReport) -> list[str]:
    """The initial learning rates of the students, where they differ."""
    trained: dict[float, list[str]] = {}
    for result in report.results:
        if result.learning_rate is not None:
            trained.setdefault(result.learning_rate, []).append(method_label(result.method))
    rates = [f"{rate:g} for {joined(methods)}" for rate, methods in trained.items()]
    return [f"Initial learning rate: {'; '.join(rates)}"] if len(rates) > 1 else []


def _code(value: str | None) -> str | None:
    return None if value is None else code(value)


def _known(facts: Mapping[str, str | None]) -> list[str]:
    return [f"{fact}: {value}" for fact, value in facts.items() if value is not None]
