"""The evaluate metrics against hand-computed values and scikit-learn."""

import math
from fractions import Fraction

import evaluate
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve
from transformers import EvalPrediction

from subdistill_hf.metrics import (
    MODULES,
    CalibrationError,
    SubtaskAccuracy,
    TeacherAgreement,
    auroc,
    auroc_error,
    calibration_bins,
    compute_metrics,
    confusion_matrix,
    share_reaching,
    threshold_keeping,
)

REFERENCES = [0, 0, 0, 0, 1, 1, 2]
PREDICTIONS = [0, 0, 0, 1, 1, 2, 2]


@pytest.fixture
def random_labels():
    generator = np.random.default_rng(0)
    references = generator.integers(0, 5, 400)
    predictions = np.where(generator.random(400) < 0.7, references, generator.integers(0, 5, 400))
    return predictions, references


def test_subtask_accuracy_by_hand():
    result = SubtaskAccuracy().compute(
        predictions=PREDICTIONS, references=REFERENCES, classes=["club", "heart", "spade"]
    )
    assert result["accuracy"] == pytest.approx(5 / 7)
    assert result["per_class_accuracy"] == {"club": 0.75, "heart": 0.5, "spade": 1.0}
    assert result["balanced_accuracy"] == pytest.approx((0.75 + 0.5 + 1.0) / 3)


def test_subtask_accuracy_is_that_of_sklearn(random_labels):
    predictions, references = random_labels
    result = SubtaskAccuracy().compute(predictions=predictions, references=references)
    assert result["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(references, predictions))
    assert result["balanced_accuracy"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(references, predictions)
    )
    assert list(result["per_class_accuracy"]) == ["0", "1", "2", "3", "4"]


def test_class_without_images_is_absent():
    result = SubtaskAccuracy().compute(predictions=[0, 2], references=[0, 0], classes=["a", "b", "c"])
    assert result == {"accuracy": 0.5, "balanced_accuracy": 0.5, "per_class_accuracy": {"a": 0.5}}


def test_images_without_a_class_count_in_no_accuracy():
    logits = np.eye(3)[[0, 1, 1, 0]]
    assert compute_metrics(EvalPrediction(logits, np.array([0, 1, 2, -100]))) == {
        "accuracy": pytest.approx(2 / 3),
        "balanced_accuracy": pytest.approx(2 / 3),
    }
    result = SubtaskAccuracy().compute(predictions=[0, 0], references=[0, -100], classes=["a", "b"])
    assert result == {"accuracy": 1.0, "balanced_accuracy": 1.0, "per_class_accuracy": {"a": 1.0}}
    with pytest.raises(ValueError, match="at least one image, found none"):
        compute_metrics(EvalPrediction(logits, np.full(4, -100)))


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8, 8, 8, 8, 8), (30, 30, 4), (64,)], ids=str)
def test_metrics_of_batches_that_were_not_concatenated_are_those_of_all_images(sizes):
    """With as many batches as images in one, the first of them would pass for all."""
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(64, 3)), random.integers(0, 3, 64)
    cuts = np.cumsum(sizes)[:-1]
    batches, labels_of_batches = np.split(logits, cuts), np.split(labels, cuts)
    expected = compute_metrics(EvalPrediction(logits, labels))
    assert compute_metrics(EvalPrediction(batches, labels_of_batches)) == expected
    with_hidden = [(batch, batch * 7) for batch in batches]
    assert compute_metrics(EvalPrediction(with_hidden, labels_of_batches)) == expected


def test_teacher_agreement():
    result = TeacherAgreement().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {"teacher_agreement": pytest.approx(5 / 7)}


def test_calibration_error_by_hand():
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.45, 0.55]]
    # Bins of width 1/15: 0.9 twice (one of two right), 0.65 (right) and 0.55 (wrong) each in its own bin.
    expected = (2 * abs(0.5 - 0.9) + abs(1 - 0.65) + abs(0 - 0.55)) / 4
    result = CalibrationError().compute(predictions=probabilities, references=[0, 1, 1, 0])
    assert result["expected_calibration_error"] == pytest.approx(expected)
    one_bin = CalibrationError().compute(predictions=probabilities, references=[0, 1, 1, 0], bins=1)
    assert one_bin["expected_calibration_error"] == pytest.approx(abs(2 / 4 - (0.9 + 0.9 + 0.65 + 0.55) / 4))


def test_calibration_error_is_that_of_sklearns_curve():
    generator = np.random.default_rng(1)
    probabilities = generator.dirichlet([0.4] * 5, 1000)
    references = generator.integers(0, 5, 1000)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == references
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=15)
    images = np.histogram(confidence, bins=np.linspace(0, 1, 16))[0]
    expected = np.average(np.abs(accuracy - mean_confidence), weights=images[images > 0])
    result = CalibrationError().compute(predictions=probabilities, references=references)
    assert result["expected_calibration_error"] == pytest.approx(expected)


def test_calibration_bins_are_those_of_the_error():
    generator = np.random.default_rng(2)
    probabilities = generator.dirichlet([0.4] * 4, 300)
    references = generator.integers(0, 4, 300)
    images, confidences, accuracies = calibration_bins(probabilities, references, bins=7)
    for place in range(7):
        found = [
            (max(row), int(np.argmax(row)) == reference)
            for row, reference in zip(probabilities.tolist(), references, strict=True)
            if place / 7 < max(row) <= (place + 1) / 7
        ]
        assert images[place] == len(found)
        expected = np.mean(found, axis=0) if found else (0, 0)
        np.testing.assert_allclose((confidences[place], accuracies[place]), expected)
    error = CalibrationError().compute(predictions=probabilities, references=references, bins=7)
    summed = (images * np.abs(accuracies - confidences)).sum() / 300
    assert error["expected_calibration_error"] == pytest.approx(summed)


def test_bins_are_closed_on_the_right():
    images, confidences, accuracies = calibration_bins(np.array([[0.5, 0.5], [0.4, 0.6]]), [0, 1], bins=2)
    assert images.tolist() == [1, 1]
    assert confidences.tolist() == [0.5, 0.6]
    assert accuracies.tolist() == [1, 1]


@pytest.mark.parametrize("metric", [SubtaskAccuracy, TeacherAgreement])
def test_batches_and_reuse(metric, random_labels):
    predictions, references = random_labels
    batched = metric()
    for part in (slice(0, 150), slice(150, 400)):
        batched.add_batch(predictions=predictions[part], references=references[part])
    whole = metric()
    first = whole.compute(predictions=predictions, references=references)
    assert batched.compute() == first
    assert whole.compute(predictions=predictions, references=references) == first


@pytest.mark.parametrize("metric", [SubtaskAccuracy, TeacherAgreement, CalibrationError])
def test_built_without_hub_or_files(metric, tmp_path):
    inputs = (
        {"predictions": [[0.5, 0.5]], "references": [0]}
        if metric is CalibrationError
        else {"predictions": [0], "references": [0]}
    )
    assert metric(cache_dir=str(tmp_path / "cache")).compute(**inputs)
    assert not (tmp_path / "cache").exists()
    assert metric(cache_dir=str(tmp_path / "cache"), keep_in_memory=False).compute(**inputs)
    assert (tmp_path / "cache").exists()


@pytest.mark.parametrize("metric", [SubtaskAccuracy, TeacherAgreement])
def test_scores_count_as_their_largest(metric, random_labels):
    predictions, references = random_labels
    scores = np.eye(5)[predictions] + np.random.default_rng(1).random((400, 5)) * 0.4
    assert metric().compute(predictions=scores, references=references) == metric().compute(
        predictions=predictions, references=references
    )


def test_names_and_the_teachers_answers_can_be_given_when_a_metric_is_made():
    named = SubtaskAccuracy(classes=["club", "heart", "spade"])
    assert list(named.compute(predictions=PREDICTIONS, references=REFERENCES)["per_class_accuracy"]) == [
        "club",
        "heart",
        "spade",
    ]
    assert list(
        named.compute(predictions=PREDICTIONS, references=REFERENCES, classes=["a", "b", "c"])["per_class_accuracy"]
    ) == ["a", "b", "c"]
    agreement = TeacherAgreement(teacher=PREDICTIONS)
    assert agreement.compute(predictions=PREDICTIONS, references=REFERENCES) == {"teacher_agreement": 1.0}
    with pytest.raises(ValueError, match="expected 2 predictions of the teacher, found 7"):
        agreement.compute(predictions=[0, 1], references=[0, 1])


def test_the_metrics_combine(random_labels):
    teacher, references = random_labels
    probabilities = np.random.default_rng(2).dirichlet([0.4] * 5, 400)
    combined = evaluate.combine([SubtaskAccuracy(), TeacherAgreement(teacher=teacher), CalibrationError()])
    together = combined.compute(predictions=probabilities, references=references)
    predictions = probabilities.argmax(axis=1)
    assert together == {
        **SubtaskAccuracy().compute(predictions=predictions, references=references),
        **TeacherAgreement().compute(predictions=predictions, references=teacher),
        **CalibrationError().compute(predictions=probabilities, references=references),
    }
    prefixed = evaluate.combine({"student": SubtaskAccuracy(), "again": SubtaskAccuracy()}, force_prefix=True)
    assert prefixed.compute(predictions=[0, 1], references=[0, 0])["student_accuracy"] == 0.5


def test_evaluate_loads_the_metrics_from_their_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    given = {"predictions": [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], "references": [0, 1, 0]}
    classes = {
        "subtask_accuracy": SubtaskAccuracy,
        "teacher_agreement": TeacherAgreement,
        "calibration_error": CalibrationError,
    }
    assert MODULES.keys() == classes.keys()
    for name, metric in classes.items():
        loaded = evaluate.load(MODULES[name], cache_dir=str(tmp_path / "cache"))
        assert isinstance(loaded, metric)
        assert loaded.compute(**given) == metric().compute(**given)


def test_compute_metrics_of_the_trainer(random_labels):
    predictions, references = random_labels
    logits = np.eye(5)[predictions] * 3
    expected = {
        "accuracy": pytest.approx(np.mean(predictions == references)),
        "balanced_accuracy": pytest.approx(sklearn_metrics.balanced_accuracy_score(references, predictions)),
    }
    assert compute_metrics(EvalPrediction(logits, references)) == expected
    hidden = np.zeros((400, 2))
    assert compute_metrics(EvalPrediction((logits, hidden), references)) == expected
    assert compute_metrics(EvalPrediction(logits, (references, hidden))) == expected
    batches = [(references[:300], hidden[:300]), (references[300:], hidden[300:])]
    assert compute_metrics(EvalPrediction([logits[:300], logits[300:]], batches)) == expected
    shares = 0.6 * np.eye(5)[references] + 0.4 * np.eye(5)[predictions]  # of mixed images
    assert compute_metrics(EvalPrediction(logits, shares)) == expected


def test_confusion_matrix():
    counts = confusion_matrix(PREDICTIONS, REFERENCES, ["club", "heart", "spade", "joker"])
    assert counts == [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert all(isinstance(count, int) for row in counts for count in row)
    assert confusion_matrix([], [], ["a", "b"]) == [[0, 0], [0, 0]]


def test_confusion_matrix_is_that_of_sklearn(random_labels):
    predictions, references = random_labels
    expected = sklearn_metrics.confusion_matrix(references, predictions, labels=range(6)).tolist()
    assert confusion_matrix(predictions, references, list("abcdef")) == expected


@pytest.mark.parametrize(
    "measure",
    [
        lambda scores: SubtaskAccuracy().compute(predictions=scores, references=[0, 1, 0]),
        lambda scores: TeacherAgreement().compute(predictions=scores, references=[0, 1, 0]),
        lambda scores: CalibrationError().compute(predictions=scores, references=[0, 1, 0]),
        lambda scores: calibration_bins(scores, [0, 1, 0]),
        lambda scores: auroc(scores[:, 0], [0.0]),
        lambda scores: auroc([0.0], scores[:, 0]),
        lambda scores: threshold_keeping(scores[:, 0], 0.5),
        lambda scores: share_reaching(scores[:, 0], 0.5),
    ],
)
def test_scores_that_are_no_numbers_give_no_figure(measure):
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    measure(scores)
    scores[2] = np.nan
    with pytest.raises(ValueError, match="expected scores that are numbers, found NaN for 1 of 3 images"):
        measure(scores)


def test_an_image_whose_logits_are_nan_counts_as_wrong_in_a_training():
    scores = np.array([[0.9, 0.1], [np.nan, 0.8], [0.5, 0.4], [0.1, 0.3]])
    for labels in (np.array([0, 0, 0, 1]), np.eye(2)[[0, 0, 0, 1]]):
        found = compute_metrics(EvalPrediction((scores, scores), labels))
        assert found == {"accuracy": pytest.approx(3 / 4), "balanced_accuracy": pytest.approx((2 / 3 + 1) / 2)}


def test_an_infinite_score_has_an_order():
    assert auroc([np.inf, 1.0], [-np.inf]) == 1.0
    assert SubtaskAccuracy().compute(predictions=[[-np.inf, 0.0]], references=[1])["accuracy"] == 1.0
    with pytest.raises(ValueError, match="found NaN for 1 of 1 images"):
        share_reaching([1.0], np.nan)


@pytest.mark.parametrize(("known", "unknown", "error"), [(10, 100, 0.0662130), (100, 10, 0.0358285)])
def test_the_error_of_an_area_is_its_spread_over_samples(known, unknown, error):
    """Hanley and McNeil's formula is that of exponential scores, of which it is no approximation."""
    area = 0.9
    random = np.random.default_rng(0)
    mean_of_known = area / (1 - area)  # times that of unknown images, so that P(known > unknown) is the area
    areas = [auroc(random.exponential(mean_of_known, known), random.exponential(1, unknown)) for _ in range(2000)]
    assert auroc_error(area, known, unknown) == pytest.approx(error, abs=1e-7)
    assert error == pytest.approx(np.std(areas), rel=0.05)


@pytest.mark.parametrize("share", ["0.07", "0.1", "0.14", "0.28", "0.55", "0.56", "0.7", "0.9", "0.95", "1"])
def test_a_threshold_keeps_as_many_images_as_the_share_says(share):
    for images in range(1, 400):
        scores = np.arange(images)
        needed = max(1, math.ceil(Fraction(share) * images))
        assert threshold_keeping(scores, float(share)) == images - needed


def test_refusals():
    with pytest.raises(ValueError, match="at least one image"):
        SubtaskAccuracy().compute(predictions=[], references=[])
    with pytest.raises(ValueError, match=r"expected predictions from 0 to 1, found \[2\]"):
        SubtaskAccuracy().compute(predictions=[2], references=[0], classes=["a", "b"])
    with pytest.raises(ValueError, match=r"expected references from 0 to 1, found \[-1\]"):
        confusion_matrix([0], [-1], ["a", "b"])
    with pytest.raises(ValueError, match="expected 2 predictions, found 1"):
        confusion_matrix([0], [0, 1], ["a", "b"])
    with pytest.raises(ValueError, match="apply a softmax"):
        CalibrationError().compute(predictions=[[2.0, -1.0]], references=[0])
    with pytest.raises(ValueError, match="at least one bin"):
        CalibrationError().compute(predictions=[[1.0, 0.0]], references=[0], bins=0)
    with pytest.raises(ValueError, match=r"expected references from 0 to 1, found \[2\]"):
        CalibrationError().compute(predictions=[[1.0, 0.0]], references=[2])
