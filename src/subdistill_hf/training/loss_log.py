"""Follow the parts of the loss between two log entries, and stop a run when one is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from subdistill_hf.errors import NonFiniteLossError

MOST_BATCHES = 100  # that are kept


class LossLog:
    """Sums of the named parts of the loss since the last log entry; nothing here waits for an accelerator."""

    def __init__(self) -> None:
        self.count = 0.0
        self._names: list[str] = []
        self._batches: list[Tensor] = []  # parts of these names, of batches that were not looked at yet
        self._shares: list[float] = []
        self._totals: dict[str, Tensor] = {}
        self._bad: Tensor | None = None  # which parts of the first batch with a bad one

    def add(self, names: Sequence[str], values: Tensor, step: int, share: float = 1.0) -> None:
        """Add the parts of one batch; it is kept, and summed up with others.

        On a CPU a part that is not finite stops the run at once. On an accelerator a look would stall the device:
        that has to wait until `means` looks.

        Args:
            names: of the parts.
            values: the parts, `(parts,)`, without gradient.
            step: the step, for the message.
            share: of this batch in its step, where several accumulate.

        Raises:
            NonFiniteLossError: naming the parts.
        """
        if list(names) != self._names:  # a subclass added a part or left one out
            self._sum_up()
            self._stop_if_not_finite(step)
            self._names, self._bad = list(names), None
        self._batches.append(values)
        self._shares.append(share)
        self.count += share
        bad = values.device.type == "cpu" and not bool(values.isfinite().all())
        if bad or len(self._batches) == MOST_BATCHES:
            self._sum_up()
        if bad:
            self._stop_if_not_finite(step)

    def means(self, step: int, reduce: Callable[[Tensor], Tensor] = lambda means: means) -> dict[str, float]:
        """The mean of each part since the last call; starts again from zero.

        Args:
            step: the step, for the message.
            reduce: takes the means of this process `(parts,)` to those of all processes.

        Raises:
            NonFiniteLossError: when a part was not finite.
        """
        self._sum_up()
        self._stop_if_not_finite(step)
        means = reduce(torch.stack([total / self.count for total in self._totals.values()]))
        named = dict(zip(self._totals, means.tolist(), strict=True))
        self._totals, self.count = {}, 0.0
        return named

    def _sum_up(self) -> None:
        """Take the kept batches into the totals, and note the first bad one: after it every part may be bad."""
        if not self._batches:
            return
        batches = torch.stack(self._batches)
        shares = torch.tensor(self._shares, dtype=torch.float32).to(batches.device, non_blocking=True)
        bad = ~batches.isfinite()
        first = bad.index_select(0, bad.any(dim=1).int().argmax()[None])[0]
        self._bad = first if self._bad is None else torch.where(self._bad.any(), self._bad, first)
        for name, total in zip(self._names, shares @ batches.float(), strict=True):
            self._totals[name] = self._totals[name] + total if name in self._totals else total
        self._batches, self._shares = [], []

    def _stop_if_not_finite(self, step: int) -> None:
        if self._bad is None or not bool(self._bad.any()):
            return
        bad = [name for name, flag in zip(self._names, self._bad.tolist(), strict=True) if flag]
        raise NonFiniteLossError(
            f"the loss of {', '.join(bad)} is NaN or infinite near step {step}. Likely causes: a learning rate or "
            "layer weight that is too large, or float16 overflow (use bf16)"
        )
