"""The registry of methods: one entry for each, with its losses, their weights and what readers call it.

A method is a class or function and one entry here. Losses are named as `module:name`, so that the command line knows
the methods without importing torch; `losses.building` finds and builds them. An entry that is added at run time may
hold the class or function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Loss = str | Callable[..., Any]
"""A class or function, or where it is: `module:name`."""
TEACHER = "teacher"  # how reports name the teacher beside the methods


@dataclass(frozen=True)
class Method:
    """One way to train the student.

    Attributes:
        label: what tables, plots and cards call it.
        summary: what it learns from, for a list of the methods and the card's first sentence.
        task_weight: weight of the cross entropy with the labels, unless another is given.
        layer_weight: weight of the sum of the layer losses, unless another is given; `None` without them.
        published_layer_weight: that of the method's paper or of its authors' code, which benchmarks multiply by a
            factor; the same where it is not given.
        falling_layer_weight: scale of the layer targets to the weight of the layer losses at the beginning and at the
            end of a training, where the command line lets it fall; without scales for which that was not measured.
        target_scale: scale of the layer targets, unless another is given: `teacher` or `unit`, see `options`.
        suited_scale: the same on the command line (`target_scale="auto"`); that of `target_scale` where it is `None`.
        needs_labels: whether it is another method without the labels, so that their weight cannot be 0.
        logit_loss: function of the student's and the teacher's logits `(B, C)` and a `temperature`; `None` without.
        logit_options: further arguments of `logit_loss`, each with the name of the option that is passed for it.
        logit_labels: whether `logit_loss` also takes `labels` `(B,)`.
        layer_loss: class of the loss of one layer pair (a `LayerLoss`); `None` without. It is called with the widths
            of the teacher's and the student's layer; with `uses_subspaces` as `SubspaceAlignment` is.
        uses_subspaces: whether `layer_loss` compares in subspaces, which are fitted first.
        min_classes: the least number of classes.
        why_min_classes: why fewer make no sense, and what to use instead.

    Raises:
        ValueError: for a layer loss without a weight, or a weight without a layer loss.
    """

    label: str
    summary: str
    task_weight: float = 0.0
    layer_weight: float | None = None
    published_layer_weight: float | None = None
    falling_layer_weight: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    target_scale: str = "teacher"
    suited_scale: str | None = None
    needs_labels: bool = False
    logit_loss: Loss | None = "subdistill_hf.losses.logits:logit_distillation"
    logit_options: Mapping[str, str] = field(default_factory=dict)
    logit_labels: bool = False
    layer_loss: Loss | None = None
    uses_subspaces: bool = False
    min_classes: int = 2
    why_min_classes: str = ""

    def __post_init__(self) -> None:
        if (self.layer_loss is None) != (self.layer_weight is None):
            raise ValueError(f"method {self.label!r}: expected layer_loss and layer_weight together, or neither")
        if self.published_layer_weight is None:
            object.__setattr__(self, "published_layer_weight", self.layer_weight)  # frozen

    @property
    def needs_teacher(self) -> bool:
        """Whether it learns from the teacher at all."""
        return self.logit_loss is not None or self.layer_loss is not None


METHODS: dict[str, Method] = {
    "scratch": Method(
        label="From scratch (labels only)",
        summary="the labels alone, no teacher",
        task_weight=1.0,
        needs_labels=True,
        logit_loss=None,
    ),
    "kd": Method(label="Logit distillation (KD)", summary="the teacher's logits"),
    "ce_kd": Method(
        label="Labels and KD", summary="the labels and the teacher's logits", task_weight=1.0, needs_labels=True
    ),
    "dkd": Method(
        label="Decoupled KD (DKD)",
        summary="the labels and the teacher's logits, decoupled into labelled class and others",
        task_weight=1.0,
        logit_loss="subdistill_hf.losses.logits:decoupled_distillation",
        logit_options={"beta": "dkd_beta"},
        logit_labels=True,
        min_classes=3,
        why_min_classes="it compares the classes other than the labelled one with each other, and here there is one. "
        "Use 'kd'",
    ),
    "fitnet": Method(
        label="FitNet",
        summary="the teacher's logits and its layers, through linear regressors",
        layer_loss="subdistill_hf.losses.baselines:FitNet",
        layer_weight=100.0,
        published_layer_weight=1.0,
        falling_layer_weight={"unit": (1000.0, 1.0)},
        target_scale="unit",
    ),
    "attention_transfer": Method(
        label="Attention transfer (AT)",
        summary="the teacher's logits and its layers' attention maps",
        layer_loss="subdistill_hf.losses.baselines:AttentionTransfer",
        layer_weight=100.0,
        published_layer_weight=1000.0,
    ),
    "vid": Method(
        label="VID",
        summary="the teacher's logits and its layers, by variational information",
        layer_loss="subdistill_hf.losses.baselines:VariationalInformation",
        layer_weight=1000.0,
        published_layer_weight=1.0,
        target_scale="unit",
    ),
    "vkd": Method(
        label="VkD",
        summary="the teacher's logits and its layers, through orthogonal projections",
        layer_loss="subdistill_hf.losses.baselines:OrthogonalProjection",
        layer_weight=1000.0,
        published_layer_weight=1.0,
        suited_scale="unit",
    ),
    "spkd": Method(
        label="SPKD",
        summary="the teacher's logits and the similarities of images in its layers",
        layer_loss="subdistill_hf.losses.baselines:SimilarityPreserving",
        layer_weight=3e5,
        published_layer_weight=3000.0,
    ),
    "subdistill": Method(
        label="SubDistill",
        summary="the teacher's logits and the relevant subspaces of its layers",
        layer_loss="subdistill_hf.losses.subspace:SubspaceAlignment",
        uses_subspaces=True,
        layer_weight=100.0,
        falling_layer_weight={"unit": (500.0, 0.5), "teacher": (1000.0, 1.0)},
        suited_scale="unit",
    ),
}
"""Name to method, in the order of tables.

Published weights are those of the papers or of their authors' code (VID: of RepDistiller; FitNet: RepDistiller's 100
for a mean over channels is about 1 for our sum over about 100 of them). At them some learn next to nothing from few
images, and a comparison with them would say nothing. So the weights of the methods that SubDistill is compared with
are those that tuning chose for them on two superclasses (`benchmarks/results/glyphs`). The weights and the scale of
FitNet and VID lie between what it chose on drawings (`glyphs_unit`) and on photographs (`cifar100_lite0`)."""


def method_label(method: str) -> str:
    """How readers find a method, or the teacher, in tables and plots.

    Args:
        method: its name in the report.

    Returns:
        The label of a known method, else the name itself.
    """
    if method == TEACHER:
        return "Teacher"
    return METHODS[method].label if method in METHODS else method


def short_label(method: str) -> str:
    """The label of a method without the remark in brackets."""
    return method_label(method).split(" (")[0]
