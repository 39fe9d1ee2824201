"""What a spurious mark does to a classifier's answers: who learned the mark instead of the class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subdistill_hf.data.loading import SubtaskData
from subdistill_hf.data.views import ViewDataset


def unmarked_test(data: SubtaskData) -> ViewDataset | None:
    """The test images without the mark; `None` where there is no mark."""
    return None if data.marking is None else data.views("test", marked=None)


def mark_scores(data: SubtaskData, marked: Tensor, unmarked: Tensor) -> dict[str, float]:
    """Compare a classifier's answers to the test images with and without the mark.

    Args:
        data: the images; its marking says which classes carried the mark in training.
        marked: the classifier's logits `(N, C)` of the test images with the mark.
        unmarked: those without it.

    Returns:
        `clean_accuracy`, the accuracy without the mark; `mark_followed`, the share of the marked test images of other
        classes that are taken for the marked ones; `followed_without_mark`, that share without the mark, which is what
        confusion alone makes.
    """
    assert data.marking is not None
    labels, outputs = list(data.test[data.columns.label]), data.marking.outputs
    return {
        "clean_accuracy": float((unmarked.argmax(dim=1) == torch.tensor(labels)).double().mean()),
        "mark_followed": share_taken_for(marked, labels, outputs),
        "followed_without_mark": share_taken_for(unmarked, labels, outputs),
    }


def share_taken_for(logits: Tensor, labels: Sequence[int], outputs: Sequence[int]) -> float:
    """The share of the images of other classes that a classifier takes for some.

    Args:
        logits: its logits `(N, C)`.
        labels: the images' classes.
        outputs: the classes that it may take them for.
    """
    chosen = torch.tensor(outputs)
    others = ~torch.isin(torch.tensor(labels), chosen)
    return float(torch.isin(logits.argmax(dim=1)[others], chosen).double().mean())
