"""Augmented views of images, and their batches for both networks."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as image_functional

from subdistill_hf.data.augmentation import check_mix, draw_partners
from subdistill_hf.data.collate import IMAGES
from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.images import DecodedImages
from subdistill_hf.data.marks import MarkedRows
from subdistill_hf.data.preprocessing import preprocessing_of, process, works_on_tensors
from subdistill_hf.errors import DataError

AUGMENTATIONS = ("none", "pad_crop", "resized_crop")
PAD = 4


class ViewDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Augmented views of images; a view depends only on (seed, epoch, image), never on a hidden global state.

    Small datasets are decoded once, when the dataset is made, and augmented batch-wise where images are of one size.

    Args:
        dataset: images and labels.
        columns: their columns.
        augmentation: `"none"`, `"pad_crop"` (pad by 4 and crop back), or `"resized_crop"` (8 to 100 % of the area).
        flip: mirror half of the views.
        size: height and width of `resized_crop` views.
        seed: of the augmentation.
        views: number of different views of each image; epochs cycle through them. As many as epochs by default.
        marked: which images are shown with a spurious mark, put on before the augmentation.
        mix: share of the views that are mixed with a view of another image, each with a weight of its own (mixup,
            Zhang et al., 2018); the labels of all are then shares of the classes. 0 mixes none.

    Raises:
        DataError: for an unknown augmentation, an empty dataset, an image that cannot be decoded, or images of
            different sizes that are to be mixed.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        columns: ImageColumns,
        augmentation: str = "none",
        flip: bool = False,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        views: int | None = None,
        marked: MarkedRows | None = None,
        mix: float = 0.0,
    ) -> None:
        if augmentation not in AUGMENTATIONS:
            raise DataError(f"unknown augmentation {augmentation!r}: expected one of {', '.join(AUGMENTATIONS)}")
        if len(dataset) == 0:
            raise DataError("the dataset has no images")
        check_mix(mix)
        self.augmentation, self.flip, self.size, self.seed = augmentation, flip, size, seed
        self.labels: list[int] = list(dataset[columns.label])
        self.views, self.view, self.mix = views, 0, mix
        self.images = DecodedImages(dataset, columns, self.labels, marked, often=augmentation != "none")
        kind = dataset.features[columns.label]
        self._classes = kind.num_classes if isinstance(kind, datasets.ClassLabel) else max(self.labels) + 1
        if mix and self.images.one_size is None and not (augmentation == "resized_crop" and size):
            self._check_sizes()
        self._draw()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """A digest of what every view depends on: the images, the augmentation and its seed."""
        shaping = (self.augmentation, self.flip, self.size, self.seed, PAD, len(self))
        digest = hashlib.sha256(repr((*shaping, self.mix) if self.mix else shaping).encode())
        digest.update(self.images.digest())
        return digest.hexdigest()

    def described(self) -> dict[str, Any]:
        """How many images there are, and what is done to them, JSON-able."""
        return {
            "images": len(self),
            "augmentation": self.augmentation,
            "flip": self.flip,
            "size": None if self.size is None else list(self.size),
            "seed": self.seed,
            "mix": self.mix,
        }

    def set_epoch(self, epoch: int) -> None:
        """Move to the views of another epoch (called by the trainer)."""
        view = epoch if self.views is None else epoch % self.views
        if view != self.view:
            self.view = view
            self._draw()

    def _draw(self) -> None:
        """Draw what the present view does to each image: one row of uniform numbers, and what it is mixed with."""
        images = len(self.labels)
        self._random = np.random.default_rng([self.seed, self.view]).random((images, 5))
        self._partners = draw_partners(images, self.mix, self.seed, self.view) if self.mix else None

    def check_images(self) -> None:
        """Decode every image that was not decoded yet.

        Raises:
            DataError: naming one that cannot be.
        """
        self.images.check()

    def _check_sizes(self) -> None:
        """Refuse to mix images of different sizes."""
        first = self.image(0).shape
        for index in range(1, len(self)):
            if (shape := self.image(index).shape) != first:
                sizes = [f"{height} x {width}" for _, height, width in (first, shape)]
                raise DataError(
                    f"images 0 and {index} of {sizes[0]} and {sizes[1]} pixels cannot be mixed: expected one size; "
                    "choose the augmentation resized_crop with a size, or mix=0"
                )

    def image(self, index: int) -> Tensor:
        """One image without augmentation, `(3, H, W)` bytes."""
        return self.images[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """A batch of views: `image` `(3, H, W)` bytes, `labels`, and the places `index` and `view`."""
        views: list[Tensor]
        labels: list[Any]
        if self._partners is None:
            views, labels = self._plain_views(indices), [self.labels[index] for index in indices]
        else:
            views = self._partners.mixed(indices, self._plain_views)
            labels = list(self._partners.labels(indices, self.labels, self._classes))
        return [
            {"image": view, "labels": label, "index": index, "view": self.view}
            for index, view, label in zip(indices, views, labels, strict=True)
        ]

    def _plain_views(self, indices: list[int]) -> list[Tensor]:
        """Views that are not mixed yet."""
        if self.images.one_size is not None and self.augmentation == "pad_crop":
            return list(_pad_crops(self.images.one_size[indices], self._random[indices], self.flip))
        return [self._view(index) for index in indices]

    def _view(self, index: int) -> Tensor:
        image, draw = self.image(index), self._random[index]
        if self.augmentation == "pad_crop":
            return _pad_crops(image[None], draw[None], self.flip)[0]
        if self.augmentation == "resized_crop":
            image = _resized_crop(image, draw, self.size or (image.shape[1], image.shape[2]))
        if self.flip and draw[4] < 0.5:
            image = image.flip(2)
        return image


def _pad_crops(images: Tensor, drawn: np.ndarray[Any, np.dtype[np.float64]], flip: bool) -> Tensor:
    """Shifted and, if `flip`, half of them mirrored images `(B, 3, H, W)`, in one indexing; a row of numbers each."""
    draws = torch.from_numpy(drawn)
    rows, columns = _shifted(images.shape[2], draws[:, 0]), _shifted(images.shape[3], draws[:, 1])
    if flip:
        columns = torch.where(draws[:, 4, None] < 0.5, columns.flip(1), columns)
    places = torch.arange(len(images))[:, None, None]
    # one advanced index for images, rows and columns puts channels last
    return images[places, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _shifted(length: int, draws: Tensor) -> Tensor:
    """Rows or columns of views shifted by up to `PAD` pixels, `(B, length)`; what is uncovered repeats the border."""
    shifts = (draws * (2 * PAD + 1)).long() - PAD
    return (torch.arange(length) + shifts[:, None]).clamp(0, length - 1)


def _resized_crop(image: Tensor, draw: np.ndarray[Any, np.dtype[np.float64]], size: tuple[int, int]) -> Tensor:
    """A crop of 8 to 100 % of the area and an aspect ratio of 3/4 to 4/3, resized to `size`."""
    height, width = image.shape[1:]
    area = height * width * (0.08 + 0.92 * draw[0])
    ratio = (3 / 4) ** (1 - 2 * draw[1])
    crop_width = min(width, max(1, round((area * ratio) ** 0.5)))
    crop_height = min(height, max(1, round((area / ratio) ** 0.5)))
    top, left = int(draw[2] * (height - crop_height + 1)), int(draw[3] * (width - crop_width + 1))
    view: Tensor = image_functional.resized_crop(
        image, top, left, crop_height, crop_width, list(size), InterpolationMode.BICUBIC, antialias=True
    )
    return view


class ViewCollator:
    """Collate views into `pixel_values` for the student, `teacher_pixel_values`, `labels`, `index` and `view`.

    Each network gets the input it was trained on, from the same view; when both processors do the same, the
    teacher reads the student's.

    The processors' work can be left to an accelerator, which does it many times faster: see `unfinished`.

    Args:
        processor: the student's image processor.
        teacher_processor: the teacher's, if there is a teacher.
    """

    _finishes = True

    def __init__(self, processor: Any, teacher_processor: Any | None = None) -> None:
        self.processor = processor
        same = teacher_processor is None or preprocessing_of(teacher_processor) == preprocessing_of(processor)
        self.teacher_processor = None if same else teacher_processor

    def for_student(self) -> ViewCollator:
        """The same without the teacher's pixels, for batches that the teacher does not see."""
        collator = copy.copy(self)
        collator.teacher_processor = None
        return collator

    def unfinished(self) -> ViewCollator:
        """The same, leaving images of one size as bytes `(B, 3, H, W)` under `images`, for `finish`.

        Processors that work on PIL images alone do their work at once, and so do collators whose call is their own.
        """
        collator = copy.copy(self)
        processors = [each for each in (self.processor, self.teacher_processor) if each is not None]
        tensors = all(works_on_tensors(each) for each in processors)
        collator._finishes = not tensors or type(self).__call__ is not ViewCollator.__call__
        return collator

    def finish(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Process the images of a batch that an `unfinished` collator made, on the device where they are."""
        rest = {name: value for name, value in batch.items() if name != IMAGES}
        return {**self._pixels(batch[IMAGES]), **rest} if IMAGES in batch else rest

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Process a list of `ViewDataset` items."""
        images = [example["image"] for example in examples]
        if self._finishes or any(image.shape != images[0].shape for image in images):
            batch = self._pixels(images)
        else:
            batch = {IMAGES: torch.stack(images)}
        for name in ("labels", "index", "view"):
            batch[name] = torch.utils.data.default_collate([example[name] for example in examples])
        return batch

    def _pixels(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        images = list(images)
        pixels = {"pixel_values": process(self.processor, images)}
        if self.teacher_processor is not None:
            pixels["teacher_pixel_values"] = process(self.teacher_processor, images)
        return pixels
