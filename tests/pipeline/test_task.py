"""What all methods of a run share: labels, augmentation, and how long to train."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers import NAMES, config, resnet, save_teacher, task_options, teacher_resnet, write_image_folder, write_task
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.data import tables
from subdistill_hf.data.loading import SubtaskData
from subdistill_hf.errors import DataError, SubDistillError
from subdistill_hf.models.students import build_student
from subdistill_hf.pipeline.run import build_run, teacher_of
from subdistill_hf.pipeline.task import load_task

pytestmark = pytest.mark.usefixtures("datasets_cache")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("distill"))


def test_labels_of_dataset_teacher_and_student_are_matched(inputs, tmp_path):
    task = load_task(task_options(inputs, classes=[NAMES[2], NAMES[0]]), config(tmp_path / "out"))
    assert isinstance(task.data, SubtaskData)
    assert task.data.subtask.names == (NAMES[2], NAMES[0])
    assert task.data.subtask.dataset_ids == (2, 0)  # folders in the order of their names
    assert task.data.subtask.teacher_ids == (12, 10)
    run = build_run(task, "kd", teacher_of(task))
    assert run.trainer.model.config.id2label == {0: NAMES[2], 1: NAMES[0]}
    assert run.trainer.teacher.class_ids.tolist() == [12, 10]


@pytest.mark.parametrize("asked", [{"other_class": True}, {"test_unknown": True}])
def test_other_classes_that_are_not_there_are_asked_for_in_vain_before_an_image_is_made(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "load_glyphs", lambda *given, **further: pytest.fail("images were made"))
    with pytest.raises(DataError, match=r"all classes of 'glyphs-100' are in the subtask"):
        load_task(TaskOptions(dataset="glyphs-100", classes=["all"], **asked), config(tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "further"),
    [
        ({}, ""),
        ({"unlabelled": "mine", "unlabelled_threshold": 0.0}, "choose --unlabelled_threshold by that"),
        ({"label_column": "none", "unlabelled_threshold": 0.0}, "choose --unlabelled_threshold by that"),
        ({"other_class": True, "classes": list(NAMES[:2])}, 'The answer "none of these" is the softmax of all'),
    ],
    ids=["images with labels", "some without", "none with", "other class"],
)
def test_a_teacher_of_several_classes_an_image_is_told_of_once(inputs, tmp_path, caplog, options, further):
    model = teacher_resnet()
    model.config.problem_type = "multi_label_classification"
    if "unlabelled" in options:
        options = {**options, "unlabelled": str(write_image_folder(tmp_path / "mine", (20, 21)))}
    if "other_class" in options:
        options = {**options, "dataset": str(write_image_folder(tmp_path / "more", (10, 11, 12, 13)))}
    given = task_options(inputs, teacher=str(save_teacher(tmp_path / "several", model, size=40)), **options)
    task = load_task(given, config(tmp_path / "out"))
    build_run(task, "kd", teacher_of(task))
    (said,) = [record.message for record in caplog.records if "problem_type" in record.message]
    assert said.startswith("the teacher 'several' was not trained for one class an image (problem_type='multi_label_c")
    assert said.endswith("the teacher's logits of its classes") == (not further)
    assert further in said


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_models_that_are_not_there_are_refused_before_images_are_read(inputs, tmp_path, monkeypatch, role):
    monkeypatch.setattr("subdistill_hf.pipeline.task.load_subtask", lambda *given: pytest.fail("images were read"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for missing in (str(tmp_path / "empty"), "timm/mobilenetv4_conv_small.e2400_r224_in1k", "nobody/nothing"):
        with pytest.raises(SubDistillError, match=f"{role} '{missing}' cannot be (loaded|built)"):
            load_task(task_options(inputs, **{role: missing}), config(tmp_path / "out"))


@pytest.mark.parametrize(
    ("side", "given", "expected"),
    [
        (32, {}, ("pad_crop", False)),
        (80, {}, ("resized_crop", False)),
        (80, {"augmentation": "none", "flip": True}, ("none", True)),
    ],
)
def test_augmentation_suits_the_images_unless_it_is_given(inputs, tmp_path, side, given, expected):
    for split in ("train", "test"):
        for name in NAMES[:2]:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (side, side), (index, len(name), len(split))).save(
                    tmp_path / "images" / split / name / f"{index}.png"
                )
    task = load_task(
        task_options(inputs, dataset=str(tmp_path / "images"), classes=list(NAMES[:2]), **given),
        config(tmp_path / "out"),
    )
    assert (task.augmentation, task.flip) == expected
    assert (task.views(build_run(task, "scratch", teacher_of(task)).student).flip) == expected[1]


@pytest.mark.parametrize(
    ("given", "training", "images"),
    [
        ({}, {}, (12, 0)),
        ({}, {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}, (9, 3)),
        ({"adapt_teacher": "head"}, {}, (9, 3)),
        ({"mark": "plus"}, {}, (9, 3)),
        ({"test_unknown": True, "classes": list(NAMES[:2])}, {}, (6, 2)),
        ({"validation_fraction": 0.5}, {}, (6, 6)),
    ],
)
def test_images_are_held_out_only_where_something_is_chosen_by_them(inputs, tmp_path, given, training, images):
    options = task_options(inputs, train_images_per_class=4, **given)
    task = load_task(options, config(tmp_path / "out", **{"eval_strategy": "epoch"} | training))
    assert (len(task.data.train), len(task.data.validation)) == images
    assert task.config.eval_strategy == ("epoch" if images[1] else "no")
    assert (task.validation() is None) == (not images[1])
    assert build_run(task, "kd", teacher_of(task)).trainer.eval_dataset is None or images[1]


def test_embedded_datasets_are_not_mirrored_by_default(inputs, tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    given = task_options(inputs, dataset="digits", classes=["superclass:even"], teacher=str(teacher))
    with pytest.raises(SubDistillError, match="the teacher has no class 'zero'"):
        load_task(given, config(tmp_path / "out"))


@pytest.mark.parametrize(("given", "expected"), [({"learning_rate": 0.0}, 4e-3), ({"learning_rate": 3e-5}, 3e-5)])
def test_a_learning_rate_that_is_not_given_is_the_one_that_suits_the_student(inputs, tmp_path, given, expected):
    task = load_task(task_options(inputs, classes=list(NAMES[:2])), config(tmp_path / "out", **given))
    run = build_run(task, "kd", teacher_of(task))
    assert run.trainer.args.learning_rate == run.trained(task).learning_rate == expected
    assert task.config.learning_rate == given["learning_rate"]  # other methods may have others


def test_without_layer_losses_no_layers_guide_the_steps(inputs, tmp_path):
    rates = {}
    for weight in (0.0, 100.0):
        given = config(tmp_path / "out", learning_rate=0.0, method="subdistill", layer_weight=weight)
        task = load_task(task_options(inputs, classes=list(NAMES[:2])), given)
        rates[weight] = build_run(task, "subdistill", teacher_of(task)).trainer.args.learning_rate
    assert rates == {0.0: 4e-3, 100.0: 1.6e-2}


@pytest.mark.parametrize(("lora", "expected"), [(False, 4e-3), (True, 1e-3)])
def test_a_pretrained_student_and_its_adapter_have_rates_of_their_own(inputs, tmp_path, lora, expected):
    folder = save_teacher(tmp_path / "expert", resnet())
    given = task_options(inputs, classes=list(NAMES[:2]), student=str(folder), student_lora=lora)
    task = load_task(given, config(tmp_path / "out", learning_rate=0.0))
    assert build_run(task, "subdistill", teacher_of(task)).trainer.args.learning_rate == expected


def test_views_are_mixed_as_asked_for_and_labelled_with_shares_of_the_subtasks_classes(inputs, tmp_path):
    given = task_options(inputs, classes=list(NAMES[:2]), mix=0.5, validation_fraction=0.2)
    task = load_task(given, config(tmp_path / "out"))
    views = task.views(build_run(task, "kd", teacher_of(task)).student)
    assert views.mix == 0.5
    assert views[0]["labels"].shape == (2,)
    assert task.plain("validation").mix == 0


@pytest.mark.parametrize("method", ["scratch", "kd"])
def test_students_see_the_mark_on_the_images_that_carry_it(inputs, tmp_path, method):
    task = load_task(task_options(inputs, mark="plus", mark_classes=[NAMES[1]]), config(tmp_path / "out"))
    images = build_run(task, method, teacher_of(task)).trainer.train_dataset
    stored = [np.asarray(image.convert("RGB")) for image in task.data.train["image"]]
    marked = [not np.array_equal(images.image(place).permute(1, 2, 0), each) for place, each in enumerate(stored)]
    assert marked == [label == 1 for label in task.data.train["label"]]


def test_views_are_as_high_and_as_wide_as_the_larger_of_both_networks_reads(inputs, tmp_path):
    task = load_task(task_options(inputs, classes=list(NAMES[:2])), config(tmp_path / "out"))
    wide = copy.copy(task.teacher.processor)
    wide.size = {"height": 16, "width": 48}
    task = replace(task, teacher=replace(task.teacher, processor=wide))
    student = build_student("resnet:widths=4-4,image=32", NAMES[:2], wide)
    assert task.views(student).size == (32, 48)


@pytest.mark.parametrize(("given", "expected"), [("auto", "32"), ("off", "off"), ("3", "3")])
def test_few_images_are_taught_in_many_views_unless_it_is_said_otherwise(inputs, tmp_path, given, expected):
    arguments = config(tmp_path / "out", teacher_cache=given, max_steps=400)
    task = load_task(task_options(inputs, classes=list(NAMES[:2])), arguments)
    assert task.config.teacher_cache == expected
    assert task.views(build_run(task, "kd", teacher_of(task)).student).views == task.config.views


def test_gpus_of_this_process_that_are_not_used_do_not_make_a_run_longer(inputs, tmp_path):
    epochs = []
    for gpus in (1, 4):
        chosen = config(tmp_path / "out", max_steps=-1, num_train_epochs=0)
        chosen._n_gpu = gpus  # of which the trainer takes one
        epochs.append(load_task(task_options(inputs), chosen).config.num_train_epochs)
    assert epochs[0] == epochs[1]
