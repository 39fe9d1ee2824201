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

__all__ = [
    "METHOD_LABELS",
    "binomial_error",
    "format_percent",
    "method_label",
    "published_result",
    "render_card",
    "standing",
]

METHOD_LABELS: Final[dict[str, str]] = {
    "teacher": "Teacher",
    "scratch": "From scratch (labels only)",
    "kd": "Logit distillation (KD)",
    "subdistill": "SubDistill",
}

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
    environment.filters |= {"count": _count, "percent": format_percent, "inline": _inline}
    body = environment.get_template("model_card.md.jinja").render(
        report=report,
        published=published,
        label=method_label(published["method"]),
        title=_title(report),
        dataset=_link(report["dataset"]["name"], report["dataset"].get("hub_id"), "datasets/"),
        teacher=_link(report["teacher"]["name"], report["teacher"].get("hub_id")),
        sizes=_sizes(report, published),
        standing=standing(report),
        results=_table(_result_rows(report, published)),
        classes=_table(_class_rows(report, published)),
        subspaces=_table(_subspace_rows(report)),
        data_facts=_data_facts(report),
        teacher_facts=_teacher_facts(report),
        exact=any(accuracy in (0, 1) for accuracy in published.get("per_class_accuracy", {}).values()),
        weakest=_weakest(published),
        plots=_plots(plots),
    )
    return ModelCard(f"---\n{_card_data(report, published, name).to_yaml()}\n---\n\n{body}")


def published_result(report: Mapping[str, Any]) -> dict[str, Any]:
    """Find the result of the student that is published: SubDistill's when it was trained, else the last one.

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
    return next((result for result in students if result["method"] == "subdistill"), students[-1])


def method_label(method: str) -> str:
    """Name a method for readers.

    Args:
        method: its name in the report.

    Returns:
        The label of a known method, else the name itself.
    """
    return METHOD_LABELS.get(method, method)


def format_percent(fraction: float | None) -> str | None:
    """Write a share in percent.

    Args:
        fraction: the share, or `None` when it is unknown.

    Returns:
        One decimal; `> 99.9 %` for what only rounding would make 100 %; `None` when it is unknown.
    """
    if fraction is None:
        return None
    return "> 99.9 %" if 0.9995 <= fraction < 1 else f"{100 * fraction:.1f} %"


def binomial_error(accuracy: float, images: int) -> float:
    """Estimate the standard error of an accuracy measured on independent images.

    Args:
        accuracy: share of the images that were classified correctly.
        images: their number.

    Returns:
        The binomial standard error: 0 when none or all are correct, where the estimate says nothing.
    """
    return math.sqrt(accuracy * (1 - accuracy) / images)


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
    label, measured = method_label(published["method"]), _accuracy(published["accuracy"], images)
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
        sentences.append(f"It is {_and(distances)}.")
    if unresolved:
        sentences.append(f"Within two standard errors, so not told apart by this test: {_and(unresolved)}.")
    if better:
        sentences.append(f"**In this run {_and(better)} scored higher than the published student.**")
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
        model_name=name or _slug("-".join([teacher["name"].split("/")[-1], method, dataset["name"]])),
        eval_results=[
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=dataset.get("hub_id") or _slug(dataset["name"]),
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
            "Parameters": _count(result.get("parameters")),
            "Accuracy": _accuracy(result["accuracy"], images),
            "Balanced accuracy": format_percent(result.get("balanced_accuracy")),
            "Agrees with teacher": None if result["method"] == "teacher" else format_percent(agreement),
            "Time per image": _latency(result.get("latency_ms")),
            "Training": _duration(result.get("training_seconds")),
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
        measured = _accuracy(accuracy, images) if images and accuracy is not None else format_percent(accuracy)
        rows.append(
            {
                "Class": _cell(name),
                "Training images": _count(training_images.get(name)),
                "Test images": _count(images) if confusion else None,
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
    names = [_cell(classes[index]) for index, count in enumerate(errors) if count == most]
    return f"{', '.join(names)} ({most}{' each' if len(names) > 1 else ''})"


def _subspace_rows(report: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """One row a pair of layers."""
    return [
        {
            "Teacher layer": f"`{subspace['teacher_layer']}`",
            "Student layer": f"`{subspace['student_layer']}`",
            "Basis": _code(subspace.get("kind")),
            "Width of the teacher layer": _count(subspace.get("width")),
            "Directions K": _count(subspace.get("dimensions")),
            "Energy kept": format_percent(subspace.get("energy_fraction")),
        }
        for subspace in report.get("subspaces") or []
    ]


def _teacher_facts(report: Mapping[str, Any]) -> list[str]:
    """What identifies the teacher."""
    teacher = report["teacher"]
    facts = {
        "Model": _link(teacher["name"], teacher.get("hub_id")),
        "Revision": _code(teacher.get("revision")),
        "SHA-256 of its weights": _code(teacher.get("digest")),
        "Class": _code(teacher.get("model_class")),
        "Parameters": _count(teacher.get("parameters")),
        "Classes it was trained for": _count(teacher.get("teacher_classes")),
        "License": teacher.get("license"),
    }
    return [f"{fact}: {value}" for fact, value in facts.items() if value is not None]


def _data_facts(report: Mapping[str, Any]) -> list[str]:
    """What the student was trained and tested on."""
    dataset = report["dataset"]
    facts = {
        "Dataset": _link(dataset["name"], dataset.get("hub_id"), "datasets/"),
        "Training images": _count(dataset.get("train_images")),
        "Validation images": _count(dataset.get("validation_images")),
        f"Test images (`{dataset['test_split']}` split)": _count(dataset["test_images"]),
        "Augmentation": dataset.get("augmentation") or None,
    }
    return [f"{fact}: {value}" for fact, value in facts.items() if value is not None]


def _sizes(report: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    """Say how large and how fast the student is, beside its teacher."""
    student, teacher = report["student"], report["teacher"]
    ratio = teacher["parameters"] / student["parameters"]
    sentences = [
        f"{_count(student['parameters'])} parameters, {_bytes(student['size_bytes'])} on disk; "
        f"{_ratio(ratio, 'smaller', 'larger')} than the teacher ({_count(teacher['parameters'])} parameters)."
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
        speed = _ratio(of_teacher["median"] / own["median"], "faster", "slower")
        versus = f"; {speed} than the teacher ({_milliseconds(of_teacher['median'])})"
    sentences.append(
        f"{_milliseconds(own['median'])} an image{versus}"
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
    return f"{_and(names)} ({format_percent(lowest)})"


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


def _table(rows: list[dict[str, str | None]]) -> str:
    """Write a Markdown table, without the columns in which every cell is unknown; empty without rows."""
    columns = [column for column in (rows[0] if rows else {}) if any(row[column] is not None for row in rows)]
    if not columns:
        return ""
    lines = [columns, ["---"] * len(columns)]
    lines += [["–" if row[column] is None else str(row[column]) for column in columns] for row in rows]  # noqa: RUF001
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _accuracy(accuracy: float, images: int) -> str:
    """Write an accuracy with its standard error, where the error says something."""
    error = binomial_error(accuracy, images)
    digits = 1 if error >= 0.0005 else 2
    measured = f"{100 * accuracy:.{digits}f} ± {100 * error:.{digits}f} %"
    return measured if error > 0 else str(format_percent(accuracy))


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"


def _code(text: str | None) -> str | None:
    return None if text is None else f"`{text}`"


def _bytes(size: int) -> str:
    """Write a file size in decimal units."""
    if size < 1_000_000:
        return f"{size / 1000:.1f} kB"
    return f"{size / 1_000_000:.1f} MB"


def _ratio(ratio: float, more: str, less: str) -> str:
    """Write a ratio as a comparison that is never below one."""
    word, value = (more, ratio) if ratio >= 1 else (less, 1 / ratio)
    return f"{value:,.0f} times {word}" if value >= 10 else f"{value:.1f} times {word}"


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 100 else f"{value:,.0f} ms"


def _latency(latency: Mapping[str, float] | None) -> str | None:
    if latency is None:
        return None
    low, high = _milliseconds(latency["low"]), _milliseconds(latency["high"])
    return f"{_milliseconds(latency['median'])} ({low.removesuffix(' ms')} to {high.removesuffix(' ms')})"


def _duration(seconds: float | None) -> str | None:
    """Write a duration in its two largest units."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def _link(name: str, hub_id: str | None, kind: str = "") -> str:
    """Link a repository of the Hub; a model that is on no hub is just named."""
    return f"[{hub_id}](https://huggingface.co/{kind}{hub_id})" if hub_id else f"`{name}`"


def _cell(value: Any) -> str:
    """Escape what would end a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _inline(value: Any) -> str:
    """Write a value as inline code in a table."""
    return f"`{_cell(value)}`"


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _slug(text: str) -> str:
    """Reduce a name to the characters that the Hub allows in identifiers."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


_LOCAL_PATH: Final = re.compile(
    r"""(?<![\w:/.~\\-])                 # not inside a word, a relative path or an address
    (?:file://)?
    (?:(?:~/|[A-Za-z]:[\\/])(?:{part}[\\/])*   # ~/... or C:\...
      |/(?:{part}/)+)                   # /folder/...
    (?={part})                         # then a name, which stays
    """.replace("{part}", r"""[^\s"'`,;:()\[\]{}<>|\\/]+"""),
    re.VERBOSE,
)


def _publishable(report: Mapping[str, Any]) -> dict[str, Any]:
    """Take the training log and the folders of this machine out of a report."""
    shortened = _without_local_paths({key: value for key, value in report.items() if key != "histories"})
    for optional in ("command", "hyperparameters", "usage", "versions"):
        shortened.setdefault(optional, None)
    teacher = shortened["teacher"]
    if not teacher.get("hub_id"):
        teacher["name"] = re.split(r"[\\/]", teacher["name"].rstrip("\\/"))[-1]
    return shortened  # type: ignore[no-any-return]


def _without_local_paths(value: Any) -> Any:
    """Shorten every absolute path in texts to its last part."""
    if isinstance(value, str):
        return _LOCAL_PATH.sub("", value)
    if isinstance(value, Mapping):
        return {key: _without_local_paths(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_local_paths(entry) for entry in value]
    return value
