"""What all methods of a run share: images, teacher, and the subtask's classes in both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from subdistill_hf.config.options import AUTO, EMBEDDED_DATASETS, TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.config.validation import check_task_options
from subdistill_hf.data.loading import SubtaskData, load_subtask
from subdistill_hf.data.subtask import MissingClassesError, match_teacher, matching_table
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.models.loading import LoadedModel, count_parameters, input_size_of, load_teacher

SMALL_IMAGE = 64
MIN_EPOCHS = 60
MIN_STEPS = 1200
CACHED_VIEWS = 8
CACHED_IMAGES = 1000


@dataclass
class Task:
    """What all methods of a run share.

    Attributes:
        options: what was asked for.
        config: training arguments.
        data: the images of the subtask, with its classes matched to the teacher's.
        test: the test images, with the mark if there is one.
        teacher: frozen.
        augmentation: of the training images.
        flip: mirror half of them.
        lacks_classes: whether the teacher has to be adapted before it can teach the subtask.
        adaptation: how it was adapted, if it was: see `adaptation.adapt`.
    """

    options: TaskOptions
    config: SubDistillConfig
    data: SubtaskData
    test: ViewDataset
    teacher: LoadedModel
    augmentation: str
    flip: bool
    lacks_classes: bool = False
    adaptation: Mapping[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """Where the student goes."""
        return Path(self.config.output_dir)

    def views(self, student: LoadedModel) -> ViewDataset:
        """The augmented training images, large enough for both networks."""
        sizes = [input_size_of(student.processor), input_size_of(self.teacher.processor)]
        return self.data.views(
            "train",
            self.augmentation,
            self.flip,
            size=max(sizes),
            seed=self.config.seed,
            views=self.config.views,
            mix=self.options.mix,
        )

    def plain(self, split: str) -> ViewDataset:
        """The images of a split without augmentation."""
        return self.data.views(split)


def load_task(options: TaskOptions, config: SubDistillConfig) -> Task:
    """Load images and teacher, match their classes, and settle what the options leave open.

    Args:
        options: teacher, dataset and classes.
        config: training arguments; without epochs and steps it is given enough epochs, and with `auto` views.

    Raises:
        SubDistillError: for options that do not fit together, or an image that cannot be decoded.
    """
    check_task_options(options)
    with config.main_process_first(desc="loading images"):
        data = load_subtask(options, config.seed)
    adaptable = options.adapt_teacher != "no"
    teacher = load_teacher(options.teacher, options.trust_remote_code, adaptable)
    lacks_classes = teacher.without_head
    if not lacks_classes:
        try:
            data = replace(data, subtask=match_teacher(data.subtask, teacher.labels, data.class_names))
        except MissingClassesError:
            if not adaptable:
                raise
            lacks_classes = True
    # decoded before training, so that a damaged image is found now
    test = data.views("test")
    for images in (test, data.views("validation", marked=None)):
        images.check_images()
    if config.max_steps <= 0 and config.num_train_epochs <= 0:
        config.num_train_epochs = enough_epochs(len(data.train), images_of_a_step(config))
    if config.teacher_cache == AUTO:
        config.teacher_cache = enough_views(len(data.train))
    augmentation = options.augmentation
    if augmentation == AUTO:
        augmentation = "pad_crop" if max(test.image(0).shape) <= SMALL_IMAGE else "resized_crop"
    flip = options.dataset not in EMBEDDED_DATASETS if options.flip is None else options.flip
    return Task(options, config, data, test, teacher, augmentation, flip, lacks_classes)


def images_of_a_step(config: SubDistillConfig) -> int:
    """Images of an optimiser's step: of each process one GPU takes part, whatever else it sees."""
    return int(config.per_device_train_batch_size * config.world_size * config.gradient_accumulation_steps)


def enough_epochs(images: int, images_per_step: int) -> float:
    """The epochs of a run that was given neither epochs nor steps: at least `MIN_EPOCHS`, and `MIN_STEPS` steps."""
    return float(max(MIN_EPOCHS, math.ceil(MIN_STEPS / math.ceil(images / images_per_step))))


def enough_views(images: int) -> str:
    """The `teacher_cache` of a run that was given none.

    Eight views are as good as ever new ones (`benchmarks/results/cache_views`); of more images their targets would
    take more disk than somebody who asked for nothing expects.
    """
    return str(CACHED_VIEWS) if images <= CACHED_IMAGES else "off"


def announce(task: Task) -> None:
    """Print what a run works with."""
    data, config = task.data, task.config
    print(
        f"{config.world_size} process{'es' if config.world_size > 1 else ''} on {config.device.type}, "
        f"{torch.get_num_threads()} threads each"
    )
    print(f"teacher  {task.teacher.name}: {count_parameters(task.teacher.model):,} parameters")
    counts = f"{len(data.train)} to train, {len(data.validation)} to validate, {len(data.test)} to test"
    print(f"images   {data.name}: {counts}")
    if data.marking is not None:
        print(f"mark     {data.marking.sentence(data.subtask)}")
    print(f"subtask\n{matching_table(data.subtask, task.teacher.labels)}")
