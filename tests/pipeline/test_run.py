"""The way of a run: which methods are trained, and from which start."""

import copy
from pathlib import Path

import pytest
import torch

from helpers import assert_equal_weights, config, task_options, weights_of, write_task
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.pipeline.run import build_run, distill, methods_of
from subdistill_hf.pipeline.task import load_task

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("distill"))


def test_methods_are_trained_baselines_first_and_each_once(tmp_path):
    chosen = config(tmp_path, method="kd")
    assert methods_of(TaskOptions(), chosen) == ["kd"]
    assert methods_of(TaskOptions(compare=["subdistill", "kd", "scratch", "kd"]), chosen) == [
        "scratch",
        "kd",
        "subdistill",
    ]


def test_a_run_changes_nothing_of_what_was_given(inputs, tmp_path):
    options = task_options(inputs, compare=["kd"], train_images_per_class=5)
    open_settings = {"learning_rate": 0, "teacher_cache": "auto", "rotation": "auto", "cuda_graphs": "all"}
    settings = config(tmp_path / "out", method="subdistill", max_steps=2, **open_settings)
    before = copy.deepcopy((options, settings))
    report = distill(options, settings)
    assert (options, settings) == before
    assert vars(settings).keys() == vars(before[1]).keys()
    chosen = report.hyperparameters
    assert (chosen["learning_rate"], chosen["teacher_cache"], chosen["rotation"]) == (1.6e-2, "8", "procrustes")


def test_every_method_starts_from_the_same_student_and_sees_the_same_views(inputs, tmp_path):
    task = load_task(task_options(inputs), config(tmp_path / "out", method="subdistill"))
    runs = [build_run(task, method) for method in ("scratch", "kd", "subdistill")]
    assert [len(run.trainer.pairs) for run in runs] == [0, 0, 3]
    assert [run.trainer.teacher is None for run in runs] == [True, False, False]
    first = runs[0]
    for run in runs[1:]:
        assert_equal_weights(weights_of(run.trainer.model), weights_of(first.trainer.model))
        for epoch in (0, 3):
            for prepared in (run, first):
                prepared.trainer.train_dataset.set_epoch(epoch)
            for index in range(0, 15, 7):
                ours, theirs = run.trainer.train_dataset[index], first.trainer.train_dataset[index]
                assert torch.equal(ours["image"], theirs["image"])
    assert [Path(run.trainer.args.output_dir).name for run in runs] == ["scratch", "kd", "subdistill"]
    assert task.config.method == "subdistill"
    batch = next(iter(runs[2].trainer.get_train_dataloader()))
    assert batch["pixel_values"].shape[2:] == (32, 32)
    assert batch["teacher_pixel_values"].shape[2:] == (40, 40)


def test_compared_methods_have_weights_of_their_own(inputs, tmp_path):
    task = load_task(
        task_options(inputs),
        config(tmp_path / "out", method="subdistill", layer_weight=7.0, task_weight=0.5, kd_weight=0.25),
    )
    weights = {method: build_run(task, method).trainer.args.weights() for method in ("kd", "fitnet", "subdistill")}
    assert weights == {
        "kd": {"task": 0.0, "kd": 1.0, "layer": 0.0},
        "fitnet": {"task": 0.0, "kd": 1.0, "layer": 1.0},
        "subdistill": {"task": 0.5, "kd": 0.25, "layer": 7.0},
    }
