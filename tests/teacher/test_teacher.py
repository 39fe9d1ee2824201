"""The teacher is frozen, restricted to the subtask, and runs in its own precision."""

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from helpers import CLASS_IDS, resnet, teacher_resnet, teacher_vit, trainer, views, weights_of
from subdistill_hf.models.loading import weights_digest
from trainings import last_loss


@pytest.mark.parametrize("kind", ["convolutional", "transformer with dropout"])
def test_the_student_trains_in_training_mode_and_the_teacher_never_does(tmp_path, kind):
    if kind == "convolutional":
        teacher = teacher_resnet()
    else:
        teacher = teacher_vit(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    teacher.train()
    digest = weights_digest(teacher)
    student = resnet()
    statistics = {name: value for name, value in weights_of(student).items() if "running" in name}
    run = trainer(tmp_path, student, teacher, max_steps=3)

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **given):
            assert student.training
            assert not any(module.training for module in teacher.modules())

    run.add_callback(Watch())
    run.train()
    assert weights_digest(teacher) == digest
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    pixels = run.data_collator([views()[index] for index in range(4)])["pixel_values"]
    with torch.no_grad():
        assert torch.equal(run.teacher.logits(pixels), run.teacher.logits(pixels))
        assert torch.equal(run.teacher.logits(pixels), teacher(pixel_values=pixels).logits[:, list(CLASS_IDS)])
    after = weights_of(student)
    assert len(statistics) > 10
    for name, value in statistics.items():
        assert not torch.equal(after[name], value), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_of_half_precision_takes_the_pixels_as_they_come(tmp_path, dtype):
    run = trainer(tmp_path, teacher=teacher_resnet().to(dtype), max_steps=2)
    run.train()
    assert np.isfinite(last_loss(run))
    assert {subspace.mean.dtype for subspace in run.subspaces.values()} == {torch.float64}
