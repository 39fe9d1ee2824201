"""Pixels of views that come again are made once, and are the very pixels that are made anew."""

import itertools
import os
import pickle

import pytest
import torch
from transformers import BitImageProcessor, ViTImageProcessor

from helpers import NAMES, processor, trainer, views, weights_of
from subdistill_hf.data import collate as batches
from subdistill_hf.data import kept_pixels
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.kept_pixels import KeptPixels, KeptViews, Levels, keep_pixels
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.models.students import build_student
from subdistill_hf.training import loaders

pytestmark = pytest.mark.usefixtures("datasets_cache")

VIEWS = 2
IMAGES = 24


def timm_processor():
    return build_student("timm/test_resnet", NAMES, processor()).processor


PROCESSORS = {
    "resized": lambda: processor(24, mean=0.25),
    "cropped": lambda: BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 24, "width": 24}),
    "raw bytes": lambda: ViTImageProcessor(size={"height": 24, "width": 24}, do_rescale=False, do_normalize=False),
    "timm": timm_processor,
}
DATASETS = {
    "pad_crop": {"augmentation": "pad_crop", "flip": True},
    "resized_crop": {"augmentation": "resized_crop", "size": (40, 40)},
    "mixed": {"augmentation": "pad_crop", "mix": 0.5},
}


def batches_of(dataset, collate, epochs=2 * VIEWS, workers=0):
    """Batches of shuffled views, in several epochs."""
    generator = torch.Generator().manual_seed(0)
    loader = torch.utils.data.DataLoader(
        dataset, 7, shuffle=True, collate_fn=collate, generator=generator, num_workers=workers
    )
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        yield from loader


def assert_equal_batches(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
        assert ours[name].dtype == value.dtype
        assert ours[name].stride() == value.stride(), name


@pytest.mark.parametrize(
    ("name", "kind", "workers"), [*itertools.product(PROCESSORS, DATASETS, [0]), ("resized", "mixed", 2)]
)
def test_batches_are_those_that_are_made_anew(tmp_path, name, kind, workers):
    collate = ViewCollator(PROCESSORS[name]())
    dataset, kept, said = keep_pixels(views(views=VIEWS, **DATASETS[kind]), collate, collate, tmp_path)
    assert f"pixels   of {IMAGES} images x {VIEWS} views are kept" in said
    found = batches_of(dataset, kept, workers=workers)
    for ours, theirs in zip(found, batches_of(views(views=VIEWS, **DATASETS[kind]), collate), strict=True):
        assert_equal_batches(ours, theirs)
    assert all(dataset.pixels.has(image, view) for image in range(IMAGES) for view in range(VIEWS))
    assert not list(tmp_path.iterdir())  # the file has no name, and is gone with the process


def test_bytes_that_a_device_finishes_are_kept_as_they_are(tmp_path):
    collate = ViewCollator(processor(24))
    options = {"augmentation": "resized_crop", "size": (40, 40), "views": VIEWS}
    dataset, kept, _ = keep_pixels(views(**options), collate, collate.unfinished(), tmp_path)
    for ours, theirs in zip(
        batches_of(dataset, kept.unfinished()), batches_of(views(**options), collate.unfinished()), strict=True
    ):
        assert_equal_batches(ours, theirs)
        assert_equal_batches(kept.unfinished().finish(ours), collate.unfinished().finish(theirs))
    assert dataset.pixels.has(0, 0)


def test_each_view_is_made_once(tmp_path, monkeypatch):
    made = []
    real = ViewDataset._plain_views
    monkeypatch.setattr(ViewDataset, "_plain_views", lambda self, indices: made.extend(indices) or real(self, indices))
    collate = ViewCollator(processor())
    dataset, kept, _ = keep_pixels(views(views=VIEWS, augmentation="pad_crop"), collate, collate, tmp_path)
    made.clear()
    for _ in batches_of(dataset, kept, epochs=10 * VIEWS):
        pass
    assert len(made) == VIEWS * IMAGES - 1  # the first was kept when its room was made


# What is not kept


def test_views_that_do_not_come_again_and_classes_of_others_are_left_alone(tmp_path):
    class Own(ViewCollator):
        """Of a user."""

    plain, own = ViewCollator(processor()), Own(processor())
    for dataset, collate in ((views(), plain), (views(views=2), own), ([], plain)):
        assert keep_pixels(dataset, collate, collate, tmp_path) == (dataset, collate, None)


def test_more_than_is_allowed_is_not_kept_and_said(tmp_path):
    dataset, collate = views(views=VIEWS), ViewCollator(processor(32))
    size = VIEWS * IMAGES * (3 * 32 * 32 + 1)
    ours, theirs, said = keep_pixels(dataset, collate, collate, tmp_path, most=size - 1)
    assert (ours, theirs) == (dataset, collate)
    assert said.endswith("are made in each epoch: they would take 0.1 MiB, more than 0.1 MiB")
    assert isinstance(keep_pixels(dataset, collate, collate, tmp_path, most=size)[0], KeptViews)


def test_a_full_disk_is_said_before_the_training(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    dataset, collate = views(views=VIEWS), ViewCollator(processor(32))
    ours, _, said = keep_pixels(dataset, collate, collate, tmp_path)
    assert ours is dataset
    assert "made in each epoch: the disk has no 0.1 MiB (No space left on device)" in said


def test_values_between_the_levels_are_not_kept(tmp_path, monkeypatch):
    real = kept_pixels.process
    for module in (kept_pixels, batches):
        monkeypatch.setattr(module, "process", lambda own, images: real(own, images) + 1e-3 * (len(images) - 1))
    dataset, collate = views(views=VIEWS), ViewCollator(processor(32))
    ours, _, said = keep_pixels(dataset, collate, collate, tmp_path)
    assert ours is dataset
    assert said.endswith("made in each epoch: they have more than 256 values a channel")


def test_a_view_that_its_bytes_do_not_give_back_is_left_out(tmp_path):
    levels = Levels(torch.arange(256.0).repeat(3, 1), torch.contiguous_format)
    pixels = KeptPixels(2, 1, torch.zeros(1, 3, 4, 4), levels, tmp_path)
    for image, value in enumerate((7.0, 7.5)):
        pixels.keep(image, 0, torch.full((3, 4, 4), value))
    assert [pixels.has(image, 0) for image in (0, 1)] == [True, False]
    pixels.keep(1, 0, torch.full((3, 5, 4), 7.0))
    assert not pixels.has(1, 0)
    copy = pickle.loads(pickle.dumps(pixels))  # as in a worker that is not forked
    copy.keep(0, 0, torch.full((3, 4, 4), 7.0))
    assert not copy.has(0, 0)


# In a training


def trained(folder, kept, monkeypatch, **options):
    """The weights after a training, and the fields of its batches."""
    fields = []
    with monkeypatch.context() as patch:
        if not kept:
            patch.setattr(loaders, "keep_pixels", lambda dataset, collate, *rest: (dataset, collate, None))
        run = trainer(
            folder,
            train=views(augmentation="pad_crop", views=VIEWS),
            parts={"data_collator": ViewCollator(processor(24), processor(40, 0.4))},
            max_steps=15,
            **options,
        )
        real = run.training_step
        run.training_step = lambda model, inputs, *rest: fields.append(set(inputs)) or real(model, inputs, *rest)
        run.train()
    return weights_of(run.model), fields


@pytest.mark.parametrize("method", ["subdistill", "kd"])
def test_a_training_with_cached_targets_is_bit_for_bit_the_same(tmp_path, monkeypatch, method):
    options = {"method": method, "teacher_cache": str(VIEWS), "teacher_cache_dir": str(tmp_path / "targets")}
    ours, _ = trained(tmp_path / "a", True, monkeypatch, **options)
    theirs, _ = trained(tmp_path / "b", False, monkeypatch, **options)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_training_on_labels_makes_no_pixels_of_the_teachers(tmp_path, monkeypatch):
    ours, fields = trained(tmp_path / "a", True, monkeypatch, method="scratch")
    theirs, _ = trained(tmp_path / "b", False, monkeypatch, method="scratch")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert all("teacher_pixel_values" not in names for names in fields)
    _, fields = trained(tmp_path / "c", True, monkeypatch, method="kd")
    assert all("teacher_pixel_values" in names for names in fields)
