"""How well a classifier tells images of its classes from others: scores, their AUROC, and a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from subdistill_hf.metrics import auroc, auroc_error, share_reaching, threshold_keeping
from subdistill_hf.pipeline.evaluation import Classifier, predict
from subdistill_hf.pipeline.task import Task
from subdistill_hf.reporting.reported_images import ReportedRejection, ReportedUnknown

KEPT: Final = 0.95
"""Share of the known images that a threshold keeps."""
HISTOGRAM_STEPS: Final = 20
OTHER_SCORE: Final = "none of these"
LARGEST: Final = "largest probability"
ENERGY: Final = "energy"


def known_scores(logits: Tensor, other: bool) -> dict[str, Tensor]:
    """How sure a classifier is that each image shows one of its classes, by several scores.

    Args:
        logits: `(N, C)`, with one more output for the answer "none of these" where there is one.
        other: whether there is.

    Returns:
        Name of the score to its values `(N,)`: 1 less the probability of "none of these"; the largest softmax
        probability of a class (Hendrycks and Gimpel, 2017); and the log-sum-exp of the classes' logits, the negative
        energy (Liu et al., 2020).
    """
    classes = logits.double()[:, :-1] if other else logits.double()
    scores = {OTHER_SCORE: 1 - logits.double().softmax(dim=1)[:, -1]} if other else {}
    return {**scores, LARGEST: classes.softmax(dim=1).amax(dim=1), ENERGY: classes.logsumexp(dim=1)}


def accuracy_of_classes(logits: Tensor, labels: Sequence[int]) -> float:
    """The share of known images that are put in the right class when the answer "none of these" is passed over.

    It is what a threshold of one's own starts from, and can be compared with a student that has no such answer.

    Args:
        logits: `(N, C + 1)`, the last of them of "none of these".
        labels: the N classes.
    """
    return (logits[:, :-1].argmax(dim=1) == torch.tensor(labels)).double().mean().item()


def unknown_logits(task: Task, classifier: Classifier) -> dict[str, Tensor]:
    """The logits of near and far unknown images, as far as there are any."""
    workers = task.config.dataloader_num_workers
    return {kind: predict(classifier, task.plain(kind), workers=workers) for kind in unknown_kinds(task)}


def unknown_kinds(task: Task) -> list[str]:
    """`near` and `far`, as far as there are images of them."""
    others = task.data.others
    return [] if others is None else [kind for kind in ("near", "far") if getattr(others, kind) is not None]


def measured_unknown(known: Tensor, unknown: Mapping[str, Tensor], other: bool) -> tuple[ReportedUnknown, ...]:
    """How well each score tells known images from unknown ones.

    Args:
        known: logits of images of the classes.
        unknown: `near` or `far` to the logits of other images.
        other: whether there is an answer "none of these".
    """
    scores = known_scores(known, other)
    found = []
    for kind, logits in unknown.items():
        for name, of_unknown in known_scores(logits, other).items():
            area = auroc(scores[name].tolist(), of_unknown.tolist())
            threshold = threshold_keeping(scores[name].tolist(), KEPT)
            found.append(
                ReportedUnknown(
                    kind=kind,
                    score=name,
                    images=len(logits),
                    auroc=area,
                    auroc_error=auroc_error(area, len(known), len(logits)),
                    false_positives=share_reaching(of_unknown.tolist(), threshold),
                )
            )
    return tuple(found)


def rejection_of(
    task: Task, classifier: Classifier, known: Tensor, unknown: Mapping[str, Tensor]
) -> ReportedRejection:
    """A threshold that keeps most known validation images, and what it does to the test images.

    Args:
        task: the images.
        classifier: the student.
        known: its logits of the test images.
        unknown: those of near and far unknown images.
    """
    other = task.has_other
    score = OTHER_SCORE if other else LARGEST
    logits = predict(classifier, task.plain("validation"), workers=task.config.dataloader_num_workers)
    labels = torch.tensor(task.data.validation[task.data.columns.label][:])
    of_classes = logits[labels < len(task.data.subtask.names)]
    threshold = threshold_keeping(known_scores(of_classes, other)[score].tolist(), KEPT)
    tested = {kind: known_scores(each, other)[score] for kind, each in {"known": known, **unknown}.items()}
    kept = {kind: share_reaching(values.tolist(), threshold) for kind, values in tested.items()}
    return ReportedRejection(
        score=score,
        threshold=threshold,
        validation_images=len(of_classes),
        known_kept=kept.pop("known"),
        unknown_kept=kept,
        histograms={
            kind: tuple(torch.histc(values, HISTOGRAM_STEPS, 0, 1).int().tolist()) for kind, values in tested.items()
        },
    )
