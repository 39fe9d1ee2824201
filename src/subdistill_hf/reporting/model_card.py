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

from subdistill_hf.config.methods import method_label
from subdistill_hf.formatting import (
    accuracy_with_error,
    binomial_error,
    count,
    format_percent,
    hub_link,
    inline_code,
    joined,
    markdown_table,
    slug,
    test_set,
    without_local_paths,
)
from subdistill_hf.reporting.card_adaptation import adaptation_facts, adaptation_note
from subdistill_hf.reporting.card_notes import mark_explanation, mark_limitation, mark_warning
from subdistill_hf.reporting.card_tables import (
    class_rows,
    data_facts,
    result_rows,
    sizes,
    student_facts,
    subspace_rows,
    teacher_facts,
    training_log_rows,
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
    "contact_sheet": "Training images of each class",
}


def render_card(
    report: Mapping[str, Any], plots: Iterable[str | Path | None] = (), name: str | None = None
) -> ModelCard:
    """Render the model card of the published student.

    Args:
        report: what was measured, as in `report.json`. Whatever it lacks is left out of the card.
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
    published = published_result(report)
    training_log = training_log_rows(report, published)
    report = _publishable(report)
    published = published_result(report)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("subdistill_hf.reporting"),
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
        sizes=sizes(report, published),
        standing=standing(report),
        results=markdown_table(result_rows(report, published)),
        classes=markdown_table(class_rows(report, published)),
        subspaces=markdown_table(subspace_rows(report)),
        data_facts=data_facts(report),
        teacher_facts=teacher_facts(report) + adaptation_facts(report),
        student_facts=student_facts(report),
        training_log=markdown_table(training_log),
        energy=_energy(report),
        exact=any(accuracy in (0, 1) for accuracy in published.get("per_class_accuracy", {}).values()),
        weakest=_weakest(published),
        mark_warning=mark_warning(report),
        mark_explanation=mark_explanation(report),
        mark_limitation=mark_limitation(report, published),
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
    images, which = report["dataset"]["test_images"], test_set(report["dataset"])
    label, measured = method_label(published["method"]), accuracy_with_error(published["accuracy"], images)
    sentences = [f"{label} classifies {measured} of the {images:,} images of the {which} correctly."]
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
    dataset, teacher, student = report["dataset"], report["teacher"], report["student"]
    method = published["method"]
    # A student trained on labels alone owes the teacher nothing: neither its lineage nor its license.
    distilled = method != "scratch"
    pretrained = bool(student.get("hub_id"))
    bases = [teacher.get("hub_id")] if distilled else []
    bases += [student["hub_id"]] if pretrained else []
    bases = list(dict.fromkeys(base for base in bases if base))
    license_id, reason = _license(report, distilled, pretrained)
    if reason is not None:
        warnings.warn(
            f"{reason}: the card's metadata has no license; add one before publishing", UserWarning, stacklevel=3
        )
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        license=license_id,
        base_model=(bases if len(bases) > 1 else bases[0]) if bases else None,
        datasets=[dataset["hub_id"]] if dataset.get("hub_id") else None,
        metrics=["accuracy"],
        tags=["subdistill", *(["knowledge-distillation"] if distilled else []), "image-classification"],
        model_name=name or slug("-".join([teacher["name"].split("/")[-1], method, dataset["name"]])),
        eval_results=[
            EvalResult(
                task_type="image-classification",
                task_name="Image classification",
                dataset_type=dataset.get("hub_id") or slug(dataset["name"]),
                dataset_name=f"{dataset['name']} ({_class_phrase(report)}{_marked(dataset)})",
                dataset_split=dataset["test_split"],
                dataset_revision=dataset.get("revision"),
                metric_type="accuracy",
                metric_name="Accuracy",
                metric_value=round(published["accuracy"], 4),
            )
        ],
    )
    if bases:
        data["base_model_relation"] = BASE_MODEL_RELATION
    return data


def _license(report: Mapping[str, Any], distilled: bool, pretrained: bool) -> tuple[str | None, str | None]:
    """The license of all that the student was made of, or why there is none to tell."""
    origins = {"teacher": report["teacher"]} if distilled else {}
    origins |= {"pretrained student": report["student"]} if pretrained else {}
    if not origins:
        return None, "a student trained from scratch takes no license from the teacher"
    licenses = {origin.get("license") for origin in origins.values()}
    for what, origin in origins.items():
        if origin.get("license") is None:
            return None, f"the license of the {what} {origin.get('name') or origin.get('recipe')!r} is unknown"
    if len(licenses) > 1:
        return None, f"teacher and pretrained student have different licenses ({', '.join(sorted(licenses))})"
    return licenses.pop(), None


def _energy(report: Mapping[str, Any]) -> str | None:
    """What the energies of the table are, when there are any."""
    if not any(result.get("training_kilowatt_hours") is not None for result in report["results"]):
        return None
    return (
        f"The energy of the training is what {report['energy_source']} estimates for the whole machine; that of the "
        "teacher's own training is not in it."
    )


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


def _marked(dataset: Mapping[str, Any]) -> str:
    """What follows the classes where the test images are not those of the dataset, but marked."""
    return f"; every image marked: {dataset['mark']['name']}" if dataset.get("mark") else ""


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
