"""Datasets without labels: the teacher chooses the images, and every figure is called the agreement with it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import metadata_load
from PIL import Image

from helpers import NAMES, config, resnet, save_teacher, task_options, write_task
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

pytestmark = pytest.mark.usefixtures("datasets_cache", "quick_reports")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A teacher, and images in no folder of a class: 30 to train, one of them a test image too, and 8 to test."""
    folder = write_task(tmp_path_factory.mktemp("without_labels"))
    for split, count in (("train", 29), ("test", 8)):
        (folder / "mine" / split).mkdir(parents=True)
        for index in range(count):
            render(0, split, 60 + index, 3).save(folder / "mine" / split / f"{index}.png")
    render(0, "test", 60, 3).save(folder / "mine" / "train" / "again.bmp")
    return folder


def options_of(inputs, **changed):
    given = {"label_column": "none", "unlabelled_threshold": 0.0, "validation_fraction": 0.2}
    given["dataset"] = str(inputs / "mine")
    return task_options(inputs, **given | changed)


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


def contents(rows):
    return [np.asarray(image.convert("RGB")) for image in rows["image"]]


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


def masses_in(inputs, folder, tmp_path):
    """The teacher's probability that an image shows a class, of the images of a folder in rising order."""
    options = options_of(inputs, dataset=str(folder), test_fraction=0.5, unlabelled_threshold=0.0)
    return sorted(load_task(options, config(tmp_path / "masses")).selection.masses)


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
    assert task.selection.kept_per_class["none of these"] == data.others.train_images


def test_a_student_without_labels_has_an_answer_for_other_images(inputs, middle, tmp_path):
    options = options_of(inputs, unlabelled_threshold=middle, other_class=True)
    report = distill(options, config(tmp_path / "out", method="subdistill", max_steps=2))
    unchosen = report.dataset.others.unchosen_images
    assert unchosen > 0
    assert {found.kind for result in report.results for found in result.unknown} == {"unchosen"}
    assert {found.images for result in report.results for found in result.unknown} == {unchosen}
    folder = tmp_path / "out"
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["other_class"] is True
    card = (folder / "README.md").read_text(encoding="utf-8")
    trained = report.dataset.others.train_images
    assert f"trained with {trained} images that the teacher takes for none of the classes" in card
    assert "Unchosen images are those that the teacher takes for none of the classes, whatever they show" in card
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
    monkeypatch.setattr("subdistill_hf.pipeline.without_labels.UNCHOSEN_BELOW", (masses[1] + masses[2]) / 2)
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
    options = options_of(inputs, teacher=str(tmp_path / "teacher"), dataset=str(tmp_path), other_class=True)
    with pytest.raises(SubDistillError, match="knows the classes of the subtask alone"):
        load_task(options, config(tmp_path / "out"))
