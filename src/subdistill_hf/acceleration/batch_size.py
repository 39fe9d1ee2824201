"""Smaller batches where the device's memory is too small for larger ones."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def within_memory(work: Callable[[int], Result], batch_size: int) -> Result:
    """Do some work in batches, restarted with half the batch size whenever memory runs out.

    Args:
        work: takes the batch size; must leave nothing behind when it fails.
        batch_size: what is tried first.

    Raises:
        torch.OutOfMemoryError: when a single image is too much.
    """
    while True:
        try:
            return work(batch_size)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(f"the device's memory is too small: continuing with batches of {batch_size}", stacklevel=2)
