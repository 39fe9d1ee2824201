"""Keep the teacher's targets of each augmented view, so that the teacher sees each view once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from subdistill_hf.activations import Features
from subdistill_hf.errors import SubDistillError

MAX_BYTES = 4 * 2**30

Targets = tuple[Tensor, dict[str, Features]]


class CacheError(SubDistillError):
    """A cache that cannot be made or used."""


@dataclass(frozen=True)
class _Slot:
    """Where one layer's target lies in a row, and its shape."""

    start: int
    stop: int
    shape: tuple[int, int]
    grid: tuple[int, int]
    prefix: int


class TeacherCache:
    """Logits and projected targets of every (image, view), in memory and in half precision.

    Rows are filled when a view is first met. What is returned is always what a row holds, whether it was just
    computed or not, so that a first and a later meeting give the same numbers.

    Args:
        images: number of images.
        views: number of views of each.
    """

    def __init__(self, images: int, views: int) -> None:
        self.images, self.views = images, views
        self._rows: Tensor | None = None
        self._filled = torch.zeros(images * views, dtype=torch.bool)
        self._slots: dict[str, _Slot] = {}
        self._classes = 0

    @property
    def filled(self) -> int:
        """Number of views whose targets are known."""
        return int(self._filled.sum())

    @property
    def bytes(self) -> int:
        """Memory that the rows take."""
        return 0 if self._rows is None else self._rows.numel() * self._rows.element_size()

    def targets(
        self, image: Tensor, view: Tensor, compute: Callable[[Tensor], Targets], device: torch.device
    ) -> Targets:
        """The targets of a batch; the teacher runs on the views that are new.

        Args:
            image: place of each image in the dataset `(B,)`.
            view: number of each view `(B,)`.
            compute: takes places in the batch `(M,)`, gives logits `(M, C)` and features of those.
            device: where the targets go.

        Raises:
            CacheError: for a view that is out of range, a cache larger than `MAX_BYTES`, or a target that half
                precision cannot hold.
        """
        row = (image * self.views + view).cpu()
        if int(row.min()) < 0 or int(row.max()) >= len(self._filled) or int(view.max()) >= self.views:
            raise CacheError(
                f"expected images below {self.images} and views below {self.views}, found image {int(image.max())} "
                f"and view {int(view.max())}: the dataset must give as many views as the cache holds"
            )
        missing = torch.nonzero(~self._filled[row]).flatten()
        if len(missing):
            self._store(row[missing], *compute(missing.to(device)))
        assert self._rows is not None
        return self._unpack(self._rows[row].to(device).float())

    def _store(self, rows: Tensor, logits: Tensor, features: Mapping[str, Features]) -> None:
        if self._rows is None:
            self._allocate(logits, features)
        assert self._rows is not None
        parts = [logits, *(features[name].values.flatten(1) for name in self._slots)]
        packed = torch.cat([part.float() for part in parts], dim=1).to("cpu", torch.float16)
        if not bool(packed.isfinite().all()):
            raise CacheError(
                "a target of the teacher is too large for half precision (65504): use no cache (teacher_views unset)"
            )
        self._rows[rows] = packed
        self._filled[rows] = True

    def _allocate(self, logits: Tensor, features: Mapping[str, Features]) -> None:
        self._classes = start = logits.shape[1]
        for name, layer in features.items():
            shape = (layer.values.shape[1], layer.values.shape[2])
            stop = start + shape[0] * shape[1]
            self._slots[name] = _Slot(start, stop, shape, layer.grid, layer.prefix)
            start = stop
        size = len(self._filled) * start * 2
        if size > MAX_BYTES:
            raise CacheError(
                f"the targets of {self.images} images x {self.views} views take {size / 2**30:.1f} GiB, more than "
                f"{MAX_BYTES / 2**30:.0f} GiB: use fewer views, or no cache (teacher_views unset)"
            )
        self._rows = torch.empty((len(self._filled), start), dtype=torch.float16)

    def _unpack(self, rows: Tensor) -> Targets:
        features = {
            name: Features(rows[:, slot.start : slot.stop].reshape(-1, *slot.shape), slot.grid, slot.prefix)
            for name, slot in self._slots.items()
        }
        return rows[:, : self._classes], features
