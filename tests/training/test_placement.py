"""Where student and teacher are and how they lie in memory while they are in a training."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageClassification

from helpers import assert_equal_weights, resnet, teacher_resnet, trainer, weights_of
from subdistill_hf.acceleration import memory_format as channels_last
from subdistill_hf.errors import DistillationError
from subdistill_hf.training.placement import MemoryFormats
from trainings import Plain, logged


class Placed(Plain):
    """Does not run before it was brought to a device."""

    placed = False

    def to(self, *args, **kwargs):
        self.placed = self.placed or isinstance(args[0] if args else None, torch.device)
        return super().to(*args, **kwargs)

    def forward(self, pixel_values):
        assert self.placed
        return super().forward(pixel_values)


@pytest.mark.parametrize("options", [{}, {"bf16_full_eval": True}], ids=str)
def test_the_student_is_on_its_device_before_it_runs(tmp_path, options):
    """The parent leaves a student that is evaluated in half precision where it was, until the training begins."""
    layers = ["blocks.0=blocks.0", "blocks.1=blocks.1"]
    run = trainer(tmp_path, Placed(3, 6), Plain(100, 9), layers=layers, max_steps=1, **options)
    run.train()
    assert run.model.placed


def test_channels_last_memory_changes_rounding_alone_and_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(channels_last, "_is_faster", lambda device, half_precision: True)
    runs = {}
    for flag in (None, False):
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 6}
        student = resnet(widths=(16, 16, 16, 20))
        teacher = teacher_resnet(widths=(16, 20, 28, 36))
        run = trainer(tmp_path, student, teacher, learning_rate=1e-3, channels_last=flag, **options)
        kernels = [model.resnet.embedder.embedder.convolution.weight for model in (run.model, run.teacher.model)]
        run.prepare_distillation()
        for kernel in kernels:
            assert kernel.is_contiguous(memory_format=torch.channels_last) == (flag is None)
        run.train()
        assert all(kernel.is_contiguous() for kernel in kernels)
        AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-6")
        runs[flag] = run
    for ours, theirs in zip(*(logged(run) for run in runs.values()), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert_equal_weights(*(weights_of(run.model) for run in runs.values()), tolerance=1e-3)


def test_each_network_is_tried_once_when_a_training_follows_its_preparation(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(channels_last, "_is_faster", lambda device, half_precision: True)
    monkeypatch.setattr(channels_last, "_why_not_channels_last", lambda model, run: tried.append(model))
    run = trainer(tmp_path, resnet(widths=(16, 16, 16, 20)), teacher_resnet(widths=(16, 20, 28, 36)), max_steps=1)
    run.prepare_distillation()
    run.train()
    assert tried == [run.model, run.teacher.model]


def test_channels_last_memory_is_refused_where_torch_would_break(tmp_path):
    run = trainer(tmp_path, resnet(widths=(8, 12, 16, 20)), channels_last=True)
    with pytest.raises(DistillationError, match="is a strided 1x1 convolution of 8 channels"):
        run.train()


def test_student_and_teacher_lie_in_memory_as_each_can(tmp_path, monkeypatch):
    monkeypatch.setattr(channels_last, "_is_faster", lambda device, half_precision: True)
    run = trainer(tmp_path, resnet(widths=(8, 12, 16, 20)), teacher_resnet(widths=(16, 20, 28, 36)))
    run.prepare_distillation()
    kernels = [model.resnet.embedder.embedder.convolution.weight for model in (run.model, run.teacher.model)]
    assert [kernel.is_contiguous() for kernel in kernels] == [True, False]


def test_deepspeed_gets_a_contiguous_student_and_takes_no_other(tmp_path, monkeypatch):
    """It sends the weights as bytes when it begins. In a trial with two processes that failed channels last."""
    monkeypatch.setattr(channels_last, "_is_faster", lambda device, half_precision: True)
    models = resnet(widths=(16, 16, 16, 20)), teacher_resnet(widths=(16, 20, 28, 36))
    run = trainer(tmp_path, *models)
    run.args.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    example = next(iter(run.get_train_dataloader()))
    MemoryFormats().take(run.args, models[0], run.teacher, example)
    kernels = [model.resnet.embedder.embedder.convolution.weight for model in (models[0], run.teacher.model)]
    assert [kernel.is_contiguous() for kernel in kernels] == [True, False]
    for weight in models[0].parameters():
        weight.data.view(torch.uint8)  # as DeepSpeed does
