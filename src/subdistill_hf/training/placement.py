"""How student and teacher lie in memory while they are in a training, and what of its steps CUDA graphs replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from subdistill_hf.acceleration.cuda_graphs import GraphsOf
from subdistill_hf.acceleration.memory_format import leave_channels_last, take_memory_format
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.data.collate import teacher_pixels
from subdistill_hf.teacher.teacher import Teacher
from subdistill_hf.training.matching import inputs_of


class MemoryFormats:
    """How the convolutions of student and teacher lie in memory: as they are trained, or contiguously.

    Each network is tried once, however often it is brought there. Another trainer may leave the format of a teacher
    that both share: so it is taken anew for each training.
    """

    def __init__(self) -> None:
        self._tried: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()

    def take(
        self, args: SubDistillConfig, student: nn.Module, teacher: Teacher | None, example: Mapping[str, Any]
    ) -> None:
        """Let the convolutions lie as they are trained, see `take_memory_format`.

        Args:
            args: the arguments.
            student: the student.
            teacher: the teacher, if there is one.
            example: a batch of a few images, on the device, with which a format is tried.

        Raises:
            DistillationError: when channels last is wanted of a network that could not be trained.
        """
        half, wanted = args.bf16 or args.fp16, args.channels_last
        of_student = False if args.deepspeed_plugin is not None else wanted  # DeepSpeed takes contiguous weights alone
        take_memory_format(
            student, lambda: student(**inputs_of(student, example)), args.device, half, of_student, self._tried
        )
        if teacher is not None and not teacher.is_sharded:  # FSDP takes contiguous weights alone
            model, pixels, half = teacher.model, teacher_pixels(example), half or args.teacher_bf16
            take_memory_format(model, lambda: teacher.all_logits(pixels), args.device, half, wanted, self._tried)

    def leave(self, student: nn.Module, teacher: Teacher | None) -> None:
        """Let their weights lie contiguously again, as everybody expects weights to lie."""
        leave_channels_last(student)
        if teacher is not None and not teacher.is_sharded:
            leave_channels_last(teacher.model)


def replayable_graphs(args: SubDistillConfig, compiled: bool, sharded: bool) -> GraphsOf:
    """The parts of a training step that CUDA graphs replay: those that the arguments say, where they can.

    Args:
        args: the arguments.
        compiled: whether the student is compiled.
        sharded: whether DeepSpeed or FSDP wraps it.
    """
    split = sharded or args.world_size > 1
    if args.device.type != "cuda" or split or compiled or args.gradient_checkpointing:
        return "off"
    return args.cuda_graphs
