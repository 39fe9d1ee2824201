"""Checks of the values of options: all that can be refused before any image is read."""

from __future__ import annotations

import difflib
import math
import numbers
import os
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from subdistill_hf.errors import DataError, SubDistillError

if TYPE_CHECKING:
    from subdistill_hf.config.options import AdaptationOptions, DataOptions, TaskOptions

LARGEST_SEED = 2**32 - 1  # that numpy takes
NO_LABELS: Final = "none"
"""The `label_column` of a dataset without labels."""
LEAST_OTHER_IMAGES: Final = 2
"""Training images of other classes that `other_class` needs: one to train and one to validate."""
PATHS: Final = (
    *("folder", "config", "output_dir", "logging_dir", "resume_from_checkpoint", "space", "runtime"),
    *("teacher", "student", "dataset", "unlabelled", "unknown_images", "calibration", "images", "subtasks"),
    *("teacher_cache_dir", "accelerator_config", "fsdp_config", "deepspeed"),
)
"""Options that may name a folder or a file of this machine, where `~` stands for the home folder."""
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
_LISTS = {"list[str]": "texts", "list[int]": "whole numbers", "list[float]": "numbers"}


# Of any dataclass


def with_home(name: str, value: Any) -> Any:
    """A value in which the home folder stands for `~` at the beginning of a path.

    A shell replaces `~` in `--output_dir ~/folder`, but not in `--output_dir=~/folder`, nor do YAML and Python. Parts
    of this package and of others would otherwise take it for two different folders.

    Args:
        name: of the option; others than `PATHS` keep their values.
        value: of the option; of a list, each entry counts.
    """
    if name not in PATHS:
        return value
    if isinstance(value, list | tuple):
        return type(value)(with_home(name, one) for one in value)
    is_path = isinstance(value, str | os.PathLike) and str(value).startswith("~")
    return os.path.expanduser(value) if is_path else value  # noqa: PTH111 - which raises where there is no such user


def check_types(options: Any) -> None:
    """Refuse numbers, switches and lists that are something else, or not finite, as YAML or a caller may give them.

    One value where a list is expected becomes a list of it. In a list of texts, a whole number or a path counts as it
    is written. Paths below `~` become those of the home folder, see `with_home`.

    Args:
        options: an instance of a dataclass; fields of other types are not looked at, nor values that are the default.

    Raises:
        SubDistillError: naming the first such field, with what was expected and found.
    """
    for field in fields(options):
        given, kind = getattr(options, field.name), _kind(field)
        if (value := with_home(field.name, given)) != given:
            setattr(options, field.name, value)
        if kind in _LISTS and (value is not None or "None" not in str(field.type)):
            setattr(options, field.name, _as_list(field.name, value, kind))
        if kind not in _KINDS or value is None or value is field.default:
            continue
        if not _is_of(value, kind):
            raise SubDistillError(f"{field.name}={value!r}: expected {_KINDS[kind]}")
        if not math.isfinite(value):
            raise SubDistillError(f"{field.name}={value!r}: expected a finite number")


@lru_cache
def choices_of(kind: type) -> Mapping[str, Collection[str]]:
    """The allowed values of the fields of a dataclass that have a fixed choice of them.

    Args:
        kind: the dataclass; a field's choice is its `Literal` type, or `choices` in its metadata.

    Returns:
        Field name to values.
    """
    hints = get_type_hints(kind)
    choices = {field.name: field.metadata.get("choices", _literals(hints[field.name])) for field in fields(kind)}
    return {name: values for name, values in choices.items() if values}


def check_choices(options: Any, kind: type | None = None) -> None:
    """Refuse values that are not among those of their field; each entry of a list must be.

    Args:
        options: an instance of a dataclass; `None` is in any choice.
        kind: a base class of it, whose fields alone are looked at.

    Raises:
        SubDistillError: naming the first such field, with what was expected and found.
    """
    for name, allowed in choices_of(kind or type(options)).items():
        value = getattr(options, name)
        for entry in value if isinstance(value, list | tuple) else [value]:
            if entry is None or entry in allowed:
                continue
            near = difflib.get_close_matches(str(entry), allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SubDistillError(f"{name}={entry!r}: expected one of {', '.join(allowed)}{hint}")


def check_ranges(options: Any, least: Mapping[str, float], between: Mapping[str, tuple[float, float]]) -> None:
    """Refuse numbers out of range; `None` is in any.

    Args:
        options: what has the numbers as attributes.
        least: name to the smallest number allowed.
        between: name to the smallest and the largest.

    Raises:
        SubDistillError: naming the first number out of range, with what was expected and found.
    """
    for name, smallest in least.items():
        _check_range(options, name, smallest, math.inf, f"at least {smallest:g}")
    for name, (smallest, largest) in between.items():
        _check_range(options, name, smallest, largest, f"a number from {_written(smallest)} to {_written(largest)}")


def names_of_options(*kinds: Any) -> list[str]:
    """The names of all fields of dataclasses."""
    return [field.name for kind in kinds for field in fields(kind)]


# Of each kind of options


def check_data_options(options: DataOptions) -> None:
    """Refuse shares and numbers that leave nothing to train on, marks that do not exist, and contradictions.

    Raises:
        SubDistillError: naming the option; a `DataError` where values contradict each other or are out of range.
    """
    check_types(options)
    check_choices(options)
    if (share := options.test_fraction) is not None and not 0 < share < 1:
        raise DataError(f"test_fraction={share}: expected a share between 0 and 1")
    if (share := options.validation_fraction) is not None and not 0 <= share < 1:
        raise DataError(f"validation_fraction={share}: expected a share of 0 or more, and below 1")
    if options.train_fraction is not None and not 0 < options.train_fraction <= 1:
        raise DataError(f"train_fraction={options.train_fraction}: expected a share above 0, at most 1")
    limit = options.train_images_per_class
    if limit is not None and limit < 2:
        raise DataError(f"train_images_per_class={limit}: expected at least 2, of which some may be held out")
    if limit is not None and options.train_fraction is not None:
        raise DataError("train_images_per_class and train_fraction contradict each other: give one of them")
    if options.test_split is not None and options.test_fraction is not None:
        raise DataError("test_split and test_fraction contradict each other: give one of them")
    if not 0 <= options.mark_share <= 1:
        raise DataError(f"mark_share={options.mark_share}: expected a share from 0 to 1")
    if options.mark is None:
        _refuse_given(options, ("mark_classes", "mark_share"), "without --mark", DataError)


def check_adaptation_options(options: AdaptationOptions) -> None:
    """Refuse numbers out of range, and options that the way of adapting has no use for.

    Raises:
        SubDistillError: naming the option.
    """
    check_ranges(options, {"adapt_rank": 1, "adapt_views": 0}, {})
    rate = options.adapt_learning_rate
    if options.adapt_epochs < 0 or (rate is not None and not rate > 0):
        raise SubDistillError(
            f"adapt_epochs={options.adapt_epochs}, adapt_learning_rate={rate}: expected "
            "positive numbers (or 0 epochs, for enough)"
        )
    if options.adapt_teacher == "head":
        instead = "with adapt_teacher=head: leave it out, or use adapt_teacher=lora"
        _refuse_given(options, ("adapt_target_modules", "adapt_rank"), instead)
    if options.adapt_teacher == "lora" and options.adapt_views:
        raise SubDistillError(
            "adapt_views has no meaning with adapt_teacher=lora, which sees new views in each epoch: leave it out"
        )


def check_teacher_is_adapted(options: AdaptationOptions) -> None:
    """Refuse options of fitting a teacher where none is fitted; only when nothing is left to be chosen for the user.

    Raises:
        SubDistillError: naming the option.
    """
    if options.adapt_teacher == "no":
        instead = "with adapt_teacher=no: leave it out, or use adapt_teacher="
        _refuse_given(options, ("adapt_views",), f"{instead}head")
        names = [name for name in names_of_options(options) if name.startswith("adapt_")]
        _refuse_given(options, names, f"{instead}lora")


def _refuse_given(
    options: Any, names: Sequence[str], where: str, error: type[SubDistillError] = SubDistillError
) -> None:
    """Refuse options that were given where they have no meaning.

    Args:
        options: an instance of a dataclass.
        names: of the options, which may have their defaults.
        where: they have none, and what to do about it.
        error: that is raised.

    Raises:
        SubDistillError: of the given kind, naming the first option.
    """
    for name in names:
        if (value := getattr(options, name)) != _default_of(options, name):
            raise error(f"{name}={value!r} has no meaning {where}")


def check_unlabelled_options(options: TaskOptions) -> None:
    """Refuse numbers out of range, and any without images without labels.

    Raises:
        SubDistillError: naming the option.
    """
    check_ranges(options, {"unlabelled_images": 1}, {"unlabelled_threshold": (0, 1)})
    if options.label_column == NO_LABELS:
        _check_without_labels(options)
        return
    if options.unlabelled is None:
        _refuse_given(options, ("unlabelled_images", "unlabelled_threshold"), "without --unlabelled")


def _check_without_labels(options: TaskOptions) -> None:
    """Refuse what only images with labels can be asked for.

    Raises:
        SubDistillError: naming the option.
    """
    for name in ("superclass_column", "train_images_per_class", "train_fraction", "mark"):
        if getattr(options, name) is not None:
            raise SubDistillError(
                f"{name}={getattr(options, name)!r} has no meaning with label_column={NO_LABELS}: it needs labels"
            )
    if options.adapt_teacher != "no":
        raise SubDistillError(
            f"adapt_teacher={options.adapt_teacher} has no meaning with label_column={NO_LABELS}: a teacher is fitted "
            "with labels"
        )
    if options.unlabelled is not None:
        raise SubDistillError(
            f"unlabelled={options.unlabelled} has no meaning with label_column={NO_LABELS}: all images are without "
            "labels; put them into one dataset"
        )


def check_other_options(options: TaskOptions) -> None:
    """Refuse an answer "none of these" where nobody could teach it.

    Raises:
        SubDistillError: naming the option.
    """
    check_ranges(options, {"other_images": LEAST_OTHER_IMAGES}, {})
    if options.other_images is not None and not options.other_class:
        raise SubDistillError(f"other_images={options.other_images} has no meaning without --other_class")
    if options.unknown_images is not None:
        if options.test_unknown is False:
            raise SubDistillError(
                f"unknown_images={options.unknown_images} and test_unknown=false contradict each other: leave out one"
            )
        for name in ("dataset", "unlabelled"):
            if _is_same_dataset(options.unknown_images, place := getattr(options, name)):
                raise SubDistillError(
                    f"unknown_images={options.unknown_images} and {name}={place} are the same images, which may show "
                    "the classes: give images that show none of them"
                )
    for name in ("other_class", "test_unknown", "unknown_images"):
        if options.mark is not None and (value := getattr(options, name)):
            raise SubDistillError(
                f"mark={options.mark} and {name}={value} contradict each other: images of none of the classes carry "
                "no mark, and would be told by that alone; give one of them"
            )


def _is_same_dataset(first: str, second: str | None) -> bool:
    """Whether two names are of one dataset: they are equal, or lead to the same folder or file."""
    if second is None or first == second:
        return first == second
    one, other = Path(first), Path(second)
    return one.exists() and other.exists() and one.samefile(other)


def check_words_options(options: TaskOptions) -> None:
    """Refuse prompts without a place for the class, and other prompts with one.

    Raises:
        SubDistillError: naming the prompt.
    """
    for prompt in options.prompts:
        if prompt.count("{}") != 1 or "{" in prompt.replace("{}", "") or "}" in prompt.replace("{}", ""):
            raise SubDistillError(f"prompts: {prompt!r} needs {{}} once, where the words of a class go")
    for prompt in options.other_prompts:
        if "{" in prompt or "}" in prompt:
            raise SubDistillError(f"other_prompts: {prompt!r} has braces: expected a text of no class")


def check_task_options(options: TaskOptions) -> None:
    """Refuse what `check_data_options` and `check_adaptation_options` refuse, and the same of the student.

    Raises:
        SubDistillError: naming the option.
    """
    check_data_options(options)
    check_adaptation_options(options)
    check_unlabelled_options(options)
    check_other_options(options)
    check_words_options(options)
    check_mix(options.mix or 0.0, options.cutmix or 0.0)
    check_ranges(options, {"student_lora_rank": 1}, {})
    if not options.student_lora and (options.student_lora_target_modules or options.student_lora_save == "adapter"):
        raise SubDistillError("student_lora_target_modules and student_lora_save need --student_lora")


def check_mix(mix: float, cutmix: float = 0.0) -> None:
    """Refuse what are no shares of the views.

    Raises:
        DataError: naming one, or both.
    """
    for name, share in (("mix", mix), ("cutmix", cutmix)):
        if not 0 <= share <= 1:
            raise DataError(f"{name}={share}: expected a share of the views, from 0 to 1")
    if mix + cutmix > 1:
        raise DataError(f"mix={mix} and cutmix={cutmix}: expected shares of the views that are at most 1 together")


def _default_of(options: Any, name: str) -> Any:
    field = next(field for field in fields(options) if field.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _literals(hint: Any) -> tuple[str, ...]:
    """The values of a `Literal`, also of one that may be `None`; none for another type."""
    if get_origin(hint) in (Union, types.UnionType):
        return next((found for each in get_args(hint) if (found := _literals(each))), ())
    return get_args(hint) if get_origin(hint) is Literal else ()


def _check_range(options: Any, name: str, smallest: float, largest: float, expected: str) -> None:
    value = getattr(options, name)
    if value is not None and not smallest <= value <= largest:
        raise SubDistillError(f"{name}={value}: expected {expected}")


def _written(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _kind(field: Field[Any]) -> str | None:
    """A key of `_KINDS` or `_LISTS`, for these and for what may also be `None`."""
    text = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    text = re.sub(r"typing\.Optional\[(.+)\]", r"\1", text.replace(" | None", "")).replace("typing.List", "list")
    return text if text in _KINDS or text in _LISTS else None


def _is_of(value: Any, kind: str) -> bool:
    if kind in ("str", "bool"):
        return isinstance(value, str if kind == "str" else bool)
    return isinstance(value, numbers.Integral if kind == "int" else numbers.Real) and not isinstance(value, bool)


def _as_list(name: str, value: Any, kind: str) -> list[Any]:
    """The value of a field that holds a list.

    Raises:
        SubDistillError: naming the field, and the first entry of another kind.
    """
    entries = list(value) if isinstance(value, list | tuple) else [value]
    of_entries = kind.removeprefix("list[").removesuffix("]")
    if of_entries == "str":
        entries = [str(one) if isinstance(one, os.PathLike) or _is_of(one, "int") else one for one in entries]
    for one in entries:
        if not _is_of(one, of_entries):
            raise SubDistillError(f"{name}={one!r}: expected a list of {_LISTS[kind]}")
    return entries


@contextmanager
def refused_training_arguments() -> Iterator[None]:
    """Make one message of whatever transformers raises of training arguments that it does not take.

    Raises:
        SubDistillError: with what it says; errors of this package stay as they are.
    """
    try:
        yield
    except SubDistillError:
        raise
    except Exception as error:
        raise SubDistillError(f"training arguments: {' '.join(str(error).split())}") from error
