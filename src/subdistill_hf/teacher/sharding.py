"""A frozen teacher whose weights are spread over the processes, by torch's FSDP2: each holds its share of them.

A layer's weights are gathered for its pass and left again, so that what a pass computes is what it computes with whole
weights. Each pass takes all processes: one that has no more images goes along with the others, see `repeating_last`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from subdistill_hf.errors import DistillationError

Item = TypeVar("Item")

LARGEST_PART: Final = 1 / 8
"""The share of all weights that is gathered at once, at most, where modules can be told apart so finely."""
SMALLEST_PART: Final = 1 / 1000
"""The share of all weights that is worth a gathering of its own; smaller modules go with those around them."""
READ_FROM_OUTSIDE: Final = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that read weights of the modules in them, whose own forward function is then not called."""


def sharded(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a frozen network, each process with its share of the weights.

    The network itself stays whole, where it is. No more than a part of the copy is whole on the device at a time.

    Args:
        model: the network, frozen, the same in each process.
        device: where the copy runs.

    Raises:
        DistillationError: for weights that are not plain floating-point numbers, or that a PEFT adapter changes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    _check_shardable(model)
    model = copy.deepcopy(model)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in [*_parts_of(model), model]:  # the network last: it takes what is in none of the others
        part.register_forward_hook(_without_views)
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether a network's weights are spread over the processes."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def forget_passes(model: nn.Module) -> None:
    """Let a sharded network forget passes that no backward pass follows, where its torch can."""
    reset: Any = getattr(model, "reset_iter_state", None)
    if reset is not None:
        reset()


def repeating_last(batches: Iterable[Item], count: int) -> Iterator[Item]:
    """Batches, of which the last comes again until there are as many as the process with most of them has."""
    number = 0
    for batch in batches:
        yield batch
        number += 1
    for _ in range(number, count):
        yield batch


def first_of(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The first items; the rest is made, too, and left out."""
    for number, item in enumerate(items):
        if number < count:
            yield item


def _check_shardable(model: nn.Module) -> None:
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise DistillationError(
            "shard_teacher: the teacher has a PEFT adapter, which may be switched: merge it (merge_and_unload), or "
            "leave shard_teacher out"
        )
    for name, tensor in model.named_parameters():
        if type(tensor) is not nn.Parameter or not tensor.is_floating_point():
            raise DistillationError(
                f"shard_teacher: the teacher's weight {name!r} is a {type(tensor).__name__} of {tensor.dtype}, and "
                "quantised weights cannot be spread: give a teacher of floating-point weights, or leave "
                "shard_teacher out"
            )


def _parts_of(model: nn.Module) -> list[nn.Module]:
    """The modules whose weights are gathered together, each in none of the others: blocks, of most networks."""
    whole = _weights_in(model)
    found: list[nn.Module] = []

    def look_into(outer: nn.Module) -> None:
        for module in outer.children():
            weights = _weights_in(module)
            runs = not isinstance(module, nn.ModuleList | nn.ModuleDict)
            if weights < SMALLEST_PART * whole:
                continue
            if runs and (weights <= LARGEST_PART * whole or isinstance(module, READ_FROM_OUTSIDE)):
                found.append(module)
            else:
                look_into(module)

    look_into(model)
    return found


def _weights_in(module: nn.Module) -> int:
    return sum(math.prod(weight.shape) for weight in module.parameters())


def _without_views(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Give copies in place of views: an operation in place on one would lose FSDP's hook in the backward pass."""

    def own(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.requires_grad and tensor._base is not None else tensor

    return tree_map_only(Tensor, own, output)
