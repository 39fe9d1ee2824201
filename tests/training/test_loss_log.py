"""Parts of the loss are averaged between log entries, and the first bad one is named."""

from __future__ import annotations

import math
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState, default_data_collator

from helpers import CLASS_IDS, convnext, teacher_resnet, trainer
from subdistill_hf.errors import DistillationError, DivergedError, NonFiniteLossError
from subdistill_hf.training.loss_log import LossLog
from subdistill_hf.training.trainer import SubDistillTrainer


def parts(**values: float) -> tuple[list[str], torch.Tensor]:
    return list(values), torch.tensor(list(values.values()), dtype=torch.float64)


def test_means_are_over_the_batches_since_the_last_call():
    tracked = LossLog()
    tracked.add(*parts(kd=1.0, layer=10.0), step=0)
    tracked.add(*parts(kd=2.0, layer=30.0), step=1)
    assert {name: float(value) for name, value in tracked.means(1).items()} == {"kd": 1.5, "layer": 20.0}
    assert tracked.count == 0
    tracked.add(*parts(kd=5.0, layer=7.0), step=2)
    assert {name: float(value) for name, value in tracked.means(2).items()} == {"kd": 5.0, "layer": 7.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nan_or_infinite_part_stops_at_once_on_the_cpu(bad):
    tracked = LossLog()
    tracked.add(*parts(kd=1.0, layer=2.0), step=6)
    with pytest.raises(NonFiniteLossError, match=r"the loss of layer is NaN or infinite near step 7"):
        tracked.add(*parts(kd=1.0, layer=bad), step=7)


def test_a_part_that_comes_later_is_averaged_over_all_batches():
    tracked = LossLog()
    tracked.add(*parts(kd=1.0), step=0)
    tracked.add(*parts(kd=2.0, layer=4.0), step=1, share=0.5)
    tracked.add(*parts(kd=3.0, layer=8.0), step=1, share=0.5)
    assert {name: float(value) for name, value in tracked.means(1).items()} == {"kd": 1.75, "layer": 3.0}


def test_on_an_accelerator_the_first_bad_batch_is_what_is_named(monkeypatch):
    """Where nothing looks at once, later batches are NaN everywhere; the message must name the part that began."""
    tracked = LossLog()
    look = LossLog._stop_if_not_finite
    monkeypatch.setattr(LossLog, "_stop_if_not_finite", lambda *arguments: None)  # as on an accelerator
    tracked.add(*parts(kd=1.0, layer=math.nan), step=3)
    tracked.add(*parts(kd=math.nan, layer=math.nan), step=4)
    monkeypatch.setattr(LossLog, "_stop_if_not_finite", look)
    with pytest.raises(NonFiniteLossError, match="the loss of layer is"):
        tracked.means(4)


def test_a_trainer_trains_again_after_a_run_that_stopped_on_a_bad_loss(tmp_path):
    run = trainer(tmp_path, max_steps=2, logging_steps=1)
    run.args.layer_weight = 1e38  # of a sum beyond what float32 holds
    with pytest.raises(NonFiniteLossError):
        run.train()
    run.args.layer_weight = 1.0
    run.train()
    assert all(math.isfinite(entry["loss"]) for entry in run.state.log_history if "loss" in entry)


# How a training ended


def course(*losses):
    tracked = LossLog()
    for step, loss in enumerate(losses):
        tracked.add(*parts(kd=loss), step=step)
    return tracked


def state(step=10, *logged):
    return TrainerState(global_step=step, log_history=[{"loss": loss} for loss in logged])


@pytest.mark.parametrize(
    ("losses", "smallest", "logged", "diverged"),
    [
        ([4e4] + [1e19] * 30, 1.0, (), True),
        ([4e4] + [5e6] * 30, 1.0, (), True),
        ([4e4] * 30, 1.0, (), False),
        ([4e4, *[1e19] * 10, *[3e4] * 30], 1.0, (), False),  # it came back
        ([4e4] * 30 + [1e19] * 3, 1.0, (), False),  # a few bad batches
        ([1e-9] + [0.5] * 30, 2.0, (), False),  # a student that began as its teacher
        ([4e4] + [5e7] * 30, 1.0, (9e5,), True),
        ([1e12] * 30, 1.0, (4e4,), True),  # resumed after it had diverged
        ([1e12] * 30, 1.0, (1e12,), False),
        ([4e4, 1e8, 1e14, 1e19], 1.0, (), True),
        ([], 1.0, (4e4,), False),  # resumed at its end
    ],
)
def test_a_training_has_diverged_when_its_last_losses_are_far_above_the_first(losses, smallest, logged, diverged):
    tracked = course(*losses)
    if not diverged:
        tracked.check_end(state(10, *logged), smallest)
        return
    last = 1e14 if len(losses) == 4 else losses[-1]
    with pytest.raises(DivergedError, match=re.escape(f"the loss of its last steps is {last:.3g}, and was 4e+04")):
        tracked.check_end(state(10, *logged), smallest)


def test_the_ends_of_several_processes_are_averaged():
    course(1.0, 50.0).check_end(state(), 1.0, lambda ends: ends)
    with pytest.raises(DivergedError):
        course(1.0, 50.0).check_end(state(), 1.0, lambda ends: (ends + torch.tensor([1.0, 1e4])) / 2)


def test_a_run_that_diverges_to_finite_values_ends_with_an_error(tmp_path):
    run = trainer(tmp_path, method="kd", max_steps=6, learning_rate=1e4, optim="sgd", max_grad_norm=0.0)
    for weight in run.model.classifier.parameters():
        weight.register_hook(lambda gradient: -gradient.sign())  # uphill
    with pytest.raises(DivergedError, match=r"has diverged.*learning rate"):
        run.train()
    assert run.state.global_step == 6


@pytest.mark.parametrize(
    ("before", "logged", "message"),
    [
        ([4e4] * 5, (), None),
        ([4e4] + [1e10] * 5, (), "not usable"),
        ([], (3e4,), None),  # resumed after the checkpoint
        ([], (), "not usable"),
    ],
)
def test_the_student_of_a_checkpoint_from_before_the_divergence_is_handed_out(before, logged, message, caplog):
    tracked = course(*before)
    tracked.note_checkpoint(5)
    for step in range(30):
        tracked.add(*parts(kd=4e4 if not step and not before else 1e12), step=step)
    history = state(36)
    history.log_history = [{"loss": loss, "step": 4} for loss in logged] + [{"loss": 1e12, "step": 30}]
    if message is None:
        tracked.check_end(history, 1.0, loaded=5)
        assert tracked.kept_from == 5
        assert "has diverged" in caplog.text
        assert "best checkpoint, of step 5, where the loss was" in caplog.text
        return
    with pytest.raises(DivergedError, match=message):
        tracked.check_end(history, 1.0, loaded=5)


class UphillFrom(TrainerCallback):
    """Makes the loss grow from a step on."""

    def __init__(self, step, gradient=lambda gradient: -gradient.sign()):
        self.step, self.gradient = step, gradient

    def on_step_begin(self, args, state, control, model=None, **given):
        if state.global_step == self.step:
            for weight in model.classifier.parameters():
                weight.register_hook(self.gradient)


def with_a_best_checkpoint(folder, **options):
    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    given = {"learning_rate": 1e-3, "optim": "sgd", "max_grad_norm": 0.0}
    return trainer(folder, method="kd", max_steps=6, **every, **best, **given, **options)


def test_a_training_that_diverges_hands_out_its_best_checkpoint_if_it_loads_it(tmp_path, caplog):
    run = with_a_best_checkpoint(
        tmp_path, parts={"callbacks": [UphillFrom(2, lambda gradient: -1e8 * gradient.sign())]}
    )
    run.train()
    assert run.state.best_global_step == 2
    assert "the student is that of the best checkpoint, of step 2" in caplog.text.lower()
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in run.model.state_dict().items())


def test_a_loss_that_becomes_nan_names_the_best_checkpoint(tmp_path):
    run = with_a_best_checkpoint(tmp_path, parts={"callbacks": [UphillFrom(3, lambda gradient: gradient * math.nan)]})
    with pytest.raises(
        NonFiniteLossError, match=r"is NaN or infinite.*The best student before that is in .*checkpoint-2"
    ):
        run.train()


def test_a_run_without_a_step_ends_with_an_error(tmp_path):
    options = {"per_device_train_batch_size": 64, "dataloader_drop_last": True}
    for steps in (5, -1):
        run = trainer(tmp_path, max_steps=steps, **options)
        with pytest.raises(DistillationError, match=r"24 training images are fewer than a batch of 64.*at most 24"):
            run.train()
    with pytest.raises(DistillationError, match="num_train_epochs=0: there is nothing to train"):
        trainer(tmp_path, max_steps=-1, num_train_epochs=0).train()

    class Dry(SubDistillTrainer):
        def get_batch_samples(self, *given, **named):
            return [], None

    run = trainer(tmp_path, trainer_class=Dry, max_steps=2)
    with pytest.raises(DistillationError, match="nothing was trained: there was no batch"):
        run.train()


@pytest.mark.parametrize("method", ["kd", "subdistill"])
def test_a_nan_of_the_teacher_is_not_blamed_on_the_learning_rate(tmp_path, method):
    given = trainer(tmp_path / "given").fit_subspaces() if method == "subdistill" else None
    teacher = teacher_resnet()
    with torch.no_grad():
        teacher.classifier[1].bias[CLASS_IDS[0]] = math.nan
    run = trainer(tmp_path, teacher=teacher, method=method, parts={"subspaces": given})
    with pytest.raises(NonFiniteLossError, match="the teacher's logits are NaN or infinite near step 0") as stopped:
        run.train()
    assert "learning rate" not in str(stopped.value)


def test_a_nan_of_the_images_is_not_blamed_on_the_learning_rate(tmp_path):
    images = [{"pixel_values": torch.rand(3, 32, 32), "labels": index % 3} for index in range(24)]
    images[13]["pixel_values"][0, 0, 0] = math.nan
    parts = {"data_collator": default_data_collator, "eval_dataset": None}
    run = trainer(tmp_path, convnext(), train=images, method="scratch", max_steps=3, parts=parts)
    with pytest.raises(NonFiniteLossError, match="the images of a batch are NaN or infinite"):
        run.train()
