"""A dataset without labels: the teacher chooses the images of the subtask, and its answers stand for labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from subdistill_hf.config.class_entries import is_group
from subdistill_hf.config.options import DataOptions, TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.distributed import several_processes
from subdistill_hf.data.image_facts import image_facts
from subdistill_hf.data.labelled_rows import with_outputs
from subdistill_hf.data.loading import SubtaskData
from subdistill_hf.data.near_duplicates import near_duplicates
from subdistill_hf.data.notices import Notices, untested_classes, untrained_classes
from subdistill_hf.data.splits import TEST_SEED
from subdistill_hf.data.subtask import Subtask, SubtaskError, no_superclasses, resolve_classes
from subdistill_hf.data.unlabelled import COLUMNS, UnlabelledDataset, UnlabelledImages, load_dataset_without_labels
from subdistill_hf.errors import DataError
from subdistill_hf.models.loading import LoadedModel
from subdistill_hf.pipeline.selection import Looked, Selection, look_at, masses_of, nothing_kept

SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True)
class _Part:
    """The images of a split that the teacher takes for the subtask's.

    Attributes:
        places: among the images that were drawn.
        answers: the teacher's, as outputs of the student.
        thumbs: thumbnails `(N, D)`.
    """

    places: tuple[int, ...]
    answers: tuple[int, ...]
    thumbs: Tensor

    def chosen(self, which: np.ndarray[Any, Any]) -> _Part:
        """Some of them, by their numbers."""
        places, answers = ([values[index] for index in which] for values in (self.places, self.answers))
        return _Part(tuple(places), tuple(answers), self.thumbs[torch.as_tensor(which)])


def load_without_labels(
    options: TaskOptions, config: SubDistillConfig, teacher: LoadedModel
) -> tuple[SubtaskData, Selection]:
    """Load the images of a dataset without labels that the teacher takes for the subtask's.

    In all splits those are kept that show one of the classes with at least `unlabelled_threshold`. Of the training
    images near-duplicates of validation and test images are dropped. Labels are the teacher's answers, so an accuracy
    is the agreement with the teacher.

    Args:
        options: dataset, classes (of the teacher), splits and threshold.
        config: training arguments.
        teacher: the teacher.

    Returns:
        The images, and what became of those that a training could have.

    Raises:
        SubtaskError: for classes that the teacher lacks.
        DataError: when no image is kept for the training or the test.
    """
    names = tuple(teacher.labels[output] for output in range(len(teacher.labels)))
    subtask = _subtask_of(teacher, names, options.classes)
    with config.main_process_first(desc="loading images without labels"):
        found = load_dataset_without_labels(options, options.unlabelled_images, subtask, config.seed)
    teacher.model.to(config.device)
    shared: list[Any] = [None]
    if config.process_index == 0:
        shared = [_choose(found, subtask, teacher, options, config)]
    if several_processes():  # see `selection.add_unlabelled`
        broadcast_object_list(shared)
    parts, selection = shared[0]
    data = _data_of(found, subtask, [(part.places, part.answers) for part in parts], options)
    notices = Notices(found.train.notices)
    notices.add(untrained_classes(subtask, parts[0].answers))
    notices.add(untested_classes(subtask, parts[2].answers))
    return replace(data, class_names=names, notices=tuple(notices.said)), selection


def load_chosen(
    options: DataOptions, most: int, chosen: Mapping[str, Mapping[str, Any]], seed: int = 0
) -> SubtaskData:
    """Load the images that the teacher of a run chose of a dataset without labels, with its answers as labels.

    Args:
        options: the dataset and its splits.
        most: how many images of each split were looked at, at most.
        chosen: which of them it took for which class, see `SubtaskData.chosen`.
        seed: of the run.

    Raises:
        DataError: for a dataset that cannot be loaded, or has other images now.
    """
    names = tuple(chosen[SPLITS[0]]["places"])
    subtask = Subtask(names, tuple(range(len(names))))
    found = load_dataset_without_labels(options, most, subtask, seed)
    parts = []
    for split, images in zip(SPLITS, found.of_parts(), strict=True):
        if len(images.rows) != chosen[split]["drawn"]:
            raise DataError(
                f"dataset {options.dataset!r} is another one now: the run drew {chosen[split]['drawn']} images of its "
                f"split {images.split}, and there are {len(images.rows)}"
            )
        answered = [(place, output) for output, name in enumerate(names) for place in chosen[split]["places"][name]]
        parts.append(([place for place, _ in sorted(answered)], [output for _, output in sorted(answered)]))
    return _data_of(found, subtask, parts, options)


def _data_of(
    found: UnlabelledDataset,
    subtask: Subtask,
    parts: Sequence[tuple[Sequence[int], Sequence[int]]],
    options: DataOptions,
) -> SubtaskData:
    """The images of a run: of each of `SPLITS` some places among those that were drawn, and the answers to them."""
    own = list(zip(SPLITS, found.of_parts(), parts, strict=True))
    rows = {
        split: with_outputs(images.rows.select(list(places)), COLUMNS, subtask, answers)
        for split, images, (places, answers) in own
    }
    facts = [image_facts(rows[split], COLUMNS.image) for split in ("train", "test")]
    return SubtaskData(
        name=found.train.name,
        hub_id=found.train.hub_id,
        subtask=subtask,
        class_names=subtask.names,
        **rows,
        test_split=found.test_split or f"held out of {options.train_split}",
        columns=COLUMNS,
        official_test=found.test_split is not None,
        revision=found.train.revision,
        sizes=tuple(sorted({size for each in facts for size in each.sizes})),
        typical_side=facts[1].typical_side or 0,
        notices=found.train.notices,
        labels_by_teacher=True,
        chosen={
            split: {
                "drawn": len(images.rows),
                "places": {
                    name: [place for place, answer in zip(places, answers, strict=True) if answer == output]
                    for output, name in enumerate(subtask.names)
                },
            }
            for split, images, (places, answers) in own
        },
    )


def _subtask_of(teacher: LoadedModel, names: tuple[str, ...], classes: list[str]) -> Subtask:
    """Some of the teacher's classes, which have these names; or the words that a zero-shot teacher was made of."""
    if teacher.words is None:
        try:
            subtask = resolve_classes(classes, names, no_superclasses)
        except SubtaskError as error:
            if any(is_group(entry) for entry in classes):
                raise
            raise SubtaskError(
                f"the teacher {teacher.name!r}: {error}. Without labels, the classes are those of the teacher; one "
                "that compares images with texts, such as openai/clip-vit-base-patch32, takes any words"
            ) from error
    else:
        subtask = Subtask(teacher.words.names, tuple(range(len(teacher.words.names))))
    return subtask.with_teacher(subtask.dataset_ids)


def _choose(
    found: UnlabelledDataset, subtask: Subtask, teacher: LoadedModel, options: TaskOptions, config: SubDistillConfig
) -> tuple[tuple[_Part, _Part, _Part], Selection]:
    """The images for training, validation and test, and what became of those that a training could have.

    Raises:
        DataError: for a training or a test without images, as soon as it is drawn.
    """
    show, threshold = not config.disable_tqdm, options.unlabelled_threshold

    def check(name: str, part: _Part, images: UnlabelledImages, looked: Looked, near: int = 0) -> None:
        if not part.places:
            selection = _selection(images, looked, subtask, threshold, part, near)
            raise DataError(nothing_kept(selection, f"{name} images"))

    looked = look_at(found.train.rows, COLUMNS, teacher, show)
    pool = _kept(looked, subtask, threshold)
    check("training", pool, found.train, looked)
    if found.test is None:
        order = np.random.default_rng([TEST_SEED, len(pool.places)]).permutation(len(pool.places))
        held_out = max(1, round(float(options.test_fraction or 0) * len(order)))
        test, pool = pool.chosen(np.sort(order[:held_out])), pool.chosen(np.sort(order[held_out:]))
    else:
        seen = look_at(found.test.rows, COLUMNS, teacher, show)
        test = _kept(seen, subtask, threshold)
        check("test", test, found.test, seen)
    order = np.random.default_rng(config.seed).permutation(len(pool.places))
    share = options.validation_share
    validating = max(1, round(share * len(order))) if share else 0
    validation, train = pool.chosen(np.sort(order[:validating])), pool.chosen(np.sort(order[validating:]))
    check("training", train, found.train, looked)
    near = near_duplicates(train.thumbs, torch.cat([validation.thumbs, test.thumbs])).numpy()
    train = train.chosen(np.flatnonzero(~near))
    check("training", train, found.train, looked, int(near.sum()))
    return (train, validation, test), _selection(found.train, looked, subtask, threshold, train, int(near.sum()))


def _selection(
    images: UnlabelledImages, looked: Looked, subtask: Subtask, threshold: float, part: _Part, near: int
) -> Selection:
    """What became of the images of a split, some of which are a part."""
    counts = np.bincount(np.asarray(part.answers, dtype=np.int64), minlength=len(subtask.names)).tolist()
    return Selection(
        name=images.name,
        hub_id=images.hub_id,
        revision=images.revision,
        found=len(images.rows),
        damaged=int((~looked.usable).sum()),
        held_out=near,
        copies=0,
        masses=tuple(masses_of(looked.logits, subtask)[looked.usable].clamp(max=1).tolist()),
        threshold=threshold,
        kept=len(part.places),
        kept_per_class=dict(zip(subtask.names, counts, strict=True)),
    )


def _kept(looked: Looked, subtask: Subtask, threshold: float) -> _Part:
    """The images that show one of the classes with this probability by the teacher."""
    kept = looked.usable & (masses_of(looked.logits, subtask) >= threshold)
    answers = looked.logits[:, list(subtask.teacher_ids or ())].argmax(dim=1)[kept]
    return _Part(tuple(torch.nonzero(kept).flatten().tolist()), tuple(answers.tolist()), looked.thumbs[kept])
