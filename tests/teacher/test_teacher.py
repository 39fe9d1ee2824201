"""The teacher is frozen, restricted to the subtask, and runs in its own precision."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from helpers import CLASS_IDS, assert_equal_weights, resnet, teacher_resnet, teacher_vit, trainer, views, weights_of
from subdistill_hf.errors import DistillationError
from subdistill_hf.models.errors import ModelError
from subdistill_hf.models.loading import weights_digest
from subdistill_hf.teacher import teacher as teacher_module
from subdistill_hf.teacher.teacher import Teacher
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


class Carries(nn.Module):
    """A teacher whose state holds more than tensors."""

    def __init__(self, value):
        super().__init__()
        self.net, self.value = teacher_resnet(), value

    def forward(self, pixel_values):
        return self.net(pixel_values).logits

    def get_extra_state(self):
        return self.value

    def set_extra_state(self, value):
        self.value = value


class Weightless(nn.Module):
    """A teacher that learnt nothing."""

    def forward(self, pixel_values):
        return pixel_values.flatten(1)[:, :100]


def quantised():
    return torch.ao.quantization.quantize_dynamic(teacher_vit(), {nn.Linear}, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize("make", [lambda: Carries({"version": 1}), quantised, Weightless])
def test_a_teacher_of_any_state_teaches_and_its_run_is_resumed(tmp_path, make):
    options = {"method": "kd", "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    first = trainer(tmp_path, teacher=make(), **options)
    first.train()
    again = trainer(tmp_path, teacher=make(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert_equal_weights(weights_of(again.model), weights_of(first.model))
    assert (first.teacher.device.type, first.teacher.dtype) == ("cpu", torch.float32)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_a_digest_tells_values_of_every_kind():
    changed = quantised()
    packed = next(module for module in changed.modules() if hasattr(module, "set_weight_bias"))
    weight, bias = packed._weight_bias()
    packed.set_weight_bias(torch.quantize_per_tensor(weight.dequantize() + 1, 0.1, 0, torch.qint8), bias)
    assert weights_digest(quantised()) == weights_digest(quantised()) != weights_digest(changed)
    values = [{"a": 1, "b": [2.0, None]}, {"a": 1, "b": [2.0, "None"]}, torch.zeros(2), [torch.zeros(2)], {"a", "b"}]
    digests = [weights_digest(Carries(value)) for value in values]
    assert len(set(digests)) == len(values)
    assert weights_digest(Carries({"b": [2.0, None], "a": 1})) == digests[0]
    with pytest.raises(ModelError, match=r"'_extra_state' of its state_dict\(\) is a function without bytes"):
        weights_digest(Carries(lambda: 0))


# Shared by several trainings


@pytest.fixture
def digests(monkeypatch):
    """The models whose weights were hashed."""
    hashed = []
    original = teacher_module.weights_digest
    monkeypatch.setattr(teacher_module, "weights_digest", lambda model: hashed.append(model) or original(model))
    return hashed


def test_trainings_that_share_a_teacher_hash_its_weights_once(tmp_path, digests):
    teacher = Teacher(teacher_resnet(), CLASS_IDS)
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "teacher_cache": "2"}
    images = views(augmentation="pad_crop", views=2)
    runs = [
        trainer(
            tmp_path / method,
            teacher=teacher,
            train=images,
            method=method,
            parts={"teacher_class_ids": None},
            **options,
        )
        for method in ("kd", "fitnet", "subdistill")
    ]
    for run in runs:
        run.prepare_distillation()
    for run in runs:
        run.train()
        assert run.teacher is teacher
        assert (tmp_path / run.args.method / "checkpoint-2" / "subdistill.json").is_file()
    assert digests == [teacher.model]


def test_a_shared_teacher_gives_what_one_of_its_own_gives(tmp_path):
    own = trainer(tmp_path / "own", max_steps=2)
    shared = Teacher.for_training(teacher_resnet(), CLASS_IDS, own.args)
    other = trainer(tmp_path / "other", teacher=shared, max_steps=2, parts={"teacher_class_ids": None})
    for run in (own, other):
        run.train()
    assert_equal_weights(weights_of(own.distillation), weights_of(other.distillation))


def test_the_weights_are_hashed_again_when_a_trainer_trains_again(tmp_path, digests):
    run = trainer(tmp_path, max_steps=1)
    run.prepare_distillation()
    run.train()
    assert len(digests) == 1
    run.train()
    assert len(digests) == 2


def test_a_teacher_that_needs_no_digest_is_not_hashed(tmp_path, digests):
    trainer(tmp_path, method="kd", max_steps=1).train()
    assert digests == []


def test_classes_are_given_once(tmp_path):
    teacher = Teacher(teacher_resnet(), CLASS_IDS)
    with pytest.raises(DistillationError, match="teacher_class_ids has no place beside a Teacher, which has its own"):
        trainer(tmp_path, teacher=teacher)


def test_a_shared_teacher_is_not_the_student(tmp_path):
    model = resnet()
    with pytest.raises(DistillationError, match="teacher and student are the same model"):
        trainer(tmp_path, model, Teacher(model), parts={"teacher_class_ids": None})


@pytest.mark.parametrize(
    ("options", "precision"),
    [({}, None), ({"bf16": True}, torch.bfloat16), ({"teacher_bf16": True}, torch.bfloat16)],
    ids=str,
)
def test_the_teacher_runs_in_the_precision_of_the_training(tmp_path, options, precision):
    teacher = trainer(tmp_path, **options).teacher
    assert teacher.precision == precision
    assert teacher.dtype == (precision or torch.float32)
    seen = []
    teacher.model.classifier[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    logits = teacher.logits(torch.zeros(2, 3, 32, 32))
    assert seen == [teacher.dtype]
    assert logits.dtype == torch.float32
