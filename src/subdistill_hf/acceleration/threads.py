"""The CPU threads of a run: how idle ones wait, and how many share the work of a layer.

Threads of OpenMP meet after each operation. By default those that arrive first spin until the last one is there. Where
another process needs the same cores, the last one is often not running, and the others keep its core from it: with one
busy process on two cores the demo took 25 times as long as with threads that sleep while they wait.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables of the environment with which a user decides how threads wait."""
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables of the environment with which a user, or a launcher of several processes, decides how many there are."""
SHARE = 3e8
"""Floating-point operations of a layer, for one batch, that are worth a thread: some milliseconds.

With less, threads wait for each other longer than they work: see `benchmarks/speed.py --only threads`.
"""
QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Threads:
    """How many threads share the work of a layer.

    Attributes:
        count: the number.
        reason: why, in words.
    """

    count: int
    reason: str

    def __str__(self) -> str:
        return f"threads  {self.count} in each process: {self.reason}"


def wait_passively() -> None:
    """Let idle threads sleep, where the user did not decide that; too late once torch has been imported."""
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def suited_threads(operations: float, processes: int = 1) -> Threads:
    """The number of threads that suits the size of the networks; the same on the same machine, whatever else runs.

    It is not measured: a number that changed with the load of a machine would change the last bits of a training.

    Args:
        operations: floating-point operations of a layer in the mean, for a batch.
        processes: of the training, which share this machine's cores.

    Returns:
        What the user has decided, or else a thread for each `SHARE` of the operations, at most one for each core.
    """
    import torch  # only here: `wait_passively` comes before torch

    present = torch.get_num_threads()
    for name in COUNTS:
        if name in os.environ:
            return Threads(present, f"{name} is set")
    if present not in _counts_of_torch():
        return Threads(present, "torch.set_num_threads was called")
    most = max(1, min(available_cores() // processes, present))  # fewer may have been asked for: see above
    count = min(most, max(1, int(operations / SHARE)))
    size = f"a layer has {operations / 1e6:,.0f} million operations a batch, and each {SHARE / 1e6:.0f} are worth one"
    return Threads(count, f"of at most {most}; {size}")


def available_cores() -> int:
    """The cores that this process may use: those it is bound to, and no more than a container's share of time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return bound


def _counts_of_torch() -> set[int]:
    """The numbers of threads that torch may take by itself: one a core, or one for both halves of it."""
    counts = {os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        counts.add(len(os.sched_getaffinity(0)))
    return counts | {max(1, count // 2) for count in counts}


@contextmanager
def restored_threads() -> Iterator[None]:
    """However many threads are used inside the context, afterwards there are as many as before."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
