"""Spread jobs over the cores or GPUs of this machine, one job a process at a time."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from subdistill_hf.acceleration.freed_memory import keep_freed_memory
from subdistill_hf.executors.base import KILLED, ExecutionError, Failures, Job, Result, naming


@dataclass(frozen=True)
class LocalPool:
    """Processes of this machine, each with one CPU thread or one GPU.

    Attributes:
        workers: number of processes; 0 runs everything in this process.
        gpus: number of GPUs; the processes share them out in turn.
    """

    workers: int
    gpus: int = 0

    def __str__(self) -> str:
        return f"{max(self.workers, 1)} at a time"

    def run(self, jobs: Sequence[Job], function: Callable[[Job], Result]) -> Iterator[tuple[Job, Result]]:
        """Run jobs, see `Executor.run`; where a process is killed, those that run beside it are killed too."""
        if self.workers == 0:
            for job in jobs:
                with naming(job):
                    result = function(job)
                yield job, result
            return
        context = multiprocessing.get_context("spawn")
        devices = context.Queue()
        for worker in range(self.workers):
            devices.put(_device(worker % self.gpus) if self.gpus else None)
        # Each process reads these when it starts, before it imports torch.
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        before = {name: os.environ.get(name) for name in threads}
        os.environ.update({} if self.gpus else threads)
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_start, initargs=(devices,))
        try:
            yield from self._run(pool, jobs, function)
        except (KeyboardInterrupt, GeneratorExit):  # the latter where nobody takes the results any more
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

    def _run(
        self, pool: ProcessPoolExecutor, jobs: Sequence[Job], function: Callable[[Job], Result]
    ) -> Iterator[tuple[Job, Result]]:
        """Give each result; the pool gets no more jobs than it has processes, since it starts what it was given."""
        left, failures = deque(jobs), Failures()
        running: dict[Future[Result], Job] = {}
        ended: list[tuple[Job, Result]] = []
        while True:
            while left and not failures and len(running) < self.workers:
                job = left.popleft()
                with failures.kept(), _told(job), _left_out_of_ctrl_c():
                    running[pool.submit(function, job)] = job
            yield from ended  # the processes have their next jobs already
            if not running:
                break
            ended = []
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                with failures.kept(), _told(job):
                    ended.append((job, future.result()))
        failures.tell()


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
def _told(job: Any) -> Iterator[None]:
    """Say which job an error comes from, and what to do where a process was killed."""
    try:
        with naming(job):
            yield
    except BrokenProcessPool as error:
        raise ExecutionError(KILLED) from error


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
