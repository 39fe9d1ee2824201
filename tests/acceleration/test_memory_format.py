"""Convolutions lie channels last where that is faster, and only in networks that torch can train so."""

import logging
import platform

import pytest
import torch
from torch import nn

from subdistill_hf.acceleration.memory_format import leave_channels_last, take_memory_format, unsafe_convolution
from subdistill_hf.errors import DistillationError


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """As if the tests ran on a CPU of the kind that was measured."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


CPU, ACCELERATOR = torch.device("cpu"), torch.device("cuda")


def network(*layers):
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers)


def lies_channels_last(model):
    kernel = model[0].weight
    assert kernel.is_contiguous() != kernel.is_contiguous(memory_format=torch.channels_last)
    return not kernel.is_contiguous()


def take(model, device=CPU, half_precision=False, wanted=None):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    take_memory_format(model, lambda: model(torch.randn(2, 3, 8, 8)), device, half_precision, wanted)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    return lies_channels_last(model)


class Viewed(nn.Module):
    """Looks at a map as if it lay contiguously."""

    def forward(self, maps):
        return maps.view(len(maps), -1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"half_precision": True}, False),
        ({"wanted": False}, False),
        ({"wanted": True}, True),
        ({"device": ACCELERATOR}, False),
        ({"device": ACCELERATOR, "half_precision": True}, True),
        ({"device": ACCELERATOR, "wanted": True}, True),
    ],
)
def test_networks_lie_channels_last_where_it_is_faster_or_wanted(options, expected):
    model = network(nn.BatchNorm2d(4))
    assert take(model, **options) == expected
    assert model.training
    leave_channels_last(model)
    assert not lies_channels_last(model)


@pytest.mark.parametrize(
    ("machine", "onednn", "expected"), [("AMD64", True, True), ("arm64", True, False), ("x86_64", False, False)]
)
def test_cpus_of_other_kinds_were_not_measured(monkeypatch, machine, onednn, expected):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert take(network()) == expected
    assert take(network(), wanted=True)


def test_a_network_that_cannot_run_so_stays_as_it_was(caplog):
    model = network(Viewed())
    with caplog.at_level(logging.INFO, "subdistill_hf"):
        assert not take(model)
    assert "Sequential is not trained in channels-last memory: view size is not compatible" in caplog.text
    with pytest.raises(DistillationError, match=r"^Sequential cannot be .*: view size is not compatible.*; leave out"):
        take(model, wanted=True)
    assert not lies_channels_last(model)


def test_weights_of_five_dimensions_stay_as_they_are():
    model = network()
    model.volume = nn.Parameter(torch.randn(2, 3, 2, 2, 2))
    assert not take(model)


def test_what_was_channels_last_is_contiguous_where_it_should_be():
    model = network(Viewed()).to(memory_format=torch.channels_last)
    assert not take(model)
    model = network(nn.ReLU()).to(memory_format=torch.channels_last)
    assert not take(model, device=ACCELERATOR)


@pytest.mark.parametrize(
    ("layer", "unsafe"),
    [
        (nn.Conv2d(15, 4, 1, stride=2), "'0' is a strided 1x1 convolution of 15 channels, with which torch"),
        (nn.Conv2d(40, 40, 1, stride=(1, 2), groups=4), "'0' is a strided 1x1 convolution of 10 channels, with"),
        (nn.Conv2d(16, 4, 1, stride=2), None),
        (nn.Conv2d(15, 4, 1), None),
        (nn.Conv2d(15, 4, 3, stride=2), None),
        (nn.Linear(3, 4), None),
    ],
)
def test_strided_1x1_convolutions_of_few_channels_are_unsafe_on_cpus(layer, unsafe):
    model = nn.Sequential(layer)
    found = unsafe_convolution(model, CPU)
    assert found is None if unsafe is None else found.startswith(unsafe)
    assert unsafe_convolution(model, ACCELERATOR) is None


def test_unsafe_networks_stay_contiguous_unless_they_are_asked_for_and_then_are_refused():
    model = network(nn.Conv2d(4, 4, 1, stride=2))
    assert not take(model)
    with pytest.raises(
        DistillationError, match=r"'1' is a strided 1x1 convolution of 4 channels.*leave out channels_l"
    ):
        take(model, wanted=True)
    assert not lies_channels_last(model)


@pytest.mark.parametrize(("layer", "expected"), [(nn.BatchNorm2d(4), True), (Viewed(), False)])
def test_a_network_is_tried_once_and_brought_there_again(caplog, layer, expected):
    model, runs, tried = network(layer), [], {}

    def run():
        runs.append(model(torch.randn(2, 3, 8, 8)))

    for _ in range(3):
        with caplog.at_level(logging.INFO, "subdistill_hf"):
            take_memory_format(model, run, CPU, False, None, tried)
        assert lies_channels_last(model) == expected
        leave_channels_last(model)
    assert len(tried) == 1
    assert len(runs) == expected
    assert len(caplog.records) == (not expected)
