"""Check that student, teacher and data fit together, with one example, and pair the layers."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn

from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.training import LABELS, SubDistillConfig
from subdistill_hf.core.activations import height_and_width, logits_of
from subdistill_hf.core.hooks import evaluation_mode, layers_before_trained_weights
from subdistill_hf.core.pairing import LayerPair, pair_layers
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.data.collate import PLACES, TEACHER_PIXELS, ViewCollator
from subdistill_hf.errors import DistillationError
from subdistill_hf.models.adapters import base_of
from subdistill_hf.models.heads import names_of
from subdistill_hf.teacher.class_ids import ClassIds
from subdistill_hf.teacher.teacher import Teacher
from subdistill_hf.training.checks import check_apart, check_student, check_teacher, tell_several_classes

logger = logging.getLogger(__name__)

MADE_UP_NAME: Final = re.compile(r"LABEL_\d+|\d+")


def teacher_of(
    args: SubDistillConfig,
    student: nn.Module | None,
    teacher: nn.Module | Teacher | None,
    class_ids: ClassIds | None,
) -> Teacher | None:
    """The teacher of a training, as the trainer is given it with the student: a model, or one that trainings share.

    Args:
        args: the arguments.
        student: the student, if it is made already.
        teacher: what the trainer is given.
        class_ids: for each output of the student, the teacher's output of the same class.

    Returns:
        The teacher; `None` for a method that needs none.

    Raises:
        DistillationError: when a model cannot be used, see `checks`; when the teacher is missing, shares weights with
            the student, or comes with classes twice.
    """
    if student is not None:
        check_student(student, args)
    weights = args.weights()
    if not (weights["kd"] or weights["layer"]):
        return None
    if teacher is None:
        raise DistillationError(f"method {args.method!r} needs a teacher: pass teacher=...")
    model = teacher.model if isinstance(teacher, Teacher) else teacher
    check_teacher(model)
    if isinstance(student, nn.Module):
        check_apart(student, base_of(model))  # before the teacher, and what the student has of it, is frozen
    if not isinstance(teacher, Teacher):
        tell_several_classes(teacher)
        return Teacher.for_training(teacher, class_ids, args)
    if class_ids is not None:
        raise DistillationError("teacher_class_ids has no place beside a Teacher, which has its own")
    if args.shard_teacher and not teacher.is_sharded:
        raise DistillationError(
            "shard_teacher: the Teacher that trainings share is not sharded; make it with Teacher.for_training(...), "
            "of arguments with shard_teacher=True"
        )
    return teacher


def fields_of(model: nn.Module) -> frozenset[str]:
    """The fields of a batch that a model takes: what its `forward` names, and images.

    Labels are not among them, of which models of transformers would make a loss of their own.
    """
    forward = base_of(model).forward
    return (_named_by(getattr(forward, "__func__", forward)) | {"pixel_values"}) - {LABELS}


def columns_of(model: nn.Module, collate: Any) -> list[str]:
    """The fields of an example that are used, beside its labels: by the student, the teacher or the collator."""
    of_collator = ["image"] if isinstance(collate, ViewCollator) else []
    return [*fields_of(model), "label", TEACHER_PIXELS, *PLACES, *of_collator]


@lru_cache(maxsize=16)
def _named_by(forward: Callable[..., Any]) -> frozenset[str]:
    """The names of a function's arguments, looked up once: they are asked for in every step."""
    return frozenset(inspect.signature(forward).parameters)


def inputs_of(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a batch that a model takes, with their values."""
    fields = fields_of(model)
    return {name: value for name, value in batch.items() if name in fields}


def labels_of(batch: Mapping[str, Any]) -> Tensor | None:
    """The labels of a batch, if it has some, in a type that the losses take.

    Raises:
        DistillationError: when they are no tensor.
    """
    labels: Tensor | None = batch.get(LABELS)
    if not isinstance(labels, Tensor | None):
        raise DistillationError(f"the labels of a batch are of type {type(labels).__name__}: expected a tensor")
    whole = labels is not None and not (labels.is_floating_point() or labels.dtype == torch.long)
    return labels.long() if labels is not None and whole else labels


def match_models(
    student: nn.Module,
    teacher: Teacher,
    student_inputs: Mapping[str, Tensor],
    teacher_pixels: Tensor,
    layers: Sequence[str] | None,
    pairs: int,
    method: str,
) -> list[LayerPair]:
    """Run both models on an example, compare their classes, and pair their layers.

    Args:
        student: the student.
        teacher: the teacher.
        student_inputs: what the student takes, with `pixel_values`.
        teacher_pixels: what the teacher takes `(B, c, H, W)`.
        layers: the `layers` option; `None` for methods without layers.
        pairs: how many pairs `"auto"` makes at most.
        method: what is trained; some need more than two classes.

    Raises:
        DistillationError: when the classes do not fit.
        LayerError: when the layers do not.
    """

    def run_student() -> Tensor:
        return logits_of(student(**student_inputs))

    def run_teacher() -> Tensor:
        return teacher.all_logits(teacher_pixels)

    with evaluation_mode(student), torch.no_grad():
        classes, outputs = outputs_of(run_student(), "student"), outputs_of(run_teacher(), "teacher")
        _check_classes(classes - teacher.other, outputs, teacher.class_ids, method)
        _check_names(base_of(student), teacher)
        if layers is None:
            return []
        pairs_found = pair_layers(
            teacher.model,
            base_of(student),
            layers,
            run_teacher,
            run_student,
            height_and_width(teacher_pixels),
            height_and_width(student_inputs["pixel_values"]),
            pairs,
        )
    _tell_frozen_layers(student, run_student, [pair.student.name for pair in pairs_found])
    return pairs_found


def _tell_frozen_layers(student: nn.Module, run: Callable[[], Tensor], layers: Sequence[str]) -> None:
    """Log a warning for paired layers of the student that no trained weight reaches: it learns nothing there."""
    frozen = layers_before_trained_weights(base_of(student), layers, run)
    if frozen:
        logger.warning(
            f"the student's weights up to {', '.join(frozen)} are frozen: the losses of these layers train their "
            "rotations alone, and teach the student nothing. Compare other layers (layers=...), or train these weights"
        )


def outputs_of(logits: Tensor, who: str) -> int:
    """The number of a model's outputs.

    Raises:
        DistillationError: when its logits are not `(B, C)`.
    """
    if logits.dim() != 2:
        raise DistillationError(f"the {who} returns logits of shape {tuple(logits.shape)}: expected (B, C)")
    return logits.shape[1]


def _check_classes(student_outputs: int, teacher_outputs: int, class_ids: Tensor | None, method: str) -> None:
    if student_outputs < 2:
        raise DistillationError(f"a subtask needs at least two classes, the student has {student_outputs}")
    if student_outputs < METHODS[method].min_classes:
        raise DistillationError(
            f"method {method!r} needs at least {METHODS[method].min_classes} classes, the student has "
            f"{student_outputs}: {METHODS[method].why_min_classes}"
        )
    if class_ids is None:
        if student_outputs != teacher_outputs:
            raise DistillationError(
                f"the student has {student_outputs} outputs and the teacher {teacher_outputs}: pass "
                "teacher_class_ids=[...], the teacher's output for each output of the student"
            )
        return
    if len(class_ids) != student_outputs:
        raise DistillationError(
            f"teacher_class_ids has {len(class_ids)} entries, but the student has {student_outputs} outputs"
        )
    if int(class_ids.min()) < 0 or int(class_ids.max()) >= teacher_outputs:
        raise DistillationError(f"teacher_class_ids must lie between 0 and {teacher_outputs - 1}")
    if len(set(class_ids.tolist())) < student_outputs:
        raise DistillationError("teacher_class_ids names one output of the teacher twice")


def _check_names(student: nn.Module, teacher: Teacher) -> None:
    """Refuse classes that both models name, and that are given to each other's outputs; tell of other doubts.

    Names that transformers makes up, such as LABEL_0, say nothing.

    Raises:
        DistillationError: naming the first output.
    """
    ours, theirs = (names_of(getattr(model, "config", None)) for model in (student, teacher.model))
    chosen = list(range(len(theirs))) if teacher.class_ids is None else teacher.class_ids.tolist()
    if len(ours) != len(chosen) or max(chosen, default=0) >= len(theirs):
        return  # no names, or of other outputs
    for output, (name, place) in enumerate(zip(ours, chosen, strict=True)):
        own = [other for other, label in enumerate(theirs) if label == name]
        if not own or place in own or MADE_UP_NAME.fullmatch(name):
            continue
        said = (
            f"the student's output {output} is {name!r}, and is taught by the teacher's output {place}, "
            f"{theirs[place]!r}: the teacher's {name!r} is its output {own[0]}"
        )
        if set(own) & set(chosen):
            raise DistillationError(
                f"{said}. Pass teacher_class_ids=[...], the teacher's output for each output of the student, or give "
                "the student other names"
            )
        logger.warning(f"{said}. See to teacher_class_ids, or to the student's names (id2label)")


def check_subspaces(pairs: Sequence[LayerPair], subspaces: Mapping[str, Subspace], full_width: bool = False) -> None:
    """Refuse given subspaces that do not fit the layers.

    Args:
        pairs: the layers.
        subspaces: teacher layer name to subspace.
        full_width: whether each must be all of the teacher's space.

    Raises:
        DistillationError: naming the layer.
    """
    teacher_layers = [pair.teacher.name for pair in pairs]
    for name, subspace in subspaces.items():
        if name not in teacher_layers:
            expected = (
                f"expected some of {', '.join(teacher_layers)}" if pairs else "this method compares no subspaces"
            )
            raise DistillationError(f"subspaces has {name!r}, which is no teacher layer of a pair: {expected}")
        if not isinstance(subspace, Subspace):
            raise DistillationError(
                f"the subspace given for {name!r} is a {type(subspace).__name__}: expected a Subspace"
            )
    for pair in pairs:
        if pair.teacher.name not in subspaces:
            continue
        subspace = subspaces[pair.teacher.name]
        dimensions = pair.teacher.width if full_width else pair.dimensions
        if (subspace.width, subspace.dimensions) != (pair.teacher.width, dimensions):
            raise DistillationError(
                f"the subspace given for {pair.teacher.name!r} has {subspace.dimensions} of {subspace.width} "
                f"dimensions: expected {dimensions} of {pair.teacher.width}"
            )
