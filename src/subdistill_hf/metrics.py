"""`evaluate` metrics of a subtask: accuracy, agreement with the teacher, calibration.

The metrics are built directly (`SubtaskAccuracy()`), so they need no hub, and they keep what they are given in memory,
so they write no file. `evaluate.load(MODULES["subtask_accuracy"])` loads them as `evaluate` loads its own, off line.

They combine (`evaluate.combine`), since all of them take the student's probabilities. `evaluate.evaluator` hands a
metric the indices of the predicted classes, which is enough for the first two; `ProbabilityEvaluator` hands it the
probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import evaluate
import numpy as np
import numpy.typing as npt
from datasets import Features, List, Value
from evaluate.evaluator import ImageClassificationEvaluator

from subdistill_hf.config.options import NO_CLASS

__all__ = [
    "LOGGED_METRICS",
    "MODULES",
    "CalibrationError",
    "ProbabilityEvaluator",
    "SubtaskAccuracy",
    "TeacherAgreement",
    "auroc",
    "auroc_error",
    "calibration_bins",
    "compute_metrics",
    "confusion_matrix",
    "share_reaching",
    "threshold_keeping",
]

MODULES: Final = {
    name: str(Path(__file__).parent / "evaluate_modules" / name)
    for name in ("subtask_accuracy", "teacher_agreement", "calibration_error")
}
"""The folder of each metric, for `evaluate.load`."""

LOGGED_METRICS: Final = ("accuracy", "balanced_accuracy")
"""The figures of `compute_metrics`."""

NO_ANSWER: Final = -1
"""The prediction for an image whose logits are NaN: no class."""

ROUNDING: Final = 1e-9
"""By how much the product of a share and a number may be too large: 0.07 * 100 is more than 7."""

CALIBRATION_BINS: Final = 15
"""Of equal width, as `CalibrationError` takes them by default."""

Array = npt.NDArray[Any]

_CLASS_INDICES: Final = {"predictions": Value("int64"), "references": Value("int64")}
_PROBABILITIES: Final = {"predictions": List(Value("float64")), "references": Value("int64")}


class _InMemoryMetric(evaluate.Metric):
    """An `evaluate.Metric` that stays in memory unless several processes must share a file.

    Args:
        num_process: number of processes that each add a part of the predictions; with more than one,
            `evaluate` exchanges the parts through files in its cache.
        **options: the other arguments of `evaluate.Metric`.
    """

    def __init__(self, *, num_process: int = 1, **options: Any) -> None:
        options.setdefault("keep_in_memory", num_process == 1)
        super().__init__(num_process=num_process, **options)

    def _build_data_dir(self) -> str:
        # The parent makes its cache folder even when it will not write there: no use on a read-only home.
        return self._data_dir_root if self.keep_in_memory else super()._build_data_dir()  # type: ignore[no-any-return]

    def _infer_feature_from_batch(self, batch: dict[str, Any]) -> Any:
        # The parent looks at the first image, which an empty batch has not; `_compute` says what is missing.
        empty = isinstance(self.features, list) and not len(batch["predictions"])
        return self.features[0] if empty else super()._infer_feature_from_batch(batch)


class SubtaskAccuracy(_InMemoryMetric):
    """Accuracy, balanced accuracy and the accuracy of each class.

    `compute(predictions=, references=, classes=None)` takes class indices `(N,)`, or for the predictions the scores of
    all classes `(N, C)`, and optionally the classes' names in the order of those indices. It returns `accuracy`,
    `balanced_accuracy` (the mean of the classes' accuracies) and `per_class_accuracy` (name, or index as text, to
    accuracy). A class without any image is left out of both, and so are images with the label -100, which have no
    class. It raises `ValueError` without images, or on an index without a name.

    Args:
        classes: the names, where `compute` is not given any.
        **options: the other arguments of `evaluate.Metric`.
    """

    def __init__(self, *, classes: Sequence[str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._classes = classes

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy over the images, over the classes, and of each class.",
            citation="",
            inputs_description="predictions: class indices or scores; references: class indices; classes: names.",
            features=[Features(_CLASS_INDICES), Features(_PROBABILITIES)],
        )

    def _compute(
        self,
        predictions: Sequence[int] | Sequence[Sequence[float]],
        references: Sequence[int],
        classes: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        _require_images(references)
        predicted = _predicted_classes(predictions)
        labelled = [place for place, label in enumerate(references) if label != NO_CLASS]
        references, predicted = [references[place] for place in labelled], [predicted[place] for place in labelled]
        if not references:
            raise ValueError(
                f"expected the predictions of at least one image, found none with a class (all labels are {NO_CLASS})"
            )
        classes = self._classes if classes is None else classes
        if classes is not None:
            _require_named(classes, predictions=predicted, references=references)
        hits = np.equal(references, predicted)
        present, class_of_image = np.unique(references, return_inverse=True)
        recalls = np.bincount(class_of_image, weights=hits) / np.bincount(class_of_image)
        names = [str(index) if classes is None else classes[index] for index in present]
        return {
            "accuracy": float(np.mean(hits)),
            "balanced_accuracy": float(np.mean(recalls)),
            "per_class_accuracy": dict(zip(names, recalls.tolist(), strict=True)),
        }


class TeacherAgreement(_InMemoryMetric):
    """Share of the images that student and teacher put in the same class, right or wrong.

    `compute(predictions=, references=)` takes the student's and the teacher's class indices `(N,)` among the classes
    of the subtask, or the student's scores of all classes `(N, C)`, and returns `teacher_agreement`. It raises
    `ValueError` without images.

    Args:
        teacher: the teacher's class indices. With them the references are not looked at, so that they can be the
            labels: for `evaluate.combine`, and for an evaluator.
        **options: the other arguments of `evaluate.Metric`.
    """

    def __init__(self, *, teacher: Sequence[int] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._teacher = None if teacher is None else list(teacher)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the images that student and teacher put in the same class.",
            citation="",
            inputs_description="predictions: the student's indices or scores; references: the teacher's indices.",
            features=[Features(_CLASS_INDICES), Features(_PROBABILITIES)],
        )

    def _compute(
        self, predictions: Sequence[int] | Sequence[Sequence[float]], references: Sequence[int]
    ) -> dict[str, float]:
        _require_images(references)
        teacher = references if self._teacher is None else self._teacher
        if len(teacher) != len(predictions):
            raise ValueError(f"expected {len(predictions)} predictions of the teacher, found {len(teacher)}")
        return {"teacher_agreement": float(np.mean(np.equal(teacher, _predicted_classes(predictions))))}


class CalibrationError(_InMemoryMetric):
    """Expected calibration error: how far the confidence is from the accuracy, on average over the images.

    `compute(predictions=, references=, bins=15)` takes probabilities `(N, C)` and class indices `(N,)`.
    Images are binned by the probability of their predicted class, in bins of equal width, closed on the
    right; it returns `expected_calibration_error`, the mean over the images of `|accuracy - mean confidence|`
    of their bin. It raises `ValueError` without images, with fewer than one bin, when the rows are not
    probabilities that sum to 1, or when an index has no column.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Expected calibration error from the probability of the predicted class.",
            citation="",
            inputs_description="predictions: probabilities (N, C); references: class indices; bins: 15.",
            features=Features(_PROBABILITIES),
        )

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[int], bins: int = CALIBRATION_BINS
    ) -> dict[str, float]:
        _require_images(references)
        if bins < 1:
            raise ValueError(f"expected at least one bin, found bins={bins}")
        probabilities = np.asarray(predictions, dtype=np.float64)  # (N, C)
        _require_numbers(probabilities)
        sums = probabilities.sum(axis=1)
        if probabilities.min() < 0 or not np.allclose(sums, 1, atol=1e-3):
            raise ValueError(
                "expected probabilities that sum to 1 for each image, found a smallest value of "
                f"{probabilities.min():.3g} and sums from {sums.min():.3g} to {sums.max():.3g}; "
                "apply a softmax to logits first"
            )
        _require_named(range(probabilities.shape[1]), references=references)
        confidence, correct, bin_of_image = _binned(probabilities, references, bins)
        # |accuracy - confidence| of a bin times its number of images is the absolute value of this sum.
        gaps = np.bincount(bin_of_image, weights=correct - confidence, minlength=bins)
        return {"expected_calibration_error": float(np.abs(gaps).sum() / len(confidence))}


def calibration_bins(
    predictions: Array, references: Sequence[int], bins: int = CALIBRATION_BINS
) -> tuple[Array, Array, Array]:
    """The bins of `CalibrationError`, which a reliability diagram shows.

    Args:
        predictions: probabilities `(N, C)`.
        references: class indices `(N,)`.
        bins: of equal width, from 0 to 1, closed on the right.

    Returns:
        Of each bin the number of images, their mean probability of the predicted class and their accuracy, each
        `(bins,)`; the last two are 0 where there is no image.
    """
    _require_numbers(predictions)
    confidence, correct, bin_of_image = _binned(predictions, references, bins)
    counts = np.bincount(bin_of_image, minlength=bins)
    images = np.maximum(counts, 1)
    confidences = np.bincount(bin_of_image, weights=confidence, minlength=bins) / images
    return counts, confidences, np.bincount(bin_of_image, weights=correct, minlength=bins) / images


def _binned(probabilities: Array, references: Sequence[int], bins: int) -> tuple[Array, Array, Array]:
    """The probability of each image's predicted class, whether it is right, and the bin of the probability."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == np.asarray(references)
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    return confidence, correct, np.searchsorted(inner_edges, confidence)


def compute_metrics(eval_prediction: Any) -> dict[str, float]:
    """The metrics that `transformers.Trainer` logs at each evaluation (its argument `compute_metrics`).

    Args:
        eval_prediction: a `transformers.EvalPrediction`: logits `(N, C)`, or a tuple that begins with them,
            and class indices `(N,)`, or shares of the classes `(N, C)`, of which the largest counts, or a tuple that
            begins with these. An image with the index -100 has no class, and is left out, as the loss leaves it out.
            With `eval_do_concat_batches=False` both are lists of batches.

    Returns:
        `accuracy` and `balanced_accuracy`. An image whose logits are NaN counts as wrong: a training that diverges
        goes on to where its best checkpoint is handed out.

    Raises:
        ValueError: when there is no image with a class.
    """
    logits, labels = eval_prediction.predictions, eval_prediction.label_ids
    if isinstance(labels, list) and (isinstance(labels[0], tuple) or np.ndim(labels[0])):
        logits = np.concatenate([_first_of(batch) for batch in logits])
        labels = np.concatenate([batch[0] if isinstance(batch, tuple) else batch for batch in labels])
    logits, labels = _first_of(logits), np.asarray(labels[0] if isinstance(labels, tuple) else labels)
    predicted = np.where(np.isnan(logits).any(axis=-1), NO_ANSWER, np.argmax(logits, axis=-1))
    result = SubtaskAccuracy().compute(
        predictions=predicted, references=labels if labels.ndim == 1 else labels.argmax(axis=-1)
    )
    return {name: result[name] for name in LOGGED_METRICS}


def _first_of(outputs: Any) -> Any:
    """The first of several outputs, or the only one."""
    return outputs[0] if isinstance(outputs, tuple | list) else outputs


def confusion_matrix(predictions: Sequence[int], references: Sequence[int], classes: Sequence[str]) -> list[list[int]]:
    """Count the images of each true class in each predicted class.

    Args:
        predictions: predicted class indices `(N,)`.
        references: true class indices `(N,)`.
        classes: the names of the C classes, in the order of the indices.

    Returns:
        `(C, C)` counts, true classes in rows and predicted classes in columns.

    Raises:
        ValueError: on an index without a name, or when the numbers of indices differ.
    """
    _require_named(classes, predictions=predictions, references=references)
    if len(references) != len(predictions):
        raise ValueError(f"expected {len(references)} predictions, found {len(predictions)}")
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (np.asarray(references, dtype=np.int64), np.asarray(predictions, dtype=np.int64)), 1)
    return counts.tolist()


def _predicted_classes(predictions: Sequence[int] | Sequence[Sequence[float]]) -> list[int]:
    """Class indices `(N,)`, of indices or of scores `(N, C)`."""
    values = np.asarray(predictions)
    _require_numbers(values)
    indices: list[int] = (values.argmax(axis=1) if values.ndim == 2 else values).tolist()
    return indices


def _require_images(references: Sequence[Any]) -> None:
    """Refuse an empty evaluation."""
    if len(references) == 0:
        raise ValueError("expected the predictions of at least one image, found none")


def _require_numbers(scores: Any) -> None:
    """Refuse scores of images `(N,)` or `(N, C)` that are NaN: they have no order, but would give figures."""
    values = np.asarray(scores, dtype=np.float64)
    if missing := int(np.isnan(values).any(axis=tuple(range(1, values.ndim))).sum()):
        raise ValueError(f"expected scores that are numbers, found NaN for {missing} of {len(values)} images")


def _require_named(classes: Sequence[Any], **indices: Sequence[int]) -> None:
    """Refuse class indices outside the classes, under their argument's name."""
    for argument, values in indices.items():
        found = np.unique(np.asarray(values, dtype=np.int64))
        unknown = found[(found < 0) | (found >= len(classes))].tolist()
        if unknown:
            raise ValueError(f"expected {argument} from 0 to {len(classes) - 1}, found {unknown}")


def auroc(known: Sequence[float], unknown: Sequence[float]) -> float:
    """The area under the ROC curve: how often a known image has a higher score than an unknown one; ties count half.

    Args:
        known: scores of images of the classes, the higher the surer.
        unknown: scores of other images.

    Raises:
        ValueError: when one of them is empty, or a score is NaN.
    """
    for scores in (known, unknown):
        _require_images(scores)
        _require_numbers(scores)
    others = np.sort(np.asarray(unknown, dtype=np.float64))
    below = np.searchsorted(others, known, "left") + np.searchsorted(others, known, "right")
    return float(below.mean() / (2 * len(others)))


def auroc_error(area: float, known: int, unknown: int) -> float:
    """The standard error of an `auroc` of so many images (Hanley and McNeil, 1982)."""
    both_known, both_unknown = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (known - 1) * (both_known - area**2) + (unknown - 1) * (both_unknown - area**2)
    return float(np.sqrt(max(0.0, variance) / (known * unknown)))


def threshold_keeping(known: Sequence[float], share: float) -> float:
    """The largest score that at least this share of the known images reach; `ValueError` as for `auroc`."""
    _require_images(known)
    _require_numbers(known)
    ordered = np.sort(np.asarray(known, dtype=np.float64))[::-1]
    needed = int(np.ceil(share * len(ordered) - ROUNDING))
    return float(ordered[max(1, needed) - 1])


def share_reaching(scores: Sequence[float], threshold: float) -> float:
    """The share of images whose score is at least a threshold: of unknown ones the false-positive rate.

    Raises:
        ValueError: as for `auroc`.
    """
    _require_images(scores)
    _require_numbers(scores)
    _require_numbers([threshold])
    return float(np.mean(np.asarray(scores, dtype=np.float64) >= threshold))


class ProbabilityEvaluator(ImageClassificationEvaluator):
    """`evaluate.evaluator("image-classification")` that hands the metric the probability of every class.

    Its `compute` needs `label_mapping`: the model's labels to the dataset's indices, `model.config.label2id`.
    """

    PIPELINE_KWARGS: ClassVar = {"top_k": None}

    def predictions_processor(
        self, predictions: Sequence[Sequence[dict[str, Any]]], label_mapping: Mapping[str, int] | None
    ) -> dict[str, list[list[float]]]:
        """The pipeline's answers as rows of probabilities, in the order of the mapping's indices.

        Raises:
            ValueError: without a mapping.
        """
        if label_mapping is None:
            raise ValueError("expected label_mapping=model.config.label2id, to know the order of the classes")
        labels = sorted(label_mapping, key=lambda label: label_mapping[label])
        scores = [{answer["label"]: answer["score"] for answer in answers} for answers in predictions]
        return {"predictions": [[row[label] for label in labels] for row in scores]}
