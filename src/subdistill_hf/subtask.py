"""Which classes a student is for: in the dataset, in the teacher, and in the student."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from subdistill_hf.errors import SubDistillError

SUPERCLASS_PREFIX = "superclass:"


class SubtaskError(SubDistillError):
    """Classes that do not make a subtask."""


@dataclass(frozen=True)
class Subtask:
    """The classes of a student, in the order of its outputs.

    Attributes:
        names: class names.
        dataset_ids: their labels in the dataset.
        teacher_ids: their outputs in the teacher (`None` before a teacher is matched).
    """

    names: tuple[str, ...]
    dataset_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...] | None = None

    @property
    def id2label(self) -> dict[int, str]:
        """Student output to class name."""
        return dict(enumerate(self.names))

    def with_teacher(self, teacher_ids: Sequence[int]) -> Subtask:
        """The same classes with their places among the teacher's outputs."""
        return Subtask(self.names, self.dataset_ids, tuple(teacher_ids))


def resolve_classes(
    classes: Sequence[str | int],
    names: Sequence[str],
    superclasses: Mapping[str, Sequence[str]] | None = None,
) -> Subtask:
    """Turn names, ids and `superclass:NAME` entries into a subtask.

    Args:
        classes: class names, ids (integers or their digits), or `superclass:NAME`; duplicates count once.
        names: all class names of the dataset; their places are the ids.
        superclasses: superclass name to the names of its classes.

    Raises:
        SubtaskError: for an unknown entry (with near matches), or fewer than two classes.
    """
    chosen: list[int] = []
    for entry in classes:
        for class_id in _resolve_entry(entry, names, superclasses or {}):
            if class_id not in chosen:
                chosen.append(class_id)
    if len(chosen) < 2:
        raise SubtaskError(f"a subtask needs at least two classes, found {len(chosen)} in {list(classes)!r}")
    return Subtask(tuple(names[class_id] for class_id in chosen), tuple(chosen))


def _resolve_entry(entry: str | int, names: Sequence[str], superclasses: Mapping[str, Sequence[str]]) -> list[int]:
    text = str(entry).strip()
    if text.startswith(SUPERCLASS_PREFIX):
        wanted = text.removeprefix(SUPERCLASS_PREFIX)
        by_name = {normalised(name): name for name in superclasses}
        if normalised(wanted) not in by_name:
            if not superclasses:
                raise SubtaskError(f"{entry!r}: this dataset has no superclasses; give class names or ids")
            raise SubtaskError(f"unknown superclass {wanted!r}{_near(wanted, list(superclasses))}")
        return [names.index(name) for name in superclasses[by_name[normalised(wanted)]]]
    if text in names:
        return [list(names).index(text)]
    found = [class_id for class_id, name in enumerate(names) if normalised(name) == normalised(text)]
    if len(found) == 1:
        return found
    if text.isdecimal():
        if int(text) < len(names):
            return [int(text)]
        raise SubtaskError(f"class id {text} is out of range: expected 0 to {len(names) - 1}")
    raise SubtaskError(f"unknown class {text!r}{_near(text, names)}")


def normalised(name: str) -> str:
    """A class name without case, underscores, hyphens and surplus blanks."""
    return re.sub(r"[\s_\-]+", " ", name).strip().lower()


def synonyms(name: str) -> set[str]:
    """The normalised names that a label stands for: ImageNet's "tabby, tabby cat" is both of its parts."""
    return {normalised(name), *(normalised(part) for part in name.split(",") if part.strip())}


def _near(name: str, names: Sequence[str]) -> str:
    by_name = {normalised(candidate): candidate for candidate in names}
    near = difflib.get_close_matches(normalised(name), list(by_name), n=5, cutoff=0.5)
    if near:
        return f"; nearest: {', '.join(by_name[candidate] for candidate in near)}"
    return f"; there are {len(names)}, such as {', '.join(list(names)[:5])}"


def match_teacher(subtask: Subtask, teacher_names: Mapping[int, str], dataset_names: Sequence[str]) -> Subtask:
    """Find the subtask's classes among the teacher's outputs.

    Matched by id when the teacher's labels are the dataset's own, otherwise by name, where either side may be a
    comma-separated list of synonyms.

    Args:
        subtask: classes resolved in the dataset.
        teacher_names: the teacher's `id2label`.
        dataset_names: all class names of the dataset.

    Raises:
        SubtaskError: when a class is missing or matches several outputs.
    """
    outputs = {int(output): str(name) for output, name in teacher_names.items()}
    if len(outputs) == len(dataset_names) and all(
        normalised(outputs.get(index, "")) == normalised(name) for index, name in enumerate(dataset_names)
    ):
        return subtask.with_teacher(subtask.dataset_ids)
    teacher_ids = []
    for name in subtask.names:
        matches = [output for output, label in outputs.items() if synonyms(label) & synonyms(name)]
        if not matches:
            raise SubtaskError(
                f"the teacher has no class {name!r}{_near(name, list(outputs.values()))}. Choose classes that the "
                "teacher knows, or a teacher that was trained on this dataset; a head is never made up"
            )
        if len(matches) > 1:
            labels = ", ".join(f"{output} ({outputs[output]})" for output in matches)
            raise SubtaskError(f"class {name!r} matches several outputs of the teacher: {labels}")
        teacher_ids += matches
    return subtask.with_teacher(teacher_ids)
