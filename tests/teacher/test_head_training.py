"""A head trained on recorded inputs is that of a plain training on them, stops early, and keeps its best weights."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from subdistill_hf.errors import DistillationError
from subdistill_hf.teacher import head_training
from subdistill_hf.teacher.head_inputs import HeadInputs, logits_of_heads
from subdistill_hf.teacher.head_training import train_heads

CLASSES, WIDTH = 4, 6


def inputs_of(count, seed, noise=1.0, scale=1.0, shape=(WIDTH,)):
    """Inputs around the mean of their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    means = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(0))
    values = means[labels] + noise * torch.randn(count, *shape, generator=generator)
    return HeadInputs({"head": scale * values}, labels)


def new_head(bias=True):
    torch.manual_seed(0)
    return {"head": nn.Linear(WIDTH, CLASSES, bias=bias)}


def test_the_head_is_that_of_a_plain_training_on_all_inputs_in_float64():
    """AdamW (Loshchilov and Hutter, 2019), written out, on the inputs over their root mean square, from zeros."""
    train, validation = inputs_of(40, 1, scale=3.0), inputs_of(20, 2, scale=3.0)
    heads = new_head()
    fit = train_heads(heads, train, validation, most_epochs=3, learning_rates=[0.02], seed=5)
    values, labels = train.values["head"].double(), train.labels
    scale = values.square().mean().sqrt()
    weight, bias = torch.zeros(CLASSES, WIDTH, dtype=torch.float64), torch.zeros(CLASSES, dtype=torch.float64)
    moments = [[torch.zeros_like(part), torch.zeros_like(part)] for part in (weight, bias)]
    generator, step = torch.Generator().manual_seed(5), 0
    for _ in range(3):
        order = torch.randperm(40, generator=generator)
        for rows in (order[:16], order[16:32], order[32:]):
            step += 1
            x, y = values[rows] / scale, F.one_hot(labels[rows], CLASSES).double()
            error = ((x @ weight.T + bias).softmax(1) - y) / len(rows)
            for part, gradient, decay, (first, second) in zip(
                (weight, bias), (error.T @ x, error.sum(0)), (0.01, 0.0), moments, strict=True
            ):
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                part.mul_(1 - 0.02 * decay)
                part.sub_(0.02 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8))
    assert (fit.epochs, fit.best_epoch) == (3, 3)  # the loss still falls
    torch.testing.assert_close(heads["head"].weight.double(), weight / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(heads["head"].bias.double(), bias, rtol=0, atol=1e-5)
    logits = validation.values["head"].double() @ (weight / scale).T + bias
    assert fit.validation_loss == pytest.approx(float(F.cross_entropy(logits, validation.labels)), rel=1e-5)
    assert fit.validation_accuracy == float((logits.argmax(1) == validation.labels).double().mean())


def test_the_scale_of_the_inputs_makes_no_difference():
    fits = []
    for scale in (1.0, 256.0):
        heads = new_head()
        fit = train_heads(heads, inputs_of(40, 1, scale=scale), inputs_of(20, 2, scale=scale), 5, [0.02], 0)
        fits.append((fit, heads["head"].weight * scale, heads["head"].bias))
    assert fits[0][0] == fits[1][0]
    torch.testing.assert_close(fits[0][1:], fits[1][1:])


def test_the_training_stops_when_the_validation_loss_no_longer_falls_and_keeps_the_best(monkeypatch):
    train, validation = inputs_of(24, 1, noise=2.0), inputs_of(40, 2, noise=2.0)  # soon learned by heart
    losses, weights = [], []
    validated = head_training._validated

    def watched(heads, inputs, scale):
        found = validated(heads, inputs, scale)
        losses.append(found[0])
        weights.append(copy.deepcopy(heads["head"].weight.detach() / scale))
        return found

    monkeypatch.setattr(head_training, "_validated", watched)
    heads = new_head()
    fit = train_heads(heads, train, validation, most_epochs=1000, learning_rates=[0.05], seed=0)
    best = min(range(len(losses)), key=losses.__getitem__)
    assert fit.best_epoch == best + 1
    assert best > 0
    lower = [epoch for epoch in range(best + 1) if all(losses[epoch] < 0.999 * loss for loss in losses[:epoch])]
    assert fit.epochs == len(losses) == lower[-1] + 1 + 25  # 2 steps a pass: 50 steps of patience
    assert fit.validation_loss == losses[best]
    torch.testing.assert_close(heads["head"].weight.data, weights[best])
    assert not any(parameter.requires_grad for parameter in heads["head"].parameters())


def test_as_many_passes_are_made_as_are_allowed():
    fit = train_heads(new_head(), inputs_of(40, 1), inputs_of(20, 2), most_epochs=2, learning_rates=[1e-3], seed=0)
    assert (fit.epochs, fit.best_epoch) == (2, 2)


def test_a_training_may_begin_with_the_weights_that_a_head_has():
    """It goes on from them, each learning rate anew, and keeps them where no pass is better."""
    train, validation = inputs_of(40, 1, scale=3.0), inputs_of(20, 2, scale=3.0)
    heads = new_head()
    first = train_heads(heads, train, validation, most_epochs=3, learning_rates=[0.02], seed=5)
    found = copy.deepcopy(heads)
    worse = train_heads(heads, train, validation, 1, [100.0, 200.0], seed=5, from_own_weights=True)
    assert (worse.epochs, worse.best_epoch) == (1, 0)
    assert worse.validation_loss == pytest.approx(first.validation_loss, rel=1e-5)
    assert worse.validation_accuracy == first.validation_accuracy
    for name, value in found["head"].state_dict().items():
        torch.testing.assert_close(heads["head"].state_dict()[name], value)
    alone = train_heads(found, train, validation, 2, [0.02], seed=5, from_own_weights=True)
    both = train_heads(heads, train, validation, 2, [100.0, 0.02], seed=5, from_own_weights=True)
    assert alone.validation_loss < first.validation_loss
    assert both.validation_loss == pytest.approx(alone.validation_loss, rel=1e-5)


def test_the_learning_rate_with_the_lowest_validation_loss_is_kept():
    train, validation = inputs_of(40, 1), inputs_of(20, 2)
    alone = {rate: train_heads(new_head(), train, validation, 5, [rate], 0) for rate in (1e-4, 2e-2, 10.0)}
    heads = new_head()
    fit = train_heads(heads, train, validation, 5, list(alone), 0)
    assert fit == alone[2e-2] == min(alone.values(), key=lambda one: one.validation_loss)
    logits = logits_of_heads(heads, validation.values)
    assert float(F.cross_entropy(logits, validation.labels)) == pytest.approx(fit.validation_loss, rel=1e-5)


@pytest.mark.parametrize("kind", ["no bias", "convolution", "two heads"])
def test_other_heads_learn_too(kind):
    shape = (WIDTH, 2, 2) if kind == "convolution" else (WIDTH,)
    train, validation = inputs_of(80, 1, noise=0.3, shape=shape), inputs_of(40, 2, noise=0.3, shape=shape)
    heads = {"head": nn.Conv2d(WIDTH, CLASSES, 1)} if kind == "convolution" else new_head(bias=kind != "no bias")
    if kind == "two heads":
        heads["other"] = nn.Linear(WIDTH, CLASSES)
        for inputs in (train, validation):
            inputs.values["other"] = inputs.values["head"].flip(1)
    fit = train_heads(heads, train, validation, most_epochs=200, learning_rates=[0.02], seed=0)
    logits = logits_of_heads(heads, validation.values)
    assert fit.validation_accuracy == float((logits.argmax(1) == validation.labels).double().mean()) >= 0.95


def test_inputs_that_are_not_finite_are_refused():
    train = inputs_of(40, 1)
    train.values["head"][3, 2] = math.inf
    with pytest.raises(DistillationError, match="what the head of the teacher reads is not finite for some image"):
        train_heads(new_head(), train, inputs_of(20, 2), 5, [1e-3], 0)
