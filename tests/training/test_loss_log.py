"""Parts of the loss are averaged between log entries, and the first bad one is named."""

from __future__ import annotations

import math

import pytest
import torch

from helpers import trainer
from subdistill_hf.errors import NonFiniteLossError
from subdistill_hf.training.loss_log import LossLog


def parts(**values: float) -> tuple[list[str], torch.Tensor]:
    return list(values), torch.tensor(list(values.values()), dtype=torch.float64)


def test_means_are_over_the_batches_since_the_last_call():
    tracked = LossLog()
    tracked.add(*parts(kd=1.0, layer=10.0), step=0)
    tracked.add(*parts(kd=2.0, layer=30.0), step=1)
    assert {name: float(value) for name, value in tracked.means(1).items()} == {"kd": 1.5, "layer": 20.0}
    assert tracked.count == 0
    tracked.add(*parts(kd=5.0, layer=7.0), step=2)
    assert {name: float(value) for name, value in tracked.means(2).items()} == {"kd": 5.0, "layer": 7.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_nan_or_infinite_part_stops_at_once_on_the_cpu(bad):
    tracked = LossLog()
    tracked.add(*parts(kd=1.0, layer=2.0), step=6)
    with pytest.raises(NonFiniteLossError, match=r"the loss of layer is NaN or infinite near step 7"):
        tracked.add(*parts(kd=1.0, layer=bad), step=7)


def test_a_part_that_comes_later_is_averaged_over_all_batches():
    tracked = LossLog()
    tracked.add(*parts(kd=1.0), step=0)
    tracked.add(*parts(kd=2.0, layer=4.0), step=1, share=0.5)
    tracked.add(*parts(kd=3.0, layer=8.0), step=1, share=0.5)
    assert {name: float(value) for name, value in tracked.means(1).items()} == {"kd": 1.75, "layer": 3.0}


def test_on_an_accelerator_the_first_bad_batch_is_what_is_named(monkeypatch):
    """Where nothing looks at once, later batches are NaN everywhere; the message must name the part that began."""
    tracked = LossLog()
    look = LossLog._stop_if_not_finite
    monkeypatch.setattr(LossLog, "_stop_if_not_finite", lambda *arguments: None)  # as on an accelerator
    tracked.add(*parts(kd=1.0, layer=math.nan), step=3)
    tracked.add(*parts(kd=math.nan, layer=math.nan), step=4)
    monkeypatch.setattr(LossLog, "_stop_if_not_finite", look)
    with pytest.raises(NonFiniteLossError, match="the loss of layer is"):
        tracked.means(4)


def test_a_trainer_trains_again_after_a_run_that_stopped_on_a_bad_loss(tmp_path):
    run = trainer(tmp_path, max_steps=2, logging_steps=1, layer_weight=math.inf)
    with pytest.raises(NonFiniteLossError):
        run.train()
    run.args.layer_weight = 1.0
    run.train()
    assert all(math.isfinite(entry["loss"]) for entry in run.state.log_history if "loss" in entry)
