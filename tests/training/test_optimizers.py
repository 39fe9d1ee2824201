"""What the layer losses learn is in the optimiser, also in one that the user made."""

import pytest
import torch

from helpers import resnet, trainer, weights_of
from subdistill_hf.errors import DistillationError


def test_the_users_optimizer_gets_the_rotations_too(tmp_path):
    student = resnet()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, weight_decay=0.1)
    run = trainer(tmp_path, student, max_steps=3, parts={"optimizers": (optimizer, None)})
    run.prepare_distillation()
    before = weights_of(run.distillation.alignments)
    run.train()
    moved = {
        name
        for name, value in weights_of(run.distillation.alignments).items()
        if name.endswith("rotation.free") and not torch.equal(value, before[name])
    }
    assert len(moved) == 4
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_a_schedule_that_does_not_know_the_rotations_is_refused(tmp_path):
    student = resnet()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    run = trainer(tmp_path, student, parts={"optimizers": (optimizer, schedule)})
    with pytest.raises(DistillationError, match=r"pass optimizers=\(optimizer, None\)"):
        run.train()


def test_weight_decay_leaves_the_rotations_alone(tmp_path):
    run = trainer(tmp_path, weight_decay=0.5, max_steps=1)
    run.train()
    decay = {id(weight): group["weight_decay"] for group in run.optimizer.param_groups for weight in group["params"]}
    assert {decay[id(weight)] for weight in run.distillation.alignments.parameters()} == {0.0}
    assert len(list(run.distillation.alignments.parameters())) == 4
    convolutions = [weight for weight in run.model.parameters() if weight.dim() == 4]
    assert {decay[id(weight)] for weight in convolutions} == {0.5}
    assert set(decay) == {id(weight) for weight in run.distillation.parameters()}
