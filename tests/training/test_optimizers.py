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


# The next training of a trainer


def moved(run):
    before = weights_of(run.model)
    run.train()
    return {name for name, value in weights_of(run.model).items() if not torch.equal(value, before[name])}


def test_another_student_gets_an_optimiser_of_its_own(tmp_path):
    run = trainer(tmp_path, max_steps=2)
    run.train()
    run.model = resnet(seed=5)
    changed = moved(run)
    assert {name for name, _ in run.model.named_parameters()} <= changed
    held = {id(weight) for group in run.optimizer.param_groups for weight in group["params"]}
    assert held == {id(weight) for weight in run.distillation.parameters()}


@pytest.mark.parametrize(
    "changed",
    [{"learning_rate": 1e-5}, {"optim": "sgd"}, {"weight_decay": 0.3}, {"adam_beta1": 0.5}],
    ids=lambda changed: next(iter(changed)),
)
def test_changed_arguments_of_the_optimiser_count_in_the_next_training(tmp_path, changed):
    run = trainer(tmp_path, max_steps=2)
    run.train()
    optimizer = run.optimizer
    run.train()
    assert run.optimizer.optimizer is optimizer.optimizer  # nothing changed: it goes on
    for name, value in changed.items():
        setattr(run.args, name, value)
    run.train()
    assert run.optimizer.optimizer is not optimizer.optimizer
    group = run.optimizer.param_groups[0]
    expected = {"initial_lr": run.args.learning_rate, "weight_decay": run.args.weight_decay}
    assert {name: group[name] for name in expected} == expected
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert max(rates) <= run.args.learning_rate


def test_an_optimiser_that_was_made_for_another_model_is_refused(tmp_path):
    other = torch.optim.SGD(resnet(seed=5).parameters(), lr=1e-3)
    run = trainer(tmp_path, max_steps=1, parts={"optimizers": (other, None)})
    with pytest.raises(DistillationError, match="holds no weight of the student: it was made for another model"):
        run.train()


def test_an_optimiser_that_is_set_after_construction_is_used(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.optimizer = mine = torch.optim.SGD(run.model.parameters(), lr=1e-3)
    run.train()
    assert run.optimizer.optimizer is mine
