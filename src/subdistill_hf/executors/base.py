"""What an executor is, and the error of a job that it could not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from subdistill_hf.errors import InterruptedTrainingError, SubDistillError

Job = TypeVar("Job")
Result = TypeVar("Result")

KILLED = (
    "a process of the runs was killed (out of memory?): start the command again with fewer --workers; finished runs "
    "are kept"
)


class ExecutionError(SubDistillError):
    """A run that was refused, or whose process was killed."""


class Failures:
    """The errors of jobs beside which others still run: kept until these have ended, so that no result is lost."""

    def __init__(self) -> None:
        self._kept: list[Exception] = []

    def __bool__(self) -> bool:
        return bool(self._kept)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep an error of the context."""
        try:
            yield
        except Exception as error:
            self._kept.append(error)

    def tell(self) -> None:
        """Raise what was kept, if anything was: all refusals together, but first what nobody foresaw."""
        for error in self._kept:
            if not isinstance(error, ExecutionError):
                raise error
        if self._kept:
            first, *others = dict.fromkeys(map(str, self._kept))
            raise ExecutionError("; ".join([first, *others])) from self._kept[0]


class Executor(Protocol):
    """An engine that runs jobs, which do not depend on each other."""

    def run(self, jobs: Sequence[Job], function: Callable[[Job], Result]) -> Iterator[tuple[Job, Result]]:
        """Run jobs, and give each with its result as it ends.

        Args:
            jobs: in the order in which they start; each is named by its `str` in errors.
            function: makes a job's result; a function of a module, so that a fresh process finds it.

        After an error no further job is started; those that run beside it end first, and are given.

        Raises:
            ExecutionError: when a job is refused, or its process is killed.
        """
        ...


@contextmanager
def naming(job: Any) -> Iterator[None]:
    """Say which job an error comes from."""
    try:
        yield
    except InterruptedTrainingError:  # which no further run is to follow
        raise
    except SubDistillError as error:
        raise ExecutionError(f"{job}: {error}") from error
