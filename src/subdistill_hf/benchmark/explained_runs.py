"""How alike the student of a run and its teacher explain their answers."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

from torch import Tensor

from subdistill_hf.benchmark.config import ExplainedRuns
from subdistill_hf.benchmark.jobs import Row
from subdistill_hf.explain.agreement import similarity
from subdistill_hf.explain.comparison import explain_twice, heatmaps_of, share_on_mark
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.explain.images import ImagesToExplain, test_images
from subdistill_hf.explain.networks import ExplainedNetwork
from subdistill_hf.explain.relevance import explain_images
from subdistill_hf.pipeline.evaluation import Classifier
from subdistill_hf.pipeline.task import Task

STUDENT_SEED: Final = 2
"""That of the teacher is 0, and 1 when it is explained again."""
TeacherFigures = tuple[list[int], Tensor, Row]


def explanation_figures(explained: ExplainedRuns, task: Task, student: Classifier) -> Row:
    """The figures of a run's row about explanations.

    Args:
        explained: how, and of how many test images.
        task: of the run, with the teacher.
        student: the trained student. Runs of the same teacher, classes and images share the teacher's explanations.

    Returns:
        Their number, and means over them: cosine and rank correlation of both heat maps, and the ceiling of both;
        where images carry a mark, the shares of relevance that lie on it. Or why a method does not hold for one of the
        networks.
    """
    images = test_images(task.data, explained.images)
    ours = ExplainedNetwork("student", student)
    try:
        targets, teacher, row = _teacher_figures(explained, task, images)
        found = explain_images(ours, images.images, targets, explained.method, STUDENT_SEED, show=False)
    except ExplainError as error:
        return {"explanation_error": str(error)}
    alike = similarity(teacher, heatmaps_of(ours, found.relevance, images.images))
    row = {"explanation_cosine": alike.cosine.mean, "explanation_rank": alike.rank_correlation.mean, **row}
    row["explained_images"] = len(images.images)
    if on_mark := _on_mark(ours, found.relevance, images):
        row["relevance_on_mark"] = on_mark
    return row


def _teacher_figures(explained: ExplainedRuns, task: Task, images: ImagesToExplain) -> TeacherFigures:
    """The teacher's answers, its heat maps, and its part of the row; computed once for what `_digest` tells apart."""
    kept = _kept(_digest(explained, task, images))
    if not kept:
        network = ExplainedNetwork("teacher", task.teacher_classifier)
        targets = network.answers(images.images)
        relevance, again = explain_twice(network, images.images, targets, explained.method, 0, show=False)
        maps = heatmaps_of(network, relevance.relevance, images.images)
        ceiling = similarity(maps, heatmaps_of(network, again, images.images))
        row: Row = {"ceiling_cosine": ceiling.cosine.mean, "ceiling_rank": ceiling.rank_correlation.mean}
        if on_mark := _on_mark(network, relevance.relevance, images):
            row["teacher_relevance_on_mark"] = on_mark
        kept.append((targets, maps, row))
    return kept[0]


def _digest(explained: ExplainedRuns, task: Task, images: ImagesToExplain) -> str:
    """Of what the teacher's figures depend on: method, teacher, classes, and images with their marks."""
    classes = f"{task.data.subtask.teacher_ids} {task.has_other}"
    digest = hashlib.sha256(f"{explained} {task.teacher.identity} {classes}".encode())
    for image, mark in zip(images.images, images.marks, strict=True):
        digest.update(f"{tuple(image.shape)}".encode() + image.numpy().tobytes())
        digest.update(b"" if mark is None else mark.numpy().tobytes())
    return digest.hexdigest()


def _on_mark(network: ExplainedNetwork, relevance: Tensor, images: ImagesToExplain) -> float | None:
    """The mean share of absolute relevance on the marks; `None` where there are none."""
    shares = [
        share_on_mark(network, one, mark)
        for one, mark in zip(relevance, images.marks, strict=True)
        if mark is not None
    ]
    return sum(shares) / len(shares) if shares else None


@lru_cache(maxsize=16)
def _kept(digest: str) -> list[TeacherFigures]:
    """Where the figures of a teacher are kept for the next runs of this process."""
    return []
