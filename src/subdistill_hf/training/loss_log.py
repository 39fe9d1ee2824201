"""Follow the parts of the loss between two log entries, and stop a run when one is not finite or has diverged."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import TrainerState

from subdistill_hf.errors import DistillationError, DivergedError, NonFiniteLossError

logger = logging.getLogger(__name__)

MOST_BATCHES = 100  # that are kept
LAST_BATCHES = 20  # whose median is where a training ended
DIVERGED = 100.0  # times the first loss
CAUSES = "a learning rate or layer weight that is too large, or float16 overflow (use bf16)"  # of what is not finite


class LossLog:
    """Sums of the named parts of the loss since the last log entry; nothing here waits for an accelerator.

    Attributes:
        count: batches since the last log entry.
        kept_from: the step of the best checkpoint, once `check_end` found that the training diverged after it.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.kept_from: int | None = None
        self._names: list[str] = []
        self._batches: list[Tensor] = []  # parts of these names, of batches that were not looked at yet
        self._shares: list[float] = []
        self._totals: dict[str, Tensor] = {}
        self._bad: Tensor | None = None  # which parts of the first batch with a bad one
        self._inputs: Mapping[str, Tensor | None] = {}  # of the latest batch
        self._first: Tensor | None = None  # loss of a batch
        self._last: deque[Tensor] = deque(maxlen=LAST_BATCHES)
        self._batch_count = 0
        self._at_checkpoints: dict[int, Tensor] = {}  # step to the loss of the batches before it

    def add(
        self,
        names: Sequence[str],
        values: Tensor,
        step: int,
        share: float = 1.0,
        inputs: Mapping[str, Tensor | None] | None = None,
    ) -> None:
        """Add the parts of one batch; it is kept, and summed up with others.

        On a CPU a part that is not finite stops the run at once. On an accelerator a look would stall the device:
        that has to wait until `means` looks.

        Args:
            names: of the parts.
            values: the parts, `(parts,)`, without gradient.
            step: the step, for the message.
            share: of this batch in its step, where several accumulate.
            inputs: what the loss was made of beside the student, by the name of who gave it: where this is not
                finite, the message names it.

        Raises:
            NonFiniteLossError: naming the parts, or the input.
        """
        self._inputs = inputs or {}
        self._batch_count += 1
        self._last.append(values.sum())
        self._first = self._last[0] if self._first is None else self._first
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

    def note_checkpoint(self, step: int) -> None:
        """Keep the loss of the last batches: the student of this step may be the one that is handed out."""
        if self._last:
            self._at_checkpoints[step] = self._recent()

    def check_end(
        self,
        state: TrainerState,
        smallest: float,
        reduce: Callable[[Tensor], Tensor] = lambda ends: ends,
        loaded: int | None = None,
    ) -> None:
        """Refuse to call a training a success that trained nothing, or whose loss has grown far beyond its beginning.

        The latter is when the median of its last `LAST_BATCHES` batches, at most half of all, is more than `DIVERGED`
        times the loss of its first batch, before any step. A training that goes wrong may still be finite: float32
        reaches 1e38. A student of a checkpoint from before that is usable: then it is said, and no error.

        Args:
            state: of the training; of the losses that it logged the first counts where it is smaller, since a resumed
                training may have diverged before it was interrupted.
            smallest: loss that counts as a beginning; a student that begins as its teacher has a loss of almost 0.
            reduce: takes losses of this process `(n,)` to their means over all processes.
            loaded: the step of the best checkpoint, where the student is that of it and not of the last step.

        Raises:
            DistillationError: when there was no step.
            DivergedError: with both losses.
        """
        if not state.global_step:
            raise DistillationError("nothing was trained: there was no batch of training images")
        if self._first is None:  # resumed at its end
            return
        ends = [self._first, self._recent(), *([] if loaded is None else [self._loss_at(loaded, state)])]
        first, last, *of_loaded = reduce(torch.stack(ends).float()).tolist()
        first = min([first, *[entry["loss"] for entry in state.log_history if "loss" in entry][:1]])
        most = DIVERGED * max(first, smallest)
        if last <= most:
            return
        causes = "Likely causes: a learning rate or layer weight that is too large, or no clipping (max_grad_norm)"
        grown = f"the loss of its last steps is {last:.3g}, and was {first:.3g} at the first"
        if of_loaded and of_loaded[0] <= most:
            self.kept_from = loaded
            logger.warning(
                f"the training has diverged: {grown}. The student is that of the best checkpoint, of step {loaded}, "
                f"where the loss was {of_loaded[0]:.3g}; the steps after it were in vain. {causes}"
            )
            return
        raise DivergedError(f"the training has diverged: {grown}. The student is not usable. {causes}")

    def _recent(self) -> Tensor:
        """The median loss of the last batches."""
        return torch.stack(list(self._last)[-max(self._batch_count // 2, 1) :]).median()

    def _loss_at(self, step: int, state: TrainerState) -> Tensor:
        """The loss at a checkpoint: noted, or logged before the training was resumed; infinite where nobody knows."""
        logged = [entry["loss"] for entry in state.log_history if "loss" in entry and entry["step"] <= step]
        known = self._at_checkpoints.get(step)
        return self._last[-1].new_tensor([math.inf, *logged][-1]) if known is None else known

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
        for name, values in self._inputs.items():
            if values is not None and not bool(values.isfinite().all()):
                raise NonFiniteLossError(
                    f"{name} are NaN or infinite near step {step}, and so is the loss of {', '.join(bad)}: look there "
                    "for the cause, the weights that gave them or the precision in which they were computed"
                )
        causes = CAUSES
        if step == 0:  # no weight was changed yet
            causes = "the student's weights as they came, a layer weight that is too large, or float16 overflow"
        raise NonFiniteLossError(
            f"the loss of {', '.join(bad)} is NaN or infinite near step {step}. Likely causes: {causes}"
        )


def naming_best(error: NonFiniteLossError, state: TrainerState) -> NonFiniteLossError:
    """The error of a training, with the folder of its best student before that, if there is one."""
    best = state.best_model_checkpoint
    return NonFiniteLossError(f"{error}" if best is None else f"{error}. The best student before that is in {best}")
