"""Image-text models that read images of any shape as a list of patches (SigLIP 2 NaFlex), with square images alone."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SiglipImageProcessor


def reads_patches(model: Any) -> bool:
    """Whether an image-text model takes the patches of images, and not images of one size."""
    return (
        hasattr(getattr(model.config, "vision_config", None), "num_patches") and model.config.model_type == "siglip2"
    )


class OfOneSize(nn.Module):
    """An image-text model of patches that takes square images `(B, 3, H, W)` as others do.

    They have as many patches as the model has positions, so that no position is interpolated. What it answers to a
    square image is what the model answers to it; an image of another shape is made square first.

    Args:
        model: that takes patches, see `reads_patches`.

    Attributes:
        side: height and width of the images.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = copy.deepcopy(model.config)
        self.patch = int(self.config.vision_config.patch_size)
        self.side = self.patch * math.isqrt(self.config.vision_config.num_patches)
        self.config.vision_config.image_size = self.side

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of the factor of the cosines."""
        scale: Tensor = self.model.logit_scale
        return scale

    @property
    def logit_bias(self) -> Tensor:
        """What is added to each scaled cosine."""
        bias: Tensor = self.model.logit_bias
        return bias

    def get_text_features(self, **tokens: Tensor) -> Any:
        """The embeddings of texts."""
        return self.model.get_text_features(**tokens)

    def get_image_features(self, pixel_values: Tensor) -> Any:
        """The embeddings of images `(B, 3, H, W)`."""
        return self.model.get_image_features(**self._patches(pixel_values))

    def forward(self, pixel_values: Tensor, **tokens: Tensor) -> Any:
        """The model's own output for images `(B, 3, H, W)` and texts."""
        return self.model(**self._patches(pixel_values), **tokens)

    def _patches(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """The patches of images row by row, each with its colours last, as the model's own processor makes them."""
        images, colours, height, width = pixel_values.shape
        rows, columns = height // self.patch, width // self.patch
        patches = pixel_values.reshape(images, colours, rows, self.patch, columns, self.patch)
        return {
            "pixel_values": patches.permute(0, 2, 4, 3, 5, 1).reshape(images, rows * columns, -1),
            "pixel_attention_mask": torch.ones(images, rows * columns, dtype=torch.int32, device=pixel_values.device),
            "spatial_shapes": torch.tensor([[rows, columns]] * images, device=pixel_values.device),
        }

    def square_processor(self, processor: Any) -> SiglipImageProcessor:
        """What makes images of any shape into pixels `(3, H, W)`, otherwise as the model's own processor does."""
        return SiglipImageProcessor(
            size={"height": self.side, "width": self.side},
            resample=processor.resample,
            do_rescale=processor.do_rescale,
            rescale_factor=processor.rescale_factor,
            do_normalize=processor.do_normalize,
            image_mean=processor.image_mean,
            image_std=processor.image_std,
        )
