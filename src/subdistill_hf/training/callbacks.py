"""A progress bar that says what is trained and how well it does."""

from __future__ import annotations

from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments


class MethodProgress(ProgressCallback):
    """transformers' bar with the method's name, its latest loss and its latest validation accuracy.

    Args:
        method: what the bar is labelled with.
    """

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method
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
        for name, shown in (("loss", "loss"), ("eval_accuracy", "validation accuracy")):
            if logs and name in logs:
                self.shown[shown] = f"{float(logs[name]):.3f}"
        if self.training_bar is not None:
            self.training_bar.set_postfix(self.shown)


def show_progress(trainer: Trainer, label: str | None) -> None:
    """Give a trainer our bar in place of transformers' bar and prints; none without a label or with `disable_tqdm`."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if label is not None and not trainer.args.disable_tqdm:
        trainer.add_callback(MethodProgress(label))
