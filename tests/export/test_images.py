"""The images of an export: those of the run, of a dataset with the same classes, or of a folder without."""

import numpy as np
import pytest
from PIL import Image

from helpers import NAMES, write_image_folder
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.images import ImageSet, calibration_images, images_of_run, made_up_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory, datasets_cache):
    return write_image_folder(tmp_path_factory.mktemp("images"), train=5, test=2)


def test_the_images_of_a_run_are_split_as_it_split_them(folder):
    options = {"dataset": str(folder), "classes": list(NAMES), "validation_fraction": 0.2, "seed": 3, "of_old": 1}
    images = images_of_run(options, NAMES)
    assert len(images.calibration.images) == 12
    assert len(images.validation.images) == 3
    assert images.test.labels == (0, 0, 1, 1, 2, 2)
    assert images.test.images[0].shape == (32, 32, 3)
    assert images.test.images[0].dtype == np.uint8
    assert images.described == f"the 6 test images of {folder.name}"


def test_a_run_without_validation_images_chooses_by_training_images(folder):
    options = {"dataset": str(folder), "classes": list(NAMES), "validation_fraction": 0.0, "seed": 3}
    images = images_of_run(options, NAMES)
    assert len(images.validation.images) == 15
    assert images.chosen_on == "training images"


def test_a_dataset_of_other_classes_is_refused(folder):
    with pytest.raises(ExportError, match=r"calibration=.*no_such_class.*of the student's classes"):
        calibration_images(str(folder), [*NAMES[:2], "no_such_class"])


def test_images_that_are_gone_are_refused_with_what_to_do(tmp_path):
    options = {"dataset": str(tmp_path / "gone"), "classes": list(NAMES)}
    with pytest.raises(ExportError, match=r"images of the run.*--calibration"):
        images_of_run(options, NAMES)


def test_a_folder_of_images_alone_has_no_labels(tmp_path):
    for number in range(5):
        Image.new("RGB", (20 + number, 10), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("none")
    images = calibration_images(str(tmp_path), NAMES)
    assert [image[0, 0, 0] for image in images.calibration.images] == [0, 2, 4]
    assert [image.shape[1] for image in images.test.images] == [21, 23]
    assert images.test.labels is None
    assert images.test.accuracy(np.zeros((2, 3))) is None


def test_what_a_file_manager_hides_in_a_folder_of_images_is_none_of_it(tmp_path):
    for name in ("a.png", "b.png", ".c.png"):
        Image.new("RGB", (20, 10)).save(tmp_path / name)
    (tmp_path / ".thumbnails").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / ".thumbnails" / "a.png")
    images = calibration_images(str(tmp_path), NAMES)
    assert [len(images.calibration.images), len(images.test.images)] == [1, 1]


def test_of_a_large_folder_images_of_all_kinds_are_taken(tmp_path):
    for kind, grey in (("cat", 10), ("dog", 240)):
        for number in range(300):
            Image.new("RGB", (2, 2), (grey,) * 3).save(tmp_path / f"{kind}_{number:03d}.bmp")
    images = calibration_images(str(tmp_path), NAMES)
    for part in (images.calibration.images, images.test.images):
        assert sorted(int(image[0, 0, 0]) for image in part) == [10] * 64 + [240] * 64
    assert images.described == f"256 of the 600 images of the folder {tmp_path.name}, without classes"


def test_the_folder_of_the_images_is_named_where_it_is_the_current_one(tmp_path, monkeypatch):
    folder = tmp_path / "garden"
    folder.mkdir()
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    monkeypatch.chdir(folder)
    assert calibration_images(".", NAMES).described == "images of the folder garden, without classes"


def test_a_damaged_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ExportError, match=r"bad\.png cannot be used"):
        calibration_images(str(tmp_path), NAMES)


def test_made_up_images_hold_the_example(tmp_path):
    assert len(made_up_images(tmp_path).test.images) == 4
    Image.new("RGB", (8, 6), "red").save(tmp_path / "example.png")
    images = made_up_images(tmp_path)
    assert images.test.images[0].shape == (6, 8, 3)
    assert images.described == "images of noise and the example image"


def test_accuracy():
    images = ImageSet((), (0, 1, 1))
    assert images.accuracy(np.eye(3)[[0, 1, 2]]) == pytest.approx(2 / 3)
