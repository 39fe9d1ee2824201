"""Statistics of the final runs: means, paired differences with their intervals, and ranks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import rankdata, t

from subdistill_hf.benchmark.jobs import Row

CONFIDENCE = 0.95
LEAST_SUBTASKS = 3
"""How many subtasks say something of others."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty.

    Attributes:
        mean: of the values.
        error: its standard error; NaN for one value.
        interval: half the width of its 95 % confidence interval (Student's t); NaN for one value.
        count: number of independent values.
    """

    mean: float
    error: float
    interval: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from independent values, at least one."""
        count = len(values)
        error = statistics.stdev(values) / math.sqrt(count) if count > 1 else math.nan
        quantile = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) if count > 1 else math.nan
        return cls(statistics.mean(values), error, quantile * error, count)

    @classmethod
    def over_subtasks(cls, values: Sequence[float], blocks: Sequence[tuple[str, int]]) -> Estimate:
        """The estimate from runs, for subtasks that were not run.

        Runs of one subtask with several seeds resemble each other, and do not count as independent: they are averaged
        first. Of fewer than `LEAST_SUBTASKS` nothing is known of others: then the runs count, and the estimate is for
        these subtasks alone.

        Args:
            values: one of each run.
            blocks: subtask and seed of each run.
        """
        means = list(means_by_subtask(values, blocks).values())
        return cls.of(means if len(means) >= LEAST_SUBTASKS else values)


def means_by_subtask(values: Sequence[float], blocks: Sequence[tuple[str, int]]) -> dict[str, float]:
    """The mean of the runs of each subtask.

    Args:
        values: one of each run.
        blocks: subtask and seed of each run.
    """
    found: dict[str, list[float]] = {}
    for (subtask, _), value in zip(blocks, values, strict=True):
        found.setdefault(subtask, []).append(value)
    return {subtask: statistics.mean(of_subtask) for subtask, of_subtask in found.items()}


@dataclass(frozen=True)
class Comparison:
    """All methods with one student at one number of training images, under one condition.

    Attributes:
        student: the student's recipe.
        train_images: training images a class, or a share of them.
        accuracies: method to test accuracy of each block, in the blocks' order; without those that are `left_out`.
        seconds: method to training time of each block.
        teacher: the teacher's accuracy of each block.
        blocks: subtask and seed of the runs that all methods have finished, but for those that are `left_out`.
        planned: number of blocks in the grid.
        failed: method to number of runs that diverged.
        left_out: methods of which some runs diverged, and none was finished: they have no figures.
        rows: method to the row of each block, in the blocks' order.
        condition: the name of the condition, where the file has some.
    """

    student: str
    train_images: float
    accuracies: Mapping[str, Sequence[float]]
    seconds: Mapping[str, Sequence[float]]
    teacher: Sequence[float]
    blocks: Sequence[tuple[str, int]]
    planned: int
    failed: Mapping[str, int]
    rows: Mapping[str, Sequence[Row]]
    condition: str | None = None
    left_out: Sequence[str] = ()

    def accuracy(self, method: str) -> Estimate:
        """Of a method, over all subtasks."""
        return self.estimate(self.accuracies[method])

    def difference(self, method: str, reference: str) -> Estimate:
        """Of a method to another, paired by subtask and seed."""
        return self.paired(self.accuracies[method], self.accuracies[reference])

    def paired(self, ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
        """Of the difference of two figures, of each one value a block."""
        return self.estimate([one - other for one, other in zip(ours, theirs, strict=True)])

    def estimate(self, values: Sequence[float]) -> Estimate:
        """Of one value a block, over all subtasks; see `Estimate.over_subtasks`."""
        return Estimate.over_subtasks(values, self.blocks)

    def mean_ranks(self) -> dict[str, float]:
        """Each method's rank among all, 1 for the best, averaged over the blocks; ties share theirs."""
        ranks = [rankdata([-value for value in block]) for block in zip(*self.accuracies.values(), strict=True)]
        columns = [[float(rank) for rank in column] for column in zip(*ranks, strict=True)]
        return dict(zip(self.accuracies, map(statistics.mean, columns), strict=True))

    def by_subtask(self, method: str) -> dict[str, float]:
        """Mean accuracy of a method on each subtask."""
        return means_by_subtask(self.accuracies[method], self.blocks)


def compare(rows: Sequence[Row], methods: Sequence[str]) -> list[Comparison]:
    """Group final rows by student, training images and condition, and keep the blocks that all methods have finished.

    A method that diverged wherever it ended is left out: otherwise it would take the figures of all others along.

    Args:
        rows: of the final runs; `test` is None of those that failed or are not finished yet.
        methods: the methods, in the table's order.
    """
    groups: dict[tuple[str, float, str | None], dict[tuple[str, int], dict[str, Row]]] = {}
    for row in rows:
        group = groups.setdefault((row["student"], row["train_images"], row.get("condition")), {})
        group.setdefault((row["subtask"], row["seed"]), {})[row["method"]] = row
    comparisons = []
    for (student, size, condition), blocks in groups.items():
        failed = {
            method: sum(found.get(method, {}).get("error") is not None for found in blocks.values())
            for method in methods
        }
        left_out = [
            method
            for method in methods
            if failed[method] and not any(_is_finished(found, method) for found in blocks.values())
        ]
        compared = [method for method in methods if method not in left_out]
        whole = {
            block: found
            for block, found in blocks.items()
            if compared and all(_is_finished(found, method) for method in compared)
        }
        comparisons.append(
            Comparison(
                student=student,
                train_images=size,
                accuracies={method: [found[method]["test"] for found in whole.values()] for method in compared},
                seconds={method: [found[method]["seconds"] for found in whole.values()] for method in compared},
                teacher=[found[compared[0]]["teacher_test"] for found in whole.values()],
                blocks=list(whole),
                planned=len(blocks),
                failed={method: count for method, count in failed.items() if count},
                rows={method: [found[method] for found in whole.values()] for method in compared},
                condition=condition,
                left_out=left_out,
            )
        )
    return comparisons


def _is_finished(block: Mapping[str, Row], method: str) -> bool:
    """Whether a method has an accuracy in a block."""
    return method in block and block[method]["test"] is not None
