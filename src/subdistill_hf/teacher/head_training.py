"""Train the head of a frozen classifier on recorded inputs, until the validation loss no longer falls."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subdistill_hf.errors import DistillationError
from subdistill_hf.teacher.head_inputs import HeadInputs, Heads, logits_of_heads

BATCH = 256
LEAST_STEPS_OF_A_PASS = 8
SMALLEST_BATCH = 16
PATIENCE_PASSES, PATIENCE_STEPS = 5, 50
LEAST_GAIN = 1e-3
"""A validation loss counts as lower when it is so by this share."""
WEIGHT_DECAY = 1e-2
ROWS_OF_A_VALIDATION_BATCH = 4096


@dataclass(frozen=True)
class HeadFit:
    """How the training of a head went.

    Attributes:
        epochs: passes over the inputs that were made.
        best_epoch: after which the validation loss was lowest; its weights are kept. 0 where no pass made it lower.
        validation_loss: then.
        validation_accuracy: then.
        learning_rate: that was best, of those that were tried.
    """

    epochs: int
    best_epoch: int
    validation_loss: float
    validation_accuracy: float
    learning_rate: float


def train_heads(
    heads: Heads,
    train: HeadInputs,
    validation: HeadInputs,
    most_epochs: int,
    learning_rates: Sequence[float],
    seed: int,
    from_own_weights: bool = False,
) -> HeadFit:
    """Train heads by AdamW on the cross entropy, in place; the lowest validation loss chooses.

    The inputs are divided by their root mean square, so that their unit makes no difference; afterwards that is taken
    into the weights. A training ends when the validation loss was not lower for `PATIENCE_PASSES` passes and
    `PATIENCE_STEPS` steps, by `LEAST_GAIN`.

    Args:
        heads: linear maps or convolutions, whose mean are the logits; trained where they are.
        train: their inputs, `(N, ...)`.
        validation: inputs of other images.
        most_epochs: passes over the inputs, at most.
        learning_rates: of AdamW; each is tried.
        seed: of the order of the inputs.
        from_own_weights: begin with the weights that the heads have, which stay where no pass is better; otherwise
            with zeros.

    Raises:
        DistillationError: for inputs that are not finite.
    """
    scale = train.scale
    if not math.isfinite(scale) or not math.isfinite(validation.scale):
        raise DistillationError(
            "what the head of the teacher reads is not finite for some image: expected a teacher that works in float32"
        )
    start = _weights(heads) if from_own_weights else None
    trained = [_train(heads, train, validation, scale, most_epochs, rate, seed, start) for rate in learning_rates]
    fit, best = min(trained, key=lambda one: one[0].validation_loss)
    for name, head in heads.items():
        head.load_state_dict(best[name])
        with torch.no_grad():
            head.weight.div_(scale)  # type: ignore[operator]
        head.requires_grad_(False)
    return fit


def _train(
    heads: Heads,
    train: HeadInputs,
    validation: HeadInputs,
    scale: float,
    most_epochs: int,
    learning_rate: float,
    seed: int,
    start: Mapping[str, Mapping[str, Tensor]] | None,
) -> tuple[HeadFit, dict[str, Mapping[str, Tensor]]]:
    """Train heads with one learning rate, on inputs over their scale; how it went, and the best weights."""
    for name, head in heads.items():
        head.requires_grad_(True)
        if start is None:
            for parameter in head.parameters():
                nn.init.zeros_(parameter)
        else:
            head.load_state_dict(start[name])
            with torch.no_grad():
                head.weight.mul_(scale)  # type: ignore[operator]
    optimizer = torch.optim.AdamW(_groups(heads), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(seed)
    batch = _batch_of(len(train))
    patience = max(PATIENCE_PASSES, math.ceil(PATIENCE_STEPS / steps_of_a_pass(len(train))))
    loss, accuracy = (math.inf, 0.0) if start is None else _validated(heads, validation, scale)
    fit, best, epoch = HeadFit(0, 0, loss, accuracy, learning_rate), _weights(heads), 0
    gained = fit  # when the loss was last lower by more than noise
    while epoch < most_epochs and epoch - gained.best_epoch < patience:
        epoch += 1
        for rows in torch.split(torch.randperm(len(train), generator=generator), batch):
            optimizer.zero_grad()
            F.cross_entropy(*_answers(heads, train, rows, scale)).backward()
            optimizer.step()
        loss, accuracy = _validated(heads, validation, scale)
        if loss < fit.validation_loss:
            fit, best = HeadFit(epoch, epoch, loss, accuracy, learning_rate), _weights(heads)
            gained = fit if loss < (1 - LEAST_GAIN) * gained.validation_loss else gained
    return replace(fit, epochs=epoch), best


def steps_of_a_pass(inputs: int) -> int:
    """The steps of the optimiser in a pass over so many inputs."""
    return math.ceil(inputs / _batch_of(inputs))


def _batch_of(inputs: int) -> int:
    """The inputs of a step: fewer of few, for a pass to have several."""
    return min(BATCH, max(SMALLEST_BATCH, inputs // LEAST_STEPS_OF_A_PASS))


def _answers(heads: Heads, inputs: HeadInputs, rows: Tensor | slice, scale: float) -> tuple[Tensor, Tensor]:
    """Logits and labels of some inputs, where the heads are."""
    device = _parameters(heads)[0].device
    scaled = {name: values.to(device) / scale for name, values in inputs.at(rows).items()}
    return logits_of_heads(heads, scaled), inputs.labels[rows].to(device)


@torch.no_grad()
def _validated(heads: Heads, inputs: HeadInputs, scale: float) -> tuple[float, float]:
    """Mean cross entropy and accuracy."""
    loss, correct = 0.0, 0
    for start in range(0, len(inputs), ROWS_OF_A_VALIDATION_BATCH):
        logits, labels = _answers(heads, inputs, slice(start, start + ROWS_OF_A_VALIDATION_BATCH), scale)
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
    return loss / len(inputs), correct / len(inputs)


def _parameters(heads: Heads) -> list[nn.Parameter]:
    return [parameter for head in heads.values() for parameter in head.parameters()]


def _groups(heads: Heads) -> list[dict[str, Any]]:
    """The parameters for an optimiser; biases do not decay."""
    weights = [parameter for parameter in _parameters(heads) if parameter.dim() > 1]
    biases = [parameter for parameter in _parameters(heads) if parameter.dim() == 1]
    return [{"params": weights}, *([{"params": biases, "weight_decay": 0.0}] if biases else [])]


def _weights(heads: Heads) -> dict[str, Mapping[str, Tensor]]:
    return {name: copy.deepcopy(head.state_dict()) for name, head in heads.items()}
