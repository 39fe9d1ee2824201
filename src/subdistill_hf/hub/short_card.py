"""The short card of a student that was trained by the trainer alone, which knows neither dataset nor baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

if TYPE_CHECKING:
    from subdistill_hf.core.pairing import LayerPair


def short_card(
    name: str,
    classes: Sequence[str],
    teacher: str | None,
    pairs: Sequence[LayerPair],
    metrics: Mapping[str, float],
) -> ModelCard:
    """A card of what a trainer knows; `distill` writes the full one.

    Args:
        name: the model's name.
        classes: class names, in the order of the outputs.
        teacher: the teacher's name; `None` without a teacher.
        pairs: the paired layers.
        metrics: of the last evaluation, by name.
    """
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["subdistill", "image-classification"],
    )
    lines = [f"# {name}", "", f"An image classifier for {len(classes)} classes: {', '.join(classes)}."]
    if teacher is not None:
        lines += ["", f"Distilled from `{teacher}` with [SubDistill](https://arxiv.org/abs/2601.05913)."]
    lines += ["", "It knows nothing else: any other image is forced into one of these classes."]
    if pairs:
        lines += ["", "| teacher layer | student layer | subspace |", "|---|---|---|"]
        lines += [
            f"| `{pair.teacher.name}` | `{pair.student.name}` | {pair.dimensions} of {pair.teacher.width} |"
            for pair in pairs
        ]
    if metrics:
        lines += ["", "Last evaluation, on the images that were given to the trainer:", ""]
        lines += [f"- {metric}: {value:.4f}" for metric, value in metrics.items()]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def kept_evaluation(state: Any, loaded_best: bool) -> dict[str, float]:
    """Accuracy and loss of the last evaluation of the student that was kept, by name.

    Args:
        state: the trainer's state.
        loaded_best: whether the best checkpoint was loaded at the end of the training.
    """
    evaluations = [entry for entry in reversed(state.log_history) if "eval_accuracy" in entry]
    if loaded_best and state.best_global_step:
        evaluations = [entry for entry in evaluations if entry["step"] == state.best_global_step]
    measured: dict[str, float] = next(iter(evaluations), {})
    return {key.removeprefix("eval_"): measured[key] for key in ("eval_accuracy", "eval_loss") if key in measured}
