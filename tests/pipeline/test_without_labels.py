"""Datasets without labels: the teacher chooses the images, and every figure is called the agreement with it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import metadata_load
from PIL import Image

from helpers import NAMES, config, resnet, save_teacher, task_options
from subdistill_hf import ExplainOptions, explain_student
from subdistill_hf.config.commands import ExportOptions
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES
from subdistill_hf.data.embedded.glyphs import render
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.subtask import SubtaskError
from subdistill_hf.errors import DataError, SubDistillError
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.export.run import export_student
from subdistill_hf.export.summary import summary
from subdistill_hf.family.subtasks import experts_of
from subdistill_hf.pipeline.report import image_options, results_table
from subdistill_hf.pipeline.run import distill
from subdistill_hf.pipeline.student_images import load_of_run
from subdistill_hf.pipeline.task import load_task
from subdistill_hf.pipeline.validation import validate_options
from subdistill_hf.reporting.report import RunReport
from without_labels import contents, masses_in, options_of, write_unlabelled

pytestmark = pytest.mark.usefixtures("datasets_cache", "quick_reports")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_unlabelled(tmp_path_factory.mktemp("without_labels"))


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "out"
    settings = config(folder, method="subdistill", max_steps=2, eval_strategy="steps", eval_steps=1)
    return distill(options_of(inputs), settings), folder


def test_the_teachers_answers_are_the_labels(inputs, tmp_path):
    task = load_task(options_of(inputs), config(tmp_path / "out"))
    data = task.data
    assert (len(data.train), len(data.validation), len(data.test)) == (23, 6, 8)
    assert task.selection.held_out == 1
    assert data.subtask.names == NAMES
    assert data.subtask.teacher_ids == tuple(CLASS_NAMES.index(name) for name in NAMES)
    pixels = task.teacher.processor(list(data.test["image"]), return_tensors="pt")["pixel_values"]
    answers = task.teacher.model(pixel_values=pixels).logits[:, list(data.subtask.teacher_ids)].argmax(1)
    assert data.test["label"][:] == answers.tolist()


def test_no_image_is_held_out_for_a_run_that_chooses_nothing_by_them(inputs, tmp_path):
    task = load_task(options_of(inputs, validation_fraction=None), config(tmp_path / "out"))
    assert (len(task.data.train), task.validation()) == (29, None)


def test_near_duplicates_of_validation_images_are_not_trained_on(inputs, tmp_path):
    """Each image is there mirrored too, so that copies of some of those for validation are among the others."""
    shutil.copytree(inputs / "mine" / "test", tmp_path / "twice" / "test")
    (tmp_path / "twice" / "train").mkdir()
    for index in range(10):
        image = render(0, "train", 60 + index, 3)
        image.save(tmp_path / "twice" / "train" / f"{index}.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "twice" / "train" / f"{index}_mirrored.png")
    task = load_task(options_of(inputs, dataset=str(tmp_path / "twice")), config(tmp_path / "out"))
    train, validation = contents(task.data.train), contents(task.data.validation)
    assert len(validation) == 4
    assert 0 < task.selection.held_out == 16 - len(train)
    assert not any(np.array_equal(one, other[:, ::-1]) for one in train for other in validation)


def test_a_share_is_held_out_where_there_is_no_test_split(inputs, tmp_path):
    train = str(inputs / "mine" / "train")
    task = load_task(options_of(inputs, dataset=train, test_fraction=0.2), config(tmp_path / "out"))
    assert len(task.data.test) == 6
    assert task.data.test_split == "held out of train"
    again = load_task(options_of(inputs, dataset=train, test_fraction=0.2), config(tmp_path / "out", seed=8))
    for one, other in zip(contents(again.data.test), contents(task.data.test), strict=True):
        assert np.array_equal(one, other)  # whatever the seed: figures of several are of the same images
    with pytest.raises(DataError, match=r"has no test or validation split.*--test_fraction"):
        load_task(options_of(inputs, dataset=train), config(tmp_path / "out"))


def test_outputs_of_the_teacher_that_have_one_name_get_their_numbers(inputs, tmp_path):
    model = resnet(names=("crane", "owl", "crane"))
    model.config.id2label = {0: "crane", 1: "owl", 2: "crane"}
    save_teacher(tmp_path / "teacher", model)
    options = options_of(inputs, teacher=str(tmp_path / "teacher"), classes=["0", "crane (2)"])
    data = load_task(options, config(tmp_path / "out")).data
    assert data.subtask.names == ("crane (0)", "crane (2)")
    assert data.subtask.teacher_ids == (0, 2)
    with pytest.raises(SubtaskError, match=r"class 'crane' may be one of several: 0 \(crane\), 2 \(crane\)"):
        load_task(options_of(inputs, teacher=str(tmp_path / "teacher"), classes=["crane", "owl"]), config(tmp_path))


def test_a_part_without_images_is_named_with_the_reason(inputs, tmp_path):
    settings = config(tmp_path / "out")
    mine, swapped = inputs / "mine", tmp_path / "swapped"
    highest = {split: masses_in(inputs, mine / split, tmp_path)[-1] for split in ("train", "test")}
    assert highest["train"] != highest["test"]
    between = sum(highest.values()) / 2
    empty = min(highest, key=highest.get)
    with pytest.raises(DataError, match=f"keeps none of {30 if empty == 'train' else 8} {empty}(ing)? images"):
        load_task(options_of(inputs, unlabelled_threshold=between), settings)
    for split, source in (("train", "test"), ("test", "train")):
        shutil.copytree(mine / source, swapped / split)
    other = "test" if empty == "train" else "train"
    with pytest.raises(DataError, match=f"keeps none of .* {other}(ing)? images"):
        load_task(options_of(inputs, dataset=str(swapped), unlabelled_threshold=between), settings)


def test_training_images_that_are_all_test_images_are_refused_with_that_reason(inputs, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(inputs / "mine" / "test", tmp_path / "same" / split)
    with pytest.raises(DataError, match=r"no training images are left: the \d of 8 .* are near-duplicates of"):
        load_task(options_of(inputs, dataset=str(tmp_path / "same")), config(tmp_path / "out"))


def test_a_small_share_is_an_image_and_one_image_is_too_few(inputs, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for number in range(6):
        shutil.copy(inputs / "mine" / "train" / f"{number}.png", few)
    given = {"dataset": str(few), "test_fraction": 0.05, "validation_fraction": 0}
    assert len(load_task(options_of(inputs, **given), config(tmp_path / "out")).data.test) == 1
    for number in range(1, 6):
        (few / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"are left: the 1 of 1 .* held out to validate or test. Give more images$"):
        load_task(options_of(inputs, **given), config(tmp_path / "out"))


def test_classes_that_no_image_shows_are_named(inputs, tmp_path, caplog):
    answers = load_task(options_of(inputs), config(tmp_path / "out")).data
    shown = NAMES[answers.train["label"][0]]
    one = tmp_path / "one"
    for split in ("train", "test"):
        (one / split).mkdir(parents=True)
    rows = [row for row in answers.train if row["label"] == NAMES.index(shown)]
    for number, row in enumerate(rows[:4]):
        row["image"].save(one / ("test" if number == 0 else "train") / f"{number}.png")
    options = options_of(inputs, dataset=str(one), validation_fraction=0)
    data = load_task(options, config(tmp_path / "out")).data
    absent = ", ".join(name for name in NAMES if name != shown)
    expected = (
        f"no training images of {absent}, by the teacher's answers",
        f"no test images of {absent}: each figure is that of the other classes",
    )
    assert data.notices == expected
    assert set(expected) <= {record.getMessage() for record in caplog.records}


def test_a_report_tells_which_images_the_teacher_chose_and_they_are_loaded_again(inputs, finished, tmp_path):
    _, folder = finished
    told = RunReport.load(folder).image_options
    again = load_of_run(told)
    data = load_task(options_of(inputs), config(tmp_path / "out")).data
    for split in ("train", "validation", "test"):
        assert again.rows(split)["label"][:] == data.rows(split)["label"][:]
        pairs = zip(contents(again.rows(split)), contents(data.rows(split)), strict=True)
        assert all(np.array_equal(*pair) for pair in pairs)
    assert again.subtask.names == NAMES
    assert (again.test_split, again.official_test, again.labels_by_teacher) == ("test", True, True)


def test_a_held_out_share_is_loaded_again_without_the_teacher(inputs, tmp_path):
    given = {"dataset": str(inputs / "mine" / "train"), "test_fraction": 0.2, "unlabelled_images": 20}
    task = load_task(options_of(inputs, **given), config(tmp_path / "out"))
    told = json.loads(json.dumps(image_options(task)))
    again = load_of_run(told)
    assert again.test["label"][:] == task.data.test["label"][:]
    assert again.chosen == task.data.chosen
    assert all(map(np.array_equal, contents(again.test), contents(task.data.test)))
    with pytest.raises(DataError, match=r"is another one now: the run drew 20 images of its split train.* are 30"):
        load_of_run(told | {"unlabelled_images": 50})
    del told["chosen"]
    with pytest.raises(DataError, match="does not say which of them the teacher chose"):
        load_of_run(told)


def test_a_student_is_exported_with_the_images_of_its_run(finished):
    _, folder = finished
    exported = export_student(folder, ExportOptions(int8=True, max_loss=100))
    assert exported.images == "the 8 test images of mine, without labels"
    assert (exported.image_count, exported.calibration_images) == (8, 23)
    assert exported.chosen_on == "validation images"
    assert exported.torch_accuracy is None
    assert all(file.accuracy is None and file.agreement is not None for file in exported.files)
    assert "accuracy" not in summary(exported, folder)
    assert "as torch" in summary(exported, folder)


def test_a_student_is_explained_on_the_images_of_its_run(inputs, finished):
    _, folder = finished
    options = ExplainOptions(teacher=str(inputs / "teacher"), most_images=4, pictures=1, subspaces=True)
    found = explain_student(folder, options)
    assert found.described == "4 of the 8 test images of mine, without labels: the classes are the teacher's answers"
    assert all(image.label == image.target for image in found.images)
    assert found.subspaces[0].unprojected_accuracy == 1
    with pytest.raises(ExplainError, match=r"other_subtasks: .* has no labels, .*leave them out"):
        explain_student(folder, replace(options, other_subtasks=["owl, crane"]))


def test_tables_say_agreement_and_the_teachers_own_is_left_out(finished):
    report, _ = finished
    assert report.figure == "agreement with the teacher"
    said = results_table(report)
    assert "agreement" in said.splitlines()[1]
    assert "accuracy" not in said
    teacher = next(line for line in said.splitlines() if line.startswith("Teacher"))
    assert "%" not in teacher
    for result in report.results[1:]:
        assert result.accuracy == result.teacher_agreement


def test_the_card_says_agreement_and_the_metadata_has_no_accuracy(finished):
    _, folder = finished
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "**No image had a label.**" in card
    assert "Agreement with the teacher" in card
    assert "accuracy" not in card.replace("Accuracy", "accuracy").casefold().split("## citation")[0]
    metadata = metadata_load(folder / "README.md")
    assert "model-index" not in metadata
    assert "metrics" not in metadata


@pytest.mark.parametrize("method", ["scratch", "ce_kd", "dkd"])
def test_methods_that_learn_from_labels_are_refused(inputs, tmp_path, method):
    with pytest.raises(SubDistillError, match=f"{method!r} learns from labels"):
        validate_options(options_of(inputs), config(tmp_path / "out", method=method))


@pytest.mark.parametrize(
    "given", [{"train_images_per_class": 5}, {"mark": "plus"}, {"adapt_teacher": "lora"}, {"unlabelled": "glyphs-100"}]
)
def test_options_that_need_labels_are_refused(inputs, given):
    with pytest.raises(SubDistillError, match="has no meaning with label_column=none"):
        options_of(inputs, **given)


def test_superclasses_need_labels_and_no_column_is_asked_for(inputs, tmp_path):
    options = options_of(inputs, classes=["superclass:dice"])
    for refuse in (validate_options, load_task):
        with pytest.raises(SubtaskError, match=r"told by labels\. Give the classes by their names$"):
            refuse(options, config(tmp_path / "out"))
    with pytest.raises(SubtaskError, match=r"told by labels\. Give the classes by their names$"):
        experts_of(options, ["superclass:all"])


def test_a_lower_threshold_is_advised_where_it_keeps_more(inputs, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(inputs / "mine" / "test", tmp_path / "same" / split)
    masses = masses_in(inputs, tmp_path / "same" / "test", tmp_path)
    given = {"dataset": str(tmp_path / "same"), "validation_fraction": 0.0}
    for threshold, advice in ((0.0, "Give more images$"), (masses[-1], "or a lower --unlabelled_threshold$")):
        with pytest.raises(DataError, match=advice):
            load_task(options_of(inputs, unlabelled_threshold=threshold, **given), config(tmp_path / "out"))


def test_other_commands_need_labels(inputs):
    with pytest.raises(DataError, match="without which only distill works"):
        load_subtask(options_of(inputs))


def test_a_flat_folder_says_which_option_is_meant(inputs):
    with pytest.raises(DataError, match="--label_column none"):
        load_subtask(task_options(inputs, dataset=str(inputs / "mine" / "train")))
