"""Several processes: whether there are any, what they share, and the end of their group; imports no torch itself."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def several_processes() -> bool:
    """Whether the process group of a launcher is open, whose processes share their statistics."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def processes_of_machine(processes: int) -> int:
    """The number of processes on this machine, as a launcher says; all of them where none says it.

    Args:
        processes: on all machines.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(processes)))


def average_over_processes(statistic: Tensor) -> Tensor:
    """The average of a statistic over processes, without gradient; itself where there is one.

    Exact when the processes hold batches of one size, which `accelerate` ensures.
    """
    if not several_processes():
        return statistic
    distributed = sys.modules["torch.distributed"]
    total = statistic.clone()
    distributed.all_reduce(total)
    average: Tensor = total / distributed.get_world_size()
    return average


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of the processes; those of this one where there is no other.

    Args:
        rows: `(N, ...)`, of the same shape in each process.
    """
    if not several_processes():
        return rows
    distributed = sys.modules["torch.distributed"]
    everyones = rows.new_empty(distributed.get_world_size() * len(rows), *rows.shape[1:])
    distributed.all_gather_into_tensor(everyones, rows.contiguous())
    return everyones


def largest_of_processes(number: int) -> int:
    """The largest of the numbers of all processes; itself where there is one."""
    if not several_processes():
        return number
    numbers: list[int] = [number] * sys.modules["torch.distributed"].get_world_size()
    sys.modules["torch.distributed"].all_gather_object(numbers, number)
    return max(numbers)


def close_process_group() -> None:
    """Close the process group of a launcher, if one is open, and wait until its threads are gone.

    A trainer that has run is full of reference cycles, and its `DistributedDataParallel` holds the group: closed, the
    group would live on to the end of the interpreter. There a thread of gloo that lets go of a tensor aborts the
    process (seen with torch 2.14 in one of some ten runs on a busy machine). The threads of a group that is still in
    use stay: call this when nothing refers to the trainer any more.
    """
    if several_processes():
        sys.modules["torch.distributed"].destroy_process_group()
        gc.collect()
