"""Images that the user names: what is read, and what is refused."""

import pytest
import torch
from PIL import Image

from helpers import NAMES, damaged_png, glyph_rows, write_image_folder
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.explain.images import data_of_run, images_of_paths
from subdistill_hf.explain.images import test_images as images_of_test


def test_files_and_folders_are_read_with_the_classes_of_their_folders(tmp_path):
    folder = write_image_folder(tmp_path / "images", train=1, test=2)
    (folder / "test" / "more.png").mkdir()
    (folder / "test" / "README").write_text("no image")
    single = tmp_path / "one.png"
    glyph_rows()[0]["img"].save(single)
    found = images_of_paths([str(single), str(folder / "test")], NAMES, 99)
    assert found.names == ("one.png", *["0.png", "1.png"] * 3)
    assert found.labels == (None, *(name for name in sorted(NAMES) for _ in range(2)))
    assert found.marks == (None,) * 7
    assert found.described == "7 images that were given"
    assert found.images[0].shape == (3, 32, 32)
    some = images_of_paths([str(folder / "test")], NAMES, 2)
    assert some.described == "2 of the 6 images that were given"
    assert some.labels == (min(NAMES), max(NAMES))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "there is no file or folder"),
        ("empty", "holds no image: expected PNG"),
        ("damaged.png", "damaged.png cannot be used: .*Remove or replace it"),
        ("text.txt", "text.txt cannot be used"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.png").write_bytes(damaged_png())
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(ExplainError, match=message):
        images_of_paths([str(tmp_path / name)], NAMES, 9)


def test_the_images_of_a_run_come_with_their_mark(tmp_path):
    folder = write_image_folder(tmp_path / "images", train=4, test=2)
    options = {"dataset": str(folder), "classes": list(NAMES), "mark": "plus", "mark_share": 0.5, "seed": 1}
    found = images_of_test(data_of_run(options, NAMES), 3)
    assert found.described == "3 of the 6 test images of images"
    assert found.names == ("test image 0", "test image 2", "test image 5")
    for mark, image in zip(found.marks, found.images, strict=True):
        assert 0 < int(mark.sum()) < 200
        assert torch.equal(image[:, mark], torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None].expand(3, mark.sum()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "does not say which images it was tested with: give --images"),
        ({"dataset": "./gone", "classes": list(NAMES)}, "the images of the run: .*: give --images"),
    ],
)
def test_a_run_whose_images_are_not_known_is_refused(options, message):
    with pytest.raises(ExplainError, match=message):
        data_of_run(options, NAMES)


def test_images_of_other_classes_are_refused(tmp_path):
    folder = write_image_folder(tmp_path / "images", train=2, test=1)
    with pytest.raises(ExplainError, match="the images of the run are of the classes"):
        data_of_run({"dataset": str(folder), "classes": list(NAMES)}, NAMES[:2])


def test_a_single_image_is_told_as_one(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert images_of_paths([str(tmp_path)], NAMES, 5).described == "1 image that was given"
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    assert images_of_paths([str(tmp_path)], NAMES, 1).described == "1 of the 2 images that were given"
