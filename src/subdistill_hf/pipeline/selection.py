"""Which of the images without labels a student learns from: the teacher decides, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm.auto import tqdm

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.distributed import several_processes
from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.images import DecodedImages
from subdistill_hf.data.labelled_rows import UNLABELLED
from subdistill_hf.data.loading import SubtaskData
from subdistill_hf.data.near_duplicates import near_duplicates, thumbnails
from subdistill_hf.data.preprocessing import process
from subdistill_hf.data.stored_images import identity_of_rows
from subdistill_hf.data.subtask import Subtask
from subdistill_hf.data.unlabelled import UnlabelledImages, load_unlabelled
from subdistill_hf.errors import DataError
from subdistill_hf.formatting import count
from subdistill_hf.models.loading import LoadedModel
from subdistill_hf.pipeline.evaluation import Classifier, refuse_not_finite
from subdistill_hf.teacher.class_ids import subtask_logits

BINS: Final = 10
BAR: Final = 40  # characters of the longest bar
BATCH: Final = 32


@dataclass(frozen=True)
class Selection:
    """What became of the images without labels.

    Attributes:
        name: name of their dataset.
        hub_id: its id on the Hub, if it comes from there.
        revision: its commit there.
        found: images that were looked at.
        damaged: of these, those that cannot be decoded.
        held_out: those that are near-duplicates of validation or test images.
        copies: those that are near-duplicates of training images.
        masses: of all others the teacher's probability that it shows one of the subtask's classes, `(N,)`.
        threshold: the least of those that are kept as images of the classes.
        kept: number of images that are kept.
        kept_as_other: of these, those below the threshold, which show what "none of these" may be.
        kept_per_class: class name to number of all that are kept, by the teacher's answer.
        other_below: the probability that these are below, where it is not the threshold.
    """

    name: str
    hub_id: str | None
    revision: str | None
    found: int
    damaged: int
    held_out: int
    copies: int
    masses: tuple[float, ...]
    threshold: float
    kept: int
    kept_per_class: dict[str, int]
    kept_as_other: int = 0
    other_below: float | None = None

    def histogram(self) -> list[int]:
        """The number of images in each of `BINS` bins of mass."""
        counts: list[int] = np.histogram(self.masses, BINS, (0, 1))[0].tolist()
        return counts

    def with_other(self, images: int, name: str, below: float) -> Selection:
        """The same with so many more images that are kept, for the answer "none of these".

        Args:
            images: their number.
            name: of the answer.
            below: the probability that they are below.
        """
        return replace(
            self,
            kept=self.kept + images,
            kept_as_other=images,
            other_below=below,
            kept_per_class={**self.kept_per_class, name: images},
        )

    def __str__(self) -> str:
        left_out = {
            "near-duplicates of validation or test images": self.held_out,
            "near-duplicates of training images": self.copies,
            "that cannot be decoded": self.damaged,
        }
        said = [f"{count(number)} {why}" for why, number in left_out.items() if number]
        lines = [
            f"{self.name}: {count(self.found)} images without labels{'; left out: ' if said else ''}{', '.join(said)}"
        ]
        lines.append("the teacher's probability that an image shows one of the classes:")
        longest = max(1, *self.histogram())
        for place, number in enumerate(self.histogram()):
            bar = "#" * -(-number * BAR // longest)
            lines.append(f"  {place / BINS:.1f} to {(place + 1) / BINS:.1f}  {number:>7,}  {bar}".rstrip())
        classes = ", ".join(f"{name} {number:,}" for name, number in self.kept_per_class.items())
        above = self.kept - self.kept_as_other
        lines.append(f"kept: {count(above)} with at least {self.threshold:g} (--unlabelled_threshold)")
        if self.kept_as_other:
            below = self.threshold if self.other_below is None else self.other_below
            lines.append(f'kept: {count(self.kept_as_other)} with less than {below:g}, for the answer "none of these"')
        lines.append(f"by the teacher's answer: {classes}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Looked:
    """What one look at images without labels found.

    Attributes:
        thumbs: thumbnails `(N, D)`.
        logits: the teacher's logits of all its classes `(N, outputs)`.
        usable: whether each could be decoded.
    """

    thumbs: Tensor
    logits: Tensor
    usable: Tensor


@dataclass(frozen=True)
class Part:
    """Some images of a split.

    Attributes:
        places: among the images that were drawn.
        answers: the teacher's best of the classes, as outputs of the student.
        thumbs: thumbnails `(N, D)`.
    """

    places: tuple[int, ...]
    answers: tuple[int, ...]
    thumbs: Tensor

    def chosen(self, which: np.ndarray[Any, Any]) -> Part:
        """Some of them, by their numbers."""
        places, answers = ([values[index] for index in which] for values in (self.places, self.answers))
        return Part(tuple(places), tuple(answers), self.thumbs[torch.as_tensor(which)])

    def drawn(self, most: int, seed: int) -> Part:
        """So many of them, at most, in their order."""
        return self.chosen(np.sort(np.random.default_rng(seed).permutation(len(self.places))[:most]))

    def divided(self, share: float, seed: int | Sequence[int]) -> tuple[Part, Part]:
        """A share of them, at least one where it is not 0, and the others."""
        order = np.random.default_rng(seed).permutation(len(self.places))
        number = max(1, round(share * len(order))) if share and len(order) else 0
        return self.chosen(np.sort(order[:number])), self.chosen(np.sort(order[number:]))

    def unlike(self, *others: Part) -> tuple[Part, int]:
        """Those that are near-duplicates of none of others, and how many are left out."""
        near = near_duplicates(self.thumbs, torch.cat([other.thumbs for other in others])).numpy()
        return self.chosen(np.flatnonzero(~near)), int(near.sum())


def add_unlabelled(
    data: SubtaskData, teacher: LoadedModel, options: TaskOptions, config: SubDistillConfig
) -> tuple[SubtaskData, Selection]:
    """Add the images without labels that the teacher takes for the subtask's.

    Left out are near-duplicates of images that are there already: of those that the student is validated or tested on,
    unknown ones too, since its figures would be too good, and of its training images.

    Args:
        data: the images with labels, with the classes matched to the teacher's.
        teacher: the teacher.
        options: where the images are, how many, and the threshold.
        config: training arguments.

    Returns:
        The images with those that were chosen, and what became of all.

    Raises:
        DataError: when nothing is kept, saying which threshold would keep some.
    """
    with config.main_process_first(desc="loading images without labels"):
        images = load_unlabelled(options, data.columns, data.output_names, config.seed)
    teacher.model.to(config.device)
    found: list[Any] = [None]
    if config.process_index == 0:
        found = [_choose(images, data, teacher, options, not config.disable_tqdm)]
    if several_processes():  # rounding differs between devices, and all must train on the same images
        broadcast_object_list(found)
    places, selection = found[0]
    if not places:
        raise DataError(nothing_kept(selection))
    noted = replace(data, notices=(*data.notices, *images.notices))
    return noted.with_unlabelled(images.rows.select(places)), selection


def _choose(
    images: UnlabelledImages, data: SubtaskData, teacher: LoadedModel, options: TaskOptions, show: bool
) -> tuple[list[int], Selection]:
    """The places of the images that are kept, and what became of all."""
    looked = look_at(images.rows, data.columns, teacher, show)
    unknown = () if data.others is None else data.others.counts()
    held_out = looked.usable & near_duplicates(looked.thumbs, _thumbs_of(data, ("validation", "test", *unknown)))
    rest = looked.usable & ~held_out
    copies = rest & near_duplicates(looked.thumbs, _thumbs_of(data, ("train",)))
    rest &= ~copies
    ids = list(data.subtask.teacher_ids or ())
    masses = masses_of(looked.logits, data.subtask)
    kept = rest & (masses >= options.unlabelled_threshold)
    answers, above = looked.logits[:, ids].argmax(dim=1), int(kept.sum())
    if data.others is not None and data.others.answered:  # as many again show what none of these may be
        below = torch.nonzero(rest & ~kept).flatten()
        drawn = below[torch.randperm(len(below), generator=torch.Generator().manual_seed(0))]
        kept[drawn[: data.others.train_images]] = True
        answers = subtask_logits(looked.logits, ids, other=True).argmax(dim=1)
    counts = torch.bincount(answers[kept], minlength=len(data.output_names)).tolist()
    selection = Selection(
        name=images.name,
        hub_id=images.hub_id,
        revision=images.revision,
        found=len(images.rows),
        damaged=int((~looked.usable).sum()),
        held_out=int(held_out.sum()),
        copies=int(copies.sum()),
        masses=tuple(masses[rest].clamp(max=1).tolist()),
        threshold=options.unlabelled_threshold,
        kept=int(kept.sum()),
        kept_as_other=int(kept.sum()) - above,
        kept_per_class=dict(zip(data.output_names, counts, strict=True)),
    )
    return torch.nonzero(kept).flatten().tolist(), selection


def look_at(rows: datasets.Dataset, columns: ImageColumns, teacher: LoadedModel, show: bool = False) -> Looked:
    """The teacher's answer to each image and its thumbnail, in one pass; damaged images have neither.

    The last looks are kept: the experts of a family and the runs of a benchmark look at the same images.

    Args:
        rows: the images.
        columns: their columns.
        teacher: the teacher.
        show: show a bar.

    Raises:
        DataError: when none can be decoded.
    """
    kept = _kept_looks(f"{identity_of_rows(rows, columns.image)} {teacher.identity}")
    if not kept:
        kept.append(_look(rows, columns, teacher, show))
    return kept[0]


@lru_cache(maxsize=2)  # those for training and those for the test
def _kept_looks(digest: str) -> list[Looked]:
    """Where the look at some images by some teacher is kept for the next runs of this process."""
    return []


def _look(rows: datasets.Dataset, columns: ImageColumns, teacher: LoadedModel, show: bool) -> Looked:
    images = DecodedImages(rows, columns, [UNLABELLED] * len(rows), ahead=False)
    classifier = Classifier(teacher.model, teacher.processor)
    device = next(teacher.model.parameters()).device
    usable = torch.zeros(len(rows), dtype=torch.bool)
    thumbs, logits = [], []
    for begin in tqdm(range(0, len(rows), BATCH), desc="images without labels", leave=False, disable=not show):
        shown: list[Tensor] = []
        for place in range(begin, min(begin + BATCH, len(rows))):
            try:
                shown.append(images[place])
            except DataError:  # damaged files of collections are counted, not a reason to stop
                continue
            usable[place] = True
        if shown:
            thumbs.append(thumbnails(shown))
            logits.append(classifier.logits(process(teacher.processor, shown).to(device)).cpu())
    if not thumbs:
        raise DataError(f"none of {len(rows)} images without labels can be decoded")
    refuse_not_finite(torch.cat(logits), of_teacher=True)
    return Looked(_spread(thumbs, usable), _spread(logits, usable), usable)


def masses_of(logits: Tensor, subtask: Subtask) -> Tensor:
    """The teacher's probability that an image shows one of the subtask's classes `(N,)`, of all its logits."""
    return logits.double().softmax(dim=1)[:, list(subtask.teacher_ids or ())].sum(dim=1)


def _spread(parts: Sequence[Tensor], usable: Tensor) -> Tensor:
    """Rows of the usable images at their places, 0 elsewhere."""
    rows = torch.cat(list(parts))
    spread = rows.new_zeros(len(usable), rows.shape[1])
    spread[usable] = rows
    return spread


def _thumbs_of(data: SubtaskData, splits: Sequence[str]) -> Tensor:
    """The thumbnails of the images of some splits, as they are without a mark."""
    plain = [data.views(split, marked=None) for split in splits if len(data.rows(split))]
    return torch.cat([thumbnails([views.image(index)]) for views in plain for index in range(len(views))])


def nothing_kept(selection: Selection, images: str = "images") -> str:
    """Why no image is left, and what would keep some.

    Args:
        selection: what became of all.
        images: what they are called.
    """
    if not selection.masses:
        return (
            f"unlabelled={selection.name}: all {selection.found} {images} are near-duplicates of labelled ones, or "
            "cannot be decoded: give others"
        )
    if reached := sum(mass >= selection.threshold for mass in selection.masses):
        gone = "near-duplicates of validation or test images" if selection.held_out else "held out to validate or test"
        advice = ", or a lower --unlabelled_threshold" if reached < len(selection.masses) else ""
        return (
            f"{selection.name}: no {images} are left: the {reached} of {selection.found} that show one of the classes "
            f"by the teacher are {gone}. Give more images{advice}"
        )
    best = max(selection.masses)
    lower = np.floor(10 * best) / 10 if best >= 0.1 else 0
    keeps = sum(mass >= lower for mass in selection.masses)
    return (
        f"unlabelled_threshold={selection.threshold:g} keeps none of {selection.found} {images}: the teacher's "
        f"largest probability that one shows a class is {best:.2g}; --unlabelled_threshold {lower:g} would keep "
        f"{keeps}. Do the images show these classes at all?\n{selection}"
    )
