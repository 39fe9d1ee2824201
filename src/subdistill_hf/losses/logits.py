"""The losses on the logits: distillation, and decoupled distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_DKD_CLASSES = 3


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), averaged over the batch.

    Source: docs/method.md, "Losses on the logits".

    Args:
        student: logits of the subtask's classes `(B, C)`.
        teacher: the teacher's logits restricted to the same classes, in the same order, `(B, C)`.
        temperature: T.

    Raises:
        ValueError: for logits of other shapes.
    """
    _check_logits(student, teacher)
    divergence = F.kl_div(
        F.log_softmax(student.float() / temperature, dim=1),
        F.log_softmax(teacher.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def decoupled_distillation(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """DKD: T²·(alpha·TCKD + beta·NCKD), averaged over the batch (Zhao et al., 2022, equation 7).

    TCKD is the divergence between the teacher's and the student's shares of the labelled class against all others;
    NCKD the one between their distributions over the other classes.

    Args:
        student: logits of the subtask's classes `(B, C)`.
        teacher: the teacher's logits restricted to the same classes, in the same order, `(B, C)`.
        labels: class of each image `(B,)`.
        temperature: T.
        alpha: weight of the labelled class's part.
        beta: weight of the other classes' part.

    Raises:
        ValueError: for fewer than three classes, and for logits or labels of other shapes.
    """
    _check_logits(student, teacher)
    if labels.shape != student.shape[:1]:
        raise ValueError(
            f"expected the class of each image as labels ({len(student)},), found labels {tuple(labels.shape)}"
        )
    classes = student.shape[1]
    if classes < MIN_DKD_CLASSES:
        raise ValueError(
            f"decoupled distillation (DKD) needs at least {MIN_DKD_CLASSES} classes, found {classes}: its second "
            "part compares distributions over the classes other than the labelled one, and one class alone has none"
        )
    target_class, other_classes = zip(
        _decoupled(student, labels, temperature), _decoupled(teacher, labels, temperature), strict=True
    )
    return temperature**2 * (alpha * _divergence(*target_class) + beta * _divergence(*other_classes))


def _check_logits(student: Tensor, teacher: Tensor) -> None:
    """Refuse logits that are not of the same images and classes: they would be stretched to a common shape."""
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            "expected logits (B, C) of the same images and classes, found "
            f"{tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher"
        )
    if not student.numel():
        raise ValueError(f"expected logits of at least one image and class, found {tuple(student.shape)}")


def _decoupled(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log shares of the labelled class and of all others `(B, 2)`, and among the others `(B, C - 1)`."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    scaled, labelled = logits / temperature, labels[:, None]
    places = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    others = scaled.gather(1, places + (places >= labelled))
    binary = torch.cat([scaled.gather(1, labelled), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)
