"""How the report of a benchmark says methods, numbers of images, and estimates with their errors."""

from __future__ import annotations

import math

from subdistill_hf.benchmark.config import Benchmark, Options, is_share
from subdistill_hf.benchmark.jobs import size_in_words
from subdistill_hf.benchmark.statistics import LEAST_SUBTASKS, Comparison, Estimate
from subdistill_hf.config.methods import METHODS
from subdistill_hf.reporting.local_paths import without_folders


def images_in_words(size: float) -> str:
    """A number of training images a class, or a share of them."""
    if is_share(size):
        return f"{size_in_words(size)} of the training images"
    return f"{size_in_words(size)} training image{'' if size == 1 else 's'} a class"


def label_of(benchmark: Benchmark, method: str) -> str:
    """The reader's name of a method: the label of the method that it is, or the name that the file gives it."""
    return METHODS[method].label if method in METHODS else method


def options_in_words(options: Options) -> str:
    """Options as `name value, name value`, without the folders of this machine."""
    known = without_folders(options)
    values = {name: f"{value:g}" if isinstance(value, float) else value for name, value in known.items()}
    return ", ".join(f"{name} {value}" for name, value in values.items())


def points(value: float) -> str:
    """A share in percent, or that it is unknown."""
    return "unknown" if math.isnan(value) else f"{100 * value:.1f}"


def with_error(estimate: Estimate) -> str:
    """A mean and its standard error, in percent."""
    return f"{100 * estimate.mean:.1f} ± {points(estimate.error)}"


def with_interval(estimate: Estimate) -> str:
    """A signed mean and, in brackets, its confidence interval, in percent."""
    if math.isnan(estimate.interval):
        return f"{100 * estimate.mean:+.1f}"
    low, high = estimate.mean - estimate.interval, estimate.mean + estimate.interval
    return f"{100 * estimate.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def resampled(comparison: Comparison) -> str:
    """What errors and intervals are over."""
    subtasks = len({subtask for subtask, _ in comparison.blocks})
    if subtasks >= LEAST_SUBTASKS:
        return f"Errors and intervals are over the {subtasks} subtasks; seeds of one are averaged first."
    these = "this subtask" if subtasks == 1 else f"these {subtasks} subtasks"
    return f"Errors and intervals are over the runs of {these}, and say nothing of others."
