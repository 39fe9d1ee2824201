"""Everything that is decided for a user who leaves it open, and why.

In three steps, as more becomes known: from the options alone (`options_for_teacher`), from the images (`resolve`),
and from the method and its student (`method_choices`). What was given stays as it is.
Layers and rotation alone are decided elsewhere, in a trainer's plan: they follow from student and teacher together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from subdistill_hf.acceleration.threads import Threads, suited_threads
from subdistill_hf.config.defaults import VALIDATION_FRACTION
from subdistill_hf.config.options import AUTO, EMBEDDED_DATASETS, EMBEDDED_TEACHERS, TaskOptions
from subdistill_hf.config.training import SubDistillConfig, with_arguments
from subdistill_hf.core.distributed import processes_of_machine
from subdistill_hf.data.augmentation import mirroring
from subdistill_hf.errors import SubDistillError
from subdistill_hf.models.zero_shot_teachers import is_zero_shot
from subdistill_hf.teacher.head_training import steps_of_a_pass

DATASET_OF_HUB_TEACHERS: dict[str, tuple[str | int | tuple[str, ...], str]] = {
    "dataset": ("uoft-cs/cifar100", "small, and open to all"),
    "classes": (("superclass:large_carnivores",), "five of its classes, which are easily mixed up"),
    "train_images_per_class": (100, "a fifth of the images, as few as the method is made for"),
    "adapt_teacher": ("lora", "the teacher is fitted to the classes first, if it lacks one"),
}
STUDENT_OF_HUB_TEACHERS: dict[str, tuple[str | int | tuple[str, ...], str]] = {
    "student": (
        "timm/mobilenetv4_conv_small.e2400_r224_in1k",
        "made for phones, and pretrained: few images cannot teach a student to see",
    ),
}
"""Option to value and reason, for a teacher that is not embedded; see `options_for_teacher`."""

SMALL_IMAGE = 64  # pixels of the longer side
MIN_EPOCHS, MIN_STEPS = 60, 1200
MIN_ADAPTATION_EPOCHS, MIN_ADAPTATION_STEPS = 5, 200
MOST_HEAD_EPOCHS, MOST_HEAD_STEPS = 100, 2000
"""How long a head alone is trained at most, which stops early: the larger of the two."""
ADAPTATION_RATE = 2e-3
HEAD_RATES = (5e-4, 2e-3, 8e-3)
"""A head alone is trained with each, and the validation loss chooses: a wide network needs the first, a narrow one the
last, and a training takes a second."""
MIX, CUTMIX = 0.4, 0.3  # shares of the views
MOST_VIEWS = 32
CACHED_PASSES = 8000  # of the teacher
CACHED_IMAGES = 1000


@dataclass(frozen=True)
class Choice:
    """A value that was chosen for an option.

    Attributes:
        option: its name.
        value: what was chosen.
        reason: why, in words.
        method: of which method's training; all with `None`.
    """

    option: str
    value: Any
    reason: str
    method: str | None = None

    def __str__(self) -> str:
        value = " ".join(self.value) if isinstance(self.value, list | tuple) else self.value
        value = f"{value:g}" if isinstance(value, float) else value
        return f"--{self.option} {value}{f' for {self.method}' if self.method else ''}: {self.reason}"


@dataclass(frozen=True)
class Resolved:
    """The options of a run in which nothing is left open that follows from teacher, images or device.

    Attributes:
        options: a copy of those that were given, with an augmentation and with or without mirroring.
        config: a copy of the training arguments, with epochs or steps, and a number of views or none.
        choices: what was chosen.
    """

    options: TaskOptions
    config: SubDistillConfig
    choices: tuple[Choice, ...] = ()


# From the options


def options_for_teacher(options: TaskOptions, given: Collection[str]) -> tuple[TaskOptions, list[Choice]]:
    """Choose what suits a teacher that is not embedded, where the user said nothing.

    An embedded teacher keeps the defaults of the options. To any other teacher comes a dataset of the Hub, if none was
    given, with all that makes a first run of a few hundred images; and, unless the dataset is embedded, a pretrained
    student.

    Args:
        options: what to distil.
        given: the names of the options that the user gave, which stay as they are.

    Returns:
        The options, and what was chosen.

    Raises:
        SubDistillError: for a dataset without classes.
    """
    if "dataset" in given and "classes" not in given:
        raise SubDistillError(
            f"--dataset {options.dataset} needs --classes: which of its classes is the student for? Expected names, "
            "ids, superclass:NAME or all"
        )
    if options.teacher in EMBEDDED_TEACHERS:
        return options, []
    wanted: dict[str, tuple[str | int | tuple[str, ...], str]] = {}
    if not {"dataset", "classes"} & {*given}:
        wanted |= DATASET_OF_HUB_TEACHERS
    elif "dataset" not in given:
        wanted["dataset"] = DATASET_OF_HUB_TEACHERS["dataset"]
    if "adapt_teacher" in wanted and is_zero_shot(options.teacher, options.trust_remote_code):
        del wanted["adapt_teacher"]  # its classes are any words
    dataset = wanted["dataset"][0] if "dataset" in wanted else options.dataset
    if dataset not in EMBEDDED_DATASETS:
        wanted |= STUDENT_OF_HUB_TEACHERS
    choices = [
        Choice(name, list(value) if isinstance(value, tuple) else value, reason)
        for name, (value, reason) in wanted.items()
        if name not in given
    ]
    chosen: dict[str, Any] = {choice.option: choice.value for choice in choices}
    return replace(options, **chosen), choices


def held_out(options: TaskOptions, config: SubDistillConfig) -> float:
    """The share of the training images that a run holds out for validation.

    Args:
        options: what was asked for.
        config: training arguments.

    Returns:
        What was given; otherwise 0, or `VALIDATION_FRACTION` where these images choose a checkpoint, the fit of a
        teacher or a threshold, or where spurious marks are measured on them.
    """
    if options.validation_fraction is not None:
        return options.validation_fraction
    chosen = config.load_best_model_at_end or options.adapt_teacher != "no"
    needed = chosen or options.other_class or options.test_unknown or options.mark is not None
    return VALIDATION_FRACTION if needed else 0.0


# From the images


def resolve(
    options: TaskOptions,
    config: SubDistillConfig,
    train_images: int,
    image_size: tuple[int, int],
    class_names: Sequence[str] = (),
    other_images: int = 0,
) -> Resolved:
    """Decide what follows from the images: how long to train, how many views to keep, and the augmentation.

    Args:
        options: what was asked for.
        config: training arguments.
        train_images: how many there are.
        image_size: height and width of an image in the middle, by size.
        class_names: all class names of the dataset.
        other_images: how many of the training images show none of the classes. They make a training longer: the images
            of the classes are passed over as often as without them (docs/how_to/none_of_these.md).

    Returns:
        Copies without anything open.
    """
    training: list[Choice] = []
    passes = _passes_over(train_images, config)
    if config.max_steps <= 0 and config.num_train_epochs <= 0:
        epochs = passes = enough_epochs(train_images - other_images, images_of_a_step(config))
        reason = f"at least {MIN_EPOCHS} passes over the images, and {MIN_STEPS} steps"
        reason += " with those of the classes" if other_images else ""
        training.append(Choice("num_train_epochs", epochs, reason))
    if config.teacher_cache == AUTO:
        views, reason = enough_views(train_images, passes)
        training.append(Choice("teacher_cache", views, reason))
    augmenting: list[Choice] = []
    if options.augmentation == AUTO:
        small = max(image_size) <= SMALL_IMAGE
        reason = f"images of {'at most' if small else 'more than'} {SMALL_IMAGE} pixels"
        augmenting.append(Choice("augmentation", "pad_crop" if small else "resized_crop", reason))
    if options.flip is None:
        flip, reason = mirroring(options.dataset, class_names)
        augmenting.append(Choice("flip", flip, reason))
    augmenting += _mixing(options)
    changed: dict[str, Any] = {choice.option: choice.value for choice in augmenting}
    completed = with_arguments(config, **{choice.option: choice.value for choice in training})
    return Resolved(replace(options, **changed), completed, (*training, *augmenting))


def _mixing(options: TaskOptions) -> list[Choice]:
    """The shares of mixed views of a user who gave none; where one is given, the other is 0."""
    if options.augmentation == "none":
        return []
    given = [name for name in ("mix", "cutmix") if getattr(options, name) is not None]
    if given:
        others = [name for name in ("mix", "cutmix") if name not in given]
        return [Choice(name, 0.0, f"{given[0]} was given alone") for name in others]
    return [
        Choice("mix", MIX, "blended images are new ones, and the teacher says what it sees in them"),
        Choice("cutmix", CUTMIX, "so are images with a rectangle of another"),
    ]


def with_steps_of_all(config: SubDistillConfig, images: int, labelled: int) -> SubDistillConfig:
    """The training arguments of a method that learns from labels alone: as many steps as the methods beside it.

    Args:
        config: with epochs or steps.
        images: number of training images of the others.
        labelled: of these with a label.
    """
    if config.max_steps > 0 or images == labelled:
        return config
    steps = math.ceil(config.num_train_epochs * math.ceil(images / images_of_a_step(config)))
    return with_arguments(config, max_steps=steps)


def images_of_a_step(config: SubDistillConfig) -> int:
    """Images of an optimiser's step: of each process one GPU takes part, whatever else it sees."""
    return int(config.per_device_train_batch_size * config.world_size * config.gradient_accumulation_steps)


def enough_epochs(images: int, images_per_step: int) -> float:
    """The epochs of a run that was given neither epochs nor steps: at least `MIN_EPOCHS`, and `MIN_STEPS` steps."""
    return float(max(MIN_EPOCHS, math.ceil(MIN_STEPS / math.ceil(images / images_per_step))))


def enough_adaptation_epochs(images: int, images_per_step: int) -> float:
    """The epochs in which a teacher is fitted: at least `MIN_ADAPTATION_EPOCHS`, and `MIN_ADAPTATION_STEPS` steps."""
    steps = math.ceil(images / images_per_step)
    return max(MIN_ADAPTATION_EPOCHS, math.ceil(MIN_ADAPTATION_STEPS / steps))


def resolve_adaptation(
    options: TaskOptions, train_images: int, images_per_step: int, head_alone: bool
) -> tuple[TaskOptions, list[Choice]]:
    """Decide how long and how fast a teacher is fitted.

    Args:
        options: what was asked for.
        train_images: how many it is fitted to.
        images_per_step: see `images_of_a_step`.
        head_alone: whether its head is trained on recorded inputs.

    Returns:
        A copy, and what was chosen; for a head alone the learning rate stays open, see `HEAD_RATES`.
    """
    if head_alone:
        inputs = train_images * (1 + options.adapt_views)
        suited = {"adapt_epochs": (most_head_epochs(inputs), "at most; the validation loss says when it is enough")}
    else:
        epochs = enough_adaptation_epochs(train_images, images_per_step)
        reason = f"at least {MIN_ADAPTATION_EPOCHS} passes over the images, and {MIN_ADAPTATION_STEPS} steps"
        suited = {
            "adapt_epochs": (epochs, reason),
            "adapt_learning_rate": (ADAPTATION_RATE, "small changes of a trained network"),
        }
    choices = [Choice(name, value, reason) for name, (value, reason) in suited.items() if not getattr(options, name)]
    chosen: dict[str, Any] = {choice.option: choice.value for choice in choices}
    return replace(options, **chosen), choices


def most_head_epochs(inputs: int) -> float:
    """The passes over recorded inputs that a head is trained for at most, if it does not stop before."""
    return float(max(MOST_HEAD_EPOCHS, math.ceil(MOST_HEAD_STEPS / steps_of_a_pass(inputs))))


def _passes_over(images: int, config: SubDistillConfig) -> float:
    """The passes over the images that a run was given, as epochs or as steps; 0 where it was given neither."""
    if config.max_steps > 0:
        return float(config.max_steps / math.ceil(images / images_of_a_step(config)))
    return float(config.num_train_epochs)


def enough_views(images: int, passes: float) -> tuple[str, str]:
    """The `teacher_cache` of a run that was given none, and why.

    The more views, the better (docs/defaults.md), and each is a pass of the teacher; of many images their targets
    would take more disk than somebody who asked for nothing expects. There are never more than passes over the images.

    Args:
        images: to train with.
        passes: over them, in the training.
    """
    if images > CACHED_IMAGES:
        return "off", f"targets of more than {CACHED_IMAGES} images would take much disk"
    if passes <= 1:
        return "off", "each image is seen once"
    views = min(MOST_VIEWS, CACHED_PASSES // images, math.ceil(passes))
    return str(views), "views of each image, each of which is one pass of the teacher"


# From all networks


def resolve_threads(config: SubDistillConfig, networks: Sequence[tuple[nn.Module, int]]) -> Threads:
    """Choose how many threads share the work of a layer on a CPU; the largest layers decide.

    Args:
        config: the training arguments.
        networks: the teacher and the student, each with the floating-point operations of one image.
    """
    operations = [
        count * config.per_device_train_batch_size / max(1, sum(map(_has_products, network.modules())))
        for network, count in networks
    ]
    return suited_threads(max(operations), processes_of_machine(config.world_size))


def _has_products(module: nn.Module) -> bool:
    """Whether a module is a layer whose operations are counted, without those inside it."""
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
