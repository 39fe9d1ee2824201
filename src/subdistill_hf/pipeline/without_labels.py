"""A dataset without labels: the teacher chooses the images of the subtask, and its answers stand for labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from subdistill_hf.config.class_entries import is_group
from subdistill_hf.config.options import DataOptions, TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.config.unknown_images import unchosen_below
from subdistill_hf.core.distributed import several_processes
from subdistill_hf.data.image_facts import image_facts
from subdistill_hf.data.labelled_rows import with_outputs
from subdistill_hf.data.loading import SubtaskData
from subdistill_hf.data.notices import Notices, untested_classes, untrained_classes
from subdistill_hf.data.other_classes import check_other_name
from subdistill_hf.data.other_images import OTHER
from subdistill_hf.data.splits import TEST_SEED
from subdistill_hf.data.subtask import Subtask, SubtaskError, no_superclasses, resolve_classes
from subdistill_hf.data.unlabelled import (
    COLUMNS,
    SPLITS,
    UnlabelledDataset,
    UnlabelledImages,
    load_dataset_without_labels,
)
from subdistill_hf.errors import DataError
from subdistill_hf.models.loading import LoadedModel
from subdistill_hf.pipeline.selection import Looked, Part, Selection, look_at, masses_of, nothing_kept
from subdistill_hf.pipeline.unchosen import check_teacher_knows_others, unchosen_parts, with_unchosen


def load_without_labels(
    options: TaskOptions, config: SubDistillConfig, teacher: LoadedModel
) -> tuple[SubtaskData, Selection]:
    """Load the images of a dataset without labels that the teacher takes for the subtask's.

    In all splits those are kept that show one of the classes with at least `unlabelled_threshold`. Of the training
    images near-duplicates of validation and test images are dropped. Labels are the teacher's answers, so an accuracy
    is the agreement with the teacher. Images that the teacher takes for none of the classes are tested with as unknown
    ones, and trained with where there is an answer for them; see `unchosen_below`.

    Args:
        options: dataset, classes (of the teacher), splits and threshold.
        config: training arguments.
        teacher: the teacher.

    Returns:
        The images, and what became of those that a training could have.

    Raises:
        SubtaskError: for classes that the teacher lacks.
        DataError: when no image is kept for the training or the test, or for an answer that was asked for.
    """
    names = tuple(teacher.labels[output] for output in range(len(teacher.labels)))
    subtask = _subtask_of(teacher, names, options.classes)
    check_other_name(options, subtask)
    check_teacher_knows_others(options, teacher, subtask)
    with config.main_process_first(desc="loading images without labels"):
        found = load_dataset_without_labels(options, options.unlabelled_images, subtask, config.seed)
    teacher.model.to(config.device)
    shared: list[Any] = [None]
    if config.process_index == 0:
        shared = [_choose(found, subtask, teacher, options, config)]
    if several_processes():  # see `selection.add_unlabelled`
        broadcast_object_list(shared)
    parts, unchosen, selection = shared[0]
    data = _data_of(found, subtask, [(part.places, part.answers) for part in parts], options)
    notices = Notices(found.train.notices)
    notices.add(untrained_classes(subtask, parts[0].answers))
    notices.add(untested_classes(subtask, parts[2].answers))
    data = replace(data, class_names=names, notices=tuple(notices.said))
    data = with_unchosen(data, found, unchosen, options, selection)
    if data.others is not None and options.other_class:
        below = unchosen_below(options.unlabelled_threshold)
        selection = selection.with_other(data.others.train_images, OTHER, below)
    return data, selection


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
) -> tuple[list[Part], list[Part], Selection]:
    """The images for training, validation and test: of the classes, and of none of them; and what became of all.

    Raises:
        DataError: for a part without images, as soon as it is drawn.
    """
    show, threshold = not config.disable_tqdm, options.unlabelled_threshold

    def check(name: str, part: Part, images: UnlabelledImages, looked: Looked, near: int = 0) -> None:
        if not part.places:
            selection = _selection(images, looked, subtask, threshold, part, near)
            raise DataError(nothing_kept(selection, f"{name} images"))

    looked = look_at(found.train.rows, COLUMNS, teacher, show)
    pool, rest = _kept(looked, subtask, threshold), _unchosen(looked, subtask, threshold)
    check("training", pool, found.train, looked)
    if found.test is None:
        share = float(options.test_fraction or 0)
        (test, pool), (rest_of_test, rest) = (
            part.divided(share, [TEST_SEED, len(part.places)]) for part in (pool, rest)
        )
    else:
        seen = look_at(found.test.rows, COLUMNS, teacher, show)
        test, rest_of_test = _kept(seen, subtask, threshold), _unchosen(seen, subtask, threshold)
        check("test", test, found.test, seen)
    validation, train = pool.divided(options.validation_share, config.seed)
    check("training", train, found.train, looked)
    train, near = train.unlike(validation, test)
    check("training", train, found.train, looked, near)
    unchosen = unchosen_parts(rest, rest_of_test, (train, validation, test), subtask, options, config.seed)
    selection = _selection(found.train, looked, subtask, threshold, train, near)
    return [train, validation, test], unchosen, selection


def _selection(
    images: UnlabelledImages, looked: Looked, subtask: Subtask, threshold: float, part: Part, near: int
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


def _kept(looked: Looked, subtask: Subtask, threshold: float) -> Part:
    """The images that show one of the classes with this probability by the teacher."""
    return _part_of(looked, subtask, masses_of(looked.logits, subtask) >= threshold)


def _unchosen(looked: Looked, subtask: Subtask, threshold: float) -> Part:
    """The images that show none of the classes by the teacher; see `unchosen_below`."""
    return _part_of(looked, subtask, masses_of(looked.logits, subtask) < unchosen_below(threshold))


def _part_of(looked: Looked, subtask: Subtask, which: Tensor) -> Part:
    """Those of some images that could be decoded."""
    own = looked.usable & which
    answers = looked.logits[:, list(subtask.teacher_ids or ())].argmax(dim=1)[own]
    return Part(tuple(torch.nonzero(own).flatten().tolist()), tuple(answers.tolist()), looked.thumbs[own])
