"""The model card of a trained expert: everything it says is read or computed from the report of the run."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from subdistill_hf.card_adaptation import adaptation_facts, adaptation_note, lora_note
from subdistill_hf.wording import (
    accuracy_with_error,
    binomial_error,
    code,
    count,
    duration,
    file_size,
    format_percent,
    hub_link,
    inline_code,
    joined,
    latency_range,
    markdown_table,
    method_label,
    milliseconds,
    ratio_in_words,
    slug,
    table_cell,
    without_local_paths,
)

# The Hub documents "adapter", "merge", "quantized" and "finetune"; "distill" was asked for
# (huggingface_hub#3985) but is not among them. The student shares no weight with the teacher, so the first
# three would be false; "finetune" is what the Hub assumes of a `base_model` anyway, and the card's tags and
# its first sentence say that the model is distilled.
BASE_MODEL_RELATION: Final = "finetune"

_MANY_CLASSES: Final = 8
_PLOT_SECTIONS: Final = {
    "training": "Training curves",
    "subspace": "Subspaces",
    "confusion": "Confusion matrix",
}


def render_card(
    report: Mapping[str, Any], plots: Iterable[str | Path | None] = (), name: str | None = None
) -> ModelCard:
    """Render the model card of the published student.

    Args:
        report: what was measured, as in `report.json`. Whatever it lacks is left out of the card.
        plots: image files beside the card (`None` for a plot that was skipped); the card refers to each by
            its file name alone, in the section that the name speaks of (training, subspaces, confusion).
        name: the model's name in the `model-index`, by default made of teacher, method and dataset.

    Returns:
        The card, with metadata that the Hub reads.

    Raises:
        ValueError: when the report holds the result of no student.

    Warns:
        UserWarning: when the teacher's license is unknown; the metadata then has none.
    """
    report = _publishable(report)
    published = published_result(report)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("subdistill_hf"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"count": count, "percent": format_percent, "inline": inline_code}
    body = environment.get_template("model_card.md.jinja").render(
        report=report,
        published=published,
        label=method_label(published["method"]),
        title=_title(report),
        dataset=hub_link(report["dataset"]["name"], report["dataset"].get("hub_id"), "datasets/"),
        teacher=hub_link(report["teacher"]["name"], report["teacher"].get("hub_id")) + adaptation_note(report),
        sizes=_sizes(report, published),
        standing=standing(report),
        results=markdown_table(_result_rows(report, published)),
        classes=markdown_table(_class_rows(report, published)),
        subspaces=markdown_table(_subspace_rows(report)),
        data_facts=_data_facts(report),
        lora=lora_note(report),
        teacher_facts=_teacher_facts(report) + adaptation_facts(report),
        exact=any(accuracy in (0, 1) for accuracy in published.get("per_class_accuracy", {}).values()),
        weakest=_weakest(published),
        plots=_plots(plots),
    )
    return ModelCard(f"---\n{_card_data(report, published, name).to_yaml()}\n---\n\n{body}")


def published_result(report: Mapping[str, Any]) -> dict[str, Any]:
    """Find the result of the student that is published: the one that the report names, else SubDistill's or the last.

    Args:
        report: what was measured, as in `report.json`.

    Returns:
        The entry of `report["results"]`.

    Raises:
        ValueError: when the report holds the result of no student.
    """
    students = [result for result in report["results"] if result["method"] != "teacher"]
    if not students:
        raise ValueError("expected the result of at least one student in report['results'], found none")
    wanted = report.get("published", "subdistill")
    return next((result for result in students if result["method"] == wanted), students[-1])


def standing(report: Mapping[str, Any]) -> list[str]:
    """Say where the published student stands among the students and the teacher, flattering or not.

    Args:
        report: what was measured, as in `report.json`.

    Returns:
        Sentences: the student's accuracy, its distance to each other result, which distances the test is too
        small to resolve, and whether another student was more accurate.

    Raises:
        ValueError: when the report holds the result of no student.
    """
    published = published_result(report)
    images, split = report["dataset"]["test_images"], report["dataset"]["test_split"]
    label, measured = method_label(published["method"]), accuracy_with_error(published["accuracy"], images)
    sentences = [f"{label} classifies {measured} of the {images:,} images of the `{split}` split correctly."]
    distances: list[str] = []
    unresolved: list[str] = []
    better: list[str] = []
    for result in report["results"]:
        if result["method"] == published["method"]:
            continue
        other = "the teacher" if result["method"] == "teacher" else method_label(result["method"])
        difference = published["accuracy"] - result["accuracy"]
        error = math.hypot(*(binomial_error(one["accuracy"], images) for one in (published, result)))
        if abs(difference) <= 2 * error:
            unresolved.append(other)
        if round(difference * images) == 0:
            distances.append(f"level with {other}")
            continue
        side = "above" if difference > 0 else "below"
        distances.append(f"{100 * abs(difference):.1f} ± {100 * error:.1f} points {side} {other}")
        if difference < 0 and result["method"] != "teacher":
            better.append(other)
    if distances:
        sentences.append(f"It is {joined(distances)}.")
    if unresolved:
        sentences.append(f"Within two standard errors, so not told apart by this test: {joined(unresolved)}.")
    if better:
        sentences.append(f"**In this run {joined(better)} scored higher than the published student.**")
    return sentences


def _card_data(report: Mapping[str, Any], published: Mapping[str, Any], name: str | None) -> ModelCardData:
    """Collect the metadata that the Hub reads."""
    dataset, teacher, method = report["dataset"], report["teacher"], published["method"]
    # A student trained on labels alone owes the teacher nothing: neither its lineage nor its license.
    distilled = method != "scratch"
    base_model = teacher.get("hub_id") if distilled else None
    license_of_teacher = teacher.get("license") if distilled else None
    if license_of_teacher is None:
        reason = (
            f"the license of the teacher {teacher['name']!r} is unknown"
            if distilled
            else "a student trained from scratch takes no license from the teacher"
        )
        warnings.warn(
            f"{reason}: the card's metadata has no license; add one before publishing",
            UserWarning,
            stacklevel=3,
        )
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        license=license_of_teacher,
        base_model=base_model,
        datasets=[dataset["hub_id"]] if dataset.get("hub_id") else None,
        metrics=["accuracy"],
        tags=["subdistill", *(["knowledge-distillation"] if distilled else []), "image-classification"],
        model_name=name or slug("-".join([teacher["name"].split("/")[-1], method, dataset["name"]])),
        eval_results=[
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=dataset.get("hub_id") or slug(dataset["name"]),
                dataset_name=f"{dataset['name']} ({_class_phrase(report)})",
                dataset_split=dataset["test_split"],
                metric_type="accuracy",
                metric_name="Accuracy",
                metric_value=round(published["accuracy"], 4),
            )
        ],
    )
    if base_model:
        data["base_model_relation"] = BASE_MODEL_RELATION
    return data


def _result_rows(report: Mapping[str, Any], published: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """One row a model, in the report's order, the published student in bold."""
    images = report["dataset"]["test_images"]
    rows = []
    for result in report["results"]:
        agreement = result.get("teacher_agreement")
        row = {
            "Model": method_label(result["method"]),
            "Parameters": count(result.get("parameters")),
            "Accuracy": accuracy_with_error(result["accuracy"], images),
            "Balanced accuracy": format_percent(result.get("balanced_accuracy")),
            "Agrees with teacher": None if result["method"] == "teacher" else format_percent(agreement),
            "Time per image": latency_range(result.get("latency_ms")),
            "Training": duration(result.get("training_seconds")),
        }
        if result is published:
            row = {column: cell and f"**{cell}**" for column, cell in row.items()}
        rows.append(row)
    return rows


def _class_rows(report: Mapping[str, Any], published: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """One row a class: its images, its accuracy and what it is most often taken for."""
    confusion = published.get("confusion")
    training_images = report["dataset"].get("train_images_per_class") or {}
    rows: list[dict[str, str | None]] = []
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


def _subspace_rows(report: Mapping[str, Any]) -> list[dict[str, str | None]]:
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


def _teacher_facts(report: Mapping[str, Any]) -> list[str]:
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


def _data_facts(report: Mapping[str, Any]) -> list[str]:
    """What the student was trained and tested on."""
    dataset = report["dataset"]
    facts = {
        "Dataset": hub_link(dataset["name"], dataset.get("hub_id"), "datasets/"),
        "Training images": count(dataset.get("train_images")),
        "Validation images": count(dataset.get("validation_images")),
        f"Test images (`{dataset['test_split']}` split)": count(dataset["test_images"]),
        "Augmentation": dataset.get("augmentation") or None,
    }
    return [f"{fact}: {value}" for fact, value in facts.items() if value is not None]


def _sizes(report: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    """Say how large and how fast the student is, beside its teacher."""
    student, teacher = report["student"], report["teacher"]
    ratio = teacher["parameters"] / student["parameters"]
    sentences = [
        f"{count(student['parameters'])} parameters, {file_size(student['size_bytes'])} on disk; "
        f"{ratio_in_words(ratio, 'smaller', 'larger')} than the teacher ({count(teacher['parameters'])} parameters)."
    ]
    own = published.get("latency_ms")
    if own is None:
        return sentences
    machine = report.get("latency_machine")
    of_teacher = next(
        (result.get("latency_ms") for result in report["results"] if result["method"] == "teacher"), None
    )
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


def _weakest(published: Mapping[str, Any]) -> str | None:
    """Name the class with the lowest accuracy, when one has."""
    accuracies = published.get("per_class_accuracy") or {}
    if not accuracies or len(set(accuracies.values())) == 1:
        return None
    lowest = min(accuracies.values())
    names = [name for name, accuracy in accuracies.items() if accuracy == lowest]
    return f"{joined(names)} ({format_percent(lowest)})"


def _title(report: Mapping[str, Any]) -> str:
    """Head the card with the dataset and the classes."""
    return f"{report['dataset']['name']} expert: {_class_phrase(report)}"


def _class_phrase(report: Mapping[str, Any]) -> str:
    """List the classes when they are few, else count them."""
    classes = report["classes"]
    return ", ".join(classes) if len(classes) <= _MANY_CLASSES else f"{len(classes)} classes"


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


def _publishable(report: Mapping[str, Any]) -> dict[str, Any]:
    """Take the training log and the folders of this machine out of a report."""
    shortened = without_local_paths({key: value for key, value in report.items() if key != "histories"})
    for optional in ("command", "hyperparameters", "usage", "versions"):
        shortened.setdefault(optional, None)
    teacher = shortened["teacher"]
    if not teacher.get("hub_id"):
        teacher["name"] = re.split(r"[\\/]", teacher["name"].rstrip("\\/"))[-1]
    return shortened  # type: ignore[no-any-return]
