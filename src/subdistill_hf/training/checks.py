"""Refuse models and labels with which a training would go wrong, before anything is computed."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.modules import activation
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from subdistill_hf.config.options import NO_CLASS
from subdistill_hf.config.training import SubDistillConfig, check_values
from subdistill_hf.errors import DistillationError
from subdistill_hf.models.adapters import PLAIN_ADAPTER, base_of
from subdistill_hf.models.heads import ONE_CLASS, other_problem, several_classes_note
from subdistill_hf.training.arguments import Metrics, check_training_arguments

logger = logging.getLogger(__name__)

SHARES_TOLERANCE = 1e-3
"""How much more than 1 the shares of an image may be."""


def check_arguments(args: Any, given: Mapping[str, Any], metrics: Metrics) -> None:
    """Refuse arguments of another class, or that would be refused late or do nothing, and a loss from outside.

    Args:
        args: the arguments.
        given: the further arguments of the Trainer, by name.
        metrics: what measures the evaluations.

    Raises:
        TypeError: for arguments that are no `SubDistillConfig`.
        SubDistillError: for the rest.
    """
    if not isinstance(args, SubDistillConfig):
        raise TypeError(f"expected args of type SubDistillConfig, found {type(args).__name__}")
    if given.get("compute_loss_func") is not None:
        raise DistillationError("compute_loss_func has no place in this loss: override loss_terms to change it")
    check_training_arguments(args, given.get("eval_dataset"), metrics)
    check_smoothing(args)


def check_smoothing(args: SubDistillConfig) -> None:
    """Refuse smoothed labels where nothing is learned from labels by the cross entropy.

    Raises:
        DistillationError: saying which options go together.
    """
    if args.label_smoothing_factor and not args.weights()["task"]:
        raise DistillationError(
            f"label_smoothing_factor={args.label_smoothing_factor:g} has no meaning for method {args.method!r}: it "
            "smooths the labels of the cross entropy, whose weight is 0. Leave it out, or give a task_weight"
        )


def check_trial(args: SubDistillConfig, teacher: Any | None, evaluated: Any, metrics: Metrics) -> None:
    """Refuse arguments as they are when a training begins: a search, or the user, may have changed them since.

    Args:
        args: the arguments.
        teacher: the teacher that the trainer has, if it has one.
        evaluated: images of the evaluations.
        metrics: what measures these.

    Raises:
        SubDistillError: naming the argument.
    """
    check_values(args)
    check_training_arguments(args, evaluated, metrics)
    check_smoothing(args)
    weights = args.weights()
    if teacher is None and (weights["kd"] or weights["layer"]):
        raise DistillationError(f"method {args.method!r} needs a teacher: make the trainer with teacher=...")


def check_student(student: Any, args: SubDistillConfig) -> None:
    """Refuse what is no model, one that was compiled or cannot be pushed, and checkpointing where a model has none.

    Args:
        student: what the trainer is given.
        args: the arguments.

    Raises:
        DistillationError: saying what to give instead.
    """
    _check_module(student, "model", "student")
    check_not_compiled(student, "student")
    if args.push_to_hub:
        check_adapter_names(student)
    if not isinstance(student, PeftModel):  # of which the adapter alone is saved
        _check_state(student)
    if problem := other_problem(getattr(base_of(student), "config", None)):
        raise DistillationError(
            f"the student's config.problem_type is {problem!r}: a student learns one class for each image, and who "
            f"loads it would read its outputs in another way. Set it to {ONE_CLASS!r}"
        )
    wanted = args.gradient_checkpointing or getattr(args, "activation_checkpointing", False)
    if wanted and not getattr(base_of(student), "supports_gradient_checkpointing", False):
        raise DistillationError(
            f"gradient_checkpointing: {type(base_of(student)).__name__} cannot compute its activations again; leave "
            "it out, or give smaller batches and more of gradient_accumulation_steps"
        )


def _check_state(student: nn.Module) -> None:
    """Refuse a student whose state holds more than tensors: it could not be saved."""
    for name, value in student.state_dict().items():
        if not isinstance(value, Tensor) or value.is_quantized:
            kind = "quantised tensor" if isinstance(value, Tensor) else type(value).__name__
            raise DistillationError(
                f"the student's state_dict() holds a {kind}, {name!r}: expected tensors of numbers, which alone can "
                "be saved. Keep other values as attributes, and quantise a student once it is trained"
            )


def check_adapter_names(student: nn.Module) -> None:
    """Refuse to push a student whose adapters lie in folders of their names, where readers do not look.

    Raises:
        DistillationError: naming the adapter.
    """
    others = [name for name in student.peft_config if name != PLAIN_ADAPTER] if isinstance(student, PeftModel) else []
    if others:
        raise DistillationError(
            f"the student's adapter {others[0]!r} cannot be pushed: those who load it look for one named "
            f"{PLAIN_ADAPTER!r} alone, as get_peft_model(...) makes it without an adapter_name"
        )


def check_teacher(teacher: Any) -> None:
    """Refuse what is no model, a model that was compiled, and one without a classification head.

    Raises:
        DistillationError: saying what to give instead.
    """
    _check_module(teacher, "teacher", "teacher")
    check_not_compiled(teacher, "teacher")
    outputs = [getattr(teacher, "num_classes", None), getattr(getattr(teacher, "config", None), "num_labels", None)]
    if 0 in [count for count in outputs if isinstance(count, int)]:
        raise DistillationError(
            f"the teacher, {type(teacher).__name__}, has no classification head (num_classes=0): what it returns are "
            "features, not logits of classes. Give one that was trained as a classifier"
        )


def tell_several_classes(teacher: nn.Module) -> None:
    """Log a warning for a teacher that was not trained for one class an image."""
    if note := several_classes_note("the teacher", getattr(base_of(teacher), "config", None)):
        logger.warning(note)


def _check_module(model: Any, argument: str, who: str) -> None:
    """Refuse what is no module: a name, a path, a model with its processor."""
    if isinstance(model, nn.Module):
        return
    if isinstance(getattr(model, "model", None), nn.Module):
        advice = f"pass its .model as {argument}="
    else:
        advice = "load it first, as AutoModelForImageClassification.from_pretrained(...) does"
    raise DistillationError(
        f"{argument}=: expected the {who} as a torch module, found {type(model).__name__}; {advice}"
    )


def check_not_compiled(model: nn.Module, who: str) -> None:
    """Refuse a model whose layers `torch.compile` has hidden: their outputs could not be recorded.

    Raises:
        DistillationError: naming what was compiled.
    """
    if hasattr(model, "_orig_mod"):
        plain = f"pass the plain model, which is model._orig_mod of this {who}"
    elif getattr(model, "_compiled_call_impl", None) is not None:
        plain = "pass a model on which compile() was not called"
    else:
        return
    advice = " and let the trainer compile it: torch_compile=True in the arguments" if who == "student" else ""
    raise DistillationError(
        f"the {who} was compiled, and layers inside what is compiled cannot be read: {plain}{advice}"
    )


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student and a teacher with a module or weights in common: one is frozen, the other is trained.

    Raises:
        DistillationError: naming what they share.
    """
    if student is teacher:
        raise DistillationError("teacher and student are the same model, whose weights cannot teach and learn")
    for inner, outer, message in (
        (teacher, student, "the student holds the teacher, as {name!r}"),
        (student, teacher, "the teacher holds the student, as {name!r}"),
    ):
        names = [name for name, module in outer.named_modules() if module is inner]
        if names:
            raise DistillationError(
                f"{message.format(name=names[0])}: it would be frozen, trained and saved with it. Give each a copy of "
                "its own (copy.deepcopy)"
            )
    shared = _shared_modules(student, teacher) or _shared_tensors(student, teacher)
    if shared:
        ours, theirs = shared[0]
        more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        raise DistillationError(
            f"student and teacher share {ours!r} (the teacher's {theirs!r}){more}: what they share would be frozen in "
            "the student, or trained in the teacher. Give the student a copy of its own (copy.deepcopy)"
        )


def _shared_modules(student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """The names of modules in both, in the student and in the teacher; activations keep nothing and may be shared."""
    theirs = {id(module): name for name, module in teacher.named_modules()}
    return [
        (name, theirs[id(module)])
        for name, module in student.named_modules()
        if id(module) in theirs and type(module).__module__ != activation.__name__
    ]


def _shared_tensors(student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """The names of weights and buffers that lie in the same memory, in the student and in the teacher."""
    theirs = {place: name for name, place in _places(teacher)}
    return [(name, theirs[place]) for name, place in _places(student) if place in theirs]


def _places(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names of weights and buffers, and where they lie; those without memory, as on the meta device, are left out."""
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # of a sharded teacher
        if not is_lazy(own) and own.numel() and own.untyped_storage().data_ptr():
            yield name, (own.device, own.untyped_storage().data_ptr())


def check_trainable(student: nn.Module) -> None:
    """Refuse a student none of whose weights is trained: the layer losses alone would learn.

    Raises:
        DistillationError: saying how weights are trained.
    """
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise DistillationError(
            "no weight of the student is trained: requires_grad is False for all of them. model.requires_grad_(True) "
            "trains all"
        )


def check_precision(student: nn.Module, pixels: Tensor) -> None:
    """Refuse a student whose weights are of another precision than its images.

    Raises:
        DistillationError: naming both.
    """
    kinds = {parameter.dtype for parameter in student.parameters() if parameter.is_floating_point()}
    if kinds and pixels.is_floating_point() and pixels.dtype not in kinds:
        found = ", ".join(sorted(map(str, kinds)))
        raise DistillationError(
            f"the student's weights are {found}, and its images {pixels.dtype}: load it with dtype=torch.float32, or "
            "call model.float(); half precision is for the passes alone (bf16=True in the arguments)"
        )


def tell_batch_statistics(model: nn.Module, who: str) -> None:
    """Log a warning for batch norms that never use running statistics, as with `track_running_stats=False`.

    Args:
        model: the model.
        who: `"student"` or `"teacher"`.
    """
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm) and _without(module)]
    if norms:
        logger.warning(
            f"the {who}'s batch norm {norms[0]!r} has no running statistics: what the {who} says of an image depends "
            "on the other images of its batch, in evaluations too, so that figures hold for batches of one size alone"
        )


def _without(norm: _BatchNorm) -> bool:
    return norm.running_mean is None


def check_pixels(model: nn.Module, who: str) -> None:
    """Refuse a model whose `forward` does not take images by the name that models of transformers give them.

    Raises:
        DistillationError: saying what it takes.
    """
    taken = inspect.signature(model.forward).parameters
    if "pixel_values" not in taken and all(one.kind is not one.VAR_KEYWORD for one in taken.values()):
        raise DistillationError(
            f"the {who}'s forward takes ({', '.join(taken)}): expected `pixel_values`; wrap "
            f"{type(model).__name__} in a module whose forward(self, pixel_values) calls it"
        )


def check_labels(labels: Any, classes: int, images: str, each: bool = False) -> None:
    """Refuse labels that are not numbers of the student's outputs, nor shares of its classes.

    Args:
        labels: of some images: whole numbers `(B,)`, of which -100 stands for no class, or shares `(B, C)`, whose sum
            is less than 1 where an image shows something else, too.
        classes: number of the student's outputs C.
        images: whose labels they are, for the message.
        each: whether each image needs a class.

    Raises:
        DistillationError: with what was found.
    """
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() and labels.dim() == 2 and labels.shape[1] == classes:
        return _check_shares(labels, images)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.dim() != 1:
        raise DistillationError(
            f"the labels of {images} are {labels.dtype} of shape {tuple(labels.shape)}: expected whole numbers (B,), "
            f"or shares of the classes (B, {classes})"
        )
    ignored = () if each else (NO_CLASS,)
    unknown = sorted({label for label in labels.tolist() if not 0 <= label < classes and label not in ignored})
    if unknown:
        found = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        without = "; this method needs a class for each image" if each else f", or {NO_CLASS} for no class"
        raise DistillationError(
            f"{images} have the labels {found}: expected 0 to {classes - 1}, the outputs of the student (not those of "
            f"the teacher, which teacher_class_ids maps them to){without}"
        )


def _check_shares(labels: Tensor, images: str) -> None:
    """Refuse rows that are not shares of the classes; what is missing to a sum of 1 is a share of no class."""
    sums = labels.sum(dim=1)
    most = 1 + SHARES_TOLERANCE + torch.finfo(labels.dtype).eps
    if not bool(((labels >= 0).all(dim=1) & (sums <= most)).all()):  # neither holds for NaN
        raise DistillationError(
            f"the labels of {images} are no shares of the classes: expected numbers from 0 whose sum is 1 for each "
            f"image, found numbers from {labels.min().item():.3g}, and sums up to {sums.max().item():.3g}. Several "
            "labels of one image are not supported: the outputs of a student exclude each other"
        )


def check_batch_labels(labels: Tensor | None, logits: Tensor, images: str, each: bool = False) -> None:
    """`check_labels` for those of a batch: of a dataset that does not list them a few were looked at before.

    On an accelerator nothing is checked: a look would stall the device, whose own check ends the run.

    Args:
        labels: of the batch, if it has some.
        logits: of the student `(B, C)`.
        images: `"training"` or `"evaluation"`.
        each: whether each image needs a class.

    Raises:
        DistillationError: with what was found.
    """
    if labels is not None and labels.device.type == "cpu":
        check_labels(labels, logits.shape[1], f"the {images} images", each)
