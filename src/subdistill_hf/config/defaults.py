"""What the command line chooses where the user does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from subdistill_hf.config.options import EMBEDDED_DATASETS, EMBEDDED_TEACHERS, TaskOptions
from subdistill_hf.errors import SubDistillError

RUN_DEFAULTS: dict[str, Any] = {
    "output_dir": "subdistill-student",
    "learning_rate": 0.0,  # what suits student and method, see `learning_rates.suited_learning_rate`
    "num_train_epochs": 0.0,  # as many as make a whole training, see `task.enough_epochs`
    "teacher_cache": "auto",  # see `task.enough_views`
    "cuda_graphs": "all",
    "rotation": "auto",  # see `procrustes.suited_rotation`
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "save_strategy": "steps",
    "save_steps": 0.1,
    "save_total_limit": 2,
    "logging_steps": 0.02,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "hub_strategy": "end",  # one push, of the finished student
}
"""What the command line changes of the training arguments' defaults: it always has validation images, and pushes
only what is finished."""

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
"""What the command line chooses for a teacher that is not embedded, and why; see `choose_defaults`."""


def saved_when_evaluated(given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that follow what was given: a student is saved when it is evaluated, for the best one to be kept.

    Args:
        given: training arguments by name.

    Returns:
        `eval_steps` where `save_steps` alone is given, and the other way round; the same for the strategies.
    """
    follow = {}
    for kind in ("steps", "strategy"):
        for one, other in ((f"save_{kind}", f"eval_{kind}"), (f"eval_{kind}", f"save_{kind}")):
            both = kind == "steps" or given.get(one) in ("steps", "epoch")
            if one in given and other not in given and both:
                follow[other] = given[one]
    return follow


def choose_defaults(task: TaskOptions, given: set[str]) -> list[str]:
    """Set the options that were left open, by what suits a teacher that is not embedded.

    An embedded teacher keeps the defaults of the options. To any other teacher comes a dataset of the Hub, if none was
    given, with all that makes a first run of a few hundred images; and, unless the dataset is embedded, a pretrained
    student.

    Args:
        task: changed in place.
        given: the options that the user gave, which stay as they are.

    Returns:
        A line for each option that was chosen, with the reason.

    Raises:
        SubDistillError: for a dataset without classes.
    """
    if "dataset" in given and "classes" not in given:
        raise SubDistillError(
            f"--dataset {task.dataset} needs --classes: which of its classes is the student for? Expected names, ids, "
            "superclass:NAME or all"
        )
    if task.teacher in EMBEDDED_TEACHERS:
        return []
    wanted: dict[str, tuple[str | int | tuple[str, ...], str]] = {}
    if not {"dataset", "classes"} & given:
        wanted |= DATASET_OF_HUB_TEACHERS
    elif "dataset" not in given:
        wanted["dataset"] = DATASET_OF_HUB_TEACHERS["dataset"]
    dataset = wanted["dataset"][0] if "dataset" in wanted else task.dataset
    if dataset not in EMBEDDED_DATASETS:
        wanted |= STUDENT_OF_HUB_TEACHERS
    lines = []
    for name, (value, reason) in wanted.items():
        if name in given:
            continue
        setattr(task, name, list(value) if isinstance(value, tuple) else value)
        text = " ".join(value) if isinstance(value, tuple) else str(value)
        lines.append(f"--{name} {text}: {reason}")
    return lines
