"""Build the losses of a method from its entry in `config.methods.METHODS`."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from torch import Tensor

from subdistill_hf.config.distillation import DistillationOptions
from subdistill_hf.config.methods import METHODS, Loss
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.errors import DistillationError
from subdistill_hf.losses.base import LayerLoss
from subdistill_hf.losses.subspace import RotationOption


def needs_energies(options: DistillationOptions) -> bool:
    """Whether the energies of the teacher's layers are measured, beside those of subspaces, to scale the targets."""
    method = METHODS[options.method]
    if method.layer_loss is None or method.uses_subspaces or options.scale_of_targets() == "teacher":
        return False
    return not _find(method.layer_loss).scale_free


def make_layer_loss(
    options: DistillationOptions,
    pair: LayerPair,
    subspace: Subspace | None,
    rotation: RotationOption,
    energy: float | None = None,
) -> LayerLoss:
    """The loss of one layer pair, with whatever it learns newly initialised.

    Args:
        options: the method, its centring, normalisation and scale.
        pair: the teacher's and the student's layer.
        subspace: that of the teacher's layer, for methods that use one.
        rotation: map of the student's features onto the subspace.
        energy: that of the teacher's layer where it is compared, for methods of which `needs_energies` says so.

    Raises:
        DistillationError: for a method without layer losses, or a missing subspace.
    """
    method = METHODS[options.method]
    if method.layer_loss is None:
        raise DistillationError(f"method {options.method!r} has no layer loss")
    make = _find(method.layer_loss)
    loss: LayerLoss
    if not method.uses_subspaces:
        loss = make(pair.teacher.width, pair.student.width)
        if energy is not None:
            loss.bring_to_unit_scale(pair.teacher.width, energy)
    elif subspace is None:
        raise DistillationError(f"method {options.method!r} needs a subspace of teacher layer {pair.teacher.name!r}")
    else:
        of_energy = options.normalise_energy, options.scale_of_targets()
        loss = make(subspace, pair.student.width, options.centring, rotation, *of_energy)
    return loss


def logit_loss(options: DistillationOptions, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
    """The loss on the logits of one batch, a scalar, before its weight.

    Args:
        options: the method, the temperature and what else its loss takes.
        student: logits of the subtask's classes `(B, C)`.
        teacher: the teacher's logits restricted to the same classes, in the same order, `(B, C)`.
        labels: class of each image `(B,)`, or shares of the classes `(B, C)`, of which the largest counts; `None`
            for methods whose loss takes none.

    Raises:
        DistillationError: for a method without a logit loss, or missing labels.
    """
    method = METHODS[options.method]
    if method.logit_loss is None:
        raise DistillationError(f"method {options.method!r} has no loss on the logits")
    arguments = {keyword: getattr(options, option) for keyword, option in method.logit_options.items()}
    if method.logit_labels:
        if labels is None:
            raise DistillationError(f"method {options.method!r} needs `labels` in the batch")
        arguments["labels"] = labels if labels.dim() == 1 else labels.argmax(dim=1)
    loss: Tensor = _find(method.logit_loss)(student, teacher, temperature=options.temperature, **arguments)
    return loss


def _find(loss: Loss) -> Any:
    """The class or function of an entry."""
    return resolve_name(loss) if isinstance(loss, str) else loss
