"""One pass over the options of a run, before any work: all that can be refused without images or weights."""

from __future__ import annotations

from pathlib import Path

from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import AUTO, TaskOptions
from subdistill_hf.config.training import SubDistillConfig, check_values
from subdistill_hf.config.validation import NO_LABELS, check_task_options, check_teacher_is_adapted
from subdistill_hf.core.pairing import split_entry
from subdistill_hf.data.subtask import check_paper_subtasks, check_superclasses
from subdistill_hf.errors import SubDistillError
from subdistill_hf.hub.names import check_repository
from subdistill_hf.models.students import check_recipe, check_student_lora
from subdistill_hf.pipeline.method_choices import config_of_method
from subdistill_hf.training.arguments import check_training_arguments
from subdistill_hf.training.checks import check_smoothing, check_student

NEEDED = {
    "remove_unused_columns": (False, "the images are made into pixels from the dataset's own columns"),
    "prediction_loss_only": (False, "the validation accuracy is measured from the predictions"),
    "eval_do_concat_batches": (True, "the validation accuracy is measured over all images at once"),
}
"""Training arguments that a run needs as they are by default, and why."""


def validate_options(options: TaskOptions, config: SubDistillConfig) -> None:
    """Refuse options that do not fit, whatever the images and models are.

    Args:
        options: what to distil.
        config: training arguments.

    Raises:
        SubDistillError: for the first that does not fit.
    """
    validate_options_of_teacher(options, config)
    if (student := check_recipe(options.student)) is not None:
        check_student(student, config)
    check_student_lora(options)
    check_methods_without_labels(options, config)
    _check_smoothing(options, config)
    for entry in [] if config.layers == [AUTO] else config.layers:
        split_entry(entry)


def validate_options_of_teacher(options: TaskOptions, config: SubDistillConfig) -> None:
    """Refuse options that do not fit, whatever the student is.

    Args:
        options: what to distil, or what to fit a teacher to.
        config: training arguments.

    Raises:
        SubDistillError: for the first that does not fit.
    """
    check_task_options(options)
    check_teacher_is_adapted(options)
    check_values(config)
    check_training_arguments(config)
    if config.push_to_hub and config.hub_model_id is not None:
        check_repository(config.hub_model_id)
    for name, (value, reason) in NEEDED.items():
        if getattr(config, name) != value:
            raise SubDistillError(f"{name}={getattr(config, name)}: expected {value}, since {reason}")
    _check_held_out(options, config)
    _check_sharded_teacher(options, config)
    check_paper_subtasks(options.classes)
    check_superclasses(options.classes, options.label_column)


def check_methods_without_labels(options: TaskOptions, config: SubDistillConfig) -> None:
    """Refuse methods whose loss on the logits needs the class of each image, where some have none.

    Raises:
        SubDistillError: naming the method.
    """
    for method, weights in _weights_of_methods(options, config).items():
        if options.label_column == NO_LABELS and (METHODS[method].logit_labels or weights["task"]):
            raise SubDistillError(
                f"method {method!r} learns from labels, and with label_column={NO_LABELS} there are none: choose kd, "
                "subdistill or another method without them, and no task_weight"
            )
        if options.unlabelled is not None and METHODS[method].logit_labels:
            raise SubDistillError(
                f"method {method!r} needs the class of each image, and those of unlabelled={options.unlabelled} have "
                "none: choose another method, such as kd or subdistill"
            )


def _check_smoothing(options: TaskOptions, config: SubDistillConfig) -> None:
    """Refuse smoothed labels where no method has a cross entropy with them, nor a teacher that is fitted."""
    weights = _weights_of_methods(options, config).values()
    if options.adapt_teacher == "no" and not any(each["task"] for each in weights):
        check_smoothing(config)


def _weights_of_methods(options: TaskOptions, config: SubDistillConfig) -> dict[str, dict[str, float]]:
    """Each method of a run, and the weights of its losses."""
    folder, methods = Path(config.output_dir), (config.method, *options.compare)
    return {method: config_of_method(config, method, folder).weights() for method in methods}


def _check_sharded_teacher(options: TaskOptions, config: SubDistillConfig) -> None:
    """Refuse what runs the whole teacher on one device before it is sharded."""
    if not config.shard_teacher:
        return
    found = {
        f"adapt_teacher={options.adapt_teacher}": options.adapt_teacher != "no",
        f"unlabelled={options.unlabelled}": options.unlabelled is not None,
        f"label_column={NO_LABELS}": options.label_column == NO_LABELS,
    }
    for name, given in found.items():
        if given:
            raise SubDistillError(
                f"shard_teacher and {name}: the latter takes passes of the whole teacher on one device; leave out one "
                "of them"
            )


def _check_held_out(options: TaskOptions, config: SubDistillConfig) -> None:
    """Refuse to hold out no images where something is chosen by them."""
    if options.validation_fraction != 0:
        return
    if config.load_best_model_at_end:
        chooses = "load_best_model_at_end"
    elif options.adapt_teacher != "no":
        chooses = f"adapt_teacher={options.adapt_teacher}"
    elif options.other_class or options.test_unknown:
        chooses = "the threshold of other_class and test_unknown"
    else:
        return
    raise SubDistillError(
        f"validation_fraction=0 leaves no images for {chooses}, which chooses by them: expected a share above 0, such "
        "as 0.2"
    )
