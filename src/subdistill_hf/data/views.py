"""Augmented views of images: a function of seed, view and image."""

from __future__ import annotations

import hashlib
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from subdistill_hf.config.options import NO_CLASS
from subdistill_hf.config.validation import check_mix
from subdistill_hf.data.augmentation import AUGMENTATIONS, PAD, draw_partners, pad_crops, resized_crop
from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.images import DecodedImages, ImageStore
from subdistill_hf.data.marks import MarkedRows
from subdistill_hf.errors import DataError


class ViewDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Augmented views of images; a view depends only on (seed, epoch, image), never on a hidden global state.

    Small datasets are decoded once, when the dataset is made, and augmented batch-wise where images are of one size.

    Args:
        dataset: images and labels; an image with a negative label has no class, and its label becomes -100.
        columns: their columns.
        augmentation: `"none"`, `"pad_crop"` (pad by 4 and crop back), or `"resized_crop"` (8 to 100 % of the area).
        flip: mirror half of the views.
        size: height and width of `resized_crop` views.
        seed: of the augmentation.
        views: number of different views of each image; epochs cycle through them. As many as epochs by default.
        marked: which images are shown with a spurious mark, put on before the augmentation.
        mix: share of the views that are mixed with a view of another image, each with a weight of its own (mixup,
            Zhang et al., 2018); the labels of all are then shares of the classes. 0 mixes none.
        cutmix: share of the views that get a rectangle of a view of another image (CutMix, Yun et al., 2019), labelled
            alike by its area.
        store: where decoded images are kept for all datasets of a run that show the same ones; by default this
            dataset keeps its own.

    Raises:
        DataError: for an unknown augmentation, an empty dataset, one with a transform or a format, an image that
            cannot be decoded, or shares that are none.
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
        cutmix: float = 0.0,
        store: ImageStore | None = None,
    ) -> None:
        if augmentation not in AUGMENTATIONS:
            raise DataError(f"unknown augmentation {augmentation!r}: expected one of {', '.join(AUGMENTATIONS)}")
        if len(dataset) == 0:
            raise DataError("the dataset has no images")
        if (form := dataset.format["type"]) is not None:
            what = "a transform" if form == "custom" else f"the format {form!r}"
            raise DataError(
                f"the dataset has {what}: expected the images as they are stored, which dataset.with_format(None) "
                "gives; views are drawn with augmentation=..., and pixels are made by ViewCollator"
            )
        check_mix(mix, cutmix)
        self.augmentation, self.flip, self.size, self.seed = augmentation, flip, size, seed
        self.labels: list[int] = [label if label >= 0 else NO_CLASS for label in dataset[columns.label]]
        self.views, self.view, self.mix, self.cutmix = views, 0, mix, cutmix
        self.images = DecodedImages(dataset, columns, self.labels, marked, often=augmentation != "none", store=store)
        kind = dataset.features[columns.label]
        self._classes = kind.num_classes if isinstance(kind, datasets.ClassLabel) else max(self.labels) + 1
        self._draw()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """A digest of what every view depends on: the images, the augmentation and its seed."""
        shaping = (self.augmentation, self.flip, self.size, self.seed, PAD, len(self))
        mixing = (self.mix, self.cutmix) if self.cutmix else (self.mix,) if self.mix else ()
        digest = hashlib.sha256(repr((*shaping, *mixing)).encode())
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
            "cutmix": self.cutmix,
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
        self._partners = None
        if self.mix or self.cutmix:
            self._partners = draw_partners(images, self.mix, self.seed, self.view, self.cutmix)

    def check_images(self) -> None:
        """Decode every image that was not decoded yet.

        Raises:
            DataError: naming one that cannot be.
        """
        self.images.check()

    def image(self, index: int) -> Tensor:
        """One image without augmentation, `(3, H, W)` bytes."""
        return self.images[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """A batch of views: `image` `(3, H, W)` bytes, `labels`, and the places `index` and `view`."""
        chosen = self._plain_views
        views = chosen(indices) if self._partners is None else self._partners.mixed(indices, chosen)
        return [{"image": view, **rest} for view, rest in zip(views, self.without_images(indices), strict=True)]

    def without_images(self, indices: list[int]) -> list[dict[str, Any]]:
        """The same without `image`, of which nothing is read."""
        labels: list[Any] = [self.labels[index] for index in indices]
        if self._partners is not None:
            labels = list(self._partners.labels(indices, self.labels, self._classes))
        return [
            {"labels": label, "index": index, "view": self.view} for index, label in zip(indices, labels, strict=True)
        ]

    @property
    def gives_one_size(self) -> bool:
        """Whether all views are known to be of one size."""
        resized = self.augmentation == "resized_crop" and self.size is not None
        return resized or self.images.one_size is not None

    def _plain_views(self, indices: list[int]) -> list[Tensor]:
        """Views that are not mixed yet."""
        if self.images.one_size is not None and self.augmentation == "pad_crop":
            return list(pad_crops(self.images.one_size[indices], self._random[indices], self.flip))
        images = self.images.at(indices)
        return [self._view(image, draw) for image, draw in zip(images, self._random[indices], strict=True)]

    def _view(self, image: Tensor, draw: np.ndarray) -> Tensor:
        """The view of an image `(3, H, W)` that five uniform numbers choose."""
        if self.augmentation == "pad_crop":
            return pad_crops(image[None], draw[None], self.flip)[0]
        if self.augmentation == "resized_crop":
            image = resized_crop(image, draw, self.size or (image.shape[1], image.shape[2]))
        if self.flip and draw[4] < 0.5:
            image = image.flip(2)
        return image
