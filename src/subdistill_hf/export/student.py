"""The student that is exported: its network, and how it looks at images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from subdistill_hf.core.activations import logits_of
from subdistill_hf.data.loading import known_classes
from subdistill_hf.data.preprocessing import process
from subdistill_hf.export.images import Bytes
from subdistill_hf.models.heads import THRESHOLD_ENTRY, has_other, names_of
from subdistill_hf.models.loading import LoadedModel, input_size_of

Array = npt.NDArray[np.float32]

BATCH: Final = 32


@dataclass(frozen=True)
class TorchStudent:
    """A student as torch and its image processor run it: what exported files are compared with.

    Attributes:
        loaded: the network and its processor.
    """

    loaded: LoadedModel

    @property
    def classes(self) -> list[str]:
        """Names of the outputs, in their order."""
        return names_of(self.loaded.model.config)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels that the network takes."""
        return input_size_of(self.loaded.processor)

    @property
    def known_classes(self) -> list[str]:
        """The classes without the answer "none of these", which some students have."""
        return list(known_classes(self.classes, has_other(self.loaded.model.config)))

    @property
    def threshold(self) -> dict[str, Any]:
        """The largest probability below which an image is none of the classes, if the configuration has one."""
        found = getattr(self.loaded.model.config, THRESHOLD_ENTRY, None)
        return {} if found is None else {THRESHOLD_ENTRY: found}

    def pixels(self, images: Sequence[Bytes]) -> list[Array]:
        """What the processor makes of images `(H, W, 3)`: `(3, H', W')` each."""
        return [process(self.loaded.processor, [_as_tensor(image)])[0].numpy() for image in images]

    @torch.no_grad()
    def logits(self, pixels: Sequence[Array]) -> Array:
        """The network's answers `(N, C)`.

        Args:
            pixels: `(3, H, W)` of each image.
        """
        model: Any = self.loaded.model
        batches = [pixels[first : first + BATCH] for first in range(0, len(pixels), BATCH)]
        answers = [logits_of(model(pixel_values=torch.from_numpy(np.stack(batch)))) for batch in batches]
        found: Array = torch.cat(answers).float().numpy()
        return found


def _as_tensor(image: Bytes) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)
