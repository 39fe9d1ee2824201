"""The end of a launcher's process group, before that of the interpreter."""

from __future__ import annotations

import gc
import sys


def has_process_group() -> bool:
    """Whether the process group of a launcher is open; imports no torch to say that it is not."""
    if "torch.distributed" not in sys.modules:
        return False
    from subdistill_hf.core.moments import several_processes

    return several_processes()


def close_process_group() -> None:
    """Close the process group of a launcher, if one is open, and wait until its threads are gone.

    A trainer that has run is full of reference cycles, and its `DistributedDataParallel` holds the group: closed, the
    group would live on to the end of the interpreter. There a thread of gloo that lets go of a tensor aborts the
    process (seen with torch 2.14 in one of some ten runs on a busy machine). The threads of a group that is still in
    use stay: call this when nothing refers to the trainer any more.
    """
    if has_process_group():
        sys.modules["torch.distributed"].destroy_process_group()
        gc.collect()
