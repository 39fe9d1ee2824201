"""The folder of a run: what may be used, resumed and overwritten."""

from pathlib import Path

import pytest

from helpers import config, write_checkpoint
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.output_folder import LOCK_FILE
from subdistill_hf.errors import SubDistillError
from subdistill_hf.pipeline.run_folder import (
    check_run_folder,
    checkpoint_of,
    kept_in,
    remove_derived_files,
    remove_empty_folders,
    remove_old_run,
    resumed_from,
)


def touch(path, text="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_new_or_empty_folder_may_be_used(tmp_path):
    check_run_folder(TaskOptions(), config(tmp_path / "new"))
    check_run_folder(TaskOptions(), config(tmp_path))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["teacher", "student", "dataset", "unlabelled", "unknown_images"])
def test_a_folder_that_the_run_reads_is_never_written_to(tmp_path, option):
    run, link = touch(tmp_path / "run" / "report.json").parent, tmp_path / "link"
    link.symlink_to(run)
    (run / "images").mkdir()
    for place in (run, run / "images", link / ".." / "run"):
        options = TaskOptions(**{"dataset": "glyphs-100", option: str(place)}, overwrite=True)
        with pytest.raises(SubDistillError, match=f"^{option}=.* lies in the output folder"):
            check_run_folder(options, config(run))
    touch(tmp_path / "beside" / "report.json")
    options = TaskOptions(**{"dataset": "glyphs-100", option: str(tmp_path / "beside")}, overwrite=True)
    check_run_folder(options, config(run))


@pytest.mark.parametrize("file", ["report.json", "runs/kd/checkpoint-3/model.safetensors"])
def test_a_folder_with_another_run_needs_overwrite_or_resume(tmp_path, file):
    kept = touch(tmp_path / file)
    with pytest.raises(
        SubDistillError, match=r"already holds another run: --resume_from_checkpoint true .* --overwri"
    ):
        check_run_folder(TaskOptions(), config(tmp_path))
    with pytest.raises(SubDistillError, match="already holds another run"):
        check_run_folder(TaskOptions(), config(tmp_path, resume_from_checkpoint="false"))
    check_run_folder(TaskOptions(overwrite=True), config(tmp_path))
    write_checkpoint(tmp_path / "runs" / "subdistill" / "checkpoint-4", 4)
    check_run_folder(TaskOptions(), config(tmp_path, resume_from_checkpoint="true"))
    assert kept.is_file()


@pytest.mark.parametrize("given", [{}, {"overwrite": True}])
def test_a_folder_with_other_files_is_never_used(tmp_path, given):
    kept = touch(tmp_path / "thesis.txt")
    for resume in (None, "true"):
        with pytest.raises(SubDistillError, match="already holds other files: give another --output_dir"):
            check_run_folder(TaskOptions(**given), config(tmp_path, resume_from_checkpoint=resume))
    assert kept.is_file()


def test_the_lock_of_this_run_is_no_other_file(tmp_path):
    touch(tmp_path / LOCK_FILE)
    check_run_folder(TaskOptions(), config(tmp_path))


@pytest.mark.parametrize(
    ("there", "kept"),
    [
        ([], "Kept: nothing. To go on: the same command, which starts again"),
        (["runs/kd/checkpoint-3/model.safetensors"], "Kept: nothing. To go on: the same command with --overwrite, "),
        (
            ["runs/kd/checkpoint-3/trainer_state.json"],
            "Kept: nothing. To go on: the same command with --resume_from_checkpoint true, or with --overwrite",
        ),
        (
            ["runs/subdistill/checkpoint-3/trainer_state.json", "report.json"],
            "Kept: all figures in {folder}/report.json and the training up to "
            "{folder}/runs/subdistill/checkpoint-3. To go on: the same command with --resume_from_checkpoint true, ",
        ),
        (["report.json", "model.safetensors"], "{folder}/report.json and the student in {folder}. To go on: "),
    ],
)
def test_what_a_run_that_was_cut_short_leaves_is_named(tmp_path, there, kept):
    for name in there:
        if name.endswith("trainer_state.json"):
            write_checkpoint((tmp_path / name).parent, 3)
        else:
            touch(tmp_path / name)
    assert kept.format(folder=tmp_path) in kept_in(tmp_path, "subdistill")


def test_only_empty_folders_are_taken_back(tmp_path):
    kept = touch(tmp_path / "runs" / "kd" / "a.txt")
    (tmp_path / "runs" / "subdistill" / "deep").mkdir(parents=True)
    remove_empty_folders(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]
    assert not (tmp_path / "runs" / "subdistill").exists()
    kept.unlink()
    remove_empty_folders(tmp_path)
    assert not tmp_path.exists()


@pytest.mark.parametrize(("given", "expected"), [(None, False), ("false", False), ("no", False), ("True", True)])
def test_resuming_is_asked_for_in_words(tmp_path, given, expected):
    assert resumed_from(config(tmp_path, resume_from_checkpoint=given)) is expected


def test_a_checkpoint_of_the_run_may_be_named_from_anywhere(tmp_path, monkeypatch):
    for step in (2, 4):
        write_checkpoint(tmp_path / "out" / "runs" / "kd" / f"checkpoint-{step}", step)
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "out" / "runs" / "kd" / "checkpoint-2"
    for text in (str(named), "out/runs/kd/checkpoint-2", "./out/../out/runs/kd/checkpoint-2"):
        resume = resumed_from(config("out", resume_from_checkpoint=text))
        assert Path(checkpoint_of(resume, Path("out/runs/kd"))).resolve() == named
        assert checkpoint_of(resume, Path("out/runs/subdistill")) is None
    assert checkpoint_of(True, Path("out/runs/kd")) == "out/runs/kd/checkpoint-4"
    assert checkpoint_of(False, Path("out/runs/kd")) is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    elsewhere = touch(tmp_path / "other" / "runs" / "kd" / "checkpoint-2" / "trainer_state.json").parent
    for path in (elsewhere, tmp_path / "out" / "runs" / "kd" / "checkpoint-2"):
        with pytest.raises(
            SubDistillError, match="expected true, for the last checkpoint, or a checkpoint's folder in"
        ):
            resumed_from(config(tmp_path / "out", resume_from_checkpoint=str(path)))


def test_a_finished_student_is_not_replaced_by_resuming_another_method(tmp_path):
    touch(tmp_path / "report.json")
    write_checkpoint(tmp_path / "runs" / "subdistill" / "checkpoint-4", 4)
    for method, fits in (("subdistill", True), ("fitnet", False)):
        chosen = config(tmp_path, method=method, resume_from_checkpoint="true")
        if fits:
            check_run_folder(TaskOptions(), chosen)
            continue
        with pytest.raises(SubDistillError, match="a finished student and no checkpoint of method fitnet"):
            check_run_folder(TaskOptions(), chosen)
    (tmp_path / "report.json").unlink()  # stopped in the first of several methods
    check_run_folder(TaskOptions(), config(tmp_path, method="fitnet", resume_from_checkpoint="true"))


def test_a_folder_whose_run_was_stopped_at_once_may_be_overwritten_again(tmp_path):
    touch(tmp_path / "report.json")
    touch(tmp_path / "config.json")
    remove_old_run(tmp_path)
    assert not (tmp_path / "report.json").exists()
    check_run_folder(TaskOptions(overwrite=True), config(tmp_path))


def test_what_was_made_of_an_earlier_student_goes_and_files_of_others_stay(tmp_path):
    names = [
        *("report.html", "wrong_answers/1.webp", "explanations/explanations.json", "explanations/000.png"),
        *("onnx/export.json", "onnx/transformers_js/config.json", "executorch/export.json"),
    ]
    for name in names:
        touch(tmp_path / name)
    remove_derived_files(tmp_path)
    assert list(tmp_path.iterdir()) == []
    mine = [touch(tmp_path / folder / "letter.txt") for folder in ("explanations", "onnx")]
    remove_derived_files(tmp_path)
    assert all(path.is_file() for path in mine)
