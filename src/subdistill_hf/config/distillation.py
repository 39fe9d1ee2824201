"""How a run distils: method, layers, subspaces, losses and their speed, as a dataclass that imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from subdistill_hf.config.bases import BASES
from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import AUTO

# The names of what other packages implement; tests hold each equal to the registry there.
CachePrecision = Literal["float16", "float32"]
Centring = Literal["mean", "batch_norm", "none"]
Graphs = Literal["all", "losses", "off"]
Rotation = Literal["orthogonal", "linear", "procrustes", "full_width"]
TargetScale = Literal["unit", "teacher"]


@dataclass
class DistillationOptions:
    """How to distil; the fields that `SubDistillConfig` adds to transformers' `TrainingArguments`."""

    method: str = field(
        default="subdistill",
        metadata={
            "help": "What the student learns from. "
            + " ".join(f"{name}: {one.summary}." for name, one in METHODS.items()),
            "choices": METHODS,
        },
    )
    layers: list[str] = field(
        default_factory=lambda: ["auto"],
        metadata={
            "help": "Layer pairs TEACHER_LAYER=STUDENT_LAYER by module name or regular expression, or auto: the "
            "stages of both models, matched by resolution and relative depth."
        },
    )
    layer_pairs: int = field(default=4, metadata={"help": "How many pairs auto makes at most."})
    basis: str = field(
        default="prca",
        metadata={"help": f"Basis of the subspaces: {', '.join(BASES)}.", "choices": BASES},
    )
    centring: Centring = field(
        default="batch_norm",
        metadata={
            "help": "Centring of the student's features: mean (the paper's formula), batch_norm (the released code, "
            "which also divides by the batch standard deviation), or none."
        },
    )
    rotation: Literal[Rotation, "auto"] = field(
        default="orthogonal",
        metadata={
            "help": "Map of the student's features: orthogonal (learned), procrustes (in closed form), auto "
            "(procrustes for narrow layers, else orthogonal), or, as ablations, linear, or full_width: orthogonal, "
            "to all of the teacher's space instead of a subspace."
        },
    )
    target_scale: Literal[TargetScale, "auto"] | None = field(
        default=None,
        metadata={
            "help": "Scale of each layer's target: unit (variance 1 in a coordinate, whatever the teacher's "
            "scale), teacher (the teacher's own, as published), or auto: unit, but for methods that are the "
            "same at any scale. Unless it is given: the method's own, unit for fitnet and vid, else teacher."
        },
    )
    normalise_energy: bool = field(
        default=True, metadata={"help": "Divide each layer's loss by the energy of its target."}
    )
    positions: int | None = field(
        default=None,
        metadata={"help": "Positions drawn per image for the moments; all of them by default (the paper draws 20)."},
    )
    layer_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the sum of the layer losses; by default the method's own ("
            + ", ".join(f"{name} {one.layer_weight:g}" for name, one in METHODS.items() if one.layer_weight)
            + ")."
        },
    )
    layer_weight_end: float | None = field(
        default=1.0,
        metadata={
            "help": "Share of layer_weight that is left at the end of the training: the weight falls by the same "
            "factor in each step, so that the layers teach early and the logits late. 1 keeps it. The command line "
            "chooses where neither is given."
        },
    )
    kd_weight: float = field(default=1.0, metadata={"help": "Weight of the logit distillation."})
    task_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the cross entropy with the labels; by default the method's own ("
            + ", ".join(f"{name} {one.task_weight:g}" for name, one in METHODS.items() if one.task_weight)
            + ", else 0)."
        },
    )
    temperature: float = field(default=4.0, metadata={"help": "Temperature of the logit distillation."})
    dkd_beta: float = field(
        default=8.0, metadata={"help": "Weight of the classes other than the labelled one in dkd."}
    )
    teacher_cache: str = field(
        default="off",
        metadata={
            "help": "Number of augmented views of each image, or off. The teacher sees each view once, before "
            "training; what is needed of it (subspace coordinates and logits) is kept on disk, for this run and "
            "others, and no later step costs a teacher pass. With off every epoch makes new views, which the "
            "teacher sees. On the command line auto, the default, keeps 8 to 32 views of up to 1000 images."
        },
    )
    teacher_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the kept targets; by default in the cache of datasets. Or an address for fsspec, "
            "such as s3://bucket/targets: they are fetched from there where they are there, and left there where not."
        },
    )
    teacher_cache_limit: float = field(
        default=20.0,
        metadata={"help": "GiB that kept targets may take; those that were not used for longest make room."},
    )
    teacher_cache_precision: CachePrecision = field(
        default="float16", metadata={"help": "Precision of kept targets: float16 or float32."}
    )
    channels_last: bool | None = field(
        default=None,
        metadata={
            "help": "Keep the weights of convolutions, teacher's and student's, in channels-last memory while "
            "training; by default on x86 CPUs without bf16, and on accelerators with bf16 or fp16, except for "
            "networks that torch cannot train in it."
        },
    )
    cuda_graphs: Graphs = field(
        default="losses",
        metadata={
            "help": "What is recorded once and replayed as a CUDA graph, with the same results and without the "
            "host's work for each kernel: all (teacher, student and losses; the command line's default), the layers' "
            "losses, or off. Nothing is recorded on other devices, with several processes, "
            "torch_compile or gradient_checkpointing, nor anything that has hooks of yours. Do not use all for a "
            "model whose Python code depends on the values that it sees, or that keeps a state."
        },
    )
    teacher_bf16: bool = field(
        default=False, metadata={"help": "Run the teacher in bfloat16 (the student is not affected)."}
    )
    shard_teacher: bool = field(
        default=False,
        metadata={
            "help": "Spread the teacher's weights over the processes (FSDP2), for a teacher that does not fit one "
            "device: each gathers a part of them at a time. It needs several processes, and costs time."
        },
    )

    @property
    def views(self) -> int | None:
        """Number of views that the teacher cache holds; `None` when it is off, and while `auto` is not settled."""
        return None if self.teacher_cache in ("off", AUTO) else int(self.teacher_cache)

    def scale_of_targets(self) -> str:
        """The scale of the layer targets that the method uses: the given one, or its own."""
        method = METHODS[self.method]
        if self.target_scale == AUTO:
            return method.suited_scale or method.target_scale
        return self.target_scale or method.target_scale

    def weights(self, progress: float = 0.0) -> dict[str, float]:
        """The weights that the method uses: of the labels (`task`), the logits (`kd`) and the layers (`layer`).

        Args:
            progress: share of the training that is over.
        """
        method = METHODS[self.method]
        task = method.task_weight if self.task_weight is None else self.task_weight
        if method.needs_labels:
            task = task or method.task_weight
        layer = method.layer_weight if self.layer_weight is None else self.layer_weight
        end = 1.0 if self.layer_weight_end is None else self.layer_weight_end
        return {
            "task": task,
            "kd": self.kd_weight if method.needs_teacher else 0.0,
            "layer": 0.0 if method.layer_weight is None or layer is None else layer * end**progress,
        }
