"""The subtasks of a family: from words, or a YAML file, to the name and the classes of each expert."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from subdistill_hf.config.class_entries import ALL_CLASSES, SUBTASK_PREFIX, SUPERCLASS_PREFIX
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.validation import NO_LABELS
from subdistill_hf.config.yaml_text import read_texts
from subdistill_hf.data.class_names import IMAGENET_SUBTASKS
from subdistill_hf.data.loading import classes_of_dataset
from subdistill_hf.data.subtask import Superclasses, no_superclasses, resolve_classes
from subdistill_hf.errors import SubDistillError
from subdistill_hf.formatting import slug

YAML_ENDINGS: Final = (".yaml", ".yml")
LONGEST_NAME: Final = 60


class FamilyError(SubDistillError):
    """Subtasks that make no family, a folder of another one, or experts that failed."""


@dataclass(frozen=True)
class Expert:
    """One expert of a family.

    Attributes:
        name: of its folder.
        classes: of its subtask, as `--classes` takes them.
    """

    name: str
    classes: tuple[str, ...]


def experts_of(options: TaskOptions, subtasks: Sequence[str]) -> list[Expert]:
    """The experts of a family, in the order of their subtasks; all their classes are in the dataset.

    Args:
        options: the dataset and its columns.
        subtasks: `superclass:NAME`, `subtask:NAME`, either with `all` in place of the name, or one YAML file with the
            classes of each expert by its name, or with a list of subtasks.

    Raises:
        FamilyError: for no subtask, a file that cannot be read, or two experts of one name.
        SubDistillError: for classes that the dataset lacks.
    """
    unread: tuple[tuple[str, ...], Callable[[], Superclasses]] = ((), no_superclasses)
    names, superclasses = unread if options.label_column == NO_LABELS else classes_of_dataset(options)
    found = [Expert(name, classes) for name, classes in _named(subtasks, superclasses)]
    if not found:
        raise FamilyError("subtasks: expected at least one, such as superclass:all, or a YAML file of classes")
    experts: dict[str, Expert] = {}
    for expert in found:
        folder = slug(expert.name)[:LONGEST_NAME]
        if (other := experts.get(folder.casefold())) is not None:
            raise FamilyError(
                f"subtasks {' '.join(other.classes)} and {' '.join(expert.classes)} would both be in a folder "
                f"{folder!r}: give each a name of its own in a YAML file"
            )
        experts[folder.casefold()] = replace(expert, name=folder)
    for expert in experts.values() if names else ():
        resolve_classes(expert.classes, names, superclasses)
    return list(experts.values())


def _named(subtasks: Sequence[str], superclasses: Callable[[], Superclasses]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and classes of each subtask, with those of `all` written out."""
    files = [entry for entry in subtasks if entry.endswith(YAML_ENDINGS)]
    if files and len(subtasks) > 1:
        raise FamilyError(f"subtasks: expected either one YAML file or subtasks, found {' '.join(subtasks)}")
    content: Any = _read(Path(files[0])) if files else list(subtasks)
    if isinstance(content, Mapping):
        return [(str(name), _classes(entry, str(name))) for name, entry in content.items()]
    if not isinstance(content, list):
        raise FamilyError(f"{files[0]}: expected subtasks, as a list or by their names, found {content!r}")
    found = []
    for entry in content:
        classes = _classes(entry, str(entry))
        whole = _all_of(classes[0], superclasses) if len(classes) == 1 else [classes]
        found += [(", ".join(name.rpartition(":")[2] for name in one), one) for one in whole]
    return found


def _all_of(entry: str, superclasses: Callable[[], Superclasses]) -> list[tuple[str, ...]]:
    """The subtasks that an entry of a list stands for: itself, unless it asks for all of a kind."""
    if entry == f"{SUBTASK_PREFIX}{ALL_CLASSES}":
        return [(f"{SUBTASK_PREFIX}{name}",) for name in IMAGENET_SUBTASKS]
    if entry != f"{SUPERCLASS_PREFIX}{ALL_CLASSES}":
        return [(entry,)]
    known = superclasses()
    if not known:
        raise FamilyError(
            f"{entry}: this dataset has no superclasses; give their column with --superclass_column, or a YAML "
            "file of classes"
        )
    single = [name for name, classes in known.items() if len(classes) < 2]
    if single:
        print(f"note: no experts of superclasses with one class alone: {', '.join(single)}", file=sys.stderr)
    return [(f"{SUPERCLASS_PREFIX}{name}",) for name in known if name not in single]


def _classes(entry: Any, name: str) -> tuple[str, ...]:
    """The classes of one subtask of a list or a file."""
    classes = tuple(entry) if isinstance(entry, list) else (entry,)
    if not classes or not all(isinstance(one, str) and one for one in classes):
        raise FamilyError(f"subtask {name!r}: expected classes, found {entry!r}")
    return classes


def _read(path: Path) -> Any:
    """What a YAML file says; names count as they are written.

    Raises:
        FamilyError: when it cannot be read.
    """
    try:
        return read_texts(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FamilyError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise FamilyError(f"{path} is not YAML: {error}") from error
