"""Jobs on Ray: a local Ray that is started for them, or a cluster that is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from subdistill_hf.config.extras import require_extra
from subdistill_hf.errors import SubDistillError
from subdistill_hf.executors.base import ExecutionError, Failures, Job, Result

RETRIES: Final = 1
"""How often a job is run again whose process was killed."""


@dataclass(frozen=True)
class RayExecutor:
    """Ray's worker processes, each with one CPU thread or one GPU.

    Attributes:
        workers: jobs at a time; as many as Ray has room for with `None`.
        gpu: whether a job takes a GPU.
        address: of a cluster; a Ray of this machine is started and ended with `None`.

    Raises:
        MissingExtraError: where Ray is not installed.
    """

    workers: int | None = None
    gpu: bool = False
    address: str | None = None

    def __str__(self) -> str:
        return "as many at a time as Ray has room for" if self.workers is None else f"{self.workers} at a time on Ray"

    def __post_init__(self) -> None:
        require_extra("ray", "executor=ray")

    def run(self, jobs: Sequence[Job], function: Callable[[Job], Result]) -> Iterator[tuple[Job, Result]]:
        """Run jobs, see `Executor.run`; where a process is killed, the others go on, and its job is run once more."""
        with self._ray() as ray:
            task = ray.remote(function).options(num_cpus=1, num_gpus=int(self.gpu), max_retries=RETRIES)
            left, killed, failures = list(jobs), [], Failures()
            running: dict[Any, Job] = {}
            try:
                while (left and not failures) or running:
                    while left and not failures and (self.workers is None or len(running) < self.workers):
                        job = left.pop(0)
                        running[task.remote(job)] = job
                    (ended,), _ = ray.wait(list(running), num_returns=1)
                    job = running.pop(ended)
                    try:
                        result = ray.get(ended)
                    except ray.exceptions.RayTaskError as error:
                        with failures.kept():
                            if isinstance(error.cause, SubDistillError):
                                raise ExecutionError(f"{job}: {error.cause}") from error
                            raise
                        continue
                    except ray.exceptions.RayError as error:  # of the process or its machine
                        killed.append(f"{job}: {type(error).__name__}")
                        continue
                    yield job, result
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)
        if killed:
            with failures.kept():
                raise ExecutionError(
                    f"killed {1 + RETRIES} times (out of memory?): {'; '.join(killed)}. Start the command again; "
                    "finished runs are kept"
                )
        failures.tell()

    @contextmanager
    def _ray(self) -> Iterator[Any]:
        """Ray, connected; ended on exit where it was started here."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray starts
        import ray

        if ray.is_initialized():
            yield ray
            return
        local = {} if self.address else {"num_cpus": self.workers, "include_dashboard": False}
        try:
            ray.init(address=self.address or "local", **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = f"at ray_address={self.address!r}" if self.address else "on this machine"
            raise ExecutionError(f"no Ray {where}: {error}") from error
        try:
            yield ray
        finally:
            ray.shutdown()
