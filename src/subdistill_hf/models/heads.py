"""New classifiers of transformers, with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import transformers
from torch import nn

OTHER_ENTRY: Final = "other_class"
"""The entry of a configuration that says that the last output is the answer "none of these"."""
THRESHOLD_ENTRY: Final = "unknown_threshold"
"""The entry with the largest probability below which an image is none of the classes."""

ONE_CLASS: Final = "single_label_classification"
"""What transformers call the problem of images that have one class each."""


def new_classifier(class_name: str, /, **configuration: Any) -> nn.Module:
    """A new model of a class of transformers.

    Args:
        class_name: the class, as in `ViTForImageClassification`.
        configuration: arguments of its configuration.
    """
    model_class = getattr(transformers, class_name)
    model: nn.Module = model_class(model_class.config_class(**configuration))
    return model


def names_of(config: Any) -> list[str]:
    """The names of a model's outputs, in their order, whatever the order in which its configuration was written."""
    return in_order(getattr(config, "id2label", None) or {})


def in_order(labels: Mapping[Any, Any]) -> list[str]:
    """The names of outputs in their order; JSON has the outputs as texts."""
    return [str(labels[output]) for output in sorted(labels, key=int)]


def labels_of(names: Sequence[str]) -> dict[str, Any]:
    """The arguments of a configuration that give a model one output for each class, in this order."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: output for output, name in enumerate(names)}}


def name_outputs(config: Any, names: Sequence[str]) -> None:
    """Give a configuration one output for each class, in place.

    That of a timm model which was saved before has its old names in `label_names` too, and saves and reads those.
    """
    config.update(labels_of(names))
    if getattr(config, "label_names", None) is not None:
        config.label_names = list(names)


def of_unknown(config: Any) -> dict[str, Any]:
    """What a configuration says of images of none of the classes: its `OTHER_ENTRY` and its `THRESHOLD_ENTRY`.

    Args:
        config: of a model, or what `config.json` holds of it.
    """
    values: Mapping[str, Any] = config if isinstance(config, Mapping) else vars(config)
    found = {name: values.get(name) for name in (OTHER_ENTRY, THRESHOLD_ENTRY)}
    return {name: value for name, value in found.items() if value is not None}


def has_other(config: Any) -> bool:
    """Whether a configuration says that the last output is the answer "none of these"; see `of_unknown`."""
    return OTHER_ENTRY in of_unknown(config)


def say_of_unknown(config: Any, said: Mapping[str, Any]) -> None:
    """Let a configuration say this of images of none of the classes, in place of what it said before.

    Args:
        config: of a model.
        said: see `of_unknown`.
    """
    for name in of_unknown(config):
        delattr(config, name)
    config.update(dict(said))


def other_problem(config: Any) -> str | None:
    """What a model was trained for, where that is not one class for each image; `None` where nothing is said of it.

    Args:
        config: of a model; a network that is none of transformers may have none.
    """
    problem: str | None = getattr(config, "problem_type", None)
    return None if problem == ONE_CLASS else problem


def expect_one_class(config: Any) -> None:
    """Let a configuration say that an image has one class, in place, where it says something else.

    The pipeline of transformers chooses between softmax and sigmoids by that.
    """
    if other_problem(config) is not None:
        config.problem_type = ONE_CLASS


def several_classes_note(who: str, config: Any) -> str | None:
    """What to know of a teacher that was not trained for one class an image; `None` for any other.

    Args:
        who: the teacher, for the note.
        config: its configuration, if it has one.
    """
    problem = other_problem(config)
    if problem is None:
        return None
    return (
        f"{who} was not trained for one class an image (problem_type={problem!r} in its config.json). The classes of "
        "a student exclude each other: it learns from the softmax over the teacher's logits of its classes"
    )
