"""Bars of other libraries, which would break up those of a run, are hidden while it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging


@contextmanager
def hidden_weight_bars() -> Iterator[None]:
    """Inside the context nothing shows a bar for reading and writing weights; afterwards all is as it was before.

    transformers switches the bars of the Hub's client with its own, and both may have been hidden apart.
    """
    shown = transformers_logging.is_progress_bar_enabled()
    shown_by_client = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
        if shown and not shown_by_client:
            disable_progress_bars()
        elif shown_by_client and not shown:
            enable_progress_bars()
