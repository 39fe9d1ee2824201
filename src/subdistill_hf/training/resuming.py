"""Whether a run may be resumed: what must be as it was, what may be another with a notice, and what is free.

`PARTS` is the one table of it. A checkpoint keeps the values of all parts that are compared, and the table on the page
about resuming is `resume_table`.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers.trainer import TRAINER_STATE_NAME

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.data.collate import is_stream
from subdistill_hf.errors import DistillationError
from subdistill_hf.models.adapters import base_of
from subdistill_hf.models.heads import names_of
from subdistill_hf.models.loading import count_parameters
from subdistill_hf.teacher.teacher import Teacher
from subdistill_hf.training import optimizers
from subdistill_hf.training.checkpoints import STATE_FILE, missing_files, why_incomplete

Change = Literal["refused", "noticed", "free"]
RATES = "rates"
WEIGHTS = ("layer_weight", "kd_weight", "task_weight")
OF_DISTILLATION = ("layer_weight_end", "temperature", "dkd_beta")
OF_LABELS = "label_smoothing_factor"
ROUNDING = 1e-6  # of the share of a training that is over


@dataclass(frozen=True)
class Part:
    """The parts that a run may have in common with the run whose checkpoint it resumes.

    Attributes:
        name: under which a checkpoint keeps it.
        what: it is, for readers.
        arguments: the training arguments that belong to it.
        change: whether another value is refused, noticed, or free.
        then: what comes of another value, where it is not refused.
    """

    name: str
    what: str
    arguments: tuple[str, ...]
    change: Change = "refused"
    then: str = ""


PARTS = (
    Part("teacher", "the teacher: its weights, and their precision", ("teacher_bf16",)),
    Part("student", "the student's architecture, and the weights under its adapter", ()),
    Part("classes", "the classes: names, order, and outputs of the teacher", ()),
    Part("views", "augmentation, mirroring, mixing, and the number of views", ()),
    Part("images", "the training images, their labels and their mark", ()),
    Part("layers", "the layer pairs", ("layers", "layer_pairs")),
    Part(
        "method",
        "the method and its options",
        ("method", "basis", "centring", "target_scale", "normalise_energy", "positions", "rotation"),
    ),
    Part(
        "weights",
        "the weights of the losses, and what shapes them",
        (*WEIGHTS, *OF_DISTILLATION, OF_LABELS),
    ),
    Part(
        "order",
        "seeds, batches of a step, and the order of the images",
        ("seed", "data_seed", "dataloader_drop_last", "train_sampling_strategy"),
    ),
    Part("optimizer", "the kind of optimiser", optimizers.KIND),
    Part(
        "schedule",
        "the shape of the learning rate's schedule",
        ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"),
    ),
    Part("best", "what the best checkpoint is chosen by", ("metric_for_best_model", "greater_is_better")),
    Part(
        RATES,
        "learning rate, weight decay and moments of the optimiser",
        optimizers.RATES,
        "noticed",
        "it stays that of the checkpoint",
    ),
    Part(
        "length",
        "the number of steps or epochs; an end before the checkpoint is refused",
        ("max_steps", "num_train_epochs"),
        "noticed",
        "the schedule follows the new end",
    ),
    Part("clipping", "the limit of the gradient's norm", ("max_grad_norm",), "noticed", "the new value counts"),
    Part(
        "precision",
        "the precision of the student and of kept targets",
        ("bf16", "fp16", "tf32", "teacher_cache_precision"),
        "noticed",
        "the new value counts",
    ),
    Part(
        "split",
        "how a step's batch is split; its size must stay",
        ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size"),
        "noticed",
        "the new split counts",
    ),
    Part(
        "free",
        "where and how fast it runs, what it logs, measures, keeps and pushes, images for the subspaces: all else",
        (
            "output_dir",
            "use_cpu",
            "dataloader_num_workers",
            "per_device_eval_batch_size",
            "channels_last",
            "cuda_graphs",
            "shard_teacher",
            "torch_compile",
            "teacher_cache_dir",
            "teacher_cache_limit",
            "logging_steps",
            "eval_strategy",
            "eval_steps",
            "save_strategy",
            "save_steps",
            "save_total_limit",
        ),
        "free",
        "nothing",
    ),
)
"""The parts that are compared when a run is resumed, in the order in which they are reported."""

_CHANGES: dict[Change, str] = {"refused": "refused", "noticed": "notice: {then}", "free": "allowed"}


def resume_table() -> str:
    """`PARTS` as a table in Markdown, for the page about resuming."""
    lines = ["| what | options | another value is |", "|---|---|---|"]
    for part in PARTS:
        options = ", ".join(f"`{name}`" for name in part.arguments)
        lines.append(f"| {part.what} | {options} | {_CHANGES[part.change].format(then=part.then)} |")
    return "\n".join(lines)


def run_identity(
    args: SubDistillConfig,
    teacher: Teacher | None,
    student: nn.Module,
    pairs: Sequence[LayerPair],
    rotation: str,
    images: Mapping[str, Any] | None,
    views: Mapping[str, Any] | None,
    frozen: str | None,
    own_optimizer: bool = False,
) -> dict[str, Any]:
    """The identity of a run, which is compared with that of the run that it resumes: a value for each of `PARTS`.

    Args:
        args: the arguments of the run.
        teacher: the teacher, if there is one.
        student: the student.
        pairs: the paired layers.
        rotation: the map of the student's features that the run has.
        images: which images it trains on, see `examples.described_images`.
        views: what is done to the images, where it is known.
        frozen: digest of the frozen weights of a student with an adapter, whose checkpoints hold the others alone.
        own_optimizer: whether the user made the optimiser, of which the arguments say nothing.
    """
    base = base_of(student)
    identity: dict[str, Any] = {
        part.name: {name: argument_of(args, name) for name in part.arguments}
        for part in PARTS
        if part.change != "free"
    }
    class_ids = None if teacher is None else teacher.outputs
    identity["teacher"] |= {
        "name": None if teacher is None else teacher.name,
        "digest": None if teacher is None else teacher.digest,
    }
    identity["student"] = {
        "model": type(base).__name__,
        "parameters": count_parameters(student),
        "architecture": hashlib.sha256(repr(base).encode()).hexdigest(),
    } | ({} if frozen is None else {"frozen": frozen})
    identity["classes"] = {"teacher_ids": class_ids, "names": names_of(getattr(student, "config", None))}
    identity["images"], identity["views"], identity["layers"] = images, views, [str(pair) for pair in pairs]
    identity["method"] |= {"rotation": rotation, "target_scale": args.scale_of_targets()}
    identity["weights"] = args.weights() | {name: argument_of(args, name) for name in (*OF_DISTILLATION, OF_LABELS)}
    identity["order"]["batch"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    counted = "max_steps" if args.max_steps > 0 else "num_train_epochs"
    identity["length"] = {counted: identity["length"][counted]}
    identity[RATES] = optimizers.rates_of_arguments(args)
    if own_optimizer:
        identity["optimizer"], identity[RATES] = {"made_by": "the user"}, {}
    return identity


def argument_of(args: SubDistillConfig, name: str) -> Any:
    """The value of an argument, JSON-able; `None` for one that this version of transformers does not have."""
    value = getattr(args, name, None)
    return getattr(value, "value", value)


def check_resumable(checkpoint: str | Path, identity: Mapping[str, Any], max_steps: int, epochs: float) -> None:
    """Refuse to resume a run that was another one, or from files that are not all there; tell what else is new.

    Args:
        checkpoint: the checkpoint's folder.
        identity: of the run that would resume it, see `run_identity`. Of the teacher its name may be another.
        max_steps: of that run; 0 or less where its epochs decide.
        epochs: of that run.

    Raises:
        DistillationError: naming what differs, or what is missing; or when the run would end before the checkpoint.
    """
    path = Path(checkpoint) / STATE_FILE
    if not path.is_file():
        raise DistillationError(f"{checkpoint} has no {STATE_FILE}: it is not a checkpoint of SubDistillTrainer")
    if missing := missing_files(checkpoint):
        raise DistillationError(why_incomplete(checkpoint, missing))
    saved, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(identity))
    saved.get("method", {}).setdefault("target_scale", "teacher")  # what there was before the option
    saved.get("weights", {}).setdefault("layer_weight_end", 1.0)
    for part in PARTS:
        if part.change == "refused" and part.name in saved and not _same(part, saved[part.name], now[part.name]):
            raise DistillationError(
                f"the checkpoint was made with another choice of {part.name}: "
                f"{' there, '.join(_differing(saved[part.name], now[part.name]))} now. Resume with the same, or start "
                "a new run in another folder"
            )
    _check_end(checkpoint, max_steps, epochs)
    for part in PARTS:
        if part.change != "free" and part.name not in saved:
            warnings.warn(
                f"the checkpoint, of an older version, does not tell {part.what}: not compared", stacklevel=3
            )
        elif part.change == "noticed":
            _tell(part, saved[part.name], now[part.name])


def _same(part: Part, there: Any, now: Any) -> bool:
    if part.name == "teacher":
        there, now = ({name: value for name, value in each.items() if name != "name"} for each in (there, now))
    return bool(there == now)


def _differing(there: Any, now: Any) -> list[str]:
    """Both values; of mappings what differs, and the name in them."""
    if isinstance(there, dict) and isinstance(now, dict):
        names = [name for name in there | now if there.get(name) != now.get(name) or name in ("name", "model")]
        there, now = ({name: each.get(name) for name in names} for each in (there, now))
    return [str(there), str(now)]


def _tell(part: Part, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn of each value that is another one; rates are compared where the optimiser has them."""
    names = [name for name in now if name in there] if part.name == RATES else sorted(there | now)
    for name in names:
        before, after = there.get(name), now.get(name)
        if before == after or (part.name == RATES and optimizers.same_rate(before, after)):
            continue
        if part.name == RATES:
            label = "the learning rate" if name == "learning_rate" else name
            first, asked = optimizers.shown_rate(before), optimizers.shown_rate(after)
            text = f"{label} stays that of the checkpoint, which began with {first}: for {asked} start a new run"
        else:
            text = f"{name} is {after}, and was {before} in the run that is resumed: {part.then}"
        warnings.warn(text, stacklevel=4)


def _check_end(checkpoint: str | Path, max_steps: int, epochs: float) -> None:
    """Refuse an end before the checkpoint."""
    state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    step, epoch = state["global_step"], state.get("epoch") or 0
    if 0 < max_steps < step or (max_steps <= 0 and math.ceil(epochs) < epoch):
        asked = f"max_steps={max_steps}" if max_steps > 0 else f"num_train_epochs={epochs:g}"
        raise DistillationError(
            f"the checkpoint is of step {step}, epoch {epoch:g}, later than {asked}: ask for more, or start a new run "
            "in another folder"
        )


def tell_other_images(checkpoint: str | Path, args: SubDistillConfig, images: Any) -> None:
    """Warn where a resumed run sees other images than it would have seen.

    A stream without a length has no epochs for transformers, which skips the images of all steps within one pass:
    where it was read more than once, the run begins at the start of a pass.

    Args:
        checkpoint: the checkpoint's folder.
        args: of the run that resumes it.
        images: the training dataset.
    """
    state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    share = state["global_step"] / max(state.get("max_steps") or 0, 1)
    again = is_stream(images) and not hasattr(images, "__len__") and (state.get("epoch") or 0) > share + ROUNDING
    if args.ignore_data_skip or again:
        why = "ignore_data_skip" if args.ignore_data_skip else "the training stream was read more than once"
        warnings.warn(
            f"{why}: the run goes on with other images than it would have seen, and ends with other weights than a "
            "run that was not interrupted",
            stacklevel=4,
        )


def check_given_subspaces(given: Mapping[str, Subspace], saved: Mapping[str, Subspace]) -> None:
    """Refuse given subspaces that are not those of the checkpoint, with which the run resumes.

    Args:
        given: teacher layer name to subspace.
        saved: those of the checkpoint.

    Raises:
        DistillationError: naming the layer.
    """
    for name, subspace in given.items():
        if name not in saved or saved[name].digest != subspace.digest:
            raise DistillationError(
                f"the checkpoint was made with another subspace of {name!r} than the one that was given: resume with "
                "the same, or start a new run in another folder"
            )
