"""A whole run from words to a pushed student, with a teacher that compares images with texts."""

import json

import pytest

from helpers import config, task_options, write_task
from image_text import CLASSES, save_image_text_model
from subdistill_hf.data.embedded.glyphs import render
from subdistill_hf.errors import SubDistillError
from subdistill_hf.pipeline.run import distill
from subdistill_hf.pipeline.task import load_task

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
    save_image_text_model(folder / "clip", "clip")
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
    assert "**No image had a label.**" in card
    names = hub.answer(PUSH, str(tmp_path / "out"))
    assert [*names.values()] == [*CLASSES]
    files = hub.files("user/tomatoes")
    assert not [name for name in files if "token" in name]
    assert json.loads(files["config.json"])["model_type"] == "resnet"


def test_names_of_labelled_classes_are_the_words(inputs, tmp_path):
    options = task_options(inputs, teacher=str(inputs / "clip"))
    task = load_task(options, config(tmp_path / "out"))
    assert task.data.subtask.teacher_ids == (0, 1, 2)
    assert not task.data.labels_by_teacher


def test_prompts_for_a_classifier_are_refused(inputs, tmp_path):
    with pytest.raises(SubDistillError, match="has classes of its own"):
        load_task(task_options(inputs, prompts=["a photo of {}."]), config(tmp_path / "out"))


@pytest.mark.parametrize("prompt", ["a photo", "a photo of {} and {}", "a photo of {name}"])
def test_a_prompt_without_a_place_for_the_class_is_refused(inputs, prompt):
    with pytest.raises(SubDistillError, match=r"needs \{\} once"):
        words(inputs, prompts=[prompt])


def test_a_teacher_that_takes_words_lacks_no_class(inputs, tmp_path):
    options = task_options(inputs, teacher=str(inputs / "clip"), adapt_teacher="lora")
    with pytest.raises(SubDistillError, match="takes words"):
        load_task(options, config(tmp_path / "out"))
