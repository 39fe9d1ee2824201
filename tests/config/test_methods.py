"""Every method through the trainer: optimised, logged, cached, checkpointed and resumed as one does with another."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from helpers import (
    CLASS_IDS,
    COLUMNS,
    LAYER_BASELINES,
    assert_equal_weights,
    convnext,
    resnet,
    subtask_rows,
    teacher_resnet,
    teacher_vit,
    trainer,
    views,
    weights_of,
)
from subdistill_hf.config.methods import METHODS, method_label
from subdistill_hf.core.subspaces import SUBSPACES_FILE
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import DistillationError, NonFiniteLossError
from subdistill_hf.training.checkpoints import ALIGNMENTS_FILE, STATE_FILE

LEARNING = ("fitnet", "vid", "vkd", "subdistill")
KEPT = [*((method, "orthogonal") for method in LEARNING), ("subdistill", "procrustes"), ("subdistill", "full_width")]


def parts_of(run):
    return [entry for entry in run.state.log_history if "loss" in entry]


def test_every_layer_method_is_a_method_with_a_weight():
    assert {*LAYER_BASELINES, "subdistill"} == {name for name, one in METHODS.items() if one.layer_weight}
    assert all((one.layer_weight is None) == (one.published_layer_weight is None) for one in METHODS.values())
    labels = [method_label(name) for name in ("teacher", *METHODS)]
    assert len(set(labels)) == len(labels)
    assert method_label("unknown") == "unknown"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_logs_the_parts_that_it_has(tmp_path, method):
    run = trainer(tmp_path, method=method)
    before = weights_of(run.prepare_distillation())
    run.train()
    weights = run.args.weights()
    expected = {part for part in ("task", "kd") if weights[part]}
    if weights["layer"]:
        expected |= {f"layer/resnet.encoder.stages.{stage}" for stage in range(4)}
    for entry in parts_of(run):
        parts = {name.removeprefix("loss_"): value for name, value in entry.items() if name.startswith("loss_")}
        assert parts.keys() == expected
        assert all(math.isfinite(value) for value in parts.values())
        assert sum(parts.values()) == pytest.approx(entry["loss"], rel=1e-4)
    after = weights_of(run.distillation)
    learned = [name for name, _ in run.distillation.named_parameters()]
    assert all(not torch.equal(before[name], after[name]) for name in learned)
    assert any(name.startswith("alignments.") for name in learned) == (
        method in {"fitnet", "vid", "vkd", "subdistill"}
    )
    assert bool(run.subspaces) == (method == "subdistill")


def test_a_layer_loss_is_that_of_the_features_of_both_models(tmp_path):
    run = trainer(
        tmp_path, method="fitnet", target_scale="teacher", layers=["resnet.encoder.stages.1=resnet.encoder.stages.1"]
    )
    distillation = run.prepare_distillation()
    batch = run._prepare_inputs(next(iter(run.get_train_dataloader())))
    logits, targets = run.targets.of({"pixel_values": batch["pixel_values"]})
    outputs = distillation(targets, pixel_values=batch["pixel_values"])
    distillation.student.train()
    with torch.no_grad():
        theirs = run.teacher.model(batch["pixel_values"], output_hidden_states=True).hidden_states[2]
        ours = distillation.student(batch["pixel_values"], output_hidden_states=True).hidden_states[2]
    regressor = distillation.alignments[0].regressor
    mapped = torch.einsum("dk,bkhw->bdhw", regressor.weight[..., 0], ours) + regressor.bias[:, None, None]
    expected = (mapped - theirs).square().sum(dim=1).mean()
    assert outputs["layer_losses"][0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert logits.shape == (8, len(CLASS_IDS))


@pytest.mark.parametrize("method", LAYER_BASELINES)
def test_a_transformer_teaches_a_convolutional_student(tmp_path, method):
    run = trainer(tmp_path, student=resnet(), teacher=teacher_vit(), method=method, max_steps=1)
    run.train()
    assert all(math.isfinite(value) for value in parts_of(run)[0].values())


def test_the_full_width_map_compares_with_all_of_the_teachers_space(tmp_path):
    run = trainer(tmp_path, rotation="full_width", layers=["resnet.encoder.stages.1=resnet.encoder.stages.1"])
    distillation = run.prepare_distillation()
    assert "subspace" not in run.plan.preview()
    (subspace,) = run.subspaces.values()
    assert (subspace.width, subspace.dimensions) == (20, 20)
    assert subspace.energy == pytest.approx(subspace.total_energy)
    batch = run._prepare_inputs(next(iter(run.get_train_dataloader())))
    _, targets = run.targets.of_pixels(batch["pixel_values"])
    outputs = distillation(targets, pixel_values=batch["pixel_values"])
    with torch.no_grad():
        theirs = run.teacher.model(batch["pixel_values"], output_hidden_states=True).hidden_states[2].flatten(2)
        ours = distillation.student(batch["pixel_values"], output_hidden_states=True).hidden_states[2].flatten(2)
    mean = ours.mean(dim=(0, 2), keepdim=True)
    scale = ((ours - mean).square().mean(dim=(0, 2), keepdim=True) + 1e-5).rsqrt()
    mapped = distillation.alignments[0].rotation.matrix @ ((ours - mean) * scale)
    error = (mapped - (theirs - subspace.mean.float()[:, None])).square().sum(dim=1).mean() / subspace.energy
    assert outputs["layer_losses"][0].item() == pytest.approx(error.item(), rel=1e-4)
    run.train()
    assert distillation.orthogonality_error() < 1e-5


def test_dkd_on_two_classes_is_refused_and_kd_is_finite(tmp_path):
    class_ids = CLASS_IDS[:2]
    images = ViewDataset(subtask_rows(class_ids=class_ids), COLUMNS)
    parts = {"teacher_class_ids": class_ids, "eval_dataset": None}

    def run(method):
        return trainer(tmp_path, resnet(("first", "second")), train=images, parts=parts, method=method)

    with pytest.raises(DistillationError, match=r"at least 3 classes, the student has 2: it compares .* Use 'kd'"):
        run("dkd")
    for method in ("kd", "ce_kd"):
        trained = run(method)
        trained.train()
        assert all(math.isfinite(entry["loss"]) for entry in parts_of(trained))


def test_dkd_is_weighted_by_its_option_and_uses_labels(tmp_path):
    losses = {}
    for beta in (8.0, 0.0):
        run = trainer(tmp_path, method="dkd", task_weight=0.0, dkd_beta=beta, max_steps=1)
        run.train()
        losses[beta] = parts_of(run)[0]["loss_kd"]
    assert losses[8.0] > losses[0.0] > 0


def test_dkd_takes_the_class_that_a_mixed_image_shows_most(tmp_path):
    run = trainer(tmp_path, method="dkd")
    student, teacher, labels = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    shares = 0.3 * torch.eye(3)[labels.roll(1)] + 0.7 * torch.eye(3)[labels]
    found = [
        run.loss_terms({"logits": student, "layer_losses": torch.zeros(0)}, teacher, given)["kd"]
        for given in (labels, shares)
    ]
    assert float(found[0]) == float(found[1]) > 0


def test_a_loss_that_is_not_finite_names_the_layer(tmp_path):
    run = trainer(tmp_path, method="vid")
    with torch.no_grad():
        run.prepare_distillation().alignments[2].log_scale.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"layer/resnet\.encoder\.stages\.2"):
        run.train()


@pytest.mark.parametrize("method", ["fitnet", "attention_transfer", "spkd"])
def test_cached_targets_are_those_of_the_teacher_to_half_precision(tmp_path, method):
    def losses(**options):
        images = views(augmentation="pad_crop", views=2)
        run = trainer(tmp_path, train=images, method=method, max_steps=8, learning_rate=1e-6, **options)
        run.train()
        return run, [entry["loss"] for entry in parts_of(run)]

    cached, ours = losses(teacher_cache=2)
    _, theirs = losses()
    assert cached.targets.cache.views == 2
    assert ours == pytest.approx(theirs, rel=5e-3)


# Checkpoints


@pytest.mark.parametrize(("method", "rotation"), KEPT)
def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(tmp_path, method, rotation):
    def run(name):
        settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
        images = views(augmentation="pad_crop", flip=True, seed=5)
        layers = [f"resnet.encoder.stages.{stage}=resnet.encoder.stages.{stage}" for stage in range(3)]
        return trainer(tmp_path / name, train=images, method=method, rotation=rotation, layers=layers, **settings)

    whole = run("whole")
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "part" / "checkpoint-2")
    part = run("part")
    part.train(resume_from_checkpoint=True)
    assert len(weights_of(part.distillation.alignments)) >= 3
    assert_equal_weights(weights_of(part.distillation), weights_of(whole.distillation))
    saved = load_file(tmp_path / "part" / "checkpoint-6" / ALIGNMENTS_FILE)
    assert_equal_weights(saved, weights_of(part.distillation.alignments))
    assert (tmp_path / "part" / "checkpoint-6" / f"{SUBSPACES_FILE}.json").exists() == (method == "subdistill")


def test_a_method_that_learns_nothing_leaves_no_file_and_is_resumed(tmp_path):
    options = {"method": "spkd", "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    checkpoint = tmp_path / "part" / "checkpoint-2"
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", checkpoint)
    assert not (checkpoint / ALIGNMENTS_FILE).exists()
    assert json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["method"]["method"] == "spkd"
    part = trainer(tmp_path / "part", **options)
    part.train(resume_from_checkpoint=True)
    assert_equal_weights(weights_of(part.model), weights_of(whole.model))


def test_another_method_is_not_resumed(tmp_path):
    trainer(tmp_path, method="fitnet", save_strategy="steps", save_steps=2, max_steps=2).train()
    with pytest.raises(DistillationError, match="made with another choice of method"):
        trainer(tmp_path, method="vkd", max_steps=4).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("method", ["fitnet", "vid", "vkd"])
def test_gradients_of_accumulated_batches_are_those_of_the_large_batch(tmp_path, method):
    """Every loss here is a mean over images, so half batches average to the whole one."""

    def gradients(**options):
        run = trainer(tmp_path, convnext(), teacher_resnet(), method=method, max_steps=1, max_grad_norm=0.0, **options)
        found = {}

        class Look(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, **given):
                found.update({name: weight.grad.clone() for name, weight in run.distillation.named_parameters()})

        run.add_callback(Look())
        run.train()
        return found

    large = gradients(per_device_train_batch_size=8)
    small = gradients(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert small.keys() == large.keys()
    for name, gradient in large.items():
        torch.testing.assert_close(small[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_the_student_alone_is_saved(tmp_path):
    run = trainer(tmp_path, method="vid", max_steps=1)
    run.train()
    run.save_model(tmp_path / "student")
    names = load_file(Path(tmp_path) / "student" / "model.safetensors")
    assert names.keys() == run.model.state_dict().keys()
