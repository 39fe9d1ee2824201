"""A training that SIGTERM stops once a checkpoint is written, as `enable_jit_checkpoint` asks for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer

from subdistill_hf.errors import InterruptedTrainingError
from subdistill_hf.training.loaders import replaced


def train_to_its_end(trainer: Trainer, checkpoint: str | None, what: str, advice: Callable[[], str]) -> None:
    """Train; a stopping rule of a callback ends a training too, but not SIGTERM.

    transformers writes a checkpoint on SIGTERM and then ends the training as if it were over: what follows would take
    a student that is half trained for a finished one.

    Args:
        trainer: of which transformers may listen for SIGTERM.
        checkpoint: that it resumes, if any.
        what: is trained, for the message.
        advice: what is kept, and how to go on.

    Raises:
        InterruptedTrainingError: when SIGTERM stopped it before its last step.
    """
    manager = _manager_of(trainer)
    if manager is None:
        trainer.train(resume_from_checkpoint=checkpoint)
        return
    stopped: list[int] = []
    write = manager.execute_jit_checkpoint

    def note_and_write() -> None:
        stopped.append(trainer.state.global_step)
        write()

    with replaced(manager, execute_jit_checkpoint=note_and_write), _listening(manager):
        trainer.train(resume_from_checkpoint=checkpoint)
    if stopped and trainer.state.global_step < trainer.state.max_steps:
        raise InterruptedTrainingError(
            f"SIGTERM stopped the training of {what} at step {stopped[-1]} of {trainer.state.max_steps}, and nothing "
            f"was made of its student. {advice()}"
        )


def _manager_of(trainer: Trainer) -> Any | None:
    """What writes a checkpoint on SIGTERM, where that was asked for."""
    found = (getattr(callback, "jit_manager", None) for callback in trainer.callback_handler.callbacks)
    return next((manager for manager in found if manager is not None), None)


@contextmanager
def _listening(manager: Any) -> Iterator[None]:
    """Let a signal reach the training that runs; afterwards it does what it did before any trainer was made.

    Each trainer listens from when it is made, in place of those before it, while another one of them may train.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    present = signal.getsignal(signal.SIGTERM)
    other = _listener(present)
    if other is not None and other is not manager and other.is_checkpoint_requested:
        other.is_checkpoint_requested, manager.is_checkpoint_requested = False, True
    signal.signal(signal.SIGTERM, manager._sigterm_handler)
    try:
        yield
    finally:
        before = present
        while (other := _listener(before)) is not None:
            before = other._original_sigterm_handler
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _listener(handler: Any) -> Any | None:
    """The manager of a trainer that a signal's handler belongs to, if it does."""
    owner = getattr(handler, "__self__", None)
    return owner if hasattr(owner, "is_checkpoint_requested") else None
