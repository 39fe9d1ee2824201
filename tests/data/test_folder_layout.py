"""Splits and classes of images are told by the first folders of their paths alone, or the layout is refused."""

import unicodedata

import pytest

from subdistill_hf.data.folder_layout import name_splits, read_layout, split_named
from subdistill_hf.errors import DataError


def layout(*paths):
    """The images of each split as `CLASS: PATH`, what is left out, and the notices."""
    found = read_layout(paths, "folder")
    images = {split: sorted(f"{name}: {path}" for path, name in inside) for split, inside in found.images.items()}
    left_out = sorted(path for inside in found.left_out.values() for path in inside)
    assert len(left_out) + sum(map(len, images.values())) == len(paths)
    return images, left_out, list(found.notices)


@pytest.mark.parametrize("word", ["train", "test-tube", "eval kit", "valid", "dev", "Test", "training 1"])
def test_class_folders_with_words_of_splits_are_classes(word):
    images, left_out, notices = layout(
        f"train/{word}/1.png", "train/bus/1.png", f"test/{word}/2.png", "test/bus/2.png"
    )
    assert images == {
        "train": sorted([f"{word}: train/{word}/1.png", "bus: train/bus/1.png"]),
        "test": sorted([f"{word}: test/{word}/2.png", "bus: test/bus/2.png"]),
    }
    assert (left_out, notices) == ([], [])
    flat, _, _ = layout(f"{word}/1.png", "bus/1.png")
    assert flat == {"train": sorted([f"{word}: {word}/1.png", "bus: bus/1.png"])}


def test_file_names_with_words_of_splits_tell_nothing():
    images, _, _ = layout("cat/cat in training.png", "cat/test.png", "dog/val-1.png")
    assert images == {"train": ["cat: cat/cat in training.png", "cat: cat/test.png", "dog: dog/val-1.png"]}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("training", "TESTING"),
        ("train2017", "test2017"),
        ("flowers-train", "flowers-test"),
        ("train_images", "test images"),
        ("train", "eval"),
        ("trainset", "testset"),
        ("TrainData", "TestImages"),
        ("tr", "te"),
        ("trn", "TST"),
        ("train", "te"),
    ],
)
def test_folders_of_splits_may_be_spelt_otherwise(train, test):
    images, _, _ = layout(f"{train}/a/1.png", f"{train}/b/1.png", f"{test}/a/1.png")
    assert {split: len(inside) for split, inside in images.items()} == {"train": 2, "test": 1}


def test_the_name_of_a_split_itself_comes_first():
    images, _, _ = layout("train/a/1", "train/b/1", "test/a/1", "eval/a/1", "extra/b/1")
    assert {split: len(inside) for split, inside in images.items()} == {"train": 2, "test": 1, "eval": 1, "extra": 1}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["1.png", "2.png"], "folder holds 2 images and no folders of classes"),
        (["train/1.png", "test/2.png"], "test, train hold images and no folders of classes"),
        (["train/1.png", "test/2.png", "bus/3.png"], "test, train hold images and no folders of classes"),
        (
            ["bus/s/1.png", "train/s/1.png"],
            "which folders are splits and which are classes, of train and bus",
        ),
        (["train/s/1.png", "test-tube/s/1.png"], "not clear which folders are splits and which are classes"),
        (["train_1/a/1.png", "train_2/b/1.png"], "train_1 and train_2 may all be the train split"),
        (
            ["images/train/a/1.png", "images/test/a/1.png", "notes/1.png"],
            "folder images has the folders test and train",
        ),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], "splits are told by the first folders alone"),
        (["Val/a/1.png", "VAL/a/1.png", "train/a/1.png"], "VAL and Val may all be the validation split"),
        (
            ["treino/a/1.png", "treino/b/1.png", "teste/a/1.png", "teste/b/1.png"],
            "not clear whether teste, treino are splits or classes, since all of them have the folders a and b",
        ),
        (
            [f"fold{fold}/{name}/1.png" for fold in range(5) for name in "abc"],
            "fold0, fold1, fold2 are splits or classes",
        ),
    ],
)
def test_a_layout_that_is_not_clear_is_refused(paths, message):
    with pytest.raises(DataError, match=message):
        read_layout(paths, "folder")


def test_folders_below_those_of_the_classes_are_no_classes():
    images, _, notices = layout("train/cat/monday/1", "train/cat/friday/2", "train/dog/3", "test/dog/4")
    assert images["train"] == ["cat: train/cat/friday/2", "cat: train/cat/monday/1", "dog: train/dog/3"]
    assert notices == [
        "train: 2 images lie in folders below those of the classes, such as cat/friday: they count as images of the "
        "class cat"
    ]
    images, _, notices = layout("cat/monday/1", "dog/monday/2")
    assert images == {"train": ["cat: cat/monday/1", "dog: dog/monday/2"]}
    assert len(notices) == 1


def test_folders_of_equal_names_below_classes_are_read_where_they_cannot_be_classes():
    for paths in (
        ("cat/images/1", "cat/images/2", "dog/images/3"),
        ("cat/left/1", "cat/right/2", "dog/left/3", "dog/right/4", "dog/5"),
        ("cat/left/1", "cat/right/2", "dog/left/3", "dog/front/4"),
        ("tr/1", "te/2", "de/3"),
    ):
        images, _, _ = layout(*paths)
        assert len(images["train"]) == len(paths)


def test_composed_and_decomposed_accents_are_one_name():
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    assert composed != apart
    images, _, notices = layout(f"train/{apart}/1", "train/dog/2", f"test/{composed}/1")
    assert images == {
        "train": sorted([f"{composed}: train/{apart}/1", "dog: train/dog/2"]),
        "test": [f"{composed}: test/{composed}/1"],
    }
    assert notices == [
        f"classes {composed}: their folders are spelled with composed and with decomposed accents, which were read as "
        "one name"
    ]
    assert layout(f"train/{apart}/1", "train/dog/2", f"test/{apart}/1")[2] == []


def test_images_in_no_class_folder_are_left_out():
    _, left_out, _ = layout("train/cat/1", "train/dog/1", "train/preview", "preview", "test/cat/1")
    assert left_out == ["preview", "train/preview"]
    _, left_out, _ = layout("train/cat/1", "test/dog/1", "docs/1")
    assert left_out == ["docs/1"]


@pytest.mark.parametrize("wrapper", ["pets", "train-data", "a/b"])
def test_a_folder_around_the_dataset_is_looked_into(wrapper):
    images, _, notices = layout(f"{wrapper}/train/a/1", f"{wrapper}/train/b/1", f"{wrapper}/test/a/1")
    assert {split: len(inside) for split, inside in images.items()} == {"train": 2, "test": 1}
    assert notices
    images, _, notices = layout("train/images/a/1", "train/images/b/1", "test/images/a/2")
    assert images["train"] == ["a: train/images/a/1", "b: train/images/b/1"]
    assert notices == ["all images of the splits are in their folder images, whose folders are the classes"]


def test_names_stand_for_the_split_whose_word_alone_they_hold():
    assert [split_named(name) for name in ("train", "my-train_3", "traint", "train-test", "VAL", "")] == [
        "train",
        "train",
        None,
        None,
        "validation",
        None,
    ]
    assert name_splits(["train", "train2", "b"], "x") == {"train": "train", "train2": "train2", "b": "b"}
