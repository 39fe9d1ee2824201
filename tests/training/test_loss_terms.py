"""The parts of the loss are the formulas, accumulate over micro-batches, and are what is logged."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import CLASS_IDS, convnext, processor, resnet, teacher_resnet, trainer, views
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.errors import DistillationError, NonFiniteLossError
from subdistill_hf.losses import rotations
from subdistill_hf.training.loss_terms import label_loss
from subdistill_hf.training.module import StudentWithAlignments
from subdistill_hf.training.trainer import SubDistillTrainer
from trainings import STAGES, InOrder, logged, parts, recorded


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


@pytest.mark.parametrize("centring", ["mean", "batch_norm"])
def test_gradient_accumulation_of_equal_micro_batches_gives_the_gradient_of_one(tmp_path, centring):
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


def test_gradient_accumulation_of_logit_distillation_gives_the_gradient_of_the_large_batch(tmp_path):
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


@pytest.mark.parametrize(
    ("term", "found"), [(0.0, "a float"), (None, "a NoneType"), (torch.zeros(8), r"a tensor \(8,\)")], ids=str
)
def test_a_term_that_is_no_number_of_torch_is_refused(tmp_path, term, found):
    class Own(SubDistillTrainer):
        def loss_terms(self, outputs, teacher_logits, labels):
            return super().loss_terms(outputs, teacher_logits, labels) | {"mine": term}

    with pytest.raises(DistillationError, match=f"loss_terms gives {found} as 'mine': expected a tensor of a single"):
        trainer(tmp_path, trainer_class=Own, method="kd").train()


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


def test_the_weight_of_the_layers_falls_by_the_same_factor_in_each_step(tmp_path):
    """The weights of the student stay, so that each step would have the losses of the first."""
    images = views()
    still = {"learning_rate": 1e-12, "per_device_train_batch_size": len(images), "max_steps": 4, "temperature": 1.0}
    run = trainer(tmp_path, train=images, layer_weight=3.0, layer_weight_end=0.0625, **still)
    run.train()
    entries = [parts(entry) for entry in logged(run)]
    for name in STAGES:
        losses = [entry[f"layer/{name}"] for entry in entries]
        assert losses == pytest.approx([losses[0] * share for share in (1, 0.5, 0.25, 0.125)], rel=1e-3)
    assert [entry["kd"] for entry in entries] == pytest.approx([entries[0]["kd"]] * 4, rel=1e-3)


def test_tensorboard_gets_every_part_by_name(tmp_path):
    run = trainer(tmp_path, max_steps=2, report_to="tensorboard")
    run.train()
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events.parent)).Reload()
    tags = set(accumulator.Tags()["scalars"])
    assert {"train/loss", "train/loss_kd", *(f"train/loss_layer/{name}" for name in STAGES)} <= tags
    written = [event.value for event in accumulator.Scalars("train/loss_kd")]
    assert written == pytest.approx([entry["loss_kd"] for entry in logged(run)])


@pytest.mark.parametrize(
    ("damaged", "named"),
    [("classifier.1.bias", "the loss of kd is NaN"), ("resnet.encoder.stages.3", "kd, layer/resnet.encoder.stages.3")],
)
def test_a_nan_loss_stops_the_run_with_the_names_of_its_parts(tmp_path, damaged, named):
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


def test_a_procrustes_rotation_of_a_run_that_diverges_is_no_crash(tmp_path):
    run = trainer(tmp_path, rotation="procrustes", learning_rate=1e12, max_steps=12, max_grad_norm=0.0)
    with pytest.raises(NonFiniteLossError):
        run.train()


def test_rotations_are_made_once_for_an_optimisers_step(tmp_path, monkeypatch):
    made = []
    make = rotations._Inverses.of
    monkeypatch.setattr(rotations._Inverses, "of", lambda *parameters: made.append(1) or make(*parameters))
    keep_matrices = StudentWithAlignments.keep_matrices
    histories = []
    for kept in (True, False):
        made.clear()
        if not kept:
            monkeypatch.setattr(
                StudentWithAlignments, "keep_matrices", lambda module, keep: keep_matrices(module, False)
            )
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


# Images without a class


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_images_without_a_class_add_nothing_to_the_loss_of_the_labels(smoothing):
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = label_loss(logits, torch.tensor([0, -100, 2, -100, -100, 1]), smoothing)
    expected = F.cross_entropy(logits[[0, 2, 5]], torch.tensor([0, 2, 1]), label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    alone = label_loss(logits, torch.full((6,), -100), smoothing)
    (gradient,) = torch.autograd.grad(alone, logits)
    assert alone.item() == 0
    assert gradient.abs().max() == 0


class Labelled(torch.utils.data.Dataset):
    """Glyphs with labels that nobody lists."""

    def __init__(self, labels):
        self.images, self.labels = views(), labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index] | {"labels": self.labels[index]}


def test_a_batch_without_a_class_teaches_nothing_and_is_no_divergence(tmp_path):
    labels = [0] + [1] * 7 + [-100] * 8 + [2] * 8
    run = trainer(
        tmp_path,
        method="scratch",
        train=InOrder(Labelled(labels), range(24)),
        max_steps=3,
        per_device_train_batch_size=8,
        parts={"eval_dataset": Labelled(labels)},
        per_device_eval_batch_size=8,
    )
    run.train()
    assert [entry["loss"] == 0 for entry in logged(run)] == [False, True, False]
    logits = torch.from_numpy(run.predict(Labelled(labels)).predictions)
    expected = F.cross_entropy(logits, torch.tensor(labels))  # over those with a class, which are of two batches
    assert run.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_late_label_that_is_no_class_is_refused_with_what_was_expected(tmp_path):
    labels = [0, 1, 2] * 8
    labels[5] = 7
    for given in ({"train": Labelled(labels)}, {"parts": {"eval_dataset": Labelled(labels)}}):
        run = trainer(tmp_path, method="scratch", max_steps=3, eval_strategy="epoch", **given)
        with pytest.raises(DistillationError, match=r"images have the labels 7: expected 0 to 2"):
            run.train()


def test_a_training_on_labels_of_which_none_is_a_class_is_refused(tmp_path):
    images = views()
    images.labels = [-100] * len(images)
    with pytest.raises(DistillationError, match=r"needs classes, and all labels of the training images are -100"):
        trainer(tmp_path, method="scratch", train=images)
    trainer(tmp_path, method="kd", train=images)
