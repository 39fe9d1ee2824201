"""Batches shrink until they fit."""

import pytest
import torch

from helpers import teacher_resnet, trainer, views
from subdistill_hf.acceleration.batch_size import within_memory


def test_half_the_batch_is_tried_until_it_fits():
    tried = []

    def work(size):
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError
        return "done"

    with pytest.warns(UserWarning, match="continuing with batches of 2"):
        assert within_memory(work, 10) == "done"
    assert tried == [10, 5, 2]


def test_one_image_that_does_not_fit_is_an_error():
    def work(size):
        raise torch.OutOfMemoryError("no room")

    with (
        pytest.warns(UserWarning, match="continuing with batches of 1"),
        pytest.raises(torch.OutOfMemoryError, match="no room"),
    ):
        within_memory(work, 2)


class Crowded(torch.nn.Module):
    """A teacher for which batches of more than five images are too many."""

    def __init__(self):
        super().__init__()
        self.model = teacher_resnet()

    def forward(self, pixel_values):
        if len(pixel_values) > 5:
            raise torch.OutOfMemoryError
        return self.model(pixel_values=pixel_values)


def test_the_fit_and_the_cache_go_on_with_smaller_batches(tmp_path):
    def run(name, teacher):
        images = views(augmentation="pad_crop", views=2)
        return trainer(tmp_path / name, teacher=teacher, train=images, teacher_cache=2, max_steps=6)

    crowded, free = run("crowded", Crowded()), run("free", teacher_resnet())
    with pytest.warns(UserWarning, match=r"the device's memory is too small: continuing with batches of (4|5)"):
        crowded.train()
    free.train()
    for pair, other in zip(crowded.pairs, free.pairs, strict=True):
        found, expected = crowded.subspaces[pair.teacher.name], free.subspaces[other.teacher.name]
        torch.testing.assert_close(found.energies, expected.energies, rtol=1e-6, atol=0)
    ours, theirs = ([entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (crowded, free))
    assert ours == pytest.approx(theirs, rel=1e-3)
