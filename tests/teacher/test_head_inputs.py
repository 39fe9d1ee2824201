"""What a head reads, recorded once, gives the logits of the whole model, whatever the family, processes and views."""

import threading

import pytest
import torch
from torch import nn

from families import FAMILIES, example
from helpers import processor, teacher_resnet, views
from subdistill_hf.core.activations import logits_of
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.models.adapters import head_modules
from subdistill_hf.teacher import head_inputs
from subdistill_hf.teacher.head_inputs import (
    HeadInputs,
    RecordingRequest,
    bytes_of_inputs,
    logits_of_heads,
    record_head_inputs,
)

COLLATE = ViewCollator(processor())
CPU = torch.device("cpu")


def heads_of(model):
    return {name: model.get_submodule(name) for name in head_modules(model)}


def recorded(model, passes, **changed):
    request = RecordingRequest(**{"device": CPU, "batch_size": 7} | changed)
    return record_head_inputs(model, heads_of(model), passes, COLLATE, request)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_heads_of_each_family_give_its_logits_from_what_they_read(name):
    model, forward, size = example(name)
    heads = heads_of(model)
    needed = bytes_of_inputs(model, heads, size)
    with torch.no_grad(), head_inputs._recorded(heads) as inputs:
        logits = logits_of(forward())
        torch.testing.assert_close(logits_of_heads(heads, inputs), logits)
    assert needed == 4 * sum(values[0].numel() for values in inputs.values())


def test_recorded_inputs_give_the_logits_of_the_full_forward_of_every_view():
    model = teacher_resnet().train()  # the body is in evaluation mode for the recording, and back in training after it
    plain, augmented = views(), views(augmentation="pad_crop", flip=True, seed=5)
    found = recorded(model, [(plain, 0), (augmented, 0), (augmented, 3)])
    assert model.training
    model.eval()
    for inputs, (images, view) in zip(found, [(plain, 0), (augmented, 0), (augmented, 3)], strict=True):
        images.set_epoch(view)
        pixels = COLLATE([images[index] for index in range(len(images))])["pixel_values"]
        with torch.no_grad():
            expected = model(pixel_values=pixels).logits
            logits = logits_of_heads(heads_of(model), inputs.values)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        assert inputs.labels.tolist() == images.labels
    (first,), (second,) = (inputs.values.values() for inputs in found[1:])
    assert not torch.equal(first, second)
    joined = HeadInputs.joined(found)
    assert len(joined) == 3 * len(plain)
    assert torch.equal(joined.labels, torch.cat([inputs.labels for inputs in found]))


def test_the_scale_is_the_root_mean_square_of_all_values():
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert HeadInputs({"head": values}, torch.zeros(5)).scale == pytest.approx(float(values.square().mean().sqrt()))
    assert HeadInputs({"head": torch.zeros(5, 3)}, torch.zeros(5)).scale == 1


def test_processes_share_the_images_and_the_first_one_has_them_all(monkeypatch):
    """Processes as threads, which hand over what they gather; of 24 images a fifth one sees the first again."""
    images, model = views(), teacher_resnet()
    (alone,) = recorded(model, [(images, 0)])
    for count in (3, 5):
        barrier, handed = threading.Barrier(count), {}
        local = threading.local()

        def gathered(rows, barrier=barrier, handed=handed, count=count, local=local):
            handed[local.rank] = rows
            barrier.wait()
            everyones = torch.cat([handed[rank] for rank in range(count)])
            barrier.wait()
            return everyones

        monkeypatch.setattr(head_inputs, "gathered", gathered)
        found, models = {}, [teacher_resnet() for _ in range(count)]

        def process(rank, found=found, models=models, local=local):
            local.rank = rank
            found[rank] = recorded(models[rank], [(views(), 0)], rank=rank, processes=len(models))

        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (first,) = found[0]
        assert [found[rank] for rank in range(1, count)] == [[]] * (count - 1)
        torch.testing.assert_close(first.values["classifier.1"], alone.values["classifier.1"], rtol=0, atol=1e-5)
        assert torch.equal(first.labels, alone.labels)


class Scaled(nn.Module):
    """A classifier whose logits are twice what its head gives."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.head, self.factor = nn.Linear(3 * 8 * 8, 4), factor

    def forward(self, pixel_values):
        return self.factor * self.head(pixel_values.flatten(1))


class PassedBy(Scaled):
    """A classifier that uses the weights of its head and never calls it."""

    def forward(self, pixel_values):
        return nn.functional.linear(pixel_values.flatten(1), self.head.weight)


@pytest.mark.parametrize(
    ("model", "needed"),
    [(Scaled(1.0), 4 * 192), (Scaled(), None), (PassedBy(), None)],
    ids=["plain", "scaled", "passed"],
)
def test_a_head_that_does_not_give_the_logits_is_found(model, needed):
    assert bytes_of_inputs(model, {"head": model.head}, (8, 8)) == needed


def test_a_batch_on_a_cpu_is_small(monkeypatch):
    sizes = []
    monkeypatch.setattr(head_inputs, "within_memory", lambda work, size: sizes.append(size) or work(size))
    for asked in (7, 128):
        recorded(teacher_resnet(), [(views(), 0)], batch_size=asked)
    assert sizes == [7, 32]
