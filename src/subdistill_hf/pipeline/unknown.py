"""How well a classifier tells images of its classes from others: scores, their AUROC, and a threshold."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from subdistill_hf.data.other_classes import glance_at_others
from subdistill_hf.data.other_images import OtherImages
from subdistill_hf.errors import SubDistillError
from subdistill_hf.metrics import auroc, auroc_error, share_reaching, threshold_keeping
from subdistill_hf.pipeline.evaluation import Classifier, predict
from subdistill_hf.pipeline.task import Task
from subdistill_hf.reporting.report import TEACHER
from subdistill_hf.reporting.reported_images import ReportedRejection, ReportedUnknown

KEPT: Final = 0.95
"""Share of the known images that a threshold keeps."""
FEWEST_KEPT: Final = 20
"""Known images that a threshold needs at least, where nobody asked for it: of fewer, 5 % are none."""
ROUNDING: Final = 0.01
"""Logits of one image differ by less than this between torch and an exported file of float32."""
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
        Name of the score to its values `(N,)`: the probability of the best class where it and "none of these" are the
        only answers, which is above a half where the best class is the answer; the largest softmax probability of a
        class (Hendrycks and Gimpel, 2017); and the log-sum-exp of the classes' logits, the negative energy (Liu et
        al., 2020).
    """
    classes = logits.double()[:, :-1] if other else logits.double()
    scores = {OTHER_SCORE: _lead_of_classes(logits).sigmoid()} if other else {}
    return {**scores, LARGEST: classes.softmax(dim=1).amax(dim=1), ENERGY: classes.logsumexp(dim=1)}


def _lead_of_classes(logits: Tensor) -> Tensor:
    """The best class's logit less that of "none of these" `(N,)`, of `(N, C + 1)`."""
    return logits.double()[:, :-1].amax(dim=1) - logits.double()[:, -1]


def shift_of_other(task: Task, classifier: Classifier) -> float:
    """What to add to the logit of "none of these", so that a share `KEPT` of known images is answered with a class.

    The answer is always the largest output: so whatever runs the student needs no threshold.

    Args:
        task: its validation images of the classes decide.
        classifier: with the answer "none of these".
    """
    logits = validation_logits(task, classifier)
    assert logits is not None  # of a run with this answer some are held out
    return threshold_keeping(_lead_of_classes(logits).tolist(), KEPT) - ROUNDING


def with_shifted_other(task: Task, classifier: Classifier) -> Classifier:
    """The classifier that answers "none of these" as a student that is handed out does; itself without that answer.

    Args:
        task: see `shift_of_other`.
        classifier: of the subtask, whose own weights are not shifted.
    """
    return replace(classifier, other_shift=shift_of_other(task, classifier)) if task.has_other else classifier


def accuracy_of_classes(logits: Tensor, labels: Sequence[int]) -> float:
    """The share of known images that are put in the right class when the answer "none of these" is passed over.

    It is what a threshold of one's own starts from, and can be compared with a student that has no such answer.

    Args:
        logits: `(N, C + 1)`, the last of them of "none of these".
        labels: the N classes.
    """
    return (logits[:, :-1].argmax(dim=1) == torch.tensor(labels)).double().mean().item()


def with_unknown_images(task: Task) -> Task:
    """The task with a few images of other classes, where it has none and the user did not forbid it.

    A trained student is worth more than these figures: where the images cannot be read, this is told and they are
    left out.
    """
    data, options = task.data, task.options
    given = OtherImages() if data.others is None else data.others
    if given.unseen or options.test_unknown is False or len(data.class_names) == len(data.subtask.names):
        return task
    try:
        others = glance_at_others(data, options, task.config.seed)
        if others is None:
            return task
        others = replace(others, elsewhere=given.elsewhere, elsewhere_name=given.elsewhere_name)
        data = replace(data, others=others)
        data.views("far").check_images()
    except SubDistillError as error:
        print(f"note: not tested with images of other classes: {error}", file=sys.stderr)
        return task
    return replace(task, data=data)


def is_tested_on_unknown(task: Task, name: str) -> bool:
    """Whether a model is tested with images of other classes: the teacher only where the user asked for it."""
    return task.data.others is not None and (
        name != TEACHER or task.has_other or task.options.test_unknown is not None
    )


def unknown_logits(task: Task, classifiers: Mapping[str, Classifier]) -> dict[str, dict[str, Tensor]]:
    """The logits of unknown images of each kind, as far as there are any.

    Args:
        task: the images.
        classifiers: the teacher, and method to student.

    Returns:
        Name of each that is tested with them to kind to logits `(N, C)`.
    """
    workers, kinds = task.config.dataloader_num_workers, unknown_kinds(task)
    return {
        name: {kind: predict(classifier, task.plain(kind), workers=workers) for kind in kinds}
        for name, classifier in classifiers.items()
        if is_tested_on_unknown(task, name)
    }


def unknown_kinds(task: Task) -> list[str]:
    """Those of `UNKNOWN_KINDS` that there are images of."""
    return [] if task.data.others is None else list(task.data.others.counts())


def measured_unknown(known: Tensor, unknown: Mapping[str, Tensor], other: bool) -> tuple[ReportedUnknown, ...]:
    """How well each score tells known images from unknown ones.

    Args:
        known: logits of images of the classes.
        unknown: kind to the logits of other images.
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
) -> ReportedRejection | None:
    """A threshold that keeps most known images, and what it does to the others.

    The known images are those held out for validation. Where none are, they are every second test image: a threshold
    needs no labels, and its shares are then of the other test images.

    Args:
        task: the images.
        classifier: the student.
        known: its logits of the test images.
        unknown: those of near and far unknown images.

    Returns:
        The threshold; `None` where nobody asked for it, and there are too few known images.
    """
    other = task.has_other
    score = OTHER_SCORE if other else LARGEST
    held_out = validation_logits(task, classifier)
    of_classes = known[::2] if held_out is None else held_out
    if len(of_classes) < FEWEST_KEPT and not (other or task.options.test_unknown):
        return None
    # the answer of a student with "none of these" is its largest output, see `shift_of_other`
    threshold = 0.5 if other else threshold_keeping(known_scores(of_classes, other)[score].tolist(), KEPT)
    rest = known[1::2] if held_out is None else known
    tested = {kind: known_scores(each, other)[score] for kind, each in {"known": rest, **unknown}.items()}
    kept = {kind: share_reaching(values.tolist(), threshold) for kind, values in tested.items()}
    return ReportedRejection(
        score=score,
        threshold=threshold,
        validation_images=len(of_classes),
        of_test=held_out is None,
        known_kept=kept.pop("known"),
        unknown_kept=kept,
        histograms={
            kind: tuple(torch.histc(values, HISTOGRAM_STEPS, 0, 1).int().tolist()) for kind, values in tested.items()
        },
    )


def validation_logits(task: Task, classifier: Classifier) -> Tensor | None:
    """A classifier's logits of the validation images of the classes; `None` where none are held out."""
    images = task.validation()
    if images is None:
        return None
    logits = predict(classifier, images, workers=task.config.dataloader_num_workers)
    return logits[torch.tensor(images.labels) < len(task.data.subtask.names)]
