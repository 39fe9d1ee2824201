"""A saved student, a dataset, and `evaluate`'s evaluator of image classification."""

import evaluate
import pytest
import torch

from helpers import NAMES, processor, resnet, subtask_rows, with_confident_head
from subdistill_hf.metrics import CalibrationError, ProbabilityEvaluator, SubtaskAccuracy, TeacherAgreement
from subdistill_hf.models.heads import labels_of

TIMES = {"total_time_in_seconds", "samples_per_second", "latency_in_seconds"}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student's folder, its labels in another order than the dataset's, and its probabilities in the dataset's."""
    folder = tmp_path_factory.mktemp("student")
    order = [2, 0, 1]
    model = with_confident_head(resnet([NAMES[label] for label in order])).eval()
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    images = [image.convert("RGB") for image in subtask_rows(4, "test")["img"]]
    with torch.no_grad():
        logits = model(**processor()(images=images, return_tensors="pt")).logits
    return str(folder), logits.softmax(dim=1)[:, [order.index(label) for label in range(3)]]


def evaluated(evaluator, folder, metric):
    result = evaluator.compute(
        folder,
        subtask_rows(4, "test"),
        metric=metric,
        input_column="img",
        label_column="fine_label",
        label_mapping=labels_of(NAMES)["label2id"],
    )
    return {name: value for name, value in result.items() if name not in TIMES}


def test_the_evaluator_measures_accuracy_and_agreement_of_a_saved_student(student):
    folder, probabilities = student
    predictions, labels = probabilities.argmax(dim=1).tolist(), subtask_rows(4, "test")["fine_label"][:]
    assert len(set(predictions)) > 1
    teacher = [0, 1, 2] * 4
    metric = evaluate.combine([SubtaskAccuracy(classes=NAMES), TeacherAgreement(teacher=teacher)])
    assert evaluated(evaluate.evaluator("image-classification"), folder, metric) == {
        **SubtaskAccuracy().compute(predictions=predictions, references=labels, classes=NAMES),
        **TeacherAgreement().compute(predictions=predictions, references=teacher),
    }


def test_the_evaluator_of_probabilities_measures_calibration_too(student):
    folder, probabilities = student
    labels = subtask_rows(4, "test")["fine_label"][:]
    metric = evaluate.combine([SubtaskAccuracy(), CalibrationError()])
    found = evaluated(ProbabilityEvaluator(), folder, metric)
    expected = CalibrationError().compute(predictions=probabilities.double().tolist(), references=labels)
    assert found["expected_calibration_error"] == pytest.approx(expected["expected_calibration_error"], abs=1e-5)
    assert found["accuracy"] == pytest.approx(
        float((probabilities.argmax(dim=1) == torch.tensor(labels)).float().mean())
    )


def test_probabilities_need_the_order_of_the_classes():
    with pytest.raises(ValueError, match=r"label_mapping=model\.config\.label2id"):
        ProbabilityEvaluator().predictions_processor([[{"label": "a", "score": 1.0}]], None)
