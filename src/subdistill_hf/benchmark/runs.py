"""The runs of a grid in a folder: which are finished, and how those that are missing are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from subdistill_hf.benchmark.config import BenchmarkError
from subdistill_hf.benchmark.jobs import Job, Row
from subdistill_hf.benchmark.store import Results
from subdistill_hf.benchmark.training import train_job
from subdistill_hf.benchmark.weights import is_of_these_weights, weights_of_folders
from subdistill_hf.executors.base import Executor
from subdistill_hf.hub.files import weights_identity

NOT_FINISHED: Final[Mapping[str, None]] = {"test": None}
"""What a failed run has too, beside its error."""


class Runs:
    """The runs of a grid.

    A run is finished when the file has its row, and the folders of its teacher and student still hold the weights that
    it had.

    Args:
        results: the file.
        executor: makes the runs that are missing; `None` to report those that are finished, and make none.
    """

    def __init__(self, results: Results, executor: Executor | None) -> None:
        self.results = results
        self.executor = executor

    def rows(self, jobs: Sequence[Job]) -> list[Row]:
        """The row of each job, as far as it is finished.

        Raises:
            BenchmarkError: when one had other weights, and no runs may be made.
        """
        if self.executor is None and (others := self._of_other_weights(jobs)):
            raise BenchmarkError(
                f"report_only: {len(others)} of {len(jobs)} runs in {self._folder} had other weights of their teacher "
                "or student than its folder holds now: start the command without it, which makes them anew"
            )
        return [{**self.results.rows.get(job.key, NOT_FINISHED), **job.described()} for job in jobs]

    def run_all(self, jobs: Sequence[Job]) -> list[Row]:
        """Make what is missing, with a line for each run, and give the row of each job.

        Raises:
            BenchmarkError: when something is missing, and no runs may be made.
            ExecutionError: when a run is refused, or its process is killed.
        """
        anew = self._of_other_weights(jobs)
        missing = {job.key: job for job in jobs if job.key not in self.results.rows}
        if self.executor is None:
            if missing:
                raise BenchmarkError(
                    f"report_only: {len(missing)} of {len(jobs)} runs that choose hyper-parameters are not finished "
                    f"in {self._folder}: start the command without it"
                )
            return self.rows(jobs)
        if anew:
            print(f"{len(anew)} runs had other weights of their teacher or student: they are made anew", flush=True)
        missing |= anew
        if missing:
            print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are done; {self.executor}", flush=True)
        for number, (job, row) in enumerate(self.executor.run(list(missing.values()), train_job), start=1):
            self.results.add(row)
            print(f"[{number}/{len(missing)}] {job}: {_told(row)}", flush=True)
        return self.rows(jobs)

    def _of_other_weights(self, jobs: Sequence[Job]) -> dict[str, Job]:
        """Those that have a row, which is of other weights than their folders hold now."""
        found = {job.key: job for job in jobs if job.key in self.results.rows}
        identity = cache(weights_identity)  # many runs have the same teacher
        return {
            key: job
            for key, job in found.items()
            if not is_of_these_weights(self.results.rows[key], weights_of_folders(job.task, identity))
        }

    @property
    def _folder(self) -> Path:
        return self.results.path.parent


def _told(row: Row) -> str:
    if row.get("error"):
        return str(row["error"])
    return f"validation {100 * row['validation']:.1f}, test {100 * row['test']:.1f} ({row['seconds']:.0f} s)"
