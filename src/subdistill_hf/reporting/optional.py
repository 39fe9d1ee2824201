"""Plots are extras: what cannot be drawn is reported in one line, and nothing else depends on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plot_is_optional(name: str) -> Iterator[None]:
    """Report an error of the block, which draws, in one line on the standard error, and go on after the block.

    Args:
        name: of the plot's file, or of the plots.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        print(f"note: {name} not drawn: {type(error).__name__}{f': {reason}' if reason else ''}", file=sys.stderr)
