"""Whether a network's convolutions lie in channels-last memory while it is trained: where it is faster, and safe."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import nn

from subdistill_hf.core.hooks import evaluation_mode
from subdistill_hf.errors import DistillationError

LEAST_CHANNELS = 16
logger = logging.getLogger(__name__)


def take_memory_format(
    model: nn.Module,
    run: Callable[[], Any],
    device: torch.device,
    half_precision: bool,
    wanted: bool | None,
    tried: MutableMapping[nn.Module, str | None] | None = None,
) -> None:
    """Let the weights of a network's convolutions lie channels last, or contiguously.

    Args:
        model: the network, student or teacher.
        run: lets it see a few images.
        device: where it runs.
        half_precision: whether it runs in bfloat16 or float16.
        wanted: what the user says. Left open, it is channels last where torch is faster so, on x86 CPUs in full
            precision (`benchmarks/speed.py`) and on accelerators in half precision, unless the network could not be
            trained.
        tried: network to why it cannot run channels last, `None` where it can; a network that is in it is not tried
            again, one that is not gets an entry.

    Raises:
        DistillationError: when channels last is wanted of a network that could not be trained.
    """
    if wanted is False or (wanted is None and not _is_faster(device, half_precision)):
        leave_channels_last(model)
        return
    unsafe = unsafe_convolution(model, device)
    tried = {} if tried is None else tried
    is_tried = model in tried
    if unsafe is None and not is_tried:
        tried[model] = _why_not_channels_last(model, run)
    why_not = unsafe or tried[model]
    if why_not is None:
        model.to(memory_format=torch.channels_last)
        return
    leave_channels_last(model)
    if wanted:
        hint = f", or use a network with at least {LEAST_CHANNELS} channels there" if unsafe else ""
        raise DistillationError(
            f"{type(model).__name__} cannot be trained in channels-last memory: {why_not}; leave out "
            f"channels_last{hint}"
        )
    if not is_tried:
        logger.info("%s is not trained in channels-last memory: %s", type(model).__name__, why_not)


def _is_faster(device: torch.device, half_precision: bool) -> bool:
    """Whether channels last is faster: of CPUs those of the kind that was measured, with the kernels of oneDNN."""
    if device.type != "cpu":
        return half_precision
    with_onednn: bool = torch.backends.mkldnn.is_available()
    return not half_precision and with_onednn and platform.machine().lower() in ("x86_64", "amd64")


def leave_channels_last(model: nn.Module) -> None:
    """Let all weights lie contiguously."""
    model.to(memory_format=torch.contiguous_format)


def unsafe_convolution(model: nn.Module, device: torch.device) -> str | None:
    """The first convolution that torch cannot train in channels-last memory, described; `None` without one.

    These are strided 1x1 convolutions of few channels on a CPU, whose backward pass leaves its memory (torch 2.8 to
    2.15): gradients are wrong where vectors have 8 numbers, and the process hangs, or dies sooner or later.
    """
    if device.type != "cpu":
        return None
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and max(module.stride) > 1
            and module.in_channels // module.groups < LEAST_CHANNELS
        ):
            return (
                f"{name!r} is a strided 1x1 convolution of {module.in_channels // module.groups} channels, with which "
                "torch breaks its memory on a CPU"
            )
    return None


def _why_not_channels_last(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """Bring the network there and try it: one that looks at its maps as if they lay contiguously cannot run."""
    try:
        model.to(memory_format=torch.channels_last)
        with evaluation_mode(model), torch.no_grad():
            run()
    except RuntimeError as error:
        return str(error)
    return None
