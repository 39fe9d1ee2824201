"""Plots are extras: what cannot be drawn is reported in one line, and nothing else depends on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from subdistill_hf.config.output_folder import disk_fault


@contextmanager
def plot_is_optional(name: str) -> Iterator[None]:
    """Report an error of the block, which draws, in one line on the standard error, and go on after the block.

    A disk that is full is no error of a plot: what comes next would fail too, or be cut short.

    Args:
        name: of the plot's file, or of the plots.
    """
    try:
        yield
    except Exception as error:
        if disk_fault(error) is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        print(f"note: {name} not drawn: {type(error).__name__}{f': {reason}' if reason else ''}", file=sys.stderr)
