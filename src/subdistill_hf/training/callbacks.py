"""Callbacks of a training: the views of each epoch, and a progress bar that says what is trained and how well."""

from __future__ import annotations

from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from subdistill_hf.data.collate import with_epochs


class EpochsOfViews(TrainerCallback):
    """Moves the training dataset to the views of each epoch.

    accelerate does so too, but not with several processes, and not in the epoch in which a run is resumed.
    """

    epoch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start at the epoch in which a run is resumed."""
        self.epoch = int(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Move to the views of this epoch."""
        for dataset in with_epochs(getattr(train_dataloader, "dataset", None)):  # a user's loader may not say
            dataset.set_epoch(self.epoch)
        self.epoch += 1


class MethodProgress(ProgressCallback):
    """transformers' bar with the method's name, its latest loss and its latest validation accuracy.

    Args:
        method: what the bar is labelled with.
        figure: what the validation accuracy is called.
    """

    def __init__(self, method: str, figure: str = "accuracy") -> None:
        super().__init__()
        self.method, self.figure = method, figure
        self.shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.method)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Validation passes are short: no bar of their own."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the figures behind the bar."""
        for name, shown in (("loss", "loss"), ("eval_accuracy", f"validation {self.figure}")):
            if logs and name in logs:
                self.shown[shown] = f"{float(logs[name]):.3f}"
        if self.training_bar is not None:
            self.training_bar.set_postfix(self.shown)


def show_progress(trainer: Trainer, label: str | None, figure: str = "accuracy") -> None:
    """Give a trainer our bar in place of transformers' bar and prints; none without a label or with `disable_tqdm`.

    Args:
        trainer: the trainer.
        label: of the bar.
        figure: what the validation accuracy is called.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if label is not None and not trainer.args.disable_tqdm:
        trainer.add_callback(MethodProgress(label, figure))
