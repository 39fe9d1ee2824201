"""Follow the parts of the loss between two log entries, and stop a run when one is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subdistill_hf.errors import NonFiniteLossError


class LossParts:
    """Sums of the named parts of the loss since the last log entry; nothing here waits for the device."""

    def __init__(self) -> None:
        self.count = 0.0
        self._names: list[str] = []
        self._totals: Tensor | None = None  # of these names
        self._earlier: dict[str, Tensor] = {}  # of parts that were named before
        self._first_bad: Tensor | None = None

    def add(self, names: Sequence[str], values: Tensor, step: int, share: float = 1.0) -> None:
        """Add the parts of one batch.

        On a CPU a part that is not finite stops the run at once. On an accelerator a look would stall the device:
        the first bad batch is noted there, and `means` looks.

        Args:
            names: of the parts.
            values: the parts, `(parts,)`, without gradient.
            step: the step, for the message.
            share: of this batch in its step, where several accumulate.

        Raises:
            NonFiniteLossError: naming the parts.
        """
        if list(names) != self._names:  # a subclass added a part or left one out
            self._stop_if_not_finite(step)
            self._earlier = self._sums()
            self._names, self._totals, self._first_bad = list(names), None, None
        bad = ~values.isfinite()
        # Once a weight is NaN every part is: only the first bad batch tells which part it was.
        first = self._first_bad
        self._first_bad = bad if first is None else torch.where(first.any(), first, bad)
        if values.device.type == "cpu":
            self._stop_if_not_finite(step)
        added = share * values.float()
        self._totals = added if self._totals is None else self._totals + added
        self.count += share

    def means(self, step: int) -> dict[str, Tensor]:
        """The mean of each part since the last call; starts again from zero.

        Raises:
            NonFiniteLossError: when a part was not finite.
        """
        self._stop_if_not_finite(step)
        means = {name: total / self.count for name, total in self._sums().items()}
        self._totals, self._earlier, self.count = None, {}, 0.0
        return means

    def _sums(self) -> dict[str, Tensor]:
        sums = dict(self._earlier)
        if self._totals is not None:
            for name, total in zip(self._names, self._totals, strict=True):
                sums[name] = sums.get(name, torch.zeros_like(total)) + total
        return sums

    def _stop_if_not_finite(self, step: int) -> None:
        if self._first_bad is None or not bool(self._first_bad.any()):
            return
        bad = [name for name, flag in zip(self._names, self._first_bad.tolist(), strict=True) if flag]
        raise NonFiniteLossError(
            f"the loss of {', '.join(bad)} is NaN or infinite near step {step}. Likely causes: a learning rate or "
            "layer weight that is too large, or float16 overflow (use bf16)"
        )
