"""What a run reports."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import NAMES, config, task_options, write_task
from reporting.samples import make_report, parsed
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.pipeline.evaluation import Classifier, predict, score, share_taken_for
from subdistill_hf.pipeline.report import (
    changed_options,
    classifiers_of,
    image_options,
    measured_results,
    predicted_logits,
    reported_dataset,
    results_table,
)
from subdistill_hf.pipeline.task import load_task
from subdistill_hf.reporting.card_notes import mark_explanation, mark_limitation
from subdistill_hf.reporting.card_tables import result_rows


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


def report_of(*results, mark=None):
    report = make_report()
    report["classes"], report["results"], report["latency_machine"] = ["a", "b"], results, "a machine"
    report["dataset"] |= {"test_images": 18, "mark": mark}
    return parsed(report)


def result_of(method, accuracy, parameters, median, seconds=None, **figures):
    latency = {"median": median, "low": median, "high": median, "runs": 5}
    sizes = {"parameters": parameters, "latency_ms": latency, "training_seconds": seconds}
    return {"method": method, "accuracy": accuracy, **sizes, **figures}


def test_the_table_has_a_row_for_each_classifier():
    report = report_of(
        result_of("teacher", 0.9, 12345, 3.14159, balanced_accuracy=0.85),
        result_of("subdistill", 5 / 6, 67, 0.2, seconds=61.6, balanced_accuracy=0.75),
    )
    lines = [line.split() for line in results_table(report).strip().splitlines()]
    assert lines[0] == ["accuracy", "balanced", "parameters", "ms/image", "trained", "in"]
    assert lines[2] == ["Teacher", "90.0", "%", "85.0", "%", "12,345", "3.14"]
    assert lines[3] == ["SubDistill", "83.3", "%", "75.0", "%", "67", "0.20", "62", "s"]
    assert " ".join(lines[-2]) == "2 classes, 18 test images; a machine"
    assert " ".join(lines[-1]) == "chance: 50.0 %"


def test_an_accuracy_at_the_share_of_the_largest_class_is_told_from_a_result():
    confusion = [[14, 0], [4, 0]]
    result = result_of("kd", 14 / 18, 67, 0.2, balanced_accuracy=0.5, confusion=confusion)
    *_, machine, chance, note = results_table(report_of(result)).splitlines()
    assert machine == "2 classes, 18 test images; a machine"
    assert chance == "chance: 50.0 %; 77.8 % by always answering 'a', the class with most test images"
    assert note.startswith("note: Logit distillation (KD) is not above that by two standard errors")
    above = result_of("kd", 1.0, 67, 0.2, balanced_accuracy=1.0, confusion=[[14, 0], [0, 4]])
    assert results_table(report_of(above)).splitlines()[-1] == chance


def test_the_table_tells_who_follows_the_mark():
    mark = {"name": "plus", "classes": ["a"], "share": 1.0, "train_images": 2, "validation_images": 0}
    figures = {"balanced_accuracy": 0.25, "clean_accuracy": 0.345, "mark_followed": 0.999}
    report = report_of(result_of("kd", 0.2, 67, 0.2, **figures), mark=mark)
    lines = [line.split("  ") for line in results_table(report).strip().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["accuracy", "balanced", "without mark", "follows mark", "parameters", "ms/image", "trained in"]
    assert cells[2] == ["Logit distillation (KD)", "20.0 %", "25.0 %", "34.5 %", "99.9 %", "67", "0.20"]


def test_the_table_tells_the_accuracy_without_the_answer_none_of_these():
    report = report_of(result_of("kd", 0.8, 67, 0.2, balanced_accuracy=0.75, accuracy_of_classes=0.9))
    printed = results_table(report)
    lines = [line.split("  ") for line in printed.strip().splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0][:3] == ["accuracy", 'without "none"', "balanced"]
    assert cells[2][:4] == ["Logit distillation (KD)", "80.0 %", "90.0 %", "75.0 %"]
    assert 'an answer "none of these" counts as wrong' in printed


@pytest.mark.parametrize(
    ("mix", "said"), [(0.0, "pad_crop"), (0.5, "pad_crop; 50.0 % of the views mixed with a view of another image")]
)
def test_what_is_done_to_the_training_images_is_in_the_report(datasets_cache, tmp_path, mix, said):
    options = task_options(write_task(tmp_path), augmentation="pad_crop", flip=False, mix=mix)
    assert reported_dataset(load_task(options, config(tmp_path / "out"))).augmentation == said


def test_the_images_of_a_run_are_found_from_another_folder(datasets_cache, tmp_path, monkeypatch):
    """Where a folder of the same name may hold other images."""
    given = task_options(write_task(tmp_path))
    monkeypatch.chdir(tmp_path)
    relative = replace(given, dataset=str(Path(given.dataset).relative_to(tmp_path)))
    options = image_options(load_task(relative, config(tmp_path / "out")))
    assert options["dataset"] == str(Path(given.dataset))
    embedded = replace(given, dataset="digits", teacher="glyphs-resnet", classes=["0", "1"])
    (tmp_path / "digits").mkdir()
    assert image_options(SimpleNamespace(options=embedded, config=config(tmp_path / "out")))["dataset"] == "digits"


def measured_alone(task):
    """The figures of the teacher."""
    classifiers = classifiers_of(task, {})
    return measured_results(task, {}, classifiers, predicted_logits(task, classifiers), {})


def test_a_mark_is_in_the_report_with_what_it_does(datasets_cache, tmp_path):
    options = task_options(write_task(tmp_path), mark="plus", mark_classes=[NAMES[2]], mark_share=0.5)
    task = load_task(options, config(tmp_path / "out"))
    mark = {"name": "plus", "classes": (NAMES[2],), "share": 0.5, "train_images": 2, "validation_images": 0}
    assert asdict(reported_dataset(task).mark) == mark
    (teacher,) = measured_alone(task)
    clean = ViewDataset(task.data.test, task.data.columns)
    classifier = Classifier(task.teacher.model, task.teacher.processor, task.data.subtask.teacher_ids)
    logits = predict(classifier, clean)
    assert teacher.clean_accuracy == pytest.approx(score(logits, clean, NAMES, None).accuracy)
    marked = score(predict(classifier, task.test), clean, NAMES, None)
    assert teacher.accuracy == marked.accuracy
    assert teacher.followed_without_mark == share_taken_for(logits, clean.labels, [2])
    plain = load_task(task_options(tmp_path), config(tmp_path / "out"))
    assert reported_dataset(plain).mark is None
    (unmarked,) = measured_alone(plain)
    assert (unmarked.clean_accuracy, unmarked.mark_followed) == (None, None)


def test_a_figure_that_no_test_image_tells_is_missing(datasets_cache, tmp_path):
    folder = write_task(tmp_path)
    for name in NAMES[1:]:
        shutil.rmtree(folder / "images" / "test" / name)
    task = load_task(task_options(folder, mark="plus", mark_classes=[NAMES[0]]), config(tmp_path / "out"))
    (teacher,) = measured_alone(task)
    assert 0 <= teacher.clean_accuracy <= 1
    assert (teacher.mark_followed, teacher.followed_without_mark) == (None, None)
    json.dumps(asdict(teacher), allow_nan=False)
    report = make_report()
    report["dataset"] |= {"mark": asdict(reported_dataset(task).mark)}
    for result in report["results"]:
        result |= {"clean_accuracy": 0.5, "mark_followed": None, "followed_without_mark": None}
    shown = parsed(report)
    assert mark_limitation(shown) is None
    assert f"All of them are of {NAMES[0]}, so nothing tells who follows it." in mark_explanation(shown)
    assert {row["Follows the mark"] for row in result_rows(shown)} == {None}
    assert "nan" not in results_table(shown)
