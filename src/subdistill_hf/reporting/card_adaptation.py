"""What the card says of adapters: of a teacher that was fitted first, and of a student that is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from subdistill_hf.formatting import accuracy_with_error, count, hub_link


def adaptation_note(report: Mapping[str, Any]) -> str:
    """What follows the teacher's name; empty for a teacher that was taken as it is."""
    return " (fitted to this dataset first)" if report["teacher"].get("adaptation") else ""


def adaptation_facts(report: Mapping[str, Any]) -> list[str]:
    """How the teacher was adapted and how well that went; what is unknown is left out.

    Args:
        report: what was measured, as in `report.json`.
    """
    base, adaptation = report["teacher"].get("base"), report["teacher"].get("adaptation")
    facts = []
    if base:
        revision = f", revision `{base['revision']}`" if base.get("revision") else ""
        facts.append(f"It is a PEFT adapter of {hub_link(base['name'], base.get('hub_id'))}{revision}")
    if not adaptation:
        return facts
    change = "a new head alone"
    if adaptation["method"] == "lora":
        change = (
            f"changes of rank {adaptation['rank']} in {count(adaptation['changed_modules'])} modules, and a new head"
        )
    subtask = adaptation["classes"] == len(report["classes"])
    classes = "these classes" if subtask else f"{adaptation['classes']} classes of the dataset, these among them,"
    facts.append(
        f"It did not know these classes, so it was fitted to {classes} before it taught: {change} "
        f"({count(adaptation['trained_parameters'])} trained parameters), from {count(adaptation['train_images'])} "
        f"training images, {adaptation['epochs']:g} epochs at a learning rate of {adaptation['learning_rate']:g}"
    )
    measured = [
        _measured(adaptation["validation_accuracy"], adaptation["validation_images"], "of its {} validation images")
    ]
    tested = next((result for result in report["results"] if result["method"] == "teacher"), None)
    if tested is not None:
        images = report["dataset"]["test_images"]
        measured.append(_measured(tested["accuracy"], images, "of the {} test images of these classes"))
    return [*facts, f"Accuracy of the fitted teacher: {', '.join(measured)}"]


def lora_note(report: Mapping[str, Any]) -> str:
    """How a student that kept its pretrained weights was trained; empty for others."""
    lora = report["student"].get("lora")
    if not lora:
        return ""
    saved = "; the files hold the adapter alone" if lora["saved"] == "adapter" else ", merged into its weights"
    return (
        f"; pretrained, and trained through changes of rank {lora['rank']} and a new head "
        f"({count(lora['trained_parameters'])} parameters; LoRA){saved}"
    )


def _measured(accuracy: float, images: int, of: str) -> str:
    return f"{accuracy_with_error(accuracy, images)} {of.format(count(images))}"
