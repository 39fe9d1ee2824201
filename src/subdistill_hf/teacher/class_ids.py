"""Which of the teacher's outputs are the classes of a subtask, as users may say it."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from subdistill_hf.errors import DistillationError

ClassIds = Iterable[int] | Mapping[int, int]


def subtask_logits(logits: Tensor, class_ids: Sequence[int] | Tensor | None, other: bool = False) -> Tensor:
    """A teacher's logits of a subtask.

    Args:
        logits: of all its classes `(B, outputs)`.
        class_ids: the outputs that are the subtask's classes, in the student's order; all with `None`.
        other: add the answer "none of these": the log-sum-exp of all other logits, so that its softmax is the
            probability that the teacher gives to all its other classes together.

    Returns:
        `(B, C)`, or `(B, C + 1)`.
    """
    if class_ids is None:
        return logits
    ids = torch.as_tensor(class_ids, device=logits.device)
    if not other:
        return logits[:, ids]
    others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device).index_fill(0, ids, False)
    without = logits.masked_fill(~others, float("-inf"))  # no boolean index, whose size a graph could not know
    return torch.cat([logits[:, ids], without.logsumexp(dim=1, keepdim=True)], dim=1)


def class_numbers(class_ids: ClassIds) -> list[int]:
    """The teacher's output for each output of the student, in the student's order.

    Args:
        class_ids: whole numbers, as a list, an array or a tensor `(C,)`; or a mapping from each output of the student,
            0 to C - 1, to the teacher's.

    Raises:
        DistillationError: for a mask, names, fractions, a set, or a mapping with other keys.
    """
    if isinstance(class_ids, str | set | frozenset):
        raise DistillationError(
            f"teacher_class_ids is a {type(class_ids).__name__}: expected a list, in the order of the student's "
            "outputs"
        )
    listed = _in_order(class_ids) if isinstance(class_ids, Mapping) else _listed(class_ids)
    if listed and all(isinstance(entry, bool) for entry in listed):
        outputs = [output for output, entry in enumerate(listed) if entry]
        raise DistillationError(
            f"teacher_class_ids is a mask of {len(listed)} outputs: expected their numbers, in the order of the "
            f"student's outputs; this mask has {_some(outputs)}"
        )
    odd = [entry for entry in listed if isinstance(entry, bool) or not isinstance(entry, numbers.Integral)]
    if odd:
        raise DistillationError(
            f"teacher_class_ids has {_some(odd)}: expected whole numbers, the teacher's output for each output of the "
            "student"
        )
    return [int(entry) for entry in listed]


def _in_order(class_ids: Mapping[Any, Any]) -> list[Any]:
    """The values of a mapping, in the order of the student's outputs, which are its keys."""
    by_output = {str(output): class_id for output, class_id in class_ids.items()}
    expected = [str(output) for output in range(len(class_ids))]
    if by_output.keys() != set(expected):
        raise DistillationError(
            f"teacher_class_ids maps {_some(list(class_ids))}: expected the student's outputs, 0 to "
            f"{len(class_ids) - 1}, as keys, and the teacher's as values"
        )
    return [_python(by_output[output]) for output in expected]


def _listed(class_ids: Iterable[Any]) -> list[Any]:
    """The entries of a list, an array or a tensor, as numbers of Python."""
    listed = class_ids.tolist() if hasattr(class_ids, "tolist") else list(class_ids)
    if not isinstance(listed, list):  # an array without dimensions
        raise DistillationError(f"teacher_class_ids={listed!r}: expected one number for each output of the student")
    return [_python(entry) for entry in listed]


def _python(entry: Any) -> Any:
    """A number of numpy or torch as one of Python."""
    return entry.item() if hasattr(entry, "item") else entry


def _some(values: Sequence[Any]) -> str:
    """The first few values."""
    return ", ".join(map(repr, values[:4])) + (", ..." if len(values) > 4 else "")
