"""The body of a run: which methods are trained from which start, and what may be overwritten."""

from pathlib import Path

import pytest
import torch

from helpers import assert_equal_weights, config, task_options, weights_of, write_task
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.errors import SubDistillError
from subdistill_hf.pipeline.run import (
    _build,
    _check_folder,
    _checkpoint,
    _methods,
    _remove_empty_folders,
    _remove_old_run,
    _resume_option,
)
from subdistill_hf.pipeline.task import load_task

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("distill"))


def test_methods_are_trained_baselines_first_and_each_once(tmp_path):
    chosen = config(tmp_path, method="kd")
    assert _methods(TaskOptions(), chosen) == ["kd"]
    assert _methods(TaskOptions(compare=["subdistill", "kd", "scratch", "kd"]), chosen) == [
        "scratch",
        "kd",
        "subdistill",
    ]
    with pytest.raises(SubDistillError, match="compare='fitnets': expected one of scratch, kd, ce_kd"):
        _methods(TaskOptions(compare=["kd", "fitnets"]), chosen)


def test_every_method_starts_from_the_same_student_and_sees_the_same_views(inputs, tmp_path):
    task = load_task(task_options(inputs), config(tmp_path / "out", method="subdistill"))
    runs = [_build(task, method, announce=False) for method in ("scratch", "kd", "subdistill")]
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
    weights = {
        method: _build(task, method, announce=False).trainer.args.weights()
        for method in ("kd", "fitnet", "subdistill")
    }
    assert weights == {
        "kd": {"task": 0.0, "kd": 1.0, "layer": 0.0},
        "fitnet": {"task": 0.0, "kd": 1.0, "layer": 1.0},
        "subdistill": {"task": 0.5, "kd": 0.25, "layer": 7.0},
    }


# Folders


def touch(path, text="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_new_or_empty_folder_may_be_used(tmp_path):
    _check_folder(TaskOptions(), config(tmp_path / "new"))
    _check_folder(TaskOptions(), config(tmp_path))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("file", ["report.json", "runs/kd/checkpoint-3/model.safetensors"])
def test_a_folder_with_another_run_needs_overwrite_or_resume(tmp_path, file):
    kept = touch(tmp_path / file)
    with pytest.raises(
        SubDistillError, match=r"already holds another run: --resume_from_checkpoint true .* --overwri"
    ):
        _check_folder(TaskOptions(), config(tmp_path))
    with pytest.raises(SubDistillError, match="already holds another run"):
        _check_folder(TaskOptions(), config(tmp_path, resume_from_checkpoint="false"))
    _check_folder(TaskOptions(overwrite=True), config(tmp_path))
    touch(tmp_path / "runs" / "subdistill" / "checkpoint-4" / "trainer_state.json", '{"global_step": 4}')
    _check_folder(TaskOptions(), config(tmp_path, resume_from_checkpoint="true"))
    assert kept.is_file()


@pytest.mark.parametrize("given", [{}, {"overwrite": True}])
def test_a_folder_with_other_files_is_never_used(tmp_path, given):
    kept = touch(tmp_path / "thesis.txt")
    for resume in (None, "true"):
        with pytest.raises(SubDistillError, match="already holds other files: give another --output_dir"):
            _check_folder(TaskOptions(**given), config(tmp_path, resume_from_checkpoint=resume))
    assert kept.is_file()


def test_a_file_is_no_output_folder(tmp_path):
    touch(tmp_path / "out")
    with pytest.raises(SubDistillError, match="is a file: expected a folder"):
        _check_folder(TaskOptions(overwrite=True), config(tmp_path / "out"))


def test_only_empty_folders_are_taken_back(tmp_path):
    kept = touch(tmp_path / "runs" / "kd" / "a.txt")
    (tmp_path / "runs" / "subdistill" / "deep").mkdir(parents=True)
    _remove_empty_folders(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]
    assert not (tmp_path / "runs" / "subdistill").exists()
    kept.unlink()
    _remove_empty_folders(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize(("given", "expected"), [(None, False), ("false", False), ("no", False), ("True", True)])
def test_resuming_is_asked_for_in_words(tmp_path, given, expected):
    assert _resume_option(config(tmp_path, resume_from_checkpoint=given)) is expected


def test_a_checkpoint_of_the_run_may_be_named_from_anywhere(tmp_path, monkeypatch):
    for step in (2, 4):
        touch(tmp_path / "out" / "runs" / "kd" / f"checkpoint-{step}" / "trainer_state.json", '{"global_step": 2}')
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "out" / "runs" / "kd" / "checkpoint-2"
    for text in (str(named), "out/runs/kd/checkpoint-2", "./out/../out/runs/kd/checkpoint-2"):
        resume = _resume_option(config("out", resume_from_checkpoint=text))
        assert Path(_checkpoint(resume, Path("out/runs/kd"))).resolve() == named
        assert _checkpoint(resume, Path("out/runs/subdistill")) is None
    assert _checkpoint(True, Path("out/runs/kd")) == "out/runs/kd/checkpoint-4"
    assert _checkpoint(False, Path("out/runs/kd")) is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    elsewhere = touch(tmp_path / "other" / "runs" / "kd" / "checkpoint-2" / "trainer_state.json").parent
    for path in (elsewhere, tmp_path / "out" / "runs" / "kd" / "checkpoint-2"):
        with pytest.raises(
            SubDistillError, match="expected true, for the last checkpoint, or a checkpoint's folder in"
        ):
            _resume_option(config(tmp_path / "out", resume_from_checkpoint=str(path)))


def test_a_finished_student_is_not_replaced_by_resuming_another_method(tmp_path):
    touch(tmp_path / "report.json")
    state = tmp_path / "runs" / "subdistill" / "checkpoint-4" / "trainer_state.json"
    touch(state, '{"global_step": 4}')
    for method, fits in (("subdistill", True), ("fitnet", False)):
        chosen = config(tmp_path, method=method, resume_from_checkpoint="true")
        if fits:
            _check_folder(TaskOptions(), chosen)
            continue
        with pytest.raises(SubDistillError, match="a finished student and no checkpoint of method fitnet"):
            _check_folder(TaskOptions(), chosen)
    (tmp_path / "report.json").unlink()  # stopped in the first of several methods
    _check_folder(TaskOptions(), config(tmp_path, method="fitnet", resume_from_checkpoint="true"))


def test_a_folder_whose_run_was_stopped_at_once_may_be_overwritten_again(tmp_path):
    touch(tmp_path / "report.json")
    touch(tmp_path / "config.json")
    _remove_old_run(tmp_path)
    assert not (tmp_path / "report.json").exists()
    _check_folder(TaskOptions(overwrite=True), config(tmp_path))
