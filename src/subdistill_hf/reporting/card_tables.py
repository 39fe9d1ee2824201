"""The tables and lists of the model card, as rows of cells; a cell that is unknown is `None`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from subdistill_hf.config.methods import method_label
from subdistill_hf.formatting import (
    accuracy_with_error,
    code,
    count,
    duration,
    energy,
    file_size,
    format_percent,
    hub_link,
    joined,
    latency_range,
    milliseconds,
    operations,
    ratio_in_words,
    table_cell,
    test_set,
)
from subdistill_hf.reporting.card_adaptation import lora_note
from subdistill_hf.reporting.card_notes import mark_columns

Row = dict[str, str | None]
LOG_ROWS: Final = 12


def result_rows(report: Mapping[str, Any], published: Mapping[str, Any]) -> list[Row]:
    """One row a model, in the report's order, the published student in bold."""
    images = report["dataset"]["test_images"]
    rows = []
    for result in report["results"]:
        agreement = result.get("teacher_agreement")
        row = {
            "Model": method_label(result["method"]),
            "Parameters": count(result.get("parameters")),
            "Accuracy": accuracy_with_error(result["accuracy"], images),
            **mark_columns(result),
            "Balanced accuracy": format_percent(result.get("balanced_accuracy")),
            "Agrees with teacher": None if result["method"] == "teacher" else format_percent(agreement),
            "Operations per image": operations(result.get("operations")),
            "Time per image": latency_range(result.get("latency_ms")),
            "Training": duration(result.get("training_seconds")),
            "Energy of the training": energy(result.get("training_kilowatt_hours")),
        }
        if result is published:
            row = {column: cell and f"**{cell}**" for column, cell in row.items()}
        rows.append(row)
    return rows


def class_rows(report: Mapping[str, Any], published: Mapping[str, Any]) -> list[Row]:
    """One row a class: its images, its accuracy and what it is most often taken for."""
    confusion = published.get("confusion")
    training_images = report["dataset"].get("train_images_per_class") or {}
    rows: list[Row] = []
    for index, name in enumerate(report["classes"]):
        accuracy = published.get("per_class_accuracy", {}).get(name)
        images = sum(confusion[index]) if confusion else 0
        measured = format_percent(accuracy)
        if images and accuracy is not None:
            measured = accuracy_with_error(accuracy, images)
        rows.append(
            {
                "Class": table_cell(name),
                "Training images": count(training_images.get(name)),
                "Test images": count(images) if confusion else None,
                "Accuracy": measured,
                "Most often taken for": _taken_for(report["classes"], confusion[index], index) if confusion else None,
            }
        )
    return rows


def _taken_for(classes: list[str], row: list[int], true: int) -> str | None:
    """Name the wrong class that most images of a class are put in, with their number."""
    errors = [0 if index == true else count for index, count in enumerate(row)]
    most = max(errors)
    if most == 0:
        return "none" if row[true] else None
    names = [table_cell(classes[index]) for index, count in enumerate(errors) if count == most]
    return f"{', '.join(names)} ({most}{' each' if len(names) > 1 else ''})"


def subspace_rows(report: Mapping[str, Any]) -> list[Row]:
    """One row a pair of layers."""
    return [
        {
            "Teacher layer": f"`{subspace['teacher_layer']}`",
            "Student layer": f"`{subspace['student_layer']}`",
            "Basis": code(subspace.get("kind")),
            "Width of the teacher layer": count(subspace.get("width")),
            "Directions K": count(subspace.get("dimensions")),
            "Energy kept": format_percent(subspace.get("energy_fraction")),
        }
        for subspace in report.get("subspaces") or []
    ]


def teacher_facts(report: Mapping[str, Any]) -> list[str]:
    """What identifies the teacher."""
    teacher = report["teacher"]
    facts = {
        "Model": hub_link(teacher["name"], teacher.get("hub_id")),
        "Revision": code(teacher.get("revision")),
        "SHA-256 of its weights": code(teacher.get("digest")),
        "Class": code(teacher.get("model_class")),
        "Parameters": count(teacher.get("parameters")),
        "Classes it was trained for": count(teacher.get("teacher_classes")),
        "License": teacher.get("license"),
    }
    return [f"{fact}: {value}" for fact, value in facts.items() if value is not None]


def data_facts(report: Mapping[str, Any]) -> list[str]:
    """What the student was trained and tested on."""
    dataset = report["dataset"]
    facts = {
        "Dataset": hub_link(dataset["name"], dataset.get("hub_id"), "datasets/"),
        "Revision": code(dataset.get("revision")),
        "Training images": count(dataset.get("train_images")),
        "Validation images": count(dataset.get("validation_images")),
        f"Test images ({test_set(dataset)})": count(dataset["test_images"]),
        "Augmentation": dataset.get("augmentation") or None,
    }
    return [f"{fact}: {value}" for fact, value in facts.items() if value is not None]


def sizes(report: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    """Say how large and how fast the student is, beside its teacher."""
    student, teacher = report["student"], report["teacher"]
    ratio = teacher["parameters"] / student["parameters"]
    sentences = [
        f"{count(student['parameters'])} parameters, {file_size(student['size_bytes'])} on disk; "
        f"{ratio_in_words(ratio, 'smaller', 'larger')} than the teacher ({count(teacher['parameters'])} parameters)."
    ]
    result_of_teacher: Mapping[str, Any] = next(
        (result for result in report["results"] if result["method"] == "teacher"), {}
    )
    if own_operations := published.get("operations"):
        versus = ""
        if its_operations := result_of_teacher.get("operations"):
            fewer = ratio_in_words(its_operations / own_operations, "fewer", "more")
            versus = f"; {fewer} than the teacher ({operations(its_operations)})"
        sentences.append(
            f"{operations(own_operations)} an image{versus}; a multiplication and an addition count as two operations."
        )
    own = published.get("latency_ms")
    if own is None:
        return sentences
    machine = report.get("latency_machine")
    of_teacher = result_of_teacher.get("latency_ms")
    versus = ""
    if of_teacher:
        speed = ratio_in_words(of_teacher["median"] / own["median"], "faster", "slower")
        versus = f"; {speed} than the teacher ({milliseconds(of_teacher['median'])})"
    sentences.append(
        f"{milliseconds(own['median'])} an image{versus}"
        + (f", measured on {machine}" if machine else "")
        + f". Times are medians of {own['runs']} runs, with a low and a high value in brackets in the table."
    )
    return sentences


def training_log_rows(report: Mapping[str, Any], published: Mapping[str, Any]) -> list[Row]:
    """Some evaluations of the published student's training, evenly spread, with the loss before each."""
    history = (report.get("histories") or {}).get(published["method"], [])
    rows: list[Row] = []
    loss: float | None = None
    for entry in history:
        loss = entry.get("loss", loss)
        if "eval_accuracy" in entry:
            rows.append(
                {
                    "Step": count(entry.get("step")),
                    "Epoch": None if entry.get("epoch") is None else f"{entry['epoch']:.1f}",
                    "Training loss": None if loss is None else f"{loss:.4g}",
                    "Validation accuracy": format_percent(entry["eval_accuracy"]),
                }
            )
    last = len(rows) - 1
    kept = sorted({round(place * last / (LOG_ROWS - 1)) for place in range(LOG_ROWS)}) if last >= LOG_ROWS else None
    return rows if kept is None else [rows[place] for place in kept]


def student_facts(report: Mapping[str, Any]) -> list[str]:
    """What the student is, where its weights started, and how it and the students beside it were trained."""
    student = report["student"]
    height, width = student["image_size"]
    facts = [
        f"Student: `{student['recipe']}` (`{student['model_class']}`), images of {height} × {width} pixels"  # noqa: RUF001
        + lora_note(report)
    ]
    if student.get("hub_id"):
        revision = f", revision {code(student['revision'])}" if student.get("revision") else ""
        facts.append(f"It started from the weights of {hub_link(student['recipe'], student['hub_id'])}{revision}")
    return facts + _learning_rates(report)


def _learning_rates(report: Mapping[str, Any]) -> list[str]:
    """The initial learning rates of the students, where they differ."""
    trained: dict[float, list[str]] = {}
    for result in report["results"]:
        if (rate := result.get("learning_rate")) is not None:
            trained.setdefault(rate, []).append(method_label(result["method"]))
    rates = [f"{rate:g} for {joined(methods)}" for rate, methods in trained.items()]
    return [f"Initial learning rate: {'; '.join(rates)}"] if len(rates) > 1 else []
