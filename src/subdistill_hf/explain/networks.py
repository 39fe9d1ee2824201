"""The networks that are explained, and the evidence that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from subdistill_hf.core.activations import logits_of
from subdistill_hf.core.hooks import evaluation_mode
from subdistill_hf.data.preprocessing import process
from subdistill_hf.pipeline.evaluation import Classifier
from subdistill_hf.teacher.class_ids import subtask_logits

BATCH: Final = 64
GREY: Final = 128
"""The level of the baseline: the grey image that says nothing of any class."""


@dataclass(frozen=True)
class ExplainedNetwork:
    """A classifier of the student's classes, seen from its pixels.

    Attributes:
        name: what messages call it.
        classifier: the network, its image processor, and which of its outputs are the student's classes.
    """

    name: str
    classifier: Classifier

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        device: torch.device = next(self.classifier.model.parameters()).device
        return device

    def pixels(self, images: Sequence[Tensor]) -> Tensor:
        """What its processor makes of byte images `(3, H, W)`: `(B, c, H', W')` on its device."""
        return process(self.classifier.processor, images).to(self.device)

    def baseline(self, images: Sequence[Tensor]) -> Tensor:
        """What its processor makes of grey images of the same sizes, `(B, c, H', W')`."""
        sizes = dict.fromkeys(image.shape for image in images)
        grey = {size: self.pixels([torch.full(size, GREY, dtype=torch.uint8)])[0] for size in sizes}
        return torch.stack([grey[image.shape] for image in images])

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits of the student's classes `(B, C)`, in at least float32; gradients flow through them to the pixels."""
        own = self.classifier
        with evaluation_mode(own.model):
            logits = logits_of(own.model(pixel_values=pixels))
        logits = subtask_logits(logits, own.class_ids, own.other)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def answers(self, images: Sequence[Tensor]) -> list[int]:
        """The class that it answers each byte image with."""
        found: list[int] = []
        for first in range(0, len(images), BATCH):
            found += self.logits(self.pixels(images[first : first + BATCH])).argmax(dim=1).tolist()
        return found

    def evidence(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """See `evidence_of`, `(B,)`."""
        return evidence_of(self.logits(pixels), targets)


def evidence_of(logits: Tensor, targets: Tensor) -> Tensor:
    """The logit of a class minus the largest of the others, `(B,)` (docs/method.md, "Explanations").

    For the class that is answered this is the margin. It is continuous, and differentiable almost everywhere.

    Args:
        logits: `(B, C)` of at least two classes.
        targets: the class of each row, `(B,)`.

    Raises:
        ValueError: for fewer than two classes.
    """
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"expected logits (B, C) of at least two classes, found shape {tuple(logits.shape)}")
    own = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], float("-inf"))
    return own[:, 0] - others.amax(dim=1)
