"""The teacher's targets of every augmented view, read from files and sent along with the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subdistill_hf.core.activations import Features
from subdistill_hf.data.collate import LOGITS, TARGETS, Collate, Divisible
from subdistill_hf.teacher.cache_files import CacheError, TargetFile

Targets = tuple[Tensor, dict[str, Features]]


@dataclass(frozen=True)
class StoredLayer:
    """How the targets of one layer lie in their file.

    Attributes:
        file: one row per (view, image): `(K, P)`, or `(P, K)` for tokens.
        grid: height and width of the spatial grid.
        prefix: class and register tokens before the grid.
        tokens: whether a row is `(P, K)`.
    """

    file: TargetFile
    grid: tuple[int, int]
    prefix: int
    tokens: bool

    def pack(self, features: Features) -> Tensor:
        """Features `(B, K, P)` as rows."""
        return features.values.transpose(1, 2) if self.tokens else features.values

    def unpack(self, rows: Tensor) -> Features:
        """Rows as features `(B, K, P)`; in the precision of the file, since losses take them to float32."""
        return Features(rows.transpose(1, 2) if self.tokens else rows, self.grid, self.prefix)


class TeacherCache:
    """Logits and layer targets of every (image, view), mapped into memory.

    Args:
        images: number of images.
        views: number of views of each.
        logits: file of the logits `(views * images, C)`.
        layers: teacher layer name to how its targets are stored.
    """

    def __init__(self, images: int, views: int, logits: TargetFile, layers: Mapping[str, StoredLayer]) -> None:
        self.images, self.views = images, views
        self.logits, self.layers = logits, dict(layers)
        self._mapped: dict[str, Tensor] = {}

    @property
    def files(self) -> dict[str, TargetFile]:
        """All files: that of the logits under the empty name, and those of the layers."""
        return {"": self.logits, **{name: layer.file for name, layer in self.layers.items()}}

    def packed(self, logits: Tensor, features: Mapping[str, Features]) -> dict[str, Tensor]:
        """Logits and features of some views, as the rows of each file."""
        return {"": logits, **{name: layer.pack(features[name]) for name, layer in self.layers.items()}}

    def open(self) -> None:
        """Map all files now: another run that makes room may delete them, which leaves what is mapped as it is."""
        for name, file in self.files.items():
            self._open(name, file)

    def rows(self, image: Tensor, view: Tensor) -> Tensor:
        """Rows of views: image numbers `(B,)` and view numbers `(B,)` to places in the files `(B,)`.

        Raises:
            CacheError: for a view that is not in the cache.
        """
        outside = (image < 0) | (image >= self.images) | (view < 0) | (view >= self.views)
        if bool(outside.any()):
            raise CacheError(
                f"expected images below {self.images} and views below {self.views}, found image {int(image.max())} "
                f"and view {int(view.max())}: the dataset must give as many views as the cache holds"
            )
        return view * self.images + image

    def read(self, image: Tensor, view: Tensor) -> dict[str, Any]:
        """The fields of a batch of some views: `teacher_logits` `(B, C)` and `teacher_targets`, rows by layer name."""
        rows = self.rows(image, view)
        taken = {name: self._open(name, file)[rows] for name, file in self.files.items()}
        return {LOGITS: taken.pop(""), TARGETS: taken}

    def targets(self, batch: Mapping[str, Any]) -> Targets:
        """Logits and features of a batch that carries what `read` gave, wherever it is now."""
        features = {name: layer.unpack(batch[TARGETS][name]) for name, layer in self.layers.items()}
        return batch[LOGITS].float(), features

    def _open(self, name: str, file: TargetFile) -> Tensor:
        if name not in self._mapped:
            path = file.find()
            if path is None:
                raise CacheError(f"the targets in {file.folder} were deleted during the run: start it again")
            self._mapped[name] = file.mapped(path)
        return self._mapped[name]

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process maps the files itself."""
        return {**self.__dict__, "_mapped": {}}


class CachedCollator:
    """Collate a batch for the student, and add the teacher's targets of its views.

    Args:
        collate: gives `index` and `view` with each batch.
        cache: where the targets are.
    """

    def __init__(self, collate: Collate, cache: TeacherCache) -> None:
        self.collate, self.cache = collate, cache

    def unfinished(self) -> CachedCollator:
        """The same, leaving images as bytes for `finish` where the collator can."""
        return CachedCollator(self.collate.unfinished(), self.cache) if isinstance(self.collate, Divisible) else self

    def finish(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Do on the device what an `unfinished` collator left."""
        return self.collate.finish(batch) if isinstance(self.collate, Divisible) else batch

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        """The batch with its targets."""
        batch = dict(self.collate(examples))
        return {**batch, **self.cache.read(torch.as_tensor(batch["index"]), torch.as_tensor(batch["view"]))}
