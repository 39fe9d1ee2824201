"""Pushes of a trainer's checkpoints while it trains."""

from __future__ import annotations

from pathlib import Path

from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.hub.publish import Destination, push_checkpoint

WHOLE = HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS
"""The strategies that push all that a run needs to go on, beside the student."""


def is_time(args: SubDistillConfig, running: PushInProgress | None) -> bool:
    """Whether a checkpoint is pushed: not if the end alone is, nor, unless it was asked for, beside another push.

    Args:
        args: `hub_strategy` and `hub_always_push`.
        running: the push before, if there was one.
    """
    if args.hub_strategy == HubStrategy.END:
        return False
    return running is None or running.is_done() or args.hub_always_push


def of_checkpoint(args: SubDistillConfig, repository: str, folder: Path, step: int) -> PushInProgress:
    """Start to push the student of a checkpoint, and all of it where `hub_strategy` says so.

    Args:
        args: strategy, branch and token.
        repository: its id.
        folder: the checkpoint's.
        step: its number, for the message.
    """
    names = dict(zip(WHOLE, ("last-checkpoint", folder.name), strict=True))
    target = Destination(repository, None, args.hub_revision, args.hub_token)
    message = f"Training in progress, step {step}"
    return PushInProgress([push_checkpoint(folder, target, message, whole=names.get(HubStrategy(args.hub_strategy)))])
