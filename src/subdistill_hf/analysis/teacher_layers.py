"""A teacher's layers on the images of a subtask, without a student."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import torch
from accelerate import PartialState

from subdistill_hf.config.commands import TeacherOptions
from subdistill_hf.core.activations import height_and_width
from subdistill_hf.core.hooks import resolve_layers
from subdistill_hf.core.layers import LayerShape, block_chain, choose_stages, describe_layers
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.pairing import AUTO
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.loading import SubtaskData, load_subtask
from subdistill_hf.data.subtask import match_teacher, matching_table
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.models.loading import LoadedModel, load_teacher
from subdistill_hf.teacher.fitting import FitRequest, fit_moments
from subdistill_hf.teacher.teacher import Teaching

BATCH = 64


@dataclass(frozen=True)
class TeacherLayers:
    """Some layers of a teacher, and the images of a subtask.

    Attributes:
        options: what was asked for.
        data: the images, with the subtask's classes matched to the teacher's.
        teacher: frozen.
        teaching: the teacher restricted to the subtask, on the device of this process.
        layers: what its layers return for one image.
        collate: makes batches for the teacher of the items of a `ViewDataset`.
    """

    options: TeacherOptions
    data: SubtaskData
    teacher: LoadedModel
    teaching: Teaching
    layers: list[LayerShape]
    collate: ViewCollator

    def heading(self) -> str:
        """What is looked at: the classes as the teacher knows them, and the spurious mark on the images, if any."""
        subtask, marking = self.data.subtask, self.data.marking
        matching = matching_table(subtask, self.teacher.labels)
        return matching if marking is None else f"{matching}\nmark {marking.sentence(subtask)}"

    def moments(self, with_context: bool = True) -> dict[str, Moments]:
        """The moments of all layers over the training images, as they are; the same in every process.

        Args:
            with_context: `False` skips the backward pass, for bases that need no contexts.
        """
        process = PartialState()
        request = FitRequest(
            positions=None,
            seed=self.options.seed,
            batch_size=BATCH,
            rank=process.process_index,
            processes=process.num_processes,
            show=process.is_main_process,
        )
        images = self.data.views("train")
        return fit_moments(self.teaching, self.layers, images, self.collate, request, with_context=with_context)


def load_teacher_layers(options: TeacherOptions) -> TeacherLayers:
    """Load images and teacher, match their classes, and find the layers.

    Raises:
        SubDistillError: for options that do not fit together.
    """
    process = PartialState()
    with process.local_main_process_first():
        data = load_subtask(options, options.seed)
    teacher = load_teacher(options.teacher, options.trust_remote_code)
    subtask = match_teacher(data.subtask, teacher.labels, data.class_names)
    teaching = Teaching(teacher.model, subtask.teacher_ids, process.device, contextlib.nullcontext)
    collate = ViewCollator(teacher.processor)
    example = collate([ViewDataset(data.train.select([0]), data.columns)[0]])["pixel_values"]
    return TeacherLayers(
        options,
        replace(data, subtask=subtask),
        teacher,
        teaching,
        _find_layers(teaching, options.layers, example.to(process.device)),
        collate,
    )


@torch.no_grad()
def _find_layers(teaching: Teaching, wanted: list[str], pixels: torch.Tensor) -> list[LayerShape]:
    """The stages of a teacher, or those of its layers that were asked for; `pixels` is an example `(1, c, H, W)`."""
    image_size = height_and_width(pixels)

    def forward() -> torch.Tensor:
        return teaching.all_logits(pixels)

    if wanted == [AUTO]:
        return choose_stages(block_chain(teaching.teacher, forward, image_size))
    return describe_layers(teaching.teacher, resolve_layers(teaching.teacher, wanted), forward, image_size)
