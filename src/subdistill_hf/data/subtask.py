"""Which classes a student is for: in the dataset, in the teacher, and in the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from subdistill_hf.config.class_entries import ALL_CLASSES, SUBTASK_PREFIX, SUPERCLASS_PREFIX
from subdistill_hf.config.validation import NO_LABELS
from subdistill_hf.data.class_names import (
    IMAGENET_SUBTASKS,
    LETTER_BY_LETTER,
    WORDNET_ID,
    closeness,
    imagenet_name,
    matching_labels,
    nearest,
    subtask_wordnet_ids,
    unique_names,
    wordnet_ids,
)
from subdistill_hf.errors import SubDistillError
from subdistill_hf.formatting import table

Superclasses = Mapping[str, Sequence[str]]


class SubtaskError(SubDistillError):
    """Classes that do not make a subtask."""


class MissingClassesError(SubtaskError):
    """Classes that the teacher does not know.

    Attributes:
        missing: their names.
    """

    def __init__(self, message: str, missing: Sequence[str]) -> None:
        super().__init__(message)
        self.missing = tuple(missing)

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...]]]:
        """How it comes from another process: by default an exception is made again of its message alone."""
        return type(self), (str(self), self.missing)


@dataclass(frozen=True)
class Subtask:
    """The classes of a student, in the order of its outputs.

    Attributes:
        names: class names.
        dataset_ids: their labels in the dataset.
        teacher_ids: their outputs in the teacher (`None` before a teacher is matched).
        matched_by: what told the teacher's outputs: id, WordNet id, or name.
    """

    names: tuple[str, ...]
    dataset_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...] | None = None
    matched_by: str | None = field(default=None, compare=False)

    @property
    def id2label(self) -> dict[int, str]:
        """Student output to class name."""
        return dict(enumerate(self.names))

    def with_teacher(self, teacher_ids: Sequence[int], matched_by: str = "id") -> Subtask:
        """The same classes with their places among the teacher's outputs."""
        return Subtask(self.names, self.dataset_ids, tuple(teacher_ids), matched_by)


def resolve_classes(
    classes: Sequence[str | int],
    names: Sequence[str],
    superclasses: Superclasses | Callable[[], Superclasses] | None = None,
) -> Subtask:
    """Turn what the user wrote into a subtask.

    Args:
        classes: class names or one of their synonyms, ids (integers or their digits), WordNet ids of ImageNet,
            `superclass:NAME`, `subtask:NAME` for one of the paper's subtasks of ImageNet, or `all`; duplicates count
            once.
        names: all class names of the dataset; their places are the ids.
        superclasses: superclass name to the names of its classes, or what gives that when it is needed.

    Raises:
        SubtaskError: for an unknown entry (with near matches), one that fits several classes (with these), or fewer
            than two classes.
    """
    chosen: list[int] = []
    for entry in classes:
        for class_id in _resolve_entry(str(entry), tuple(names), superclasses):
            if class_id not in chosen:
                chosen.append(class_id)
    if len(chosen) < 2:
        raise SubtaskError(f"a subtask needs at least two classes, found {len(chosen)} in {list(classes)!r}")
    readable = _readable([names[class_id] for class_id in chosen], _are_wordnet_ids(names))
    return Subtask(unique_names(readable, tuple(chosen)), tuple(chosen))


def outputs_of(
    classes: Sequence[str],
    subtask: Subtask,
    names: Sequence[str],
    superclasses: Superclasses | Callable[[], Superclasses] | None = None,
) -> tuple[int, ...]:
    """The student's outputs of some of its classes, in rising order.

    Args:
        classes: as for `resolve_classes`.
        subtask: the student's classes.
        names: all class names of the dataset.
        superclasses: as for `resolve_classes`.

    Raises:
        SubtaskError: for an unknown entry (with near matches), or a class that the subtask lacks.
    """
    found: set[int] = set()
    for entry in classes:
        for class_id in _resolve_entry(entry, tuple(names), superclasses):
            if class_id not in subtask.dataset_ids:
                raise SubtaskError(
                    f"class {names[class_id]!r} is not in the subtask: expected some of {', '.join(subtask.names)}"
                )
            found.add(subtask.dataset_ids.index(class_id))
    return tuple(sorted(found))


def _readable(names: Sequence[str], wordnet: bool) -> tuple[str, ...]:
    """The names that the student's outputs get: words where the dataset has WordNet ids."""
    if not wordnet:
        return tuple(names)
    words = [imagenet_name(name) for name in names]
    return tuple(
        word if words.count(word) == 1 else f"{word} ({name})" for word, name in zip(words, names, strict=True)
    )


def _resolve_entry(
    text: str, names: tuple[str, ...], superclasses: Superclasses | Callable[[], Superclasses] | None
) -> Sequence[int]:
    told = unique_names(names)
    if text in told:  # letter by letter, whatever else it may look like
        return [told.index(text)]
    entry = text.strip()
    if entry.startswith(SUPERCLASS_PREFIX):
        known = superclasses() if callable(superclasses) else superclasses or {}
        return _classes_of_superclass(entry.removeprefix(SUPERCLASS_PREFIX), names, known)
    if entry.startswith(SUBTASK_PREFIX):
        return _classes_of_paper(entry.removeprefix(SUBTASK_PREFIX), names)
    if entry == ALL_CLASSES:
        return range(len(names))
    found = matching_labels(entry, names)
    if not found and (WORDNET_ID.fullmatch(entry) or _are_wordnet_ids(names)):
        found = _by_wordnet(entry, names)
    if len(found) > 1:
        candidates = ", ".join(f"{class_id} ({names[class_id]})" for class_id in found)
        raise SubtaskError(f"class {entry!r} may be one of several: {candidates}. Give the id or the whole name")
    if found:
        return found
    if entry.isdecimal() and not any(name.isdecimal() for name in names):  # or else a number is a name
        if int(entry) < len(names):
            return [int(entry)]
        raise SubtaskError(f"class id {entry} is out of range: expected 0 to {len(names) - 1}")
    raise SubtaskError(f"unknown class {entry!r}{nearest(entry, names)}")


def _classes_of_superclass(wanted: str, names: Sequence[str], superclasses: Superclasses) -> list[int]:
    if not superclasses:
        raise SubtaskError(
            f"'{SUPERCLASS_PREFIX}{wanted}': this dataset has no superclasses; give class names or ids, or the "
            "column of the superclasses with --superclass_column"
        )
    known = list(superclasses)
    found = [known[place] for place in matching_labels(wanted, known)]
    if not found:
        raise SubtaskError(f"unknown superclass {wanted!r}{nearest(wanted, known)}")
    if len(found) > 1:
        raise SubtaskError(
            f"superclass {wanted!r} may be one of several: {', '.join(map(repr, found))}. Give it letter by letter"
        )
    return [names.index(name) for name in superclasses[found[0]]]


def no_superclasses() -> Superclasses:
    """The superclasses of a dataset without labels, as `resolve_classes` asks for them.

    Raises:
        SubtaskError: always, for there are none.
    """
    raise SubtaskError(
        f"'{SUPERCLASS_PREFIX}NAME' has no meaning with label_column={NO_LABELS}: superclasses are told by labels. "
        "Give the classes by their names"
    )


def check_superclasses(classes: Sequence[str | int], label_column: str | None) -> None:
    """Refuse entries `superclass:NAME` of a dataset without labels.

    Raises:
        SubtaskError: for the first.
    """
    if label_column == NO_LABELS and any(str(entry).strip().startswith(SUPERCLASS_PREFIX) for entry in classes):
        no_superclasses()


def check_paper_subtasks(classes: Sequence[str | int]) -> None:
    """Refuse entries `subtask:NAME` of no subtask of the paper, whatever the dataset is.

    Raises:
        SubtaskError: naming the first.
    """
    for entry in classes:
        name = str(entry).strip()
        if name.startswith(SUBTASK_PREFIX) and name.removeprefix(SUBTASK_PREFIX) not in IMAGENET_SUBTASKS:
            wanted, known = name.removeprefix(SUBTASK_PREFIX), ", ".join(IMAGENET_SUBTASKS)
            raise SubtaskError(f"unknown subtask {wanted!r}: expected one of {known}")


def _classes_of_paper(wanted: str, names: tuple[str, ...]) -> list[int]:
    check_paper_subtasks([f"{SUBTASK_PREFIX}{wanted}"])
    known = wordnet_ids(names) or ()
    missing = [wordnet_id for wordnet_id in subtask_wordnet_ids(wanted) if wordnet_id not in known]
    if missing:
        lacking = f"lacks {', '.join(missing)}" if known else "has other classes"
        raise SubtaskError(f"'{SUBTASK_PREFIX}{wanted}' is a subtask of ImageNet; this dataset {lacking}")
    return [known.index(wordnet_id) for wordnet_id in subtask_wordnet_ids(wanted)]


def _are_wordnet_ids(names: Sequence[str]) -> bool:
    return all(WORDNET_ID.fullmatch(name) for name in names)


def _by_wordnet(entry: str, names: tuple[str, ...]) -> list[int]:
    """The class of a WordNet id, or of a name where the dataset's names are WordNet ids."""
    known = wordnet_ids(names) or ()
    if WORDNET_ID.fullmatch(entry):
        return [known.index(entry)] if entry in known else []
    return matching_labels(entry, [imagenet_name(wordnet_id) for wordnet_id in known])


def match_teacher(subtask: Subtask, teacher_names: Mapping[int, str], dataset_names: Sequence[str]) -> Subtask:
    """Find the subtask's classes among the teacher's outputs.

    Matched by id when the teacher's labels are the dataset's own, letter by letter; by WordNet id when both sides are
    ImageNet's; and otherwise by name (see `closeness`), where either side may be a comma-separated list of synonyms.
    An output that another class of the dataset fits better is not taken.

    Args:
        subtask: classes resolved in the dataset.
        teacher_names: the teacher's `id2label`.
        dataset_names: all class names of the dataset.

    Raises:
        MissingClassesError: when the teacher lacks classes.
        SubtaskError: when a class matches several outputs, or two classes the same.
    """
    outputs = {int(output): str(name) for output, name in teacher_names.items()}
    labels = tuple(outputs.get(output, "") for output in range(max(outputs, default=-1) + 1))
    if labels == tuple(dataset_names):
        return subtask.with_teacher(subtask.dataset_ids)
    of_teacher, of_dataset = wordnet_ids(labels), wordnet_ids(tuple(dataset_names))
    if of_dataset is not None and of_teacher is not None:
        if of_dataset == of_teacher:
            return subtask.with_teacher(subtask.dataset_ids)
        places = {wordnet_id: output for output, wordnet_id in enumerate(of_teacher)}
        wanted = [of_dataset[class_id] for class_id in subtask.dataset_ids]
        matches = [[places[wordnet_id]] if wordnet_id in places else [] for wordnet_id in wanted]
        return _with_matches(subtask, matches, outputs, "WordNet id")
    matches = [
        _outputs_named(name, outputs, [other for place, other in enumerate(dataset_names) if place != class_id])
        for name, class_id in zip(subtask.names, subtask.dataset_ids, strict=True)
    ]
    return _with_matches(subtask, matches, outputs, "name")


def _outputs_named(name: str, outputs: Mapping[int, str], others: Sequence[str]) -> list[int]:
    """The outputs that a name fits best, but for those that another class of the dataset fits better.

    Raises:
        SubtaskError: when another class of the dataset fits the only one as well.
    """
    order = list(outputs)
    told = unique_names(tuple(outputs.values()), tuple(order))
    if name in told:  # with its id, where several have this name
        return [order[told.index(name)]]
    found = [order[place] for place in matching_labels(name, [outputs[output] for output in order])]
    rivals = {output: [other for other in others if closeness(other, outputs[output])] for output in found}

    def best(output: int) -> int:
        return max((closeness(other, outputs[output]) for other in rivals[output]), default=0)

    own = [output for output in found if best(output) <= closeness(name, outputs[output])]
    if len(own) == 1 and best(own[0]) == closeness(name, outputs[own[0]]) < LETTER_BY_LETTER:
        rival = max(rivals[own[0]], key=lambda other: closeness(other, outputs[own[0]]))
        raise SubtaskError(
            f"classes {name!r} and {rival!r} both match output {own[0]} of the teacher ({outputs[own[0]]}): which of "
            "them it is cannot be told. Give dataset and teacher the same names"
        )
    return own


def _with_matches(
    subtask: Subtask, matches: Sequence[Sequence[int]], outputs: Mapping[int, str], matched_by: str
) -> Subtask:
    missing = [name for name, found in zip(subtask.names, matches, strict=True) if not found]
    if missing:
        names = list(outputs.values())
        lacking = "; ".join(f"the teacher has no class {name!r}{nearest(name, names)}" for name in missing)
        raise MissingClassesError(
            f"{lacking}. Choose classes that the teacher knows, a teacher that was trained on this dataset, or "
            "subdistill distill with --adapt_teacher lora, which fits this one to it first; a head is never made up",
            missing,
        )
    owner: dict[int, str] = {}
    for name, found in zip(subtask.names, matches, strict=True):
        if len(found) > 1:
            labels = ", ".join(f"{output} ({outputs[output]})" for output in found)
            raise SubtaskError(f"class {name!r} matches several outputs of the teacher: {labels}")
        if found[0] in owner:
            raise SubtaskError(
                f"classes {owner[found[0]]!r} and {name!r} both match output {found[0]} of the teacher "
                f"({outputs[found[0]]}): leave one out"
            )
        owner[found[0]] = name
    return subtask.with_teacher(list(owner), matched_by)


def matching_table(subtask: Subtask, teacher_names: Mapping[int, str]) -> str:
    """The classes of a subtask, line by line: output of the student, name, label in the dataset, teacher's output."""
    assert subtask.teacher_ids is not None
    rows: list[tuple[str, ...]] = [("output", "class", "label", f"teacher's output, by {subtask.matched_by}")]
    for output, (name, label, teacher_id) in enumerate(
        zip(subtask.names, subtask.dataset_ids, subtask.teacher_ids, strict=True)
    ):
        rows.append((str(output), name, str(label), f"{teacher_id} ({teacher_names[teacher_id]})"))
    return table(rows)
