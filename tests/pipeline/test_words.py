"""A whole run from words to a pushed student, with a teacher that compares images with texts."""

import json
import re

import pytest
import torch

from helpers import NAMES, config, task_options, write_task
from image_text import CLASSES, save_image_text_model
from subdistill_hf.analysis.teacher_layers import load_teacher_layers
from subdistill_hf.config.commands import ExplainOptions, InspectOptions
from subdistill_hf.data.embedded.glyphs import render
from subdistill_hf.data.subtask import Subtask
from subdistill_hf.errors import SubDistillError
from subdistill_hf.explain.pair import load_pair
from subdistill_hf.models.words import phrases_of_names
from subdistill_hf.pipeline.run import distill
from subdistill_hf.pipeline.task import load_task, load_teacher_of, matched
from subdistill_hf.reporting.report import RunReport

pytestmark = pytest.mark.usefixtures("datasets_cache", "quick_reports")

PUSH = """
import json, sys
from subdistill_hf.cli import main
from transformers import AutoConfig

main(["push", sys.argv[1], "--repo", "user/tomatoes"])
print(json.dumps(AutoConfig.from_pretrained("user/tomatoes").id2label))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """An image-text model, a classifier, and images without labels."""
    folder = write_task(tmp_path_factory.mktemp("words"))
    for family in ("clip", "siglip", "siglip2_naflex"):
        save_image_text_model(folder / family, family)
    (folder / "photos").mkdir()
    for index in range(24):
        render(0, "train", index, 1).save(folder / "photos" / f"{index}.png")
    return folder


def words(inputs, **changed):
    given = {
        "teacher": str(inputs / "clip"),
        "dataset": str(inputs / "photos"),
        "label_column": "none",
        "test_fraction": 0.25,
        "classes": [*CLASSES[:2], f"{CLASSES[2]} | a red tomato"],
        "unlabelled_threshold": 0.0,
    }
    return task_options(inputs, **given | changed)


def test_from_words_to_a_pushed_student(inputs, tmp_path, hub):
    report = distill(words(inputs), config(tmp_path / "out", method="subdistill", max_steps=2))
    assert report.classes == CLASSES
    assert report.teacher.prompts
    assert len(report.subspaces) > 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Classes in words, in: `a photo of {}.`" in card
    assert "Texts of none of the classes: `a photo.`, `a photo of something else.`" in card
    assert "**No image had a label.**" in card
    names = hub.answer(PUSH, str(tmp_path / "out"))
    assert [*names.values()] == [*CLASSES]
    files = hub.files("user/tomatoes")
    assert not [name for name in files if "token" in name]
    assert json.loads(files["config.json"])["model_type"] == "resnet"


def test_words_without_labels_may_have_an_answer_for_anything_else(inputs, tmp_path):
    masses = sorted(load_task(words(inputs), config(tmp_path / "first")).selection.masses)
    options = words(inputs, other_class=True, unlabelled_threshold=(masses[11] + masses[12]) / 2)
    report = distill(options, config(tmp_path / "out", method="subdistill", max_steps=2))
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["id2label"]["3"] == "none of these"
    )
    assert report.dataset.others.train_images > 0
    assert report.published_result.unknown


def test_a_teacher_that_reads_patches_teaches_by_its_layers(inputs, tmp_path):
    """Its images are square, with as many patches as it has positions; `models/test_zero_shot` has the parity."""
    options = words(inputs, teacher=str(inputs / "siglip2_naflex"))
    report = distill(options, config(tmp_path / "out", method="subdistill", max_steps=2))
    assert report.classes == CLASSES
    assert all("encoder.layers" in subspace.teacher_layer for subspace in report.subspaces)
    assert len(report.subspaces) > 0


def test_names_of_labelled_classes_are_the_words(inputs, tmp_path):
    options = task_options(inputs, teacher=str(inputs / "clip"))
    task = load_task(options, config(tmp_path / "out"))
    assert task.data.subtask.teacher_ids == (0, 1, 2)
    assert not task.data.labels_by_teacher


def test_names_of_a_dataset_that_look_like_words_of_several_phrases_are_taken_as_they_are(inputs, tmp_path):
    names = ("red|rotten tomato", "a", "A", "none of these")
    teacher = load_teacher_of(task_options(inputs, teacher=str(inputs / "siglip")), phrases_of_names(names))
    subtask = matched(Subtask(names, (3, 1, 0, 2)), teacher, ["A", "a", "none of these", "red|rotten tomato"])
    assert subtask.teacher_ids == (0, 1, 2, 3)
    assert teacher.labels[4] == "none of these"  # of an image that shows nothing of all that


def test_phrases_of_a_run_are_those_of_its_explanation(inputs, tmp_path):
    out = tmp_path / "out"
    report = distill(words(inputs, prompts=["a picture of {}."]), config(out, method="kd", max_steps=1))
    assert report.teacher.classes == (*((name,) for name in CLASSES[:2]), (CLASSES[2], "a red tomato"))
    again = RunReport.load(out)
    given = ExplainOptions(teacher=str(inputs / "clip"))
    pair = load_pair(out, given)
    own = load_task(words(inputs, prompts=["a picture of {}."]), config(tmp_path / "again"))
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(pair.teacher.classifier.model(pixels)[:, :3], own.teacher.model(pixels)[:, :3])
    assert again.teacher.classes == report.teacher.classes


def test_classes_with_labels_may_be_given_words_of_their_own(inputs, tmp_path):
    first, *others = task_options(inputs).classes
    options = task_options(
        inputs, teacher=str(inputs / "clip"), classes=[f"{first} | a ripe tomato | a tomato", *others]
    )
    task = load_task(options, config(tmp_path / "out"))
    plain = load_task(task_options(inputs, teacher=str(inputs / "clip")), config(tmp_path / "plain"))
    assert task.teacher.words.names == task.data.subtask.names == plain.data.subtask.names
    assert task.teacher.words.classes[0] == ("a ripe tomato", "a tomato")
    assert task.teacher.words.classes[1:] == plain.teacher.words.classes[1:]
    assert task.options.classes == plain.options.classes


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a ripe tomato", "a rotten tomato"], "give 'LABEL | your words'"),
        ([f"{NAMES[0]} | a tomato", f"{NAMES[1]} | a tomato"], "'a tomato' is given for two classes"),
        (["superclass:fruit | a tomato", NAMES[1]], "words are for one class"),
        ([NAMES[0], NAMES[0]], "is given twice"),
    ],
)
def test_words_that_do_not_fit_labels_are_refused(inputs, tmp_path, classes, message):
    options = task_options(inputs, teacher=str(inputs / "clip"), classes=classes)
    with pytest.raises(SubDistillError, match=re.escape(message)):
        load_task(options, config(tmp_path / "out"))


def test_numbers_are_no_words_but_where_a_prompt_says_what_they_are(inputs, tmp_path):
    with pytest.raises(SubDistillError, match="has no list of classes"):
        load_task(words(inputs, classes=["0", "n02123045"]), config(tmp_path / "out"))
    options = words(inputs, classes=["a", "7"], prompts=["a photo of the number {}."])
    assert load_teacher_of(options, None).words.classes == (("a",), ("7",))


def test_words_for_a_teacher_with_classes_of_its_own_are_refused_with_what_takes_them(inputs, tmp_path):
    options = words(inputs, teacher="glyphs-resnet", classes=["a ripe tomato", "a rotten tomato"])
    with pytest.raises(SubDistillError, match=r"'glyphs-resnet': unknown class 'a ripe tomato'.*takes any words"):
        load_task(options, config(tmp_path / "out"))


def test_a_command_that_needs_a_classifier_refuses_a_teacher_of_words(inputs):
    options = InspectOptions(teacher=str(inputs / "clip"), dataset=str(inputs / "photos"))
    with pytest.raises(SubDistillError, match="has no classes: expected a classifier"):
        load_teacher_layers(options)


def test_prompts_for_a_classifier_are_refused(inputs, tmp_path):
    with pytest.raises(SubDistillError, match="has classes of its own"):
        load_task(task_options(inputs, prompts=["a photo of {}."]), config(tmp_path / "out"))


@pytest.mark.parametrize("prompt", ["a photo", "a photo of {} and {}", "a photo of {name}"])
def test_a_prompt_without_a_place_for_the_class_is_refused(inputs, prompt):
    with pytest.raises(SubDistillError, match=r"needs \{\} once"):
        words(inputs, prompts=[prompt])
