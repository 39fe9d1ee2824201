"""The teacher's targets of a batch, computed or read from a cache."""

import torch

from helpers import trainer
from trainings import Plain


def test_targets_are_what_a_layer_returned_before_the_next_one_overwrote_it(tmp_path):
    layers = ["blocks.0=blocks.0", "blocks.1=blocks.1"]
    run = trainer(tmp_path, Plain(3, 6), Plain(100, 9), layers=layers, method="fitnet", target_scale="teacher")
    run.prepare_distillation()
    pixels = torch.randn(4, 3, 32, 32)
    _, targets = run.targets.of_pixels(pixels)
    with torch.no_grad():
        first = run.teacher.model.blocks[0](pixels)
        second = run.teacher.model.blocks[1](first.clone())
    assert first.min() < 0
    assert torch.equal(targets["blocks.0"].values, first.flatten(2))
    assert torch.equal(targets["blocks.1"].values, second.flatten(2))
