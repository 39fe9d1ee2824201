"""What can be trained: the methods, what readers call them, and their own weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One way to train the student.

    Attributes:
        label: what tables, plots and cards call it.
        summary: what it learns from, for a list of the methods and the card's first sentence.
        task_weight: weight of the cross entropy with the labels, unless another is given.
        layer_weight: published weight of the sum of the layer losses, unless another is given; `None` without them.
        needs_labels: whether it is another method without the labels, so that their weight cannot be 0.
        needs_teacher: whether it learns from the teacher at all.
    """

    label: str
    summary: str
    task_weight: float = 0.0
    layer_weight: float | None = None
    needs_labels: bool = False
    needs_teacher: bool = True


METHODS: dict[str, Method] = {
    "scratch": Method(
        "From scratch (labels only)", "the labels alone, no teacher", 1.0, needs_labels=True, needs_teacher=False
    ),
    "kd": Method("Logit distillation (KD)", "the teacher's logits"),
    "ce_kd": Method("Labels and KD", "the labels and the teacher's logits", 1.0, needs_labels=True),
    "dkd": Method(
        "Decoupled KD (DKD)", "the labels and the teacher's logits, decoupled into labelled class and others", 1.0
    ),
    "fitnet": Method("FitNet", "the teacher's logits and its layers, through linear regressors", layer_weight=1.0),
    "attention_transfer": Method(
        "Attention transfer (AT)", "the teacher's logits and its layers' attention maps", layer_weight=1000.0
    ),
    "vid": Method("VID", "the teacher's logits and its layers, by variational information", layer_weight=1.0),
    "vkd": Method("VkD", "the teacher's logits and its layers, through orthogonal projections", layer_weight=1.0),
    "spkd": Method("SPKD", "the teacher's logits and the similarities of images in its layers", layer_weight=3000.0),
    "subdistill": Method(
        "SubDistill", "the teacher's logits and the relevant subspaces of its layers", layer_weight=100.0
    ),
}
"""Name to method, in the order of tables. The weights are those of the papers or of their authors' code (VID: of
RepDistiller; FitNet: RepDistiller's 100 for a mean over channels is about 1 for our sum over about 100 of them)."""

METHOD_LABELS: dict[str, str] = {"teacher": "Teacher"} | {name: method.label for name, method in METHODS.items()}
"""How tables and plots call the teacher and the methods."""


def method_label(method: str) -> str:
    """Name a method for readers.

    Args:
        method: its name in the report.

    Returns:
        The label of a known method, else the name itself.
    """
    return METHOD_LABELS.get(method, method)
