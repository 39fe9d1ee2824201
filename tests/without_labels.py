"""Images in no folder of a class, and the options of a run on them."""

import numpy as np

from helpers import config, task_options, write_task
from subdistill_hf.data.embedded.glyphs import render
from subdistill_hf.pipeline.task import load_task


def write_unlabelled(folder):
    """A teacher, and images without labels: 30 to train, one of them a test image too, and 8 to test."""
    write_task(folder)
    for split, count in (("train", 29), ("test", 8)):
        (folder / "mine" / split).mkdir(parents=True)
        for index in range(count):
            render(0, split, 60 + index, 3).save(folder / "mine" / split / f"{index}.png")
    render(0, "test", 60, 3).save(folder / "mine" / "train" / "again.bmp")
    return folder


def options_of(inputs, **changed):
    """Options of a run on what `write_unlabelled` wrote, which keeps every image."""
    given = {"label_column": "none", "unlabelled_threshold": 0.0, "validation_fraction": 0.2}
    given["dataset"] = str(inputs / "mine")
    return task_options(inputs, **given | changed)


def masses_in(inputs, folder, tmp_path):
    """The teacher's probability that an image shows a class, of the images of a folder in rising order."""
    options = options_of(inputs, dataset=str(folder), test_fraction=0.5, unlabelled_threshold=0.0)
    return sorted(load_task(options, config(tmp_path / "masses")).selection.masses)


def contents(rows):
    """The pixels of images, each `(H, W, 3)`."""
    return [np.asarray(image.convert("RGB")) for image in rows["image"]]
