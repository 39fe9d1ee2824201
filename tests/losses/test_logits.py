"""The losses on the logits: against the released code's values and against slow loops."""

import math

import numpy as np
import pytest
import torch

from subdistill_hf.losses.logits import decoupled_distillation, logit_distillation

# The released code


def test_the_released_logit_distillation_is_reproduced(loss_reference):
    loss = logit_distillation(loss_reference["student_logits"], loss_reference["teacher_logits"], temperature=4)
    assert loss.item() == pytest.approx(loss_reference["kd_T4"], abs=1e-5)


def test_the_released_dkd_is_reproduced(loss_reference):
    logits = loss_reference["student_logits"], loss_reference["teacher_logits"]
    loss = decoupled_distillation(*logits, loss_reference["targets"], temperature=1.0, alpha=1.0, beta=8.0)
    assert loss.item() == pytest.approx(loss_reference["dkd_T1_a1_b8"], rel=1e-6, abs=1e-5)


# Distillation


@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_logit_distillation_is_the_scaled_divergence(classes, temperature):
    student, teacher = np.random.default_rng(0).normal(size=(2, 6, classes)) * 3
    divergences = []
    for s, t in zip(student, teacher, strict=True):
        p = np.exp(t / temperature) / np.exp(t / temperature).sum()
        q = np.exp(s / temperature) / np.exp(s / temperature).sum()
        divergences.append(sum(p * (np.log(p) - np.log(q))))
    expected = temperature**2 * np.mean(divergences)
    found = logit_distillation(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_logit_distillation_has_temperature_four_by_default():
    student, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(logit_distillation(student, teacher), logit_distillation(student, teacher, 4.0))
    assert not torch.equal(logit_distillation(student, teacher), logit_distillation(student, teacher, 2.0))


def test_logit_distillation_vanishes_for_the_teachers_own_logits_up_to_a_constant():
    teacher = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    student = (teacher + 7).requires_grad_()
    loss = logit_distillation(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_two_classes_and_a_batch_of_two_are_finite(size, dtype):
    student = (size * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).to(dtype).requires_grad_()
    teacher = (size * torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])).to(dtype)
    loss = logit_distillation(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert 0 < loss.item() < math.inf
    assert student.grad.isfinite().all()


# Decoupled distillation


def slow_divergence(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def slow_dkd(student, teacher, labels, temperature, alpha, beta):
    total = 0.0
    for s, t, label in zip(student, teacher, labels, strict=True):
        ours, theirs = ([math.exp(z / temperature) for z in side] for side in (s, t))
        q, p = ([x / sum(side) for x in side] for side in (ours, theirs))
        binary = slow_divergence([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        rest_p, rest_q = ([x / (1 - side[label]) for c, x in enumerate(side) if c != label] for side in (p, q))
        total += alpha * binary + beta * slow_divergence(rest_p, rest_q)
    return temperature**2 * total / len(labels)


def logits(classes, seed=0, batch=6, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "alpha": 0.5, "beta": 3.0}])
def test_dkd_is_what_the_slow_loop_gives(classes, options):
    student, teacher, labels = logits(classes), logits(classes, 1), torch.tensor([0, 1, 2, 0, 1, 2])
    settings = {"temperature": 4.0, "alpha": 1.0, "beta": 8.0} | options
    expected = slow_dkd(student.tolist(), teacher.tolist(), labels.tolist(), *settings.values())
    assert decoupled_distillation(student, teacher, labels, **options).item() == pytest.approx(expected, rel=1e-10)


def test_both_parts_of_dkd_make_up_kd():
    """KD = TCKD + (1 - p_label)·NCKD, the identity that the method comes from."""
    student, teacher, labels = logits(4, batch=1), logits(4, 1, batch=1), torch.tensor([2])
    others = 1 - torch.softmax(teacher / 4.0, dim=1)[0, 2].item()
    decoupled = decoupled_distillation(student, teacher, labels, beta=others)
    assert decoupled.item() == pytest.approx(logit_distillation(student, teacher).item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dkd_of_logits_in_half_precision_is_computed_in_single(dtype):
    student, teacher, labels = logits(5).to(dtype), logits(5, 1).to(dtype), torch.tensor([0, 1, 2, 0, 1, 2])
    found = decoupled_distillation(student, teacher, labels)
    expected = slow_dkd(student.tolist(), teacher.tolist(), labels.tolist(), 4.0, 1.0, 8.0)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_dkd_stays_finite_for_certain_teachers_and_half_precision():
    student, teacher = logits(3, scale=300.0), logits(3, 1, scale=300.0)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert decoupled_distillation(student.half(), teacher.half(), labels, temperature=1.0).isfinite()


def test_two_classes_are_enough_for_kd_and_too_few_for_dkd():
    student, teacher = logits(2).requires_grad_(), logits(2, 1)
    loss = logit_distillation(student, teacher)
    loss.backward()
    assert loss.item() > 0
    assert student.grad.isfinite().all()
    with pytest.raises(ValueError, match="at least 3 classes, found 2: its second part compares"):
        decoupled_distillation(student, teacher, torch.zeros(6, dtype=torch.long))


# Shapes


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((4, 3), (4, 1)), ((4, 3), (3,)), ((4, 3), (1, 3)), ((4, 3, 2), (4, 3, 2)), ((3,), (3,)), ((0, 3), (0, 3))],
)
def test_logits_that_are_not_of_the_same_images_and_classes_are_refused(student, teacher):
    logits = torch.randn(student), torch.randn(teacher)
    for loss in (logit_distillation, lambda *both: decoupled_distillation(*both, torch.zeros(4, dtype=torch.long))):
        with pytest.raises(ValueError, match="expected logits"):
            loss(*logits)


@pytest.mark.parametrize("labels", [(1,), (4, 1), (4, 3)])
def test_labels_that_are_not_one_for_each_image_are_refused(labels):
    with pytest.raises(ValueError, match=r"expected the class of each image as labels \(4,\), found labels"):
        decoupled_distillation(torch.randn(4, 3), torch.randn(4, 3), torch.zeros(labels, dtype=torch.long))
