"""What a run reports."""

import pytest

from helpers import config
from subdistill_hf.report import changed_options, results_table


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_steps": 4}, {"max_steps": 4}),
        ({"max_steps": 4, "num_train_epochs": 0.0}, {"max_steps": 4}),
        ({"max_steps": -1, "num_train_epochs": 7.0}, {"num_train_epochs": 7.0}),
        ({"max_steps": -1, "learning_rate": 1e-3, "centring": "mean"}, {"centring": "mean"}),
    ],
)
def test_hyper_parameters_are_those_that_differ_and_count(tmp_path, given, expected):
    usual = {"per_device_train_batch_size": 64, "seed": 42}
    assert changed_options(config(tmp_path, **usual | given)) == expected


def test_the_table_has_a_row_for_each_classifier():
    report = {
        "results": [
            {"method": "teacher", "accuracy": 0.9, "parameters": 12345, "latency_ms": {"median": 3.14159}},
            {"method": "subdistill", "accuracy": 1 / 3, "parameters": 67, "latency_ms": {"median": 0.2}},
        ],
        "classes": ["a", "b"],
        "dataset": {"test_images": 18},
        "latency_machine": "a machine",
    }
    for result, seconds in zip(report["results"], (None, 61.6), strict=True):
        result["training_seconds"] = seconds
    lines = [line.split() for line in results_table(report).strip().splitlines()]
    assert lines[0] == ["accuracy", "parameters", "ms/image", "trained", "in"]
    assert lines[2] == ["Teacher", "90.0", "%", "12,345", "3.14"]
    assert lines[3] == ["SubDistill", "33.3", "%", "67", "0.20", "62", "s"]
    assert " ".join(lines[-1]) == "2 classes, 18 test images; a machine"
