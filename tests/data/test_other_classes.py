"""Images of other classes: which classes are trained with, which are tested with alone, and how many there are."""

import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from helpers import CLASS_IDS, task_options, write_colour_folder, write_image_folder
from subdistill_hf.config.unknown_images import UNKNOWN_IMAGES, UNKNOWN_KINDS
from subdistill_hf.data import other_classes
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.other_classes import glance_at_others, with_images_from_elsewhere, with_other_classes
from subdistill_hf.data.other_images import OTHER, OtherImages
from subdistill_hf.errors import DataError, SubDistillError
from subdistill_hf.reporting import plots

pytestmark = pytest.mark.usefixtures("datasets_cache")
ALL = (*CLASS_IDS, 20, 21, 22, 23, 24)
NAMES = [CLASS_NAMES[class_id] for class_id in CLASS_IDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("others")
    write_image_folder(place / "images", class_ids=ALL, train=6, test=3)
    return place


def loaded(folder, **changed):
    options = task_options(folder, dataset=str(folder / "images"), classes=NAMES, **changed)
    return with_other_classes(load_subtask(options, 0), options, 0)


def test_one_class_in_five_is_never_trained_with(folder):
    data = loaded(folder, other_class=True)
    others = data.others
    assert len(others.seen) == 4
    assert len(others.unseen) == 1
    assert {*others.seen, *others.unseen} == {CLASS_NAMES[class_id] for class_id in ALL[3:]}
    assert data.output_names == (*NAMES, OTHER)
    assert (len(others.near), len(others.far)) == (9, 3)
    assert set(others.near["label"]) == set(others.far["label"]) == {3}


def test_training_and_validation_images_are_worth_two_classes(folder):
    data = loaded(folder, other_class=True)
    counts = [[*rows["label"]].count(3) for rows in (data.train, data.validation)]
    assert sum(counts) == 12
    assert counts[1] == 2
    assert data.others.train_images == counts[0]
    assert data.images_per_class()[OTHER] == counts[0]
    assert [*loaded(folder, other_class=True, other_images=4).train["label"]].count(3) == 3
    assert 3 not in data.test["label"]


def test_without_an_answer_all_other_classes_are_tested_with_alone(folder):
    data = loaded(folder, test_unknown=True)
    assert data.others.near is None
    assert len(data.others.unseen) == 5
    assert len(data.others.far) == 9
    assert data.output_names == tuple(NAMES)


def test_glyphs_of_other_classes_alone_are_made():
    options = task_options(Path("x"), dataset="glyphs-100", train_images_per_class=3, other_class=True)
    data = load_subtask(options, 0)
    data = with_other_classes(data, options, 0)
    assert (len(data.others.seen), len(data.others.unseen)) == (5, 92)
    assert data.others.train_images == 5


def test_near_images_are_of_the_classes_of_the_training_images(folder):
    """Four images are drawn, one of each class that may be trained with, and one of them is held out."""
    data = loaded(folder, other_class=True, other_images=4)
    assert (data.others.train_images, len(data.others.seen), len(data.others.unseen)) == (3, 3, 2)
    trained = data.train.select([place for place, label in enumerate(data.train["label"]) if label == 3])
    assert classes_shown(trained, folder) == set(data.others.seen)
    assert classes_shown(data.others.near, folder) == set(data.others.seen)
    assert classes_shown(data.others.far, folder) == set(data.others.unseen)
    more = loaded(folder, other_class=True)
    assert classes_shown(more.others.near, folder) == set(more.others.seen)


def test_a_class_is_far_once_its_training_images_turn_out_to_be_test_images(folder, tmp_path):
    shutil.copytree(folder / "images", tmp_path / "images")
    known = loaded(folder, other_class=True).others.seen[0]
    for path in (tmp_path / "images" / "train" / known).iterdir():
        shutil.copy(tmp_path / "images" / "test" / known / "0.png", path)
    others = loaded(tmp_path, other_class=True).others
    assert known in others.unseen
    assert known not in classes_shown(others.near, folder)
    assert known in classes_shown(others.far, folder)


def classes_shown(rows, folder):
    """The classes of images that were written to the folder, told by their contents."""
    paths = (folder / "images").glob("*/*/*.png")
    names = {Image.open(path).convert("RGB").tobytes(): path.parent.name for path in paths}
    return {names[image.convert("RGB").tobytes()] for image in rows["image"]}


def test_a_glance_is_at_some_classes_that_the_seed_chooses(folder, monkeypatch):
    monkeypatch.setattr(other_classes, "GLANCED_CLASSES", 1)
    options = task_options(folder, dataset=str(folder / "images"), classes=NAMES)
    data = load_subtask(options, 0)
    glances = [set(contents(glance_at_others(data, options, seed).far)) for seed in range(3)]
    assert {len(images) for images in glances} == {3}  # of one class
    assert len(set(map(frozenset, glances))) > 1


def test_a_dataset_without_other_classes_is_refused(folder):
    options = task_options(folder, dataset=str(folder / "images"), classes=["all"], other_class=True)
    with pytest.raises(DataError, match=r"other_class: all classes of .* are in the subtask"):
        with_other_classes(load_subtask(options, 0), options, 0)


def test_each_kind_of_unknown_images_has_its_words_and_its_colour():
    assert tuple(UNKNOWN_IMAGES) == UNKNOWN_KINDS
    assert set(UNKNOWN_KINDS) < {field.name for field in fields(OtherImages)}
    assert tuple(plots._SCORE_COLOURS) == ("known", *UNKNOWN_KINDS)


def test_images_from_elsewhere_are_as_many_as_test_images_and_have_no_class(folder, tmp_path):
    write_colour_folder(tmp_path / "elsewhere", ("blue", "red"), train=10, test=2)
    options = task_options(
        folder, dataset=str(folder / "images"), classes=NAMES, unknown_images=str(tmp_path / "elsewhere")
    )
    alone = with_images_from_elsewhere(load_subtask(options, 0), options, 0)
    assert alone.others.counts() == {"elsewhere": len(alone.test)} == {"elsewhere": 9}
    assert alone.others.elsewhere_name == "elsewhere"
    assert alone.output_names == tuple(NAMES)
    assert max(alone.others.elsewhere["label"]) < 0
    means = [alone.views("elsewhere").image(index).double().mean(dim=(1, 2)) for index in range(9)]
    assert all(max(mean[0], mean[2]) > 1.7 * min(mean[0], mean[2]) for mean in means)  # blue or red, and no glyph

    beside = with_images_from_elsewhere(loaded(folder, other_class=True), options, 0)
    assert beside.others.counts() == {"near": 9, "far": 3, "elsewhere": 9}
    assert beside.output_names == (*NAMES, OTHER)


def test_a_damaged_image_from_elsewhere_is_found_at_once(folder, tmp_path):
    write_colour_folder(tmp_path / "elsewhere", ("blue",), train=3, test=1)
    damaged = tmp_path / "elsewhere" / "train" / "blue" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    options = task_options(
        folder, dataset=str(folder / "images"), classes=NAMES, unknown_images=str(tmp_path / "elsewhere")
    )
    with pytest.raises(DataError, match=r"1\.png"):
        with_images_from_elsewhere(load_subtask(options, 0), options, 0)


def test_a_class_with_the_name_of_the_answer_is_refused_beside_it_and_taken_without_it(folder, tmp_path):
    shutil.copytree(folder / "images", tmp_path / "images")
    for split in ("train", "test"):
        (tmp_path / "images" / split / NAMES[0]).rename(tmp_path / "images" / split / OTHER)
    given = {"dataset": str(tmp_path / "images"), "classes": [OTHER, *NAMES[1:]]}
    options = task_options(folder, **given, other_class=True)
    with pytest.raises(DataError, match="other_class: 'none of these' is a class of the subtask already"):
        with_other_classes(load_subtask(options, 0), options, 0)
    for options in (task_options(folder, **given, test_unknown=True), task_options(folder, **given)):
        data = load_subtask(options, 0)
        assert data.output_names == (OTHER, *NAMES[1:])
        assert len(glance_at_others(data, options, 0).far) == 9
    assert len(with_other_classes(data, task_options(folder, **given, test_unknown=True), 0).others.far) == 9


def contents(rows):
    return [image.tobytes() for image in rows["image"]]


def test_an_image_is_used_once_whatever_the_classes_are_that_have_it(folder, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    others = [CLASS_NAMES[class_id] for class_id in ALL[3:]]
    for name, following in zip(others, [*others[1:], others[0]], strict=True):
        for index in range(3):  # among the training images of another class
            shutil.copy(images / "test" / name / f"{index}.png", images / "train" / following / f"copy{index}.png")
        for index in range(6):  # of the images for training, and of the one for validation
            shutil.copy(images / "train" / NAMES[0] / f"{index}.png", images / "test" / name / f"known{index}.png")
        shutil.copy(images / "test" / NAMES[1] / "0.png", images / "train" / name / "known.png")
        shutil.copy(images / "train" / name / "1.png", images / "train" / following / "twice.png")
    options = task_options(folder, dataset=str(images), classes=NAMES, other_class=True, other_images=100)
    data = with_other_classes(load_subtask(options, 0), options, 0)
    parts = [data.train, data.validation, data.test, data.others.near, data.others.far]
    used = [image for rows in parts for image in contents(rows)]
    assert len(used) == len(set(used))
    assert len(data.test) == 9
    assert all(len(rows) for rows in parts)
    for name in (other_classes.NEAR, other_classes.FAR, other_classes.TRAINED):
        assert any(f" {name} are copies of others, such as " in notice for notice in data.notices)
    closed = replace(options, other_class=False, other_images=None, test_unknown=True)
    data = load_subtask(closed, 0)
    own = {image for split in ("train", "validation", "test") for image in contents(data.rows(split))}
    for others in (with_other_classes(data, closed, 0).others, glance_at_others(data, closed, 0)):
        assert len(others.far)
        assert not own & {*contents(others.far)}


def test_images_from_elsewhere_are_none_of_the_run(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    write_colour_folder(elsewhere, ("blue",), train=3, test=1)
    shutil.copy(folder / "images" / "train" / NAMES[0] / "0.png", elsewhere / "train" / "blue" / "known.png")
    options = task_options(folder, dataset=str(folder / "images"), classes=NAMES, unknown_images=str(elsewhere))
    data = with_images_from_elsewhere(load_subtask(options, 0), options, 0)
    assert data.others.counts() == {"elsewhere": 3}
    assert data.notices[-1].startswith("left out: 1 images from elsewhere are copies of others, such as ")
    for path in (elsewhere / "train" / "blue").glob("[0-9].png"):
        path.unlink()
    with pytest.raises(DataError, match="all images are those of the run: give others"):
        with_images_from_elsewhere(load_subtask(options, 0), options, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "here", "unknown_images": "here"}, "unknown_images=here and dataset=here are the same images"),
        (
            {"unlabelled": "there", "unknown_images": "there"},
            "unknown_images=there and unlabelled=there are the same images",
        ),
        ({"unknown_images": "there", "test_unknown": False}, "contradict each other"),
        ({"mark": "plus", "other_class": True}, "mark=plus and other_class=True contradict each other"),
        ({"mark": "plus", "test_unknown": True}, "mark=plus and test_unknown=True contradict each other"),
        ({"mark": "plus", "unknown_images": "there"}, "mark=plus and unknown_images=there contradict each other"),
    ],
)
def test_options_that_contradict_each_other_are_refused(folder, given, message):
    with pytest.raises(SubDistillError, match=message):
        task_options(folder, **given)


@pytest.mark.parametrize("option", ["dataset", "unlabelled"])
def test_one_folder_under_two_names_is_refused_as_images_from_elsewhere(folder, option, tmp_path):
    (tmp_path / "link").symlink_to(folder / "images")
    for other_name in (folder / "images" / ".." / "images", tmp_path / "link"):
        given = {"dataset": "glyphs-100", option: str(folder / "images"), "unknown_images": str(other_name)}
        with pytest.raises(SubDistillError, match=f"and {option}=.* are the same images"):
            task_options(folder, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"other_images": 5},
        {"other_class": True, "other_images": 1},
    ],
)
def test_options_that_do_not_fit_are_refused(folder, given):
    with pytest.raises(SubDistillError, match=r"without --other_class|other_images=1: expected at least 2"):
        task_options(folder, **given)
