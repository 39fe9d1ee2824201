"""Spread runs over the cores or GPUs that there are, one run a process."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from subdistill_hf.acceleration.freed_memory import keep_freed_memory
from subdistill_hf.benchmark.config import BenchmarkError
from subdistill_hf.benchmark.jobs import Job, Row
from subdistill_hf.errors import SubDistillError

Run = Callable[[Job], Row]


def run_jobs(jobs: Sequence[Job], run: Run, workers: int, gpus: int = 0) -> Iterator[tuple[Job, Row]]:
    """Run jobs, and give each with its result as it ends.

    Args:
        jobs: in the order in which they start.
        run: makes a job's row; a function of a module, so that a fresh process finds it.
        workers: number of processes, each with one CPU thread; 0 runs everything in this process.
        gpus: number of GPUs; the processes share them out in turn.

    Raises:
        BenchmarkError: when a process is killed, or a run is refused.
    """
    if workers == 0:
        for job in jobs:
            with _naming(job):
                row = run(job)
            yield job, row
        return
    context = multiprocessing.get_context("spawn")
    devices = context.Queue()
    for worker in range(workers):
        devices.put(_device(worker % gpus) if gpus else None)
    # Each process reads these when it starts, before it imports torch.
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    before = {name: os.environ.get(name) for name in threads}
    os.environ.update({} if gpus else threads)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(devices,))
    try:
        with _left_out_of_ctrl_c():
            started = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(started):
            with _naming(started[future]):
                row = future.result()
            yield started[future], row
    except KeyboardInterrupt:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _left_out_of_ctrl_c() -> Iterator[None]:
    """Processes that start inside the context are not told of Ctrl-C: this one is, and ends them without a word.

    It is told when the context ends: the signal is held back, which processes inherit, and not ignored.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where processes inherit nothing of this
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _naming(job: Job) -> Iterator[None]:
    """Say which run an error comes from."""
    try:
        yield
    except BrokenProcessPool as error:
        raise BenchmarkError(
            "a process of the benchmark was killed (out of memory?): start the command again with fewer --workers; "
            "finished runs are kept"
        ) from error
    except SubDistillError as error:
        raise BenchmarkError(f"{job}: {error}") from error


def _device(index: int) -> str:
    """The name of a GPU among those that this process may use."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[index] if visible else str(index)


def _start(devices: Any) -> None:
    """Take a GPU, keep freed memory, and end with the parent: a killed parent cannot say so."""
    keep_freed_memory()
    device = devices.get()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def end_with_parent() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
