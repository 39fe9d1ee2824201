"""A teacher's layers on the images of a subtask, without a student."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from accelerate import PartialState

from subdistill_hf.config.commands import TeacherOptions
from subdistill_hf.config.options import AUTO
from subdistill_hf.core.activations import height_and_width
from subdistill_hf.core.hooks import resolve_layers
from subdistill_hf.core.layers import LayerShape, block_chain, choose_stages, describe_layers
from subdistill_hf.core.moments import Moments
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.loading import SubtaskData, load_subtask
from subdistill_hf.data.subtask import match_teacher, matching_table
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.models.errors import ModelError
from subdistill_hf.models.loading import LoadedModel, load_teacher
from subdistill_hf.models.zero_shot_teachers import is_zero_shot
from subdistill_hf.teacher.fitting import FitRequest, fit_moments
from subdistill_hf.teacher.teacher import Teacher

BATCH = 64


@dataclass(frozen=True)
class TeacherLayers:
    """Some layers of a teacher, and the images of a subtask.

    Attributes:
        options: what was asked for.
        data: the images, with the subtask's classes matched to the teacher's.
        loaded: the teacher as it was loaded, with its processor and names.
        teacher: the same, frozen and restricted to the subtask, on the device of this process.
        layers: what its layers return for one image.
        collate: makes batches for the teacher of the items of a `ViewDataset`.
    """

    options: TeacherOptions
    data: SubtaskData
    loaded: LoadedModel
    teacher: Teacher
    layers: list[LayerShape]
    collate: ViewCollator

    def heading(self) -> str:
        """The subject: the classes as the teacher knows them, and the spurious mark on the images, if any."""
        subtask, marking = self.data.subtask, self.data.marking
        matching = matching_table(subtask, self.loaded.labels)
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
        return fit_moments(self.teacher, self.layers, images, self.collate, request, with_context=with_context)


def load_teacher_layers(options: TeacherOptions) -> TeacherLayers:
    """Load images and teacher, match their classes, and find the layers.

    Raises:
        SubDistillError: for options that do not fit together, or a teacher that takes words.
    """
    process = PartialState()
    if is_zero_shot(options.teacher, options.trust_remote_code):
        raise ModelError(
            f"the teacher {options.teacher!r} compares images with texts, and has no classes: expected a "
            "classifier. `subdistill distill` takes such a teacher"
        )
    if options.validation_fraction is None:
        options = replace(options, validation_fraction=0.0)  # nothing is chosen here
    with process.local_main_process_first():
        data = load_subtask(options, options.seed)
    loaded = load_teacher(options.teacher, options.trust_remote_code)
    subtask = match_teacher(data.subtask, loaded.class_labels, data.class_names)
    teacher = Teacher(loaded.model, subtask.teacher_ids, process.device)
    collate = ViewCollator(loaded.processor)
    example = collate([ViewDataset(data.train.select([0]), data.columns)[0]])["pixel_values"]
    return TeacherLayers(
        options,
        replace(data, subtask=subtask),
        loaded,
        teacher,
        _find_layers(teacher, options.layers, example.to(process.device)),
        collate,
    )


@torch.no_grad()
def _find_layers(teacher: Teacher, wanted: list[str], pixels: torch.Tensor) -> list[LayerShape]:
    """The stages of a teacher, or those of its layers that were asked for; `pixels` is an example `(1, c, H, W)`."""
    image_size = height_and_width(pixels)

    def forward() -> torch.Tensor:
        return teacher.all_logits(pixels)

    if wanted == [AUTO]:
        return choose_stages(block_chain(teacher.model, forward, image_size))
    return describe_layers(teacher.model, resolve_layers(teacher.model, wanted), forward, image_size)
