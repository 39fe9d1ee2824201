"""Evaluation images that are training images are told, whatever kind of dataset both are in."""

import logging

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate

from helpers import subtask_rows, trainer, views
from subdistill_hf.training.overlap import shared_images


class Squares(Dataset):
    """Images that are made when they are asked for."""

    def __init__(self, count, first=0, noise=0.0):
        self.count, self.first, self.noise = count, first, noise

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        pixels = torch.full((3, 4, 4), float(self.first + index)) + self.noise * torch.randn(3, 4, 4)
        return {"pixel_values": pixels, "labels": index % 2}


class Folder(Dataset):
    """As torchvision's `ImageFolder` lists its files."""

    def __init__(self, *paths):
        self.samples = [(path, 0) for path in paths]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {"pixel_values": torch.zeros(3, 4, 4), "labels": 0}


def tensors(first, count):
    return TensorDataset(torch.arange(first, first + count)[:, None, None] * torch.ones(1, 2, 2), torch.zeros(count))


def random_pixels(seed, count):
    rows = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return datasets.Dataset.from_dict({"picture": list(rows)}, datasets.Features({"picture": datasets.Image()}))


SHARED = Squares(20)
ROWS = random_pixels(0, 9)
EXAMPLES = [SHARED[index] for index in range(6)]


@pytest.mark.parametrize(
    ("train", "evaluated", "shared"),
    [
        (views(4), views(4), 12),
        (views(4), views(4, "test"), 0),
        (views(4, augmentation="pad_crop"), Subset(views(4), [0, 5]), 2),
        (ROWS.select(range(6)), ROWS.select(range(4, 9)), 2),
        (ROWS, random_pixels(1, 5), 0),
        (ROWS.with_transform(lambda rows: rows), ROWS.with_format("numpy"), 9),
        (ROWS.rename_column("picture", "img"), ROWS.select([3]), 1),
        (views(4), subtask_rows(2), 6),
        (Subset(SHARED, range(12)), Subset(SHARED, range(10, 20)), 2),
        (Subset(SHARED, range(10)), Subset(SHARED, range(10, 20)), 0),
        (ConcatDataset([SHARED, Squares(5, 50)]), SHARED, 20),
        (SHARED, SHARED, 20),
        (Squares(12), Squares(12), 12),
        (Squares(12), Squares(12, 30), 0),
        (Squares(12, noise=1.0), Squares(12, noise=1.0), 0),  # nobody knows
        (tensors(0, 8), tensors(5, 8), 3),
        (EXAMPLES[:4], EXAMPLES[3:], 1),
        (Folder("a/1.png", "a/2.png"), Folder("a/../a/2.png", "a/3.png", "b.png"), 1),
        (iter(EXAMPLES), EXAMPLES, 0),
    ],
)
def test_images_in_both_are_counted(train, evaluated, shared):
    assert shared_images(train, evaluated, default_collate) == shared


def test_a_trainer_tells_of_evaluation_images_that_it_trains_on(tmp_path, caplog):
    trainer(tmp_path)
    assert "training images" not in caplog.text
    several = {"train": views(), "others": views(4, "test"), "constrained": views(4)}
    trainer(tmp_path, parts={"eval_dataset": several})
    (said,) = [entry for entry in caplog.records if entry.levelno == logging.WARNING]
    assert said.getMessage().startswith("12 of the 12 evaluation images 'constrained' are training images")
