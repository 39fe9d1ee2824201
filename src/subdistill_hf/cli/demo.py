"""`subdistill demo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from subdistill_hf.cli import distill

HELP = "a whole run on embedded data, in a few minutes"
OPTIONS = (
    "--classes superclass:zodiac_signs --train_images_per_class 50 --compare scratch kd --max_steps 800 "
    "--teacher_cache 32 --output_dir demo-student --overwrite --report_to none"
)


def make_parser() -> argparse.ArgumentParser:
    """The parser of `--help`."""
    return argparse.ArgumentParser(
        prog="subdistill demo",
        usage="subdistill demo [OPTIONS]",
        description="A whole run on embedded data, in a few minutes: the same as\n\n"
        f"  subdistill distill {OPTIONS}\n\n"
        "Further options of distill (subdistill distill --help) are added to these, and count where both are given.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse(words: Sequence[str]) -> dict[str, Any]:
    """The demo's options, and those that words give."""
    make_parser().parse_known_args(words)
    return distill.parse(_with_options(words))


def run(given: dict[str, Any], words: Sequence[str]) -> None:
    """Distil the demo's student."""
    distill.run(given, _with_options(words))


def after_interruption(words: Sequence[str]) -> str:
    """How to go on after Ctrl-C."""
    return distill.after_interruption(_with_options(words))


def _with_options(words: Sequence[str]) -> list[str]:
    return [*OPTIONS.split(), *words]
