"""The executor that options ask for."""

from __future__ import annotations

from subdistill_hf.config.commands import ExecutionOptions
from subdistill_hf.executors.base import ExecutionError, Executor
from subdistill_hf.executors.local import LocalPool
from subdistill_hf.executors.on_ray import RayExecutor


def executor_of(options: ExecutionOptions, workers: int | None, local_workers: int, gpus: int) -> Executor:
    """The executor, before anything is started.

    Args:
        options: which one.
        workers: jobs at a time, where that was given.
        local_workers: the local pool's, where nothing was given.
        gpus: number of GPUs of this machine.

    Raises:
        ExecutionError: for a number of workers that does not fit.
        MissingExtraError: for Ray where it is not installed.
    """
    if workers is not None and workers < 0:
        raise ExecutionError(f"workers={workers}: expected at least 0")
    if options.executor == "local":
        return LocalPool(local_workers if workers is None else workers, gpus)
    if workers == 0:
        raise ExecutionError("workers=0 runs everything in this process, without executor=ray: expected at least 1")
    return RayExecutor(workers, gpu=gpus > 0, address=options.ray_address)
