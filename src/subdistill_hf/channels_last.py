"""Networks that cannot be trained in channels-last memory on a CPU."""

from __future__ import annotations

import torch
from torch import nn

from subdistill_hf.errors import DistillationError

LEAST_CHANNELS = 16


def check_channels_last(model: nn.Module, device: torch.device) -> None:
    """Refuse strided 1x1 convolutions of few channels on a CPU.

    Their backward pass in channels-last memory writes outside its memory there (torch 2.15), and the process dies
    sooner or later.

    Args:
        model: what is trained.
        device: where.

    Raises:
        DistillationError: naming the first such convolution.
    """
    if device.type != "cpu":
        return
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and max(module.stride) > 1
            and module.in_channels // module.groups < LEAST_CHANNELS
        ):
            raise DistillationError(
                f"{name!r} is a strided 1x1 convolution of {module.in_channels // module.groups} channels, whose "
                "training in channels-last memory breaks torch's memory on a CPU: leave out channels_last, or use a "
                f"student with at least {LEAST_CHANNELS} channels there"
            )
