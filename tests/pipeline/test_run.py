"""The way of a run: which methods are trained, and from which start."""

import collections
import copy
from pathlib import Path

import pytest
import torch
from huggingface_hub import utils as hub
from transformers.utils import logging as transformers_logging

from helpers import (
    assert_equal_weights,
    config,
    save_teacher,
    task_options,
    weights_of,
    write_colour_folder,
    write_task,
)
from subdistill_hf.acceleration.threads import Threads
from subdistill_hf.config.commands import AdaptOptions
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.errors import DivergedError, SubDistillError
from subdistill_hf.models.loading import load_teacher, weights_digest
from subdistill_hf.pipeline import adaptation
from subdistill_hf.pipeline.adapted_teacher import adapt_teacher
from subdistill_hf.pipeline.quiet import hidden_weight_bars
from subdistill_hf.pipeline.run import MethodRun, announce_resumed, build_run, distill, methods_of, teacher_of
from subdistill_hf.pipeline.task import load_task
from subdistill_hf.pipeline.validation import validate_options
from subdistill_hf.teacher import teacher
from subdistill_hf.training import plan
from subdistill_hf.training.trainer import SubDistillTrainer

pytestmark = pytest.mark.usefixtures("datasets_cache", "quick_reports")


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


@pytest.fixture(scope="module")
def asked_in_finished():
    """The operations by which the run `finished` chose its threads."""
    return []


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory, asked_in_finished):
    """The report of a run of three methods, what it was given, before and after, and how often its parts were made."""
    options = task_options(inputs, compare=["kd", "fitnet"], train_images_per_class=5)
    open_settings = {"learning_rate": 0, "teacher_cache": "auto", "rotation": "auto", "cuda_graphs": "all"}
    settings = config(tmp_path_factory.mktemp("finished") / "out", method="subdistill", max_steps=2, **open_settings)
    before = copy.deepcopy((options, settings))
    with pytest.MonkeyPatch.context() as patch:
        counts = count_calls(patch)
        choose_threads(patch, 1, asked_in_finished)
        report = distill(options, settings)
    return report, before, (options, settings), counts


def choose_threads(patch, count, asked):
    """Let a run choose so many threads, and note the operations of its networks."""

    def chosen(settings, networks):
        asked.extend(operations for _, operations in networks)
        return Threads(count, "since so many are enough")

    patch.setattr("subdistill_hf.pipeline.task.resolve_threads", chosen)


def count_calls(patch):
    """How often weights are hashed, layers paired, subspaces fitted and trainers made from now on."""
    counts = collections.Counter()

    def count(owner, name):
        real = getattr(owner, name)

        def counted(*given, **options):
            counts[name] += 1
            return real(*given, **options)

        patch.setattr(owner, name, counted)

    for module in (teacher, plan, adaptation):
        count(module, "weights_digest")
    count(plan, "fit_pairs")
    count(plan, "match_models")
    count(SubDistillTrainer, "__init__")
    return counts


def test_each_part_of_a_run_is_made_once(finished):
    """The weights of the teacher are hashed once for three trainings, and the layers of each are paired once."""
    report, _, _, counts = finished
    assert len(report.results) == 1 + 3
    assert counts == {"weights_digest": 1, "fit_pairs": 1, "match_models": 3, "__init__": 3}


def test_an_adapted_teacher_makes_nothing_twice(tmp_path):
    """Hashed are what it was before, for the adapter and for its training's checkpoints, and what it has become.

    A trainer of the teacher is made twice: the first one only shows whether anything refuses the training.
    """
    save_teacher(tmp_path / "teacher")
    write_colour_folder(tmp_path / "images", ("blue", "red"), train=10, test=2)
    options = task_options(tmp_path, classes=["blue", "red"], adapt_teacher="lora", adapt_epochs=1, html_report=False)
    with pytest.MonkeyPatch.context() as patch:
        counts = count_calls(patch)
        report = distill(options, config(tmp_path / "out", method="subdistill", max_steps=2))
    assert counts == {"weights_digest": 3, "fit_pairs": 1, "match_models": 1, "__init__": 3}
    fitted = load_teacher(str(tmp_path / "out" / adaptation.ADAPTER_FOLDER))
    assert report.teacher.digest == weights_digest(fitted.model)
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_run_changes_nothing_of_what_was_given(finished):
    report, before, (options, settings), _ = finished
    assert (options, settings) == before
    assert vars(settings).keys() == vars(before[1]).keys()
    chosen = report.hyperparameters
    assert (chosen["learning_rate"], chosen["rotation"]) == (1.6e-2, "procrustes")
    assert "teacher_cache" not in chosen  # two steps see no image twice


def test_every_method_starts_from_the_same_student_and_sees_the_same_views(inputs, tmp_path):
    task = load_task(task_options(inputs), config(tmp_path / "out", method="subdistill"))
    runs = [build_run(task, method, teacher_of(task)) for method in ("scratch", "kd", "subdistill")]
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


def test_a_run_says_how_many_threads_it_uses_and_leaves_as_many_as_before(inputs, tmp_path, monkeypatch, capsys):
    """A short one: where other tests keep the cores busy, two threads wait for each other most of the time."""
    seen, real = [], SubDistillTrainer.compute_loss

    def noted(trainer, *given, **options):
        seen.append(torch.get_num_threads())
        return real(trainer, *given, **options)

    monkeypatch.setattr(SubDistillTrainer, "compute_loss", noted)
    choose_threads(monkeypatch, 2, [])
    options = task_options(inputs, train_images_per_class=4, html_report=False)
    distill(options, config(tmp_path / "out", method="scratch", max_steps=1))
    assert set(seen) == {2}
    assert torch.get_num_threads() == 1
    assert "threads  2 in each process: since so many are enough\n" in capsys.readouterr().out


def test_the_threads_of_a_run_are_chosen_once_by_its_teacher_and_its_student(finished, asked_in_finished):
    assert len(asked_in_finished) == 2  # three methods train the student
    assert min(asked_in_finished) > 0


def test_smoothed_labels_are_of_the_methods_that_learn_from_labels(inputs, tmp_path):
    options = task_options(inputs, compare=["scratch", "ce_kd"])
    settings = config(tmp_path, method="kd", label_smoothing_factor=0.1)
    validate_options(options, settings)
    task = load_task(options, settings)
    methods = methods_of(options, settings)
    smoothed = {method: build_run(task, method, teacher_of(task)).trainer.args for method in methods}
    assert {method: args.label_smoothing_factor for method, args in smoothed.items()} == {
        "scratch": 0.1,
        "kd": 0.0,
        "ce_kd": 0.1,
    }
    assert settings.label_smoothing_factor == 0.1


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("shown_by_client", [True, False])
def test_a_run_leaves_bars_of_other_libraries_as_they_were(tmp_path, shown, shown_by_client):
    def switch(ours, client):
        (transformers_logging.enable_progress_bar if ours else transformers_logging.disable_progress_bar)()
        (hub.enable_progress_bars if client else hub.disable_progress_bars)()

    def state():
        return transformers_logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()

    before = state()
    try:
        switch(shown, shown_by_client)
        refused = config(tmp_path, remove_unused_columns=True)
        for run, options in ((distill, TaskOptions()), (adapt_teacher, AdaptOptions())):
            with pytest.raises(SubDistillError, match="remove_unused_columns"):
                run(options, refused)
        assert state() == (shown, shown_by_client)
        with hidden_weight_bars():
            assert state() == (False, False)
    finally:
        switch(*before)


def test_compared_methods_have_weights_of_their_own(inputs, tmp_path):
    task = load_task(
        task_options(inputs),
        config(tmp_path / "out", method="subdistill", layer_weight=7.0, task_weight=0.5, kd_weight=0.25),
    )
    shared, methods = teacher_of(task), ("kd", "fitnet", "subdistill")
    weights = {method: build_run(task, method, shared).trainer.args.weights() for method in methods}
    assert weights == {
        "kd": {"task": 0.0, "kd": 1.0, "layer": 0.0},
        "fitnet": {"task": 0.0, "kd": 1.0, "layer": 100.0},
        "subdistill": {"task": 0.5, "kd": 0.25, "layer": 7.0},
    }


def test_a_training_without_a_checkpoint_is_told_when_a_run_is_resumed(capsys):
    runs = {name: MethodRun(None, None, place, []) for name, place in (("kd", None), ("subdistill", "a/checkpoint-3"))}
    announce_resumed(runs)
    assert capsys.readouterr().out.splitlines() == [
        "resumed  kd from its start: there is no complete checkpoint",
        "resumed  subdistill from checkpoint-3",
    ]


def test_a_student_that_the_last_step_spoiled_is_refused_and_not_written(inputs, tmp_path):
    """The loss before that step was finite, and none comes after it."""
    spoil = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    settings = config(tmp_path / "out", method="kd", max_steps=1, learning_rate=1e30, **spoil)
    with pytest.raises(DivergedError, match=r"the student's logits of .* are NaN or infinite\. Likely causes"):
        distill(task_options(inputs), settings)
    assert not (tmp_path / "out" / "model.safetensors").exists()
