"""SubDistillTrainer: what it trains, leaves alone and logs, and that the parts of its parent keep working."""

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import IterableDataset
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import AutoModelForImageClassification, EarlyStoppingCallback, TrainerCallback

from helpers import (
    CLASS_IDS,
    NAMES,
    assert_equal_weights,
    config,
    convnext,
    processor,
    resnet,
    run_python,
    subtask_rows,
    teacher_resnet,
    teacher_vit,
    trainer,
    views,
    vit,
    weights_of,
)
from subdistill_hf.acceleration import memory_format as channels_last
from subdistill_hf.core.activations import LayerError
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.errors import DistillationError, NonFiniteLossError, SubDistillError, SubspaceError
from subdistill_hf.losses import procrustes, rotations
from subdistill_hf.losses import subspace as losses
from subdistill_hf.losses.aligned_error import aligned_errors
from subdistill_hf.losses.procrustes import ProcrustesRotation
from subdistill_hf.losses.rotations import Rotation
from subdistill_hf.models.loading import weights_digest
from subdistill_hf.training import trainer as trainer_module
from subdistill_hf.training.checkpoints import ALIGNMENTS_FILE
from subdistill_hf.training.trainer import SubDistillTrainer

STAGES = [f"resnet.encoder.stages.{index}" for index in range(4)]
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def logged(run):
    """The entries that the training steps logged."""
    return [entry for entry in run.state.log_history if "loss" in entry]


def parts(entry):
    return {name.removeprefix("loss_"): value for name, value in entry.items() if name.startswith("loss_")}


class Recorder(TrainerCallback):
    """Keeps the gradients of each update and what the callbacks were given."""

    def __init__(self):
        self.gradients, self.events, self.models, self.trainer = [], [], [], None

    def on_pre_optimizer_step(self, args, state, control, **given):
        named = self.trainer.distillation.named_parameters()
        self.gradients.append({name: weight.grad.clone() for name, weight in named if weight.grad is not None})

    def on_train_begin(self, args, state, control, **given):
        self._note("train_begin", given)

    def on_step_end(self, args, state, control, **given):
        self._note("step_end", given)

    def on_evaluate(self, args, state, control, **given):
        self._note("evaluate", given)

    def on_save(self, args, state, control, **given):
        self._note("save", given)

    def on_train_end(self, args, state, control, **given):
        self._note("train_end", given)

    def _note(self, event, given):
        self.events.append(event)
        self.models.append(given["model"])


def recorded(folder, student=None, teacher=None, **options):
    recorder = Recorder()
    given = options.pop("parts", {}) | {"callbacks": [recorder]}
    run = trainer(folder, student, teacher, parts=given, **options)
    recorder.trainer = run
    return run, recorder


class InOrder(torch.utils.data.IterableDataset):
    """Items of a dataset in a given order, without a length."""

    def __init__(self, dataset, order):
        self.dataset, self.order = dataset, order

    def __iter__(self):
        return iter([self.dataset[index] for index in self.order])


# The loss


@pytest.mark.parametrize("centring", ["mean", "batch_norm"])
def test_the_first_logged_losses_are_the_formulas(tmp_path, centring):
    """Recomputed from plain forward passes with `output_hidden_states`, without hooks or our loss modules."""
    student, teacher, images = resnet(), teacher_resnet(), views()
    weights = {"layer_weight": 0.5, "kd_weight": 2.0, "task_weight": 0.25, "temperature": 3.0}
    run = trainer(
        tmp_path,
        student,
        teacher,
        train=images,
        max_steps=1,
        per_device_train_batch_size=24,
        centring=centring,
        **weights,
    )
    run.prepare_distillation()
    rotations = [alignment.rotation.matrix.detach().clone() for alignment in run.distillation.alignments]
    batch = ViewCollator(processor(), processor())([images[index] for index in range(24)])
    pixels, labels = batch["pixel_values"], batch["labels"]
    copy = resnet()  # the same weights, in training mode as at the first step
    with torch.no_grad():
        theirs = teacher(pixel_values=pixels, output_hidden_states=True)
        ours = copy.train()(pixel_values=pixels, output_hidden_states=True)
    goal = theirs.logits[:, list(CLASS_IDS)]
    expected = {
        "task": 0.25 * F.cross_entropy(ours.logits, labels),
        "kd": 2.0 * 9 * F.kl_div((ours.logits / 3).log_softmax(1), (goal / 3).softmax(1), reduction="batchmean"),
    }
    for index, (rotation, name) in enumerate(zip(rotations, STAGES, strict=True)):
        subspace = run.subspaces[name]
        a, h = theirs.hidden_states[index + 1].flatten(2).double(), ours.hidden_states[index + 1].flatten(2).double()
        t = torch.einsum("dk,bdp->bkp", subspace.basis, a - subspace.mean[:, None])
        h = h - h.mean(dim=(0, 2), keepdim=True)
        if centring == "batch_norm":
            h = h / (h.square().mean(dim=(0, 2), keepdim=True) + 1e-5).sqrt()
        s = torch.einsum("lk,bkp->blp", rotation.double(), h)
        expected[f"layer/{name}"] = 0.5 * (s - t).square().sum(dim=1).mean() / subspace.energies.sum()

    run.train()

    (entry,) = logged(run)
    assert parts(entry).keys() == expected.keys()
    for name, value in expected.items():
        assert parts(entry)[name] == pytest.approx(float(value), rel=1e-4), name
    assert entry["loss"] == pytest.approx(float(sum(expected.values())), rel=1e-4)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (resnet, teacher_vit, ["vit.layers.0", "vit.layers.1", "vit.layers.2"]),
        (vit, teacher_resnet, STAGES),
        (vit, teacher_vit, [f"vit.layers.{index}" for index in range(4)]),
        (convnext, teacher_resnet, STAGES[1:]),
    ],
    ids=["transformer to convolutional", "convolutional to transformer", "transformer to transformer", "convnext"],
)
def test_every_pair_of_architectures_trains_with_its_layers_named_in_the_log(tmp_path, student, teacher, expected):
    model, oracle = student(), teacher()
    before = weights_of(model)
    run = trainer(tmp_path, model, oracle, train=views(16), layer_weight=0.1, max_steps=12, learning_rate=3e-3)
    run.train()
    assert [pair.teacher.name for pair in run.pairs] == expected
    for entry in logged(run):
        assert set(parts(entry)) == {"kd", *(f"layer/{name}" for name in expected)}
        assert all(math.isfinite(value) for value in parts(entry).values())
    assert logged(run)[-1]["loss"] < logged(run)[0]["loss"]
    trained = {name for name, value in weights_of(model).items() if not torch.equal(value, before[name])}
    assert {name for name, _ in model.named_parameters()} - trained <= {"vit.embeddings.mask_token"}


def test_layers_may_be_named_or_matched_by_a_regular_expression(tmp_path):
    named = trainer(tmp_path, layers=[f"{STAGES[1]}={STAGES[2]}", f"{STAGES[3]}={STAGES[0]}"])
    assert [str(pair) for pair in named.pairs] == [f"{STAGES[1]}={STAGES[2]}", f"{STAGES[3]}={STAGES[0]}"]
    matched = trainer(tmp_path, layers=[r"resnet\.encoder\.stages\.[13]=resnet\.encoder\.stages\.[02]"])
    assert [str(pair) for pair in matched.pairs] == [f"{STAGES[1]}={STAGES[0]}", f"{STAGES[3]}={STAGES[2]}"]
    named.train()
    assert set(parts(logged(named)[0])) == {"kd", f"layer/{STAGES[1]}", f"layer/{STAGES[3]}"}
    assert f"{STAGES[1]}  20 x 4x4  {STAGES[2]}" in named.layer_preview()


@pytest.mark.parametrize("centring", ["mean", "batch_norm"])
def test_equal_micro_batches_accumulate_to_the_gradient_of_one(tmp_path, centring):
    images = views()

    def gradients(name, repeats):
        run, recorder = recorded(
            tmp_path / name,
            train=InOrder(images, list(range(8)) * repeats),
            gradient_accumulation_steps=repeats,
            max_steps=1,
            max_grad_norm=0,
            centring=centring,
            task_weight=0.5,
            parts={"fit_dataset": images},
        )
        run.train()
        assert len(recorder.gradients) == 1
        return recorder.gradients[0], logged(run)[0]

    one, entry = gradients("one", 1)
    four, accumulated = gradients("four", 4)
    assert len(one) > 40
    assert sum(name.startswith("alignments.") for name in one) == 4
    for name, gradient in one.items():
        torch.testing.assert_close(four[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()) + 1e-7)
    for name, value in parts(entry).items():
        assert parts(accumulated)[name] == pytest.approx(value, rel=1e-5)


def test_micro_batches_of_logit_distillation_accumulate_to_the_large_batch(tmp_path):
    images = views()

    def gradients(name, steps, size):
        run, recorder = recorded(
            tmp_path / name,
            convnext(),
            train=InOrder(images, range(24)),
            method="kd",
            gradient_accumulation_steps=steps,
            per_device_train_batch_size=size,
            max_steps=1,
            max_grad_norm=0,
        )
        run.train()
        return recorder.gradients[0], logged(run)[0]["loss"]

    (large, loss), (small, accumulated) = gradients("large", 1, 24), gradients("small", 3, 8)
    assert accumulated == pytest.approx(loss, rel=1e-5)
    assert len(large) > 20
    for name, gradient in large.items():
        torch.testing.assert_close(small[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()) + 1e-9)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_logged_parts_add_up_to_the_loss_also_where_the_last_step_is_short(tmp_path, accumulation):
    # 24 images in batches of 5: five batches, so the third step of an epoch has only one of its two.
    run = trainer(
        tmp_path,
        max_steps=9,
        logging_steps=3,
        per_device_train_batch_size=5,
        gradient_accumulation_steps=accumulation,
        task_weight=1.0,
    )
    run.train()
    assert len(logged(run)) == 3
    for entry in logged(run):
        assert set(parts(entry)) == {"task", "kd", *(f"layer/{name}" for name in STAGES)}
        assert sum(parts(entry).values()) == pytest.approx(entry["loss"], rel=1e-5)
        assert all(type(value) is float for value in parts(entry).values())
    json.dumps(run.state.log_history)


def test_scratch_needs_no_teacher_and_learns_from_labels_alone(tmp_path):
    run = trainer(tmp_path, method="scratch", max_steps=30, learning_rate=5e-3)
    run.train()
    assert run.teacher is None
    assert run.pairs == []
    assert set(parts(logged(run)[0])) == {"task"}
    assert logged(run)[-1]["loss"] < 0.5 * logged(run)[0]["loss"]


def test_logit_distillation_has_no_layers_and_follows_the_teacher(tmp_path):
    run = trainer(tmp_path, method="kd", max_steps=30, learning_rate=5e-3)
    run.train()
    assert run.pairs == []
    assert set(parts(logged(run)[0])) == {"kd"}
    assert logged(run)[-1]["loss"] < 0.5 * logged(run)[0]["loss"]
    assert list(run.distillation.alignments.parameters()) == []


def test_label_smoothing_reaches_the_cross_entropy(tmp_path):
    def first_loss(smoothing):
        run = trainer(tmp_path, method="scratch", max_steps=1, label_smoothing_factor=smoothing)
        run.train()
        return logged(run)[0]["loss"]

    student = resnet()
    order = trainer(tmp_path, method="scratch").get_train_dataloader()
    batch = next(iter(order))
    logits = student.train()(pixel_values=batch["pixel_values"]).logits
    assert first_loss(0.0) == pytest.approx(float(F.cross_entropy(logits, batch["labels"]).detach()), rel=1e-5)
    smooth = 0.7 * F.cross_entropy(logits, batch["labels"]) - 0.3 * logits.log_softmax(1).mean()
    assert first_loss(0.3) == pytest.approx(float(smooth.detach()), rel=1e-5)


def test_labels_of_mixed_images_are_shares_of_the_classes(tmp_path):
    def scratch():
        return trainer(tmp_path, train=views(augmentation="pad_crop", mix=1), method="scratch", max_steps=1)

    batch = next(iter(scratch().get_train_dataloader()))
    logits = resnet().train()(pixel_values=batch["pixel_values"]).logits
    assert batch["labels"].shape == logits.shape
    assert ((batch["labels"] > 0.01).sum(1) == 2).any()
    expected = -(batch["labels"] * logits.log_softmax(1)).sum(1).mean()
    run = scratch()
    run.train()
    assert logged(run)[0]["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert run.evaluate(views(split="test"))["eval_loss"] > 0


class WithDecay(SubDistillTrainer):
    """A user's own term, from the second step on."""

    first_step = 0

    def loss_terms(self, outputs, teacher_logits, labels):
        terms = super().loss_terms(outputs, teacher_logits, labels)
        if self.state.global_step >= self.first_step:
            terms["size"] = 0.01 * outputs["logits"].square().mean()
        return terms


def test_a_subclass_adds_a_term_that_is_trained_and_logged(tmp_path):
    plain, own = (
        recorded(tmp_path / "plain", max_steps=1),
        recorded(tmp_path / "own", trainer_class=WithDecay, max_steps=1),
    )
    for run, _ in (plain, own):
        run.train()
    ours, theirs = logged(own[0])[0], logged(plain[0])[0]
    assert set(parts(ours)) - set(parts(theirs)) == {"size"}
    assert ours["loss"] == pytest.approx(theirs["loss"] + ours["loss_size"], rel=1e-5)
    assert ours["loss_size"] > 0
    bias = "student.classifier.1.bias"
    assert not torch.equal(plain[1].gradients[0][bias], own[1].gradients[0][bias])


def test_a_term_may_join_in_the_middle_of_training(tmp_path):
    class Later(WithDecay):
        first_step = 2

    run = trainer(tmp_path, trainer_class=Later, max_steps=4)
    run.train()
    assert ["loss_size" in entry for entry in logged(run)] == [False, False, True, True]
    for entry in logged(run):
        assert sum(parts(entry).values()) == pytest.approx(entry["loss"], rel=1e-5)


def test_a_changed_layer_weight_counts_from_the_next_training(tmp_path):
    """As a hyper-parameter search changes it: on the trainer's arguments, after the trainer was made."""
    entries = []
    for weight in (1.0, 4.0):
        run = trainer(tmp_path, max_steps=1)
        run.args.layer_weight = weight
        run.train()
        entries.append(parts(logged(run)[0]))
    for name in STAGES:
        assert entries[1][f"layer/{name}"] == pytest.approx(4 * entries[0][f"layer/{name}"], rel=1e-5)
    assert entries[1]["kd"] == pytest.approx(entries[0]["kd"], rel=1e-6)


# Who trains and who does not


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


def test_rotations_are_trained_and_stay_orthogonal(tmp_path):
    run = trainer(tmp_path, max_steps=10, learning_rate=1e-2)
    run.prepare_distillation()
    before = [alignment.rotation.matrix.detach().clone() for alignment in run.distillation.alignments]
    run.train()
    for alignment, matrix in zip(run.distillation.alignments, before, strict=True):
        assert float((alignment.rotation.matrix.detach() - matrix).abs().max()) > 1e-3
    assert run.distillation.orthogonality_error() < 1e-5


def test_training_again_goes_on_with_the_same_rotations(tmp_path):
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


class Plain(nn.Module):
    """Two blocks, of which the second overwrites what the first returned."""

    def __init__(self, outputs, width, form=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        second = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, 2, 1))
        self.blocks, self.head = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), second), nn.Linear(width, outputs)
        self.form = form

    def forward(self, pixel_values):
        return self.form(self.head(self.blocks(pixel_values).mean(dim=(2, 3))))


def test_plain_modules_with_logits_in_any_form_are_distilled(tmp_path):
    for form in (lambda logits: logits, lambda logits: (logits, None), lambda logits: {"logits": logits}):
        student, teacher = Plain(3, 6, form), Plain(100, 9, form)
        run = trainer(tmp_path, student, teacher, layers=["blocks.0=blocks.0", "blocks.1=blocks.1"], max_steps=3)
        before = run.evaluate()
        run.train()
        assert set(parts(logged(run)[0])) == {"kd", "layer/blocks.0", "layer/blocks.1"}
        assert run.evaluate()["eval_loss"] != before["eval_loss"]


def test_targets_are_what_a_layer_returned_before_the_next_one_overwrote_it(tmp_path):
    layers = ["blocks.0=blocks.0", "blocks.1=blocks.1"]
    run = trainer(tmp_path, Plain(3, 6), Plain(100, 9), layers=layers, method="fitnet")
    run.prepare_distillation()
    pixels = torch.randn(4, 3, 32, 32)
    _, targets = run.targets.of_pixels(pixels)
    with torch.no_grad():
        first = run.teacher.model.blocks[0](pixels)
        second = run.teacher.model.blocks[1](first.clone())
    assert first.min() < 0
    assert torch.equal(targets["blocks.0"].values, first.flatten(2))
    assert torch.equal(targets["blocks.1"].values, second.flatten(2))


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
    assert run.plan.identity(run.model, run.train_dataset)["method"]["rotation"] == expected


# Subspaces


def test_given_subspaces_are_used_and_nothing_is_fitted(tmp_path):
    fitted = trainer(tmp_path, max_steps=1, basis="identity")
    given = fitted.fit_subspaces()

    class Untouchable(torch.utils.data.Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, index):
            raise AssertionError("the images were read to fit subspaces")

    own = trainer(tmp_path, max_steps=1, parts={"subspaces": given, "fit_dataset": Untouchable()})
    for run in (fitted, own):
        run.train()
    assert all(own.subspaces[name] is given[name] for name in STAGES)
    assert parts(logged(own)[0]) == parts(logged(fitted)[0])
    without = trainer(tmp_path, max_steps=1, parts={"fit_dataset": Untouchable()})
    with pytest.raises(AssertionError, match="the images were read"):
        without.train()


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


def test_a_streamed_dataset_trains(tmp_path, datasets_cache):
    rows = [views()[index] for index in range(24)]
    for row in rows:
        row["image"] = row["image"].numpy()

    def collate(examples):
        examples = [example | {"image": torch.as_tensor(example["image"], dtype=torch.uint8)} for example in examples]
        return ViewCollator(processor(), processor(40))(examples)

    streamed = IterableDataset.from_generator(lambda: iter(rows))
    run = trainer(tmp_path, train=streamed, max_steps=5, parts={"data_collator": collate, "eval_dataset": None})
    run.train()
    assert run.state.global_step == 5
    assert run.subspaces[STAGES[0]].count == 24 * 100  # the teacher reads 40 pixels: maps of 10 by 10
    listed = trainer(tmp_path, train=views(), parts={"data_collator": ViewCollator(processor(), processor(40))})
    for name, subspace in listed.fit_subspaces().items():
        torch.testing.assert_close(run.subspaces[name].basis, subspace.basis, rtol=0, atol=1e-8)


# What the Trainer gives


BEST_IS_KEPT = {
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
}


class Scripted:
    """A metric with values known beforehand, so that the best checkpoint is not the last."""

    def __init__(self, *scores):
        self.scores = list(scores)

    def __call__(self, prediction):
        assert prediction.predictions.shape == (12, 3)
        return {"score": self.scores.pop(0)}


@pytest.mark.parametrize("student", [resnet, vit])  # transformers writes a ViT's weights under other names
def test_the_best_checkpoint_is_restored_with_its_rotations(tmp_path, student):
    run = trainer(
        tmp_path,
        student(),
        train=views(16),
        max_steps=6,
        learning_rate=1e-2,
        **BEST_IS_KEPT,
        metric_for_best_model="score",
        parts={"compute_metrics": Scripted(0.1, 0.9, 0.2)},
    )
    run.train()
    best, last = tmp_path / "checkpoint-4", tmp_path / "checkpoint-6"
    assert run.state.best_model_checkpoint == str(best)
    for checkpoint, same in ((best, True), (last, False)):
        saved = AutoModelForImageClassification.from_pretrained(checkpoint).state_dict()
        rotations = load_file(checkpoint / ALIGNMENTS_FILE)
        for module, weights in ((run.model, saved), (run.distillation.alignments, rotations)):
            assert all(torch.equal(value, weights[name]) for name, value in weights_of(module).items()) == same


def test_early_stopping_stops(tmp_path):
    run = trainer(
        tmp_path,
        max_steps=20,
        **BEST_IS_KEPT,
        metric_for_best_model="score",
        parts={
            "compute_metrics": Scripted(0.5, 0.4, 0.3),
            "callbacks": [EarlyStoppingCallback(early_stopping_patience=2)],
        },
    )
    run.train()
    assert run.state.global_step == 6
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_callbacks_get_the_plain_student(tmp_path):
    run, recorder = recorded(
        tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=2
    )
    student = run.model
    run.train()
    expected = ["train_begin", "step_end", "evaluate", "step_end", "evaluate", "save", "train_end"]
    assert recorder.events == expected
    assert all(model is student for model in recorder.models)
    assert run.model is student
    assert len(student._forward_hooks) == 0
    assert not any(module._forward_hooks for module in student.modules())


def test_bf16_leaves_weights_and_rotations_in_float32(tmp_path, monkeypatch):
    runs = {flag: trainer(tmp_path, max_steps=3, bf16=flag, learning_rate=1e-4) for flag in (False, True)}
    run, dtypes = runs[True], {}
    run.model.resnet.embedder.embedder.convolution.register_forward_hook(
        lambda module, given, output: dtypes.update(student=output.dtype)
    )

    def compared(values, targets, matrices, *options):
        errors, means = aligned_errors(values, targets, matrices, *options)
        dtypes.update({each.dtype: "compared" for each in (*values, *targets, matrices, errors)})
        return errors, means

    runs[False].train()
    monkeypatch.setattr(losses, "aligned_errors", compared)
    run.train()
    assert dtypes == {"student": torch.bfloat16, torch.float32: "compared"}
    assert all(math.isfinite(value) for entry in logged(run) for value in parts(entry).values())
    assert {weight.dtype for weight in run.distillation.parameters()} == {torch.float32}
    assert run.distillation.orthogonality_error() < 1e-5
    assert logged(run)[-1]["loss"] != logged(runs[False])[-1]["loss"]
    assert logged(run)[-1]["loss"] == pytest.approx(logged(runs[False])[-1]["loss"], rel=0.1)


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


def test_several_gpus_are_left_to_launchers(tmp_path):
    """With more than one GPU in one process the Trainer would take DataParallel, which cannot split the targets."""
    args = config(tmp_path, per_device_train_batch_size=8)
    args._n_gpu = 2  # what TrainingArguments finds on a machine with two
    assert args.train_batch_size == 16
    run = trainer(tmp_path, parts={"args": args})
    assert run.args.n_gpu == 1
    assert next(iter(run.get_train_dataloader()))["pixel_values"].shape[0] == 8


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing")  # its newer name is not in every version we support
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_leaves_the_gradients_of_the_layer_losses(tmp_path, reentrant):
    def gradients(**options):
        run, recorder = recorded(tmp_path, vit(), teacher_vit(), max_steps=1, max_grad_norm=0, **options)
        run.train()
        return recorder.gradients[0]

    plain = gradients()
    saving = gradients(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert len(plain) > 60
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient, rtol=1e-4, atol=1e-3)  # of up to hundreds


def test_tensorboard_gets_every_part_by_name(tmp_path):
    run = trainer(tmp_path, max_steps=2, report_to="tensorboard")
    run.train()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events.parent)).Reload()
    tags = set(accumulator.Tags()["scalars"])
    assert {"train/loss", "train/loss_kd", *(f"train/loss_layer/{name}" for name in STAGES)} <= tags
    written = [event.value for event in accumulator.Scalars("train/loss_kd")]
    assert written == pytest.approx([entry["loss_kd"] for entry in logged(run)])


def test_predictions_are_those_of_a_plain_forward_pass(tmp_path):
    run = trainer(tmp_path, max_steps=3, eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=5)
    run.train()
    images = views(4, "test")
    predicted = run.predict(images)
    pixels = run.data_collator([images[index] for index in range(12)])["pixel_values"]
    with torch.no_grad():
        logits = run.model.eval()(pixel_values=pixels).logits
    np.testing.assert_allclose(predicted.predictions, logits.numpy(), rtol=0, atol=1e-5)
    assert predicted.label_ids.tolist() == images.labels
    accuracy = float((logits.argmax(1) == torch.tensor(images.labels)).float().mean())
    evaluated = run.state.log_history[-2]
    assert evaluated["eval_accuracy"] == predicted.metrics["test_accuracy"] == pytest.approx(accuracy)
    loss = F.cross_entropy(logits, torch.tensor(images.labels))
    assert predicted.metrics["test_loss"] == pytest.approx(float(loss), rel=0.3)  # a mean over batches, 5, 5 and 2


def test_images_without_labels_are_predicted_even_one_by_one(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))

        def forward(self, pixel_values):
            return self.net(pixel_values)

    for student in (Plain(), resnet()):
        run = trainer(tmp_path, student, method="scratch", per_device_eval_batch_size=6)
        images = [{"pixel_values": torch.rand(3, 32, 32)} for _ in range(7)]  # the last batch has one image
        run.data_collator = lambda items: {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
        predicted = run.predict(images).predictions
        assert predicted.shape == (7, 3)
        with torch.no_grad():
            alone = student.eval()(pixel_values=images[6]["pixel_values"][None])
        alone = getattr(alone, "logits", alone)
        np.testing.assert_allclose(predicted[6:], alone.numpy(), rtol=0, atol=1e-6)


RELOAD = """
import json, sys
from pathlib import Path
from transformers import pipeline

folder = Path(sys.argv[1])
classify = pipeline("image-classification", model=str(folder / "student"))
answers = [classify(str(path)) for path in sorted(folder.glob("*.png"))]
assert not [name for name in sys.modules if name.startswith("subdistill")]
print(json.dumps([{answer["label"]: answer["score"] for answer in one} for one in answers]))
"""


def test_a_fresh_process_with_transformers_alone_gives_the_answers_of_the_last_evaluation(tmp_path):
    run = trainer(
        tmp_path / "run",
        max_steps=60,
        task_weight=2.0,
        layer_weight=0.01,
        learning_rate=3e-3,
        logging_steps=60,
        parts={"processing_class": processor()},
    )
    run.train()
    run.save_model(str(tmp_path / "student"))
    images = views(2, "test")
    for index, image in enumerate(subtask_rows(2, "test")["img"]):
        image.save(tmp_path / f"{index}.png")
    logits = torch.from_numpy(run.predict(images).predictions)

    answers = json.loads(run_python(RELOAD, tmp_path).stdout.splitlines()[-1])

    assert len(answers) == 6
    assert len({max(answer, key=answer.get) for answer in answers}) > 1  # the student says more than one class
    for answer, probabilities in zip(answers, logits.softmax(1), strict=True):
        assert set(answer) == set(NAMES)
        for name, probability in zip(NAMES, probabilities, strict=True):
            assert answer[name] == pytest.approx(float(probability), abs=1e-5)


def test_nothing_is_pickled_but_the_trainers_optimizer_schedule_and_random_state(tmp_path):
    run = trainer(
        tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2, parts={"processing_class": processor()}
    )
    run.train()
    run.save_model(str(tmp_path / "student"))
    checkpoint = {path.name for path in (tmp_path / "run" / "checkpoint-2").iterdir()}
    assert {name for name in checkpoint if "." + name.rpartition(".")[2] in PICKLES} == {
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    }
    assert {"model.safetensors", ALIGNMENTS_FILE, "subspaces.safetensors", "preprocessor_config.json"} <= checkpoint
    assert {path.name for path in (tmp_path / "student").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert "training_args.bin" not in checkpoint


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": ["resnet.encoder.stage.0=resnet.encoder.stages.0"]}, LayerError, "nearest names: resnet.encoder"),
        ({"layers": [f"{STAGES[0]}=resnet.encoder.stages.9"]}, LayerError, "nearest names: resnet.encoder.stages."),
        ({"layers": [STAGES[0]]}, LayerError, "not of the form 'teacher_layer=student_layer'"),
        (
            {"layers": [f"classifier.1={STAGES[0]}"]},
            LayerError,
            r"'classifier.1' gives a torch.float32 tensor of shape",
        ),
        ({"layers": [f"{STAGES[0]}=classifier"]}, LayerError, r"expected a map \(B, d, H, W\) or tokens"),
        ({"layers": [f"{STAGES[0]}={STAGES[0]}", f"{STAGES[0]}={STAGES[1]}"]}, LayerError, "is in two pairs"),
    ],
)
def test_layers_that_cannot_be_used_are_refused_when_the_trainer_is_made(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        trainer(tmp_path, **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": None}, "method 'subdistill' needs a teacher"),
        ({"teacher_class_ids": None}, "the student has 3 outputs and the teacher 100: pass teacher_class_ids"),
        ({"teacher_class_ids": [1, 2]}, "teacher_class_ids has 2 entries, but the student has 3 outputs"),
        ({"teacher_class_ids": [1, 2, 100]}, "must lie between 0 and 99"),
        ({"teacher_class_ids": [1, 2, 1]}, "names one output of the teacher twice"),
        ({"train_dataset": []}, "the training dataset is empty"),
        ({"train_dataset": InOrder([], [])}, "the training dataset is empty"),
        ({"data_collator": lambda items: {"pixels": 1}}, "expected batches with `pixel_values`, found pixels"),
        ({"compute_loss_func": lambda *given: 0}, "override loss_terms"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_models_and_data_that_do_not_fit_are_refused_when_the_trainer_is_made(tmp_path, given, message):
    with pytest.raises(DistillationError, match=message):
        trainer(tmp_path, parts=given)


def test_a_student_of_one_class_is_refused(tmp_path):
    with pytest.raises(DistillationError, match="at least two classes, the student has 1"):
        trainer(tmp_path, resnet(NAMES[:1]), teacher_resnet(NAMES[:1]), parts={"teacher_class_ids": None})


def test_too_few_positions_for_a_subspace_are_refused_before_training(tmp_path):
    run = trainer(tmp_path, train=views(2), save_strategy="steps", save_steps=1)
    with pytest.raises(SubspaceError, match="6 positions cannot determine a subspace of 20 dimensions: expected at"):
        run.train()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damaged", "named"),
    [("classifier.1.bias", "the loss of kd is NaN"), ("resnet.encoder.stages.3", "kd, layer/resnet.encoder.stages.3")],
)
def test_a_loss_that_is_not_finite_stops_the_run_with_the_names_of_its_parts(tmp_path, damaged, named):
    student = resnet()
    with torch.no_grad():
        weights = [weight for name, weight in student.named_parameters() if name.startswith(damaged)]
        weights[-1].fill_(math.nan)
    run = trainer(tmp_path, student)
    with pytest.raises(NonFiniteLossError) as stopped:
        run.train()
    assert named in str(stopped.value)
    assert "stages.2" not in str(stopped.value)
    assert run.state.global_step == 0


def test_arguments_of_another_class_are_refused(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="expected args of type SubDistillConfig, found TrainingArguments"):
        SubDistillTrainer(resnet(), TrainingArguments(output_dir=str(tmp_path)), teacher=teacher_resnet())


def test_models_take_images_by_name(tmp_path):
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    with pytest.raises(
        DistillationError, match=r"the student's forward takes \(input\): expected `pixel_values`; wrap"
    ):
        trainer(tmp_path, student, method="kd")
    with pytest.raises(DistillationError, match=r"the teacher's forward takes \(input\): expected `pixel_values`"):
        trainer(tmp_path, teacher=student, method="kd")


def test_a_teacher_cache_needs_a_length(tmp_path):
    streamed = trainer(tmp_path, teacher_cache=1, train=InOrder(views(), range(24)))
    with pytest.raises(SubDistillError, match="teacher_cache needs a dataset with a length, found a streamed one"):
        streamed.train()


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


def test_rotations_are_made_once_for_an_optimisers_step(tmp_path, monkeypatch):
    made = []
    solve = rotations._Cayley.solve
    monkeypatch.setattr(rotations._Cayley, "solve", lambda *given: made.append(1) or solve(*given))
    histories = []
    for kept in (True, False):
        made.clear()
        if not kept:
            monkeypatch.setattr(trainer_module, "matrices_kept", lambda matrices: nullcontext())
        run = trainer(
            tmp_path / str(kept),
            max_steps=3,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=3,
            logging_steps=1,
        )
        run.train()
        assert len(made) == (3 if kept else 9)
        histories.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert histories[0] == histories[1]


# Arguments that change between trainings, as in a search


def last_loss(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry][-1]


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
    assert run.plan.identity(run.model, run.train_dataset) == fresh.plan.identity(fresh.model, fresh.train_dataset)


def test_given_subspaces_stay_whatever_changes(tmp_path):
    given = trainer(tmp_path / "given").fit_subspaces()
    run = trainer(tmp_path / "run", parts={"subspaces": given}, max_steps=1)
    run.train()
    run.args.basis = "pca"
    run.train()
    assert run.subspaces == given


def test_the_best_of_a_student_with_a_head_of_its_own_is_loaded(tmp_path):
    student = resnet()
    student.classifier[1] = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Linear(20, 3))
    run = trainer(
        tmp_path,
        student,
        max_steps=4,
        **BEST_IS_KEPT,
        metric_for_best_model="score",
        parts={"compute_metrics": Scripted(0.9, 0.1)},
    )
    run.train()
    best = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert_equal_weights(weights_of(run.model), best)


def test_the_short_card_tells_the_evaluation_of_the_student_that_is_kept(tmp_path):
    class Accuracies(Scripted):
        def __call__(self, predicted):
            return {"accuracy": super().__call__(predicted)["score"]}

    run = trainer(
        tmp_path,
        max_steps=6,
        **BEST_IS_KEPT,
        metric_for_best_model="accuracy",
        parts={"compute_metrics": Accuracies(0.1, 0.9, 0.2)},
    )
    run.train()
    run.create_model_card()
    assert "accuracy: 0.9000" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_of_half_precision_takes_the_pixels_as_they_come(tmp_path, dtype):
    run = trainer(tmp_path, teacher=teacher_resnet().to(dtype), max_steps=2)
    run.train()
    assert np.isfinite(last_loss(run))
    assert {subspace.mean.dtype for subspace in run.subspaces.values()} == {torch.float64}


def test_a_model_does_not_teach_itself(tmp_path):
    model = resnet()
    with pytest.raises(DistillationError, match="teacher and student are the same model"):
        trainer(tmp_path, model, model)


def test_a_rotation_in_closed_form_of_a_run_that_diverges_is_no_crash(tmp_path):
    run = trainer(tmp_path, rotation="procrustes", learning_rate=1e12, max_steps=12, max_grad_norm=0.0)
    with pytest.raises(NonFiniteLossError):
        run.train()
