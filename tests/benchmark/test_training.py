"""One run of a benchmark is measured as a run of a user is."""

from dataclasses import asdict

import pytest
import torch

from helpers import CLASS_IDS, config, save_teacher, task_options, write_image_folder
from subdistill_hf.benchmark.jobs import Job
from subdistill_hf.benchmark.training import machine, train_job
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.pipeline.run import distill

NAMES = [CLASS_NAMES[class_id] for class_id in CLASS_IDS]


@pytest.mark.usefixtures("datasets_cache", "quick_reports")
def test_the_answer_for_other_classes_is_shifted_as_in_what_a_user_gets(tmp_path):
    save_teacher(tmp_path / "teacher")
    write_image_folder(tmp_path / "images", class_ids=(*CLASS_IDS, 20, 21, 22, 23, 24), train=6, test=3)
    options = task_options(tmp_path, dataset=str(tmp_path / "images"), classes=NAMES, other_class=True)
    settings = config(tmp_path / "out", method="subdistill", max_steps=2)
    report = distill(options, settings)
    chosen = {"method": "subdistill", "max_steps": 2, "learning_rate": report.published_result.learning_rate}
    chosen |= {name: getattr(settings, name) for name in ("use_cpu", "per_device_train_batch_size", "rotation")}
    named = {"subtask": "ours", "student": options.student, "train_images": 6, "seed": settings.seed, "tuned": {}}
    row = train_job(Job(**named, method="subdistill", task=asdict(options), training=chosen))
    teacher, student = report.results
    assert 0 not in (teacher.other_shift, student.other_shift)  # otherwise the figures say nothing
    assert (row["teacher_test"], row["test"]) == (teacher.accuracy, student.accuracy)
    assert row["test_agreement"] == student.teacher_agreement


@pytest.mark.parametrize(("threads", "told"), [(1, ", 1 thread a run, torch "), (2, ", 2 threads a run, torch ")])
def test_the_threads_of_a_run_are_told_as_many_as_there_are(monkeypatch, threads, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert told in machine()
