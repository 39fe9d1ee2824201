"""The single answers to the test images: their calibration, and pictures of the worst ones."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from subdistill_hf.data.views import ViewDataset
from subdistill_hf.metrics import CALIBRATION_BINS, CalibrationError, calibration_bins
from subdistill_hf.reporting.optional import plot_is_optional
from subdistill_hf.reporting.reported_answers import (
    THUMBNAILS_FOLDER,
    CalibrationBin,
    ReportedCalibration,
    WrongAnswer,
)

MOST_WRONG_ANSWERS: Final = 60
MOST_OF_A_CLASS: Final = 6
THUMBNAIL: Final = 96
"""Pixels of the longer side of a picture; smaller images keep their own."""


def calibration_of(logits: Tensor, labels: Sequence[int]) -> ReportedCalibration:
    """How far the probabilities of a classifier's answers can be trusted.

    Args:
        logits: `(N, C)`.
        labels: the images' classes `(N,)`.
    """
    probabilities = logits.double().softmax(dim=1).numpy()
    measured = CalibrationError().compute(predictions=probabilities, references=list(labels), bins=CALIBRATION_BINS)
    counts, confidences, accuracies = calibration_bins(probabilities, labels)
    bins = tuple(
        CalibrationBin(
            low=place / CALIBRATION_BINS,
            high=(place + 1) / CALIBRATION_BINS,
            images=int(images),
            confidence=float(confidence) if images else None,
            accuracy=float(accuracy) if images else None,
        )
        for place, (images, confidence, accuracy) in enumerate(zip(counts, confidences, accuracies, strict=True))
    )
    return ReportedCalibration(expected_error=measured["expected_calibration_error"], bins=bins)


def worst_answers(student: Tensor, teacher: Tensor, labels: Sequence[int]) -> tuple[WrongAnswer, ...]:
    """The wrong answers that the student is most sure of, some of each class.

    Args:
        student: its logits `(N, C)`.
        teacher: the teacher's logits `(N, C)`.
        labels: the images' classes `(N,)`.

    Returns:
        At most `MOST_OF_A_CLASS` of each class and `MOST_WRONG_ANSWERS` in all, the surest first.
    """
    own, theirs = (logits.double().softmax(dim=1) for logits in (student, teacher))
    probabilities, answers = own.max(dim=1)
    wrong = torch.nonzero(answers != torch.tensor(labels)).flatten()
    order = wrong[probabilities[wrong].argsort(descending=True, stable=True)].tolist()
    of_a_class = max(1, min(MOST_OF_A_CLASS, MOST_WRONG_ANSWERS // own.shape[1]))
    left, found = [of_a_class] * own.shape[1], []
    for image in order:
        label = labels[image]
        if not left[label]:
            continue
        left[label] -= 1
        found.append(
            WrongAnswer(
                image=image,
                label=label,
                answer=int(answers[image]),
                probability=float(probabilities[image]),
                label_probability=float(own[image, label]),
                teacher_answer=int(theirs[image].argmax()),
                teacher_probability=float(theirs[image].max()),
            )
        )
    return tuple(found[:MOST_WRONG_ANSWERS])


def save_thumbnails(folder: Path, answers: Sequence[WrongAnswer], images: ViewDataset) -> None:
    """Write small pictures of images that were classified wrongly; those of an earlier run are removed.

    Args:
        folder: of the run.
        answers: to which images.
        images: the test images, drawn as the student saw them, before its own preprocessing.
    """
    place = folder / THUMBNAILS_FOLDER
    shutil.rmtree(place, ignore_errors=True)
    if not answers:
        return
    with plot_is_optional(THUMBNAILS_FOLDER):
        place.mkdir()
        for answer in answers:
            picture = to_pil_image(images.image(answer.image))
            small = max(picture.size) <= THUMBNAIL
            picture = picture if small else ImageOps.contain(picture, (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            picture.save(place / answer.thumbnail, lossless=small, quality=85)
