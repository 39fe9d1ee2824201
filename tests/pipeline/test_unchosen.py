"""Images without labels that the teacher takes for none of the classes: trained and tested with, and none twice."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from helpers import NAMES, config, resnet, save_teacher
from subdistill_hf import ExplainOptions, explain_student
from subdistill_hf.config.commands import ExportOptions
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.near_duplicates import near_duplicates, thumbnails
from subdistill_hf.errors import DataError, SubDistillError
from subdistill_hf.export.run import export_student
from subdistill_hf.pipeline.run import distill
from subdistill_hf.pipeline.task import load_task
from without_labels import contents, masses_in, options_of, write_unlabelled

pytestmark = pytest.mark.usefixtures("datasets_cache", "quick_reports")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_unlabelled(tmp_path_factory.mktemp("unchosen"))


def divided_by_teacher(inputs, rows, threshold):
    """The images of some rows that show a class with at least this probability, and the others, by their bytes."""
    teacher = load_task(options_of(inputs), config(inputs / "unused")).teacher
    ids = [CLASS_NAMES.index(name) for name in NAMES]
    above, below = set(), set()
    for path in rows:
        with Image.open(path) as image:
            pixels = teacher.processor([image.convert("RGB")], return_tensors="pt")["pixel_values"]
            mass = float(teacher.model(pixel_values=pixels).logits[0].double().softmax(0)[ids].sum())
            (above if mass >= threshold else below).add(np.asarray(image.convert("RGB")).tobytes())
    return above, below


@pytest.fixture(scope="module")
def middle(inputs, tmp_path_factory):
    """A threshold that half of the training images reach, and some of the test images."""
    masses = masses_in(inputs, inputs / "mine" / "train", tmp_path_factory.mktemp("masses"))
    return (masses[14] + masses[15]) / 2


def pixels_of(rows):
    return {image.tobytes() for image in contents(rows)}


def test_images_that_the_teacher_takes_for_none_of_the_classes_are_trained_and_tested_with(inputs, middle, tmp_path):
    """The teacher is asked once more, image by image."""
    options = options_of(inputs, unlabelled_threshold=middle, other_class=True, other_images=10)
    task = load_task(options, config(tmp_path / "out"))
    data, other = task.data, len(NAMES)
    above, below = divided_by_teacher(inputs, (inputs / "mine" / "train").iterdir(), middle)
    of_test = divided_by_teacher(inputs, (inputs / "mine" / "test").iterdir(), middle)
    for rows in (data.train, data.validation):
        labels = np.asarray(rows["label"][:])
        classes, others = (rows.select(np.flatnonzero(which)) for which in (labels < other, labels == other))
        assert pixels_of(classes) <= above
        assert len(others)
        assert pixels_of(others) <= below
    assert pixels_of(data.test) == of_test[0]
    assert 0 < len(data.others.unchosen) <= len(data.test)
    assert pixels_of(data.others.unchosen) <= of_test[1]
    assert not pixels_of(data.train) & (pixels_of(data.others.unchosen) | pixels_of(data.validation))
    assert data.others.unchosen["label"][:] == [other] * len(data.others.unchosen)
    assert data.output_names == (*NAMES, "none of these")
    assert data.others.train_images == data.train["label"][:].count(other) <= 8  # 2 of 10 are held out
    assert task.selection.kept_as_other == data.others.train_images
    assert f"with less than {middle:g}, for the answer" in str(task.selection)
    assert task.selection.kept_per_class["none of these"] == data.others.train_images


def test_a_student_without_labels_has_an_answer_for_other_images(inputs, middle, tmp_path):
    options = options_of(inputs, unlabelled_threshold=middle, other_class=True)
    report = distill(options, config(tmp_path / "out", method="subdistill", max_steps=2))
    unchosen = report.dataset.others.unchosen_images
    assert unchosen > 0
    assert {found.kind for result in report.results for found in result.unknown} == {"unchosen"}
    student = report.results[1]
    assert student.teacher_agreement == student.accuracy  # one definition of the teacher's answer
    assert all(wrong.teacher_answer == wrong.label for wrong in report.wrong_answers)
    assert {found.images for result in report.results for found in result.unknown} == {unchosen}
    folder = tmp_path / "out"
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["other_class"] is True
    card = (folder / "README.md").read_text(encoding="utf-8")
    trained = report.dataset.others.train_images
    assert f"trained with {trained} images that the teacher takes for none of the classes" in card
    assert f"gives a probability of showing one of the classes below {middle:g}, whatever they show" in card
    assert "the teacher too" not in card
    assert not [line for line in card.splitlines() if line.startswith("| Teacher | ") and "unchosen" in line]
    assert "of classes that were" not in card
    assert "are correct" not in card
    teacher = next(line for line in card.splitlines() if line.startswith("| Teacher |"))
    assert teacher.split("|")[3:6] == [" \N{EN DASH} "] * 3  # agreement, without "none of these", balanced
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Unchosen images are those" in page
    exported = export_student(folder, ExportOptions(max_loss=100))
    assert exported.torch_accuracy is None
    found = explain_student(folder, ExplainOptions(teacher=str(inputs / "teacher"), most_images=2, pictures=1))
    assert {image.label for image in found.images} <= set(NAMES)


def test_without_being_asked_a_few_of_them_are_tested_with(inputs, middle, tmp_path):
    given = {"unlabelled_threshold": middle}
    few = load_task(options_of(inputs, **given), config(tmp_path / "out")).data
    asked = load_task(options_of(inputs, test_unknown=True, **given), config(tmp_path / "out")).data
    none = load_task(options_of(inputs, test_unknown=False, **given), config(tmp_path / "out")).data
    assert pixels_of(few.others.unchosen) == pixels_of(asked.others.unchosen)
    assert (few.others.train_images, few.others.answered, few.output_names) == (0, False, NAMES)
    assert none.others is None
    for data in (few, asked):
        assert pixels_of(data.train) == pixels_of(none.train)


def test_images_of_a_probability_between_are_neither(inputs, tmp_path, monkeypatch):
    """With a threshold above a half: they show a class, though not surely."""
    masses = masses_in(inputs, inputs / "mine" / "test", tmp_path)
    monkeypatch.setattr("subdistill_hf.config.unknown_images.UNCHOSEN_BELOW", (masses[1] + masses[2]) / 2)
    options = options_of(inputs, unlabelled_threshold=(masses[5] + masses[6]) / 2)
    data = load_task(options, config(tmp_path / "out")).data
    assert len(data.test) == 2
    assert (
        pixels_of(data.others.unchosen)
        <= divided_by_teacher(inputs, (inputs / "mine" / "test").iterdir(), (masses[1] + masses[2]) / 2)[1]
    )


@pytest.mark.parametrize("option", ["other_class", "test_unknown"])
def test_an_answer_for_images_that_are_not_there_is_refused(inputs, tmp_path, option):
    options = options_of(inputs, **{option: True})
    with pytest.raises(
        DataError, match=rf"{option}: expected images .* below a probability of 0, .*found 0 of .*higher"
    ):
        load_task(options, config(tmp_path / "out"))


def test_a_teacher_that_knows_the_classes_alone_is_refused_before_images_are_looked_at(inputs, tmp_path):
    save_teacher(tmp_path / "teacher", resnet(names=NAMES))
    for option, message in (("other_class", "has no answer for others"), ("test_unknown", "or --unknown_images$")):
        options = options_of(inputs, teacher=str(tmp_path / "teacher"), dataset=str(tmp_path), **{option: True})
        with pytest.raises(SubDistillError, match=f"{option}: .* knows the classes of the subtask alone, .*{message}"):
            load_task(options, config(tmp_path / "out"))


def others_of(rows):
    return rows.select(np.flatnonzero(np.asarray(rows["label"][:]) == len(NAMES)))


def thumbs_of(rows):
    return thumbnails([torch.from_numpy(image).permute(2, 0, 1) for image in contents(rows)])


def test_frames_without_anything_on_them_are_used_once(inputs, middle, tmp_path):
    """Near-duplicates are told by contrast, of which they have none."""
    shutil.copytree(inputs / "mine", tmp_path / "mine")
    for split in ("train", "test"):
        for number in range(12):
            Image.new("RGB", (32, 32)).save(tmp_path / "mine" / split / f"black{number}.png")
    options = options_of(inputs, dataset=str(tmp_path / "mine"), unlabelled_threshold=middle, other_class=True)
    data = load_task(options, config(tmp_path / "out")).data
    black = np.zeros((32, 32, 3), np.uint8).tobytes()
    parts = [others_of(data.train), others_of(data.validation), data.others.unchosen]
    assert sum(image.tobytes() == black for rows in parts for image in contents(rows)) <= 1


def test_near_duplicates_are_left_out_before_images_are_drawn(inputs, middle, tmp_path):
    """Otherwise a video, whose frames are alike, leaves next to nothing of what was asked for."""
    shutil.copytree(inputs / "mine", tmp_path / "mine")
    few = load_task(options_of(inputs, unlabelled_threshold=middle), config(tmp_path / "out")).data
    for number, image in enumerate(few.others.unchosen["image"]):
        for step in range(9):
            frame = ImageEnhance.Brightness(image.convert("RGB")).enhance(0.9 + 0.02 * step)
            frame.save(tmp_path / "mine" / "train" / f"frame{number}_{step}.png")
    given = {"dataset": str(tmp_path / "mine"), "unlabelled_threshold": middle, "other_class": True, "other_images": 5}
    for seed in range(3):
        data = load_task(options_of(inputs, **given), config(tmp_path / "out", seed=seed)).data
        assert (data.others.train_images, len(others_of(data.validation))) == (4, 1)


def test_no_image_of_a_part_is_like_one_that_it_must_not_know(inputs, middle, tmp_path):
    """Each image is there three times, in another brightness."""
    (tmp_path / "mine").mkdir()
    for split in ("train", "test"):
        (tmp_path / "mine" / split).mkdir()
        for path in (inputs / "mine" / split).iterdir():
            with Image.open(path) as image:
                for light in (0.5, 0.75, 1.0):
                    dark = ImageEnhance.Brightness(image.convert("RGB")).enhance(light)
                    dark.save(tmp_path / "mine" / split / f"{path.stem}_{light}.png")
    options = options_of(inputs, dataset=str(tmp_path / "mine"), unlabelled_threshold=middle, other_class=True)
    data = load_task(options, config(tmp_path / "out")).data
    train, validation = (others_of(rows) for rows in (data.train, data.validation))
    assert len(train)
    assert len(validation)
    unlike = [
        (train, data.validation),
        (train, data.test),
        (train, data.others.unchosen),
        (data.train, validation),
        (data.others.unchosen, data.train),
        (data.others.unchosen, data.validation),
    ]
    for one, other in unlike:
        assert not near_duplicates(thumbs_of(one), thumbs_of(other)).any()


def test_images_from_elsewhere_may_stand_for_those_that_are_not_there(inputs, tmp_path):
    given = {"test_unknown": True, "unknown_images": str(inputs / "images" / "test")}
    task = load_task(options_of(inputs, **given), config(tmp_path / "out"))
    assert list(task.data.others.counts()) == ["elsewhere"]
