"""Pairs, subspaces and layer losses: what they follow from, and that they are made again where that has changed."""

from collections import Counter

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from helpers import assert_equal_weights, resnet, teacher_resnet, trainer, views, weights_of
from subdistill_hf.config.defaults import RUN_DEFAULTS
from subdistill_hf.core.activations import Features
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.errors import DistillationError, SubspaceError
from subdistill_hf.losses import procrustes
from subdistill_hf.losses.procrustes import ProcrustesRotation
from subdistill_hf.losses.rotations import Rotation
from subdistill_hf.training import plan as plan_module
from trainings import STAGES, last_loss, logged, parts


def test_layers_may_be_named_or_matched_by_a_regular_expression(tmp_path):
    named = trainer(tmp_path, layers=[f"{STAGES[1]}={STAGES[2]}", f"{STAGES[3]}={STAGES[0]}"])
    assert [str(pair) for pair in named.pairs] == [f"{STAGES[1]}={STAGES[2]}", f"{STAGES[3]}={STAGES[0]}"]
    matched = trainer(tmp_path, layers=[r"resnet\.encoder\.stages\.[13]=resnet\.encoder\.stages\.[02]"])
    assert [str(pair) for pair in matched.pairs] == [f"{STAGES[1]}={STAGES[0]}", f"{STAGES[3]}={STAGES[2]}"]
    named.train()
    assert set(parts(logged(named)[0])) == {"kd", f"layer/{STAGES[1]}", f"layer/{STAGES[3]}"}
    assert f"{STAGES[1]}  20 x 4x4  {STAGES[2]}" in named.plan.preview()


@pytest.mark.parametrize(
    ("most", "options", "expected"),
    [
        (20, {}, "procrustes"),
        (19, {}, "orthogonal"),
        (20, {"method": "fitnet"}, "orthogonal"),
        (20, {"rotation": "linear"}, "linear"),
    ],
)
def test_a_rotation_that_is_left_open_suits_the_layers(tmp_path, monkeypatch, most, options, expected):
    monkeypatch.setattr(procrustes, "MOST_CHANNELS", most)
    run = trainer(tmp_path, **{"rotation": "auto"} | options)
    assert max(pair.student.width for pair in run.pairs) == 20
    assert run.rotation == expected
    assert run.args.rotation == options.get("rotation", "auto")  # another student may need another
    if run.args.method == "subdistill":
        kinds = {type(alignment.rotation) for alignment in run.prepare_distillation().alignments}
        assert kinds == {ProcrustesRotation if expected == "procrustes" else Rotation}
    assert run.plan.identity(run.model)["method"]["rotation"] == expected


class Untouchable(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        raise AssertionError("the images were read to fit subspaces")


def test_given_subspaces_are_used_and_nothing_is_fitted(tmp_path):
    fitted = trainer(tmp_path, max_steps=1, basis="identity")
    given = fitted.fit_subspaces()
    own = trainer(tmp_path, max_steps=1, parts={"subspaces": given, "fit_dataset": Untouchable()})
    for run in (fitted, own):
        run.train()
    assert all(own.subspaces[name] is given[name] for name in STAGES)
    assert parts(logged(own)[0]) == parts(logged(fitted)[0])
    without = trainer(tmp_path, max_steps=1, parts={"fit_dataset": Untouchable()})
    with pytest.raises(AssertionError, match="the images were read"):
        without.train()


class CountedStream(torch.utils.data.IterableDataset):
    """A stream that knows its number of images."""

    def __len__(self):
        return 24

    def __iter__(self):
        images = views()
        return iter([images[index] for index in range(24)])


@pytest.mark.parametrize("side", ["train_dataset", "fit_dataset"])
def test_a_stream_that_knows_its_length_trains_and_fits(tmp_path, side):
    run = trainer(tmp_path, max_steps=3, parts={side: CountedStream()})
    run.train()
    assert run.state.global_step == 3


def test_a_given_subspace_of_another_width_is_refused(tmp_path):
    values = torch.randn(12, 500, dtype=torch.float64)
    narrow = Subspace.fit(Moments.of(values, values), 5)
    with pytest.raises(DistillationError, match=r"'resnet.encoder.stages.0' has 5 of 12 dim.*expected 8 of 12"):
        trainer(tmp_path, parts={"subspaces": {STAGES[0]: narrow}})


def test_subspaces_are_fitted_to_the_fit_dataset_without_augmentation(tmp_path):
    plain = trainer(tmp_path, train=views())
    augmented = trainer(tmp_path, train=views(augmentation="pad_crop"), parts={"fit_dataset": views()})
    both = trainer(tmp_path, train=views(augmentation="pad_crop"))
    for name, subspace in plain.fit_subspaces().items():
        assert torch.equal(augmented.fit_subspaces()[name].basis, subspace.basis)
        assert not torch.equal(both.fit_subspaces()[name].basis, subspace.basis)
        assert subspace.count == 24 * (64, 16, 4, 1)[STAGES.index(name)]


def test_every_option_of_the_subspaces_and_alignments_changes_the_loss(tmp_path):
    def loss(**options):
        run = trainer(tmp_path, max_steps=1, **options)
        run.train()
        return logged(run)[0]["loss"]

    options = [
        {},
        {"basis": "pca"},
        {"basis": "random"},
        {"centring": "mean"},
        {"centring": "none"},
        {"rotation": "linear", "learning_rate": 1e-2},
        {"normalise_energy": False},
        {"target_scale": "unit"},
        {"positions": 2},
        {"layer_pairs": 2},
        {"temperature": 2.0},
        {"kd_weight": 0.5},
        {"teacher_bf16": True},
    ]
    costs = [loss(**option) for option in options]
    # The rotation of kind "linear" starts where the orthogonal one does, so only its first step differs.
    assert len({f"{value:.6g}" for value in costs}) == len(options) - 1
    assert costs[5] == pytest.approx(costs[0], rel=1e-6)


def test_too_few_positions_for_a_subspace_are_refused_before_training(tmp_path):
    run = trainer(tmp_path, train=views(2), save_strategy="steps", save_steps=1)
    with pytest.raises(SubspaceError, match="6 positions cannot determine a subspace of 20 dimensions: expected at"):
        run.train()
    assert list(tmp_path.iterdir()) == []


def test_training_again_continues_with_the_same_rotations(tmp_path):
    run = trainer(tmp_path, max_steps=3)
    run.train()
    alignments, first = run.distillation.alignments, weights_of(run.distillation)

    class Start(TrainerCallback):
        def on_train_begin(self, args, state, control, **given):
            assert_equal_weights(weights_of(run.distillation), first)

    run.add_callback(Start())
    run.train()
    assert run.distillation.alignments is alignments
    held = [weight for group in run.optimizer.param_groups for weight in group["params"]]
    assert {id(weight) for weight in held} == {id(weight) for weight in run.distillation.parameters()}
    second = weights_of(run.distillation)
    for name in first:
        if name.startswith("alignments.") and ("original" in name or "running_mean" in name):
            assert float((second[name] - first[name]).abs().max()) > 1e-5, name


def test_model_init_gives_every_training_a_fresh_student_and_fresh_rotations(tmp_path):
    run = trainer(tmp_path, parts={"model_init": lambda: resnet()}, max_steps=3)
    run.train()
    first, rotations = weights_of(run.model), weights_of(run.distillation.alignments)
    student = run.model
    assert not torch.equal(first["classifier.1.weight"], resnet().state_dict()["classifier.1.weight"])
    run.train()
    assert run.model is not student
    assert run.distillation.student is run.model
    assert_equal_weights(weights_of(run.model), first)
    assert_equal_weights(weights_of(run.distillation.alignments), rotations)


@pytest.mark.parametrize(
    "changed",
    [
        {"basis": "pca"},
        {"positions": 2},
        {"layer_pairs": 2},
        {"centring": "mean"},
        {"rotation": "procrustes"},
        {"method": "fitnet"},
        {"method": "kd"},
        {"normalise_energy": False},
        {"target_scale": "unit"},
    ],
    ids=str,
)
def test_changed_arguments_give_what_a_fresh_trainer_gives(tmp_path, changed):
    fresh = trainer(tmp_path / "fresh", parts={"model_init": lambda: resnet()}, max_steps=2, **changed)
    fresh.train()
    run = trainer(tmp_path / "used", parts={"model_init": lambda: resnet()}, max_steps=2)
    run.train()
    before = last_loss(run)
    for name, value in changed.items():
        setattr(run.args, name, value)
    run.train()
    assert last_loss(run) == pytest.approx(last_loss(fresh), rel=1e-6)
    assert last_loss(run) != pytest.approx(before, rel=1e-3)
    assert run.plan.identity(run.model) == fresh.plan.identity(fresh.model)


def costs(run):
    """What each layer loss says of the same features of student and teacher."""
    found = []
    for loss, pair in zip(run.prepare_distillation().alignments, run.pairs, strict=True):
        random = torch.Generator().manual_seed(0)
        student, teacher = (
            Features(torch.randn(5, layer.width, 4, generator=random), (2, 2))
            for layer in (pair.student, pair.teacher)
        )
        found.append(loss(student, loss.make_target(teacher)).item())
    return found


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("subdistill", {"normalise_energy": False}),
        ("subdistill", {"centring": "mean"}),
        ("subdistill", {"rotation": "procrustes"}),
        ("subdistill", {"target_scale": "unit"}),
        ("subdistill", {"basis": "pca"}),
        ("subdistill", {"method": "fitnet"}),
        ("fitnet", {"method": "vid"}),
    ],
    ids=str,
)
def test_a_changed_argument_makes_new_layer_losses_for_the_student_that_there_is(tmp_path, method, changed):
    run, fresh = trainer(tmp_path, method=method), trainer(tmp_path, **{"method": method} | changed)
    student, before = run.model, costs(run)
    for name, value in changed.items():
        setattr(run.args, name, value)
    after = costs(run)
    assert run.distillation.student is student
    assert after == pytest.approx(costs(fresh), rel=1e-6)
    for one, other in zip(after, before, strict=True):
        assert one != pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"basis": "random"}, {"seed": 7}),
        ({"positions": 2}, {"seed": 7}),
        ({"positions": 2}, {"positions": 3}),
        ({}, {"basis": "pca"}),
    ],
    ids=str,
)
def test_subspaces_are_fitted_again_where_an_argument_changes_them_and_only_there(tmp_path, options, changed):
    run, fresh = trainer(tmp_path, **options), trainer(tmp_path, **options | changed)
    before = run.fit_subspaces()
    assert run.fit_subspaces() is before
    for name, value in changed.items():
        setattr(run.args, name, value)
    after, expected = run.fit_subspaces(), fresh.fit_subspaces()
    for name in STAGES:
        assert after[name].digest == expected[name].digest
    assert after[STAGES[0]].digest != before[STAGES[0]].digest  # of 64 positions; the last layer has one


def test_a_seed_changes_no_subspaces_for_which_nothing_is_drawn(tmp_path):
    run = trainer(tmp_path)
    before = run.fit_subspaces()
    run.args.seed = 7
    assert run.fit_subspaces() is before


class Scaled(nn.Module):
    """A stage whose output is multiplied by a factor, which the next one takes out again."""

    def __init__(self, stage, factor, before):
        super().__init__()
        self.stage, self.factor, self.before = stage, factor, before

    def forward(self, hidden):
        return self.factor * self.stage(hidden / self.before)


def scaled_teacher(factor):
    """The same classifier with other scales inside; by a power of two nothing is rounded in another way."""
    teacher = teacher_resnet()
    stages = teacher.resnet.encoder.stages
    for index, stage in enumerate(list(stages)):
        stages[index] = Scaled(stage, factor, factor if index else 1)
    with torch.no_grad():
        teacher.classifier[1].weight.div_(factor)
    return teacher


@pytest.mark.parametrize("method", ["subdistill", "fitnet", "vid", "vkd", "attention_transfer", "spkd"])
def test_a_factor_of_the_teachers_layers_changes_no_training_of_the_command_line(tmp_path, method):
    def trained(factor):
        options = {
            "method": method,
            "target_scale": RUN_DEFAULTS["target_scale"],
            "max_steps": 2,
            "learning_rate": 1e-2,
        }
        run = trainer(
            tmp_path, resnet(widths=(8, 12, 16)), scaled_teacher(factor), **options, layers=PAIRS_OF_OTHER_GRIDS
        )
        run.train()
        return weights_of(run.distillation)

    assert_equal_weights(trained(2.0**12), trained(1.0), tolerance=1e-8)


PAIRS_OF_OTHER_GRIDS = [f"{STAGES[0]}={STAGES[1]}", f"{STAGES[2]}={STAGES[2]}"]  # the first is pooled


def test_energies_are_kept_for_what_resumes(tmp_path):
    options = {"method": "fitnet", "target_scale": "unit", "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    first = trainer(tmp_path, **options)
    first.train()
    assert set(first.plan.energies) == set(STAGES)
    again = trainer(tmp_path, **options, parts={"fit_dataset": Untouchable()})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert again.plan.energies == first.plan.energies
    assert_equal_weights(weights_of(again.distillation), weights_of(first.distillation))
    again.args.target_scale = "teacher"
    assert again.plan.energies == {}


def test_given_subspaces_stay_whatever_changes(tmp_path):
    given = trainer(tmp_path / "given").fit_subspaces()
    run = trainer(tmp_path / "run", parts={"subspaces": given}, max_steps=1)
    run.train()
    run.args.basis = "pca"
    run.train()
    assert run.subspaces == given


def test_a_training_that_was_prepared_makes_nothing_again(tmp_path, monkeypatch):
    counted = Counter()

    def count(name):
        original = getattr(plan_module, name)
        monkeypatch.setattr(
            plan_module, name, lambda *args, **kwargs: counted.update([name]) or original(*args, **kwargs)
        )

    for name in ("match_models", "fit_pairs", "StudentWithAlignments", "open_cache"):
        count(name)
    images = views(augmentation="pad_crop", views=2)
    run = trainer(tmp_path, train=images, teacher_cache="2", max_steps=2, save_strategy="steps", save_steps=1)
    run.prepare_distillation()
    run.train()
    run.train()
    assert counted == {"match_models": 1, "fit_pairs": 1, "StudentWithAlignments": 1, "open_cache": 1}


@pytest.mark.parametrize("which", ["fit_dataset", "train_dataset"])
def test_other_images_give_other_subspaces(tmp_path, which):
    others = views(split="test")
    run, fresh = trainer(tmp_path), trainer(tmp_path, train=others)
    before = run.fit_subspaces()
    setattr(run, which, others)
    after, expected = run.fit_subspaces(), fresh.fit_subspaces()
    for name in STAGES:
        assert after[name].digest == expected[name].digest
        assert after[name].digest != before[name].digest


def test_a_dataset_that_comes_later_is_matched_when_the_training_is_prepared(tmp_path):
    run = trainer(tmp_path, max_steps=1, parts={"train_dataset": None})
    assert run.pairs == []
    run.train_dataset = views()
    run.train()
    assert [pair.teacher.name for pair in run.pairs] == STAGES
    assert set(parts(logged(run)[0])) == {"kd", *(f"layer/{name}" for name in STAGES)}
