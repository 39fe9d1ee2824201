"""`subdistill benchmark`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subdistill_hf.config.commands import BenchmarkOptions
from subdistill_hf.config.extras import require_extra

if TYPE_CHECKING:
    from subdistill_hf.cli.parsing import OptionsParser

HELP = "compare methods over a grid of runs"


def make_parser() -> OptionsParser:
    """The parser of its options and the file of the grid."""
    from subdistill_hf.cli.parsing import OptionsParser

    parser = OptionsParser(BenchmarkOptions, prog="subdistill benchmark")
    parser.add_argument("config", help="YAML file of the grid: methods, subtasks, training images, seeds, students.")
    return parser


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The file and the options that words give."""
    return make_parser().only_given(words)


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Train what is missing of the grid, and write its results."""
    require_extra("plots", "subdistill benchmark")  # for its intervals, too
    from subdistill_hf.benchmark.command import benchmark
    from subdistill_hf.cli.parsing import without_token

    config = given.pop("config")
    benchmark(
        config, BenchmarkOptions(**given), command=shlex.join(["subdistill", "benchmark", *without_token(words)])
    )


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return "runs that are finished are kept; the same command goes on with the others"
