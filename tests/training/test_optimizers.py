"""What the layer losses learn is in the optimiser, also in one that the user made."""

import warnings

import pytest
import torch
from transformers import Adafactor

from helpers import assert_equal_weights, resnet, trainer, weights_of
from subdistill_hf.errors import DistillationError
from subdistill_hf.training.optimizers import rates_of, same_rate, shown_rate


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


@pytest.mark.parametrize("optim", ["adafactor", "adagrad"])
def test_a_run_of_any_optimiser_is_saved_and_resumed_without_a_notice(tmp_path, optim):
    def made(**changed):
        return trainer(tmp_path, method="kd", optim=optim, save_strategy="steps", save_steps=2, **changed)

    whole, again = made(), made()
    whole.train()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal_weights(weights_of(again.model), weights_of(whole.model))
    assert not [each for each in caught if "stays that of the checkpoint" in str(each.message)]
    with pytest.warns(UserWarning, match=r"the learning rate stays that of the checkpoint.* 0\.001: for 0\.005 start"):
        made(learning_rate=5e-3).prepare_distillation(str(tmp_path / "checkpoint-2"))


def test_numbers_of_an_optimiser_that_come_as_several_are_kept_and_told_entry_by_entry():
    layer = torch.nn.Linear(1, 1)
    optimizer = Adafactor(layer.parameters(), lr=1e-3, relative_step=False)
    assert rates_of(optimizer)["adam_epsilon"] == [1e-30, 1e-3]
    assert same_rate([1e-30, 1e-3], [1e-30, 1e-3 * (1 + 1e-12)])
    for other in ([1e-20, 1e-3], [1e-30], 1e-3, None):
        assert not same_rate([1e-30, 1e-3], other)
    assert shown_rate([1e-30, 1e-3]) == "(1e-30, 0.001)"
