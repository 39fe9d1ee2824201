"""Measure classifiers on the subtask's test images: accuracy, agreement with the teacher, marks, cost."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from subdistill_hf.core.activations import logits_of
from subdistill_hf.data.loading import SubtaskData
from subdistill_hf.data.preprocessing import process
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import DistillationError, DivergedError
from subdistill_hf.metrics import SubtaskAccuracy, TeacherAgreement, confusion_matrix
from subdistill_hf.reporting.exported import Latency
from subdistill_hf.teacher.class_ids import subtask_logits
from subdistill_hf.training.loss_log import CAUSES

WARM_UP = 3
FEWEST_RUNS = 5


@dataclass(frozen=True)
class Classifier:
    """A model that answers with one of the subtask's classes.

    Attributes:
        model: the network.
        processor: its image processor.
        class_ids: the outputs that are the subtask's classes, in the student's order; all with `None`.
        other: whether all its other outputs together are the answer "none of these".
        other_shift: what is added to the logit of that answer, the last; see `unknown.shift_of_other`.
    """

    model: nn.Module
    processor: Any
    class_ids: Sequence[int] | None = None
    other: bool = False
    other_shift: float = 0.0

    @property
    def is_teacher(self) -> bool:
        """Whether it is a teacher: all outputs of a student are the subtask's."""
        return self.class_ids is not None

    @torch.no_grad()
    def logits(self, pixel_values: Tensor) -> Tensor:
        """Subtask logits `(B, C)` in evaluation mode."""
        training = self.model.training
        self.model.eval()
        try:
            logits = logits_of(self.model(pixel_values=pixel_values)).float()
        finally:
            self.model.train(training)
        found = subtask_logits(logits, self.class_ids, self.other)
        if self.other_shift:
            found = torch.cat([found[:, :-1], found[:, -1:] + self.other_shift], dim=1)
        return found


class PlainImages(torch.utils.data.Dataset[Tensor]):
    """The images of a `ViewDataset` without augmentation, each `(3, H, W)` bytes.

    Args:
        images: the dataset.
    """

    def __init__(self, images: ViewDataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images.image(index)

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """A batch of images, as `DataLoader` asks for it."""
        return self.images.images.at(indices)


def predict(classifier: Classifier, images: ViewDataset, batch_size: int = 128, workers: int = 0) -> Tensor:
    """Subtask logits of all images, without augmentation.

    Args:
        classifier: the model and its processor.
        images: N images.
        batch_size: images of a forward pass.
        workers: processes that decode and process images; with 0 this one does.

    Returns:
        `(N, C)`, float32, on the CPU.

    Raises:
        DivergedError: when those of a student are not finite: its last step may spoil it, which no loss tells.
        DistillationError: when those of a teacher are not finite.
    """
    device = next(classifier.model.parameters()).device
    collate = partial(process, classifier.processor)
    loader = torch.utils.data.DataLoader(PlainImages(images), batch_size, num_workers=workers, collate_fn=collate)
    logits = torch.cat([classifier.logits(pixels.to(device)).cpu() for pixels in loader])
    refuse_not_finite(logits, classifier.is_teacher)
    return logits


def refuse_not_finite(logits: Tensor, of_teacher: bool) -> None:
    """Refuse logits that are no answer: where some are NaN, the largest is the first of them.

    Args:
        logits: `(N, C)`.
        of_teacher: or of a trained student.

    Raises:
        DivergedError: when those of a student are not finite.
        DistillationError: when those of a teacher are not finite.
    """
    if not (bad := int((~logits.isfinite()).any(dim=1).sum())):
        return
    found = f"logits of {bad} of {len(logits)} images are NaN or infinite"
    if of_teacher:
        raise DistillationError(
            f"the teacher's {found}: look there for the cause, its weights or the precision in which they are computed"
        )
    raise DivergedError(f"the training has diverged: the student's {found}. Likely causes: {CAUSES}")


@dataclass(frozen=True)
class Scores:
    """How a classifier answers for the test images; the attributes are those of `reporting.report.MethodResult`."""

    accuracy: float
    balanced_accuracy: float
    per_class_accuracy: Mapping[str, float]
    confusion: tuple[tuple[int, ...], ...]
    teacher_agreement: float | None


def score(logits: Tensor, images: ViewDataset, classes: Sequence[str], teacher: Tensor | None) -> Scores:
    """Compare a classifier's answers with the labels and with the teacher's answers.

    Args:
        logits: its logits `(N, C)`.
        images: the test images, with labels.
        classes: class names.
        teacher: the teacher's logits `(N, C)`, for the agreement.
    """
    predictions = logits.argmax(dim=1).tolist()
    accuracies = SubtaskAccuracy().compute(predictions=predictions, references=images.labels, classes=list(classes))
    agreement = None
    if teacher is not None:
        answers = teacher.argmax(dim=1).tolist()
        agreement = TeacherAgreement().compute(predictions=predictions, references=answers)["teacher_agreement"]
    counts = confusion_matrix(predictions, images.labels, list(classes))
    return Scores(**accuracies, confusion=tuple(map(tuple, counts)), teacher_agreement=agreement)


@dataclass(frozen=True)
class MarkScores:
    """Whether a classifier learned a spurious mark instead of the class.

    Attributes:
        clean_accuracy: the accuracy without the mark.
        mark_followed: the share of the marked test images of other classes that are taken for the marked ones; unknown
            where there are no others.
        followed_without_mark: that share without the mark, which is what confusion alone makes.
    """

    clean_accuracy: float
    mark_followed: float | None
    followed_without_mark: float | None


def unmarked_test(data: SubtaskData) -> ViewDataset | None:
    """The test images without the mark; `None` where there is no mark."""
    return None if data.marking is None else data.views("test", marked=None)


def mark_scores(data: SubtaskData, marked: Tensor, unmarked: Tensor) -> MarkScores:
    """Compare a classifier's answers to the test images with and without the mark.

    Args:
        data: the images; its marking says which classes carried the mark in training.
        marked: the classifier's logits `(N, C)` of the test images with the mark.
        unmarked: those without it.
    """
    assert data.marking is not None
    labels, outputs = list(data.test[data.columns.label]), data.marking.outputs
    return MarkScores(
        clean_accuracy=float((unmarked.argmax(dim=1) == torch.tensor(labels)).double().mean()),
        mark_followed=share_taken_for(marked, labels, outputs),
        followed_without_mark=share_taken_for(unmarked, labels, outputs),
    )


def share_taken_for(logits: Tensor, labels: Sequence[int], outputs: Sequence[int]) -> float | None:
    """The share of the images of other classes that a classifier takes for some; `None` where there are no others.

    Args:
        logits: its logits `(N, C)`.
        labels: the images' classes.
        outputs: the classes that it may take them for.
    """
    chosen = torch.tensor(outputs)
    others = ~torch.isin(torch.tensor(labels), chosen)
    return float(torch.isin(logits.argmax(dim=1)[others], chosen).double().mean()) if others.any() else None


def count_operations(classifier: Classifier, images: ViewDataset) -> int:
    """Floating-point operations of one image's forward pass, as PyTorch counts them.

    Multiplications and additions of convolutions, matrix products and attention count as one each; the rest of a
    network is not counted.
    """
    device = next(classifier.model.parameters()).device
    pixels = process(classifier.processor, [images.image(0)]).to(device)
    # Attention is counted where it is written out as matrix products; not every fused kernel is.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            classifier.logits(pixels)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def measure_latency(
    classifiers: Mapping[str, Classifier], images: ViewDataset, runs: int = 50, seconds: float = 10.0
) -> dict[str, Latency]:
    """Milliseconds a forward pass takes for one image on one CPU thread: median and quartiles.

    The classifiers take turns, so that a busy machine is busy for all of them alike. Preprocessing is not timed. There
    are fewer runs, but no fewer than five, where all would take longer than `seconds`.
    """
    threads = torch.get_num_threads()
    inputs = {name: process(classifier.processor, [images.image(0)]) for name, classifier in classifiers.items()}
    devices = {name: next(classifier.model.parameters()).device for name, classifier in classifiers.items()}
    times: dict[str, list[float]] = {name: [] for name in classifiers}
    torch.set_num_threads(1)
    try:
        for classifier in classifiers.values():
            classifier.model.to("cpu")
        began = time.perf_counter()
        for run in range(runs + WARM_UP):
            if run >= WARM_UP + FEWEST_RUNS and time.perf_counter() - began > seconds:
                break
            for name, classifier in classifiers.items():
                start = time.perf_counter()
                classifier.logits(inputs[name])
                if run >= WARM_UP:  # the first passes allocate
                    times[name].append((time.perf_counter() - start) * 1e3)
    finally:
        torch.set_num_threads(threads)
        for name, classifier in classifiers.items():
            classifier.model.to(devices[name])
    return {name: _median_and_quartiles(values) for name, values in times.items()}


def _median_and_quartiles(values: list[float]) -> Latency:
    low, median, high = statistics.quantiles(values, n=4)
    return Latency(median=median, low=low, high=high, runs=len(values))


def processor_name() -> str:
    """The name of the CPU, as the system gives it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
