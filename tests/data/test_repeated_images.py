"""Images that are there twice, in whatever way: none is tested with that is trained on, and none is used twice."""

import shutil

import datasets
import numpy as np
import pytest

from pictures import class_folders, encoded, picture, write_pictures
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data import repeated_images, stored_images
from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.repeated_images import without_repeated
from subdistill_hf.data.stored_images import find_repeated
from subdistill_hf.data.subtask import SubtaskError

pytestmark = pytest.mark.usefixtures("datasets_cache")
COLUMNS = ImageColumns("image", "label")


def load(folder, **options):
    return load_subtask(DataOptions(str(folder), ["all"], **options))


def copied(folder, **files):
    for place, source in files.items():
        shutil.copy(folder / source, folder / place)


def test_copies_are_left_out_with_a_count_whatever_they_are_called(tmp_path):
    folder = class_folders(tmp_path / "set")
    shutil.copy(folder / "test/cat/0.png", folder / "train/cat/other.png")
    shutil.copy(folder / "train/cat/1.png", folder / "train/cat/again.png")
    shutil.copy(folder / "test/dog/1.png", folder / "test/dog/again.png")
    shutil.copy(folder / "train/cat/2.png", folder / "train/dog/cat.png")
    data = load(folder)
    assert [notice.partition(", such as")[0] for notice in data.notices] == [
        "left out: 1 training images are test images",
        "left out: 2 training images are there under several classes",
        "left out: 1 training images are copies of others",
        "left out: 1 test images are copies of others",
    ]
    assert (len(data.train) + len(data.validation), len(data.test)) == (11, 6)


def test_a_held_out_test_has_no_image_of_the_training(tmp_path):
    folder = write_pictures(tmp_path / "set", [f"{name}/{n}.png" for name in "ab" for n in range(10)])
    for path in list(folder.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    data = load(folder, test_fraction=0.3)
    seen = [[row["image"].tobytes() for row in part] for part in (data.train, data.validation, data.test)]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 20
    assert data.notices[0].startswith("left out: 20 training images are copies of others, such as ")


def test_a_teacher_of_all_classes_has_seen_no_test_image_of_a_student_of_some(tmp_path):
    images = [f"{name}/{n}.png" for name in "abcd" for n in range(12)]
    for copies in range(1, 7):
        folder = write_pictures(tmp_path / str(copies), images)
        for number in range(copies):  # images that the student's classes have, under a class that it does not know
            shutil.copy(folder / f"a/{number}.png", folder / f"d/copy{number}.png")
        some = load_subtask(DataOptions(str(folder), ["a", "b"], test_fraction=0.29))
        tested = {image.tobytes() for image in some.test["image"]}
        every = load(folder, test_fraction=0.29)
        seen = {image.tobytes() for part in (every.train, every.validation) for image in part["image"]}
        assert len(tested) == 6
        assert not tested & seen
        assert len({image.tobytes() for image in every.test["image"]} & tested) >= 3  # those of b


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_one_file_under_several_names_is_one_image_however_large_it_is(tmp_path, monkeypatch, link):
    monkeypatch.setattr(stored_images, "MOST_COMPARED_BYTES", 0)
    folder = class_folders(tmp_path / "set", kind="bmp")
    for path in folder.rglob("*.bmp"):
        path.write_bytes(encoded(int(path.stem), "BMP"))  # of equal length; not compared
    getattr(folder / "train/cat/other.bmp", link)(folder / "test/cat/0.bmp")
    data = load(folder)
    assert "left out: 1 training images are test images" in data.notices[1]
    assert data.notices[0].startswith("images were not compared by their contents")
    assert len(data.train) + len(data.validation) == 12


def test_a_split_that_is_the_other_is_refused_with_the_reason(tmp_path):
    folder = class_folders(tmp_path / "set", test=1)
    shutil.rmtree(folder / "test")
    (folder / "test").symlink_to(folder / "train")
    with pytest.raises(SubtaskError, match=r"'cat' has 0 training images: .*; left out: 12 training images are test"):
        load(folder)


def table(numbers, labels):
    images = [{"bytes": encoded(number), "path": None} for number in numbers]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def test_what_is_left_out_is_what_comparing_all_pairs_leaves_out():
    random = np.random.default_rng(0)
    for _ in range(20):
        parts = [(random.integers(0, 12, size).tolist(), random.integers(0, 3, size).tolist()) for size in (15, 8)]
        rows = [table(*part) for part in parts]
        train, test = (
            part.select(np.flatnonzero(kept))
            for part, kept in zip(rows, without_repeated(*rows, COLUMNS)[0], strict=True)
        )
        tested = set(parts[1][0])
        for found, (numbers, labels), name in ((train, parts[0], "train"), (test, parts[1], "test")):
            expected, used = [], set()
            for number, label in zip(numbers, labels, strict=True):
                owners = {other for each, other in zip(numbers, labels, strict=True) if each == number}
                if (name == "train" and number in tested) or len(owners) > 1 or number in used:
                    continue
                used.add(number)
                expected.append((encoded(number), label))
            rows = found.cast_column("image", datasets.Image(decode=False))
            assert [(row["image"]["bytes"], row["label"]) for row in rows] == expected


def test_groups_are_found_across_rows_in_any_order_and_storage(tmp_path):
    path = tmp_path / "5.png"
    picture(5).save(path, "PNG")
    rows = table([1, 5, 2, 1], [0, 0, 0, 0]).select([3, 2, 1, 0])
    filed = datasets.Dataset.from_dict({"image": [str(path)], "label": [0]}, features=rows.features)
    first, second = find_repeated([rows, filed], "image").groups
    assert first[0] == first[3] != first[1]
    assert second[0] == first[2]
    assert find_repeated([rows.select([]), filed], "image").groups[1].tolist() == [0]


def test_embedded_images_are_not_compared(monkeypatch):
    monkeypatch.setattr(repeated_images, "find_repeated", lambda *args: pytest.fail("compared"))
    assert load_subtask(DataOptions("digits", ["zero", "one"])).notices == ()
