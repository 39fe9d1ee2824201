"""What tests of trainings share: how their logs are read, a callback that keeps gradients, models and metrics."""

import torch
from torch import nn
from transformers import TrainerCallback

from helpers import trainer

STAGES = [f"resnet.encoder.stages.{index}" for index in range(4)]


def logged(run):
    """The entries that the training steps logged."""
    return [entry for entry in run.state.log_history if "loss" in entry]


def parts(entry):
    return {name.removeprefix("loss_"): value for name, value in entry.items() if name.startswith("loss_")}


def last_loss(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry][-1]


class Recorder(TrainerCallback):
    """Keeps the gradients of each update and what the callbacks were given."""

    def __init__(self):
        self.gradients, self.events, self.models, self.trainer = [], [], [], None

    def on_pre_optimizer_step(self, args, state, control, **given):
        named = self.trainer.distillation.named_parameters()
        self.gradients.append({name: weight.grad.clone() for name, weight in named if weight.grad is not None})

    def on_train_begin(self, args, state, control, **given):
        self._note("train_begin", given)

    def on_step_end(self, args, state, control, **given):
        self._note("step_end", given)

    def on_evaluate(self, args, state, control, **given):
        self._note("evaluate", given)

    def on_save(self, args, state, control, **given):
        self._note("save", given)

    def on_train_end(self, args, state, control, **given):
        self._note("train_end", given)

    def _note(self, event, given):
        self.events.append(event)
        self.models.append(given["model"])


def recorded(folder, student=None, teacher=None, **options):
    recorder = Recorder()
    given = options.pop("parts", {}) | {"callbacks": [recorder]}
    run = trainer(folder, student, teacher, parts=given, **options)
    recorder.trainer = run
    return run, recorder


class InOrder(torch.utils.data.IterableDataset):
    """Items of a dataset in a given order, without a length."""

    def __init__(self, dataset, order):
        self.dataset, self.order = dataset, order

    def __iter__(self):
        return iter([self.dataset[index] for index in self.order])


class Plain(nn.Module):
    """Two blocks, of which the second overwrites what the first returned."""

    def __init__(self, outputs, width, form=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        second = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, 2, 1))
        self.blocks, self.head = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), second), nn.Linear(width, outputs)
        self.form = form

    def forward(self, pixel_values):
        return self.form(self.head(self.blocks(pixel_values).mean(dim=(2, 3))))


BEST_IS_KEPT = {
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
}


class Scripted:
    """A metric with values known beforehand, so that the best checkpoint is not the last."""

    def __init__(self, *scores):
        self.scores = list(scores)

    def __call__(self, prediction):
        assert prediction.predictions.shape == (12, 3)
        return {"score": self.scores.pop(0)}
