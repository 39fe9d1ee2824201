"""Views mixed with views of other images: what a teacher says of them is known, so they cost no further image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from subdistill_hf.errors import DataError

MIX_SEED = 1


@dataclass(frozen=True)
class Partners:
    """With what each image of a dataset is mixed in one of its views.

    Attributes:
        other: the other image of each, `(N,)`.
        own: the weight of the image itself, `(N,)`: from a half to 1, and 1 where it is not mixed.
    """

    other: Tensor
    own: Tensor

    def mixed(self, indices: Sequence[int], views_of: Callable[[list[int]], list[Tensor]]) -> list[Tensor]:
        """own·view + (1 - own)·other for each image, rounded to bytes `(3, H, W)`.

        Args:
            indices: the images.
            views_of: makes the views of images, `(3, H, W)` bytes, all of one size.
        """
        views = views_of(list(indices))
        places = [place for place, own in enumerate(self.own[indices].tolist()) if own < 1]
        chosen = [indices[place] for place in places]
        others = views_of(self.other[chosen].tolist()) if chosen else []
        for place, other, own in zip(places, others, self.own[chosen].tolist(), strict=True):
            views[place] = torch.lerp(other.float(), views[place].float(), own).round().to(torch.uint8)
        return views

    def labels(self, indices: Sequence[int], labels: Sequence[int], classes: int) -> Tensor:
        """The shares of the classes in each mixed image, `(B, classes)`.

        Args:
            indices: the images.
            labels: of all images, `(N,)`.
            classes: how many there are.
        """
        own, other = (
            F.one_hot(torch.tensor([labels[image] for image in images]), classes).float()
            for images in (indices, self.other[indices].tolist())
        )
        return torch.lerp(other, own, self.own[indices, None])


def check_mix(mix: float) -> None:
    """Refuse what is no share.

    Raises:
        DataError: naming it.
    """
    if not 0 <= mix <= 1:
        raise DataError(f"mix={mix}: expected a share of the views, from 0 to 1")


def draw_partners(images: int, share: float, seed: int, view: int) -> Partners:
    """Choose what is mixed, and how: the same for (seed, view), and independent of the augmentation.

    Args:
        images: number of images.
        share: of them that are mixed, in the mean.
        seed: of the augmentation.
        view: number of the view.
    """
    drawn = torch.from_numpy(np.random.default_rng([seed, view, MIX_SEED]).random((images, 3)))
    own = torch.where(drawn[:, 0] < share, 0.5 + 0.5 * drawn[:, 1], 1.0)
    return Partners((drawn[:, 2] * images).long(), own.float())
