"""The student's pixels of views that come again, kept as bytes: a view is decoded, cropped and scaled once.

A dataset of V views an image shows the same views every V epochs. Pixels are kept when they are made first, in a file
without a name that is mapped into memory and gone with the run. Of a byte an image processor makes one of 256 values a
channel, so a byte and a table give the very pixels back. What is not given back bit for bit is not kept.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subdistill_hf.config.output_folder import take_space
from subdistill_hf.data.collate import IMAGES, PIXELS, Collate, ViewCollator, labels_and_places
from subdistill_hf.data.preprocessing import process
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.formatting import memory

MOST = 4 * 2**30
"""Bytes that kept pixels may take, in all processes of a machine together."""


class NotKeptError(Exception):
    """Why pixels are not kept, in words."""


class Levels:
    """The 256 values of each channel of a processor's pixels, and how they lie in memory.

    Args:
        values: the values of each channel `(C, 256)`, from that of byte 0 to that of byte 255.
        memory_format: of the batches.
    """

    def __init__(self, values: Tensor, memory_format: torch.memory_format) -> None:
        self.values, self.memory_format = values.numpy(), memory_format
        first, last = self.values[:, 0], self.values[:, -1]
        self._first = first[:, None, None]
        self._steps = 255 / np.where(last == first, 1, last - first)[:, None, None]

    @classmethod
    def of(cls, processor: Any, image: Tensor, pixels: Tensor) -> Levels:
        """Those of a processor.

        Args:
            processor: the image processor.
            image: a byte image `(3, H, W)` of the kind that it will process.
            pixels: what it makes of images `(B, C, H', W')`.
        """
        row, column = (size // 2 for size in pixels.shape[2:])
        blank = torch.zeros_like(image[:, :64, :64])
        made = [process(processor, [blank + level])[0, :, row, column] for level in range(256)]
        nhwc = pixels.is_contiguous(memory_format=torch.channels_last) and not pixels.is_contiguous()
        return cls(torch.stack(made, dim=1), torch.channels_last if nhwc else torch.contiguous_format)

    def encode(self, pixels: Any) -> Any:
        """Pixels `(C, H, W)` as bytes; right where `decode` gives them back."""
        return np.rint((pixels - self._first) * self._steps).clip(0, 255).astype(np.uint8)

    def decode(self, codes: Any, pixels: Any) -> None:
        """Write the pixels of bytes `(C, H, W)` to an array of that shape."""
        for channel, values in enumerate(self.values):
            np.take(values, codes[channel], out=pixels[channel], mode="clip")


class KeptPixels:
    """Pixels of (image, view), a row of bytes each, mapped into memory; workers that are forked share them.

    Args:
        images: number of images.
        views: of each.
        example: pixels `(B, C, H, W)` of some images: `pixel_values`, or bytes.
        levels: the values of the pixels; `None` for bytes.
        folder: of the file.

    Raises:
        OSError: when the disk has not enough room.
    """

    def __init__(self, images: int, views: int, example: Tensor, levels: Levels | None, folder: Path) -> None:
        self.images, self.levels = images, levels
        self.shape, self.dtype = example.shape[1:], example.dtype
        rows = images * views
        self.size = rows * (self.shape.numel() + 1)
        with tempfile.TemporaryFile(dir=folder) as file:
            take_space(file, self.size)
            self._filled: Any = np.memmap(file, np.uint8, "r+", 0, (rows,))
            self._codes: Any = np.memmap(file, np.uint8, "r+", rows, (rows, *self.shape))

    def has(self, image: int, view: int) -> bool:
        """Whether the pixels of a view are kept."""
        return self._filled is not None and bool(self._filled[view * self.images + image])

    def keep(self, image: int, view: int, pixels: Tensor) -> None:
        """Keep the pixels `(C, H, W)` of a view, if their bytes give them back."""
        if self._filled is None or pixels.shape != self.shape or pixels.dtype != self.dtype:
            return
        row, values = view * self.images + image, pixels.numpy()
        codes = values if self.levels is None else self.levels.encode(values)
        if self.levels is not None:
            again = np.empty_like(values)
            self.levels.decode(codes, again)
            if again.tobytes() != values.tobytes():
                return
        self._codes[row] = codes
        self._filled[row] = 1

    def empty(self, count: int) -> Tensor:
        """Room for the pixels of a batch, as it lies in memory without kept pixels."""
        layout = torch.contiguous_format if self.levels is None else self.levels.memory_format
        return torch.empty((count, *self.shape), dtype=self.dtype, memory_format=layout)

    def read(self, image: int, view: int, pixels: Tensor) -> None:
        """Write the pixels of a view that is kept to a tensor `(C, H, W)`."""
        codes, values = self._codes[view * self.images + image], pixels.numpy()
        if self.levels is None:
            values[...] = codes
        else:
            self.levels.decode(codes, values)

    def __getstate__(self) -> dict[str, Any]:
        """A copy in a process that was not forked keeps nothing: the file has no name."""
        return {**self.__dict__, "_filled": None, "_codes": None}


class KeptViews(torch.utils.data.Dataset[dict[str, Any]]):
    """The views of a `ViewDataset`, those whose pixels are kept without their image.

    Args:
        dataset: the views.
        pixels: what is kept of them.
    """

    def __init__(self, dataset: ViewDataset, pixels: KeptPixels) -> None:
        self.dataset, self.pixels = dataset, pixels

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Move to the views of another epoch."""
        self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """A batch of examples, as `ViewDataset` gives them; without `image` where pixels are kept."""
        view = self.dataset.view
        examples = self.dataset.without_images(indices)
        new = [place for place, index in enumerate(indices) if not self.pixels.has(index, view)]
        if new:
            made = self.dataset.__getitems__([indices[place] for place in new])
            for place, example in zip(new, made, strict=True):
                examples[place] = example
        return examples


class KeptCollator:
    """A `ViewCollator` for the student that takes kept pixels, and keeps those that it makes.

    Args:
        collate: makes pixels of images.
        pixels: what is kept.
    """

    def __init__(self, collate: ViewCollator, pixels: KeptPixels) -> None:
        self.collate, self.pixels = collate, pixels

    def unfinished(self) -> KeptCollator:
        """The same, leaving images as bytes for `finish` where the collator can."""
        return KeptCollator(self.collate.unfinished(), self.pixels)

    def finish(self, batch: Any) -> dict[str, Any]:
        """Do on the device what an `unfinished` collator left."""
        return self.collate.finish(batch)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch that the collator makes of the same views with their images."""
        new = [place for place, example in enumerate(examples) if "image" in example]
        made = self.collate([examples[place] for place in new]) if new else {}
        name = IMAGES if self.pixels.levels is None else PIXELS
        for place, pixels in zip(new, made.get(name, ()), strict=False):
            self.pixels.keep(examples[place]["index"], examples[place]["view"], pixels)
        if len(new) == len(examples):
            return made
        batch = self.pixels.empty(len(examples))
        if new:
            batch[new] = made[name]
        for place in set(range(len(examples))).difference(new):
            self.pixels.read(examples[place]["index"], examples[place]["view"], batch[place])
        return {name: batch, **labels_and_places(examples)}


def keep_pixels(
    dataset: Any, collate: Any, gather: Collate, folder: Path, most: int = MOST
) -> tuple[Any, Any, str | None]:
    """Keep the student's pixels of a dataset whose views come again, where that is possible.

    Args:
        dataset: the training images; those of a `ViewDataset` with a number of views may be kept.
        collate: for the student; a `ViewCollator`, and not a class of somebody else.
        gather: what the loader does of its work, see `collate.divided`. Of an unfinished batch the bytes are kept.
        folder: of the file with the pixels.
        most: bytes that it may take.

    Returns:
        Dataset and collator, and what is said of them; nothing where views do not come again.
    """
    if type(dataset) is not ViewDataset or type(collate) is not ViewCollator or dataset.views is None:
        return dataset, collate, None
    subject = f"pixels   of {len(dataset)} images x {dataset.views} views"
    try:
        pixels = _room(dataset, collate, gather, folder, most)
    except NotKeptError as error:
        return dataset, collate, f"{subject} are made in each epoch: {error}"
    return KeptViews(dataset, pixels), KeptCollator(collate, pixels), f"{subject} are kept: {memory(pixels.size)}"


def _room(dataset: ViewDataset, collate: ViewCollator, gather: Collate, folder: Path, most: int) -> KeptPixels:
    """Room for the pixels of all views.

    Raises:
        NotKeptError: saying why there is none.
    """
    examples = dataset.__getitems__(list(range(min(2, len(dataset)))))
    batch = gather(examples)
    if IMAGES in batch and not dataset.gives_one_size:
        raise NotKeptError("the views are of several sizes")
    example = batch[IMAGES] if IMAGES in batch else batch[PIXELS]
    size = len(dataset) * int(dataset.views or 0) * (example[0].numel() + 1)
    if size > most:
        raise NotKeptError(f"they would take {memory(size)}, more than {memory(most)}")
    levels = None if IMAGES in batch else Levels.of(collate.processor, examples[0]["image"], example)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pixels = KeptPixels(len(dataset), int(dataset.views or 0), example, levels, folder)
    except OSError as error:
        raise NotKeptError(f"the disk has no {memory(size)} ({error.strerror})") from error
    pixels.keep(0, dataset.view, example[0])
    if not pixels.has(0, dataset.view):
        raise NotKeptError("they have more than 256 values a channel")
    return pixels
