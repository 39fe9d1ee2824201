"""What is decided for a user who leaves it open: by teacher, images and student, and never over what was given."""

import copy
from dataclasses import replace

import pytest
from torch import nn

from helpers import config
from image_text import save_image_text_model
from subdistill_hf.cli.distill import parse
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.errors import SubDistillError
from subdistill_hf.pipeline import auto
from subdistill_hf.pipeline.auto import (
    Choice,
    enough_adaptation_epochs,
    enough_epochs,
    enough_views,
    most_head_epochs,
    options_for_teacher,
    resolve,
    resolve_adaptation,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No tries to reach the Hub, which take time."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# From the options


VIT = "--teacher google/vit-base-patch16-224"
MOBILE = "timm/mobilenetv4_conv_small.e2400_r224_in1k"
CARNIVORES = ["superclass:large_carnivores"]


def chosen(text):
    """The options after the choice, and what was said of it."""
    given = parse(text.split())
    options = TaskOptions(**given)
    task, choices = options_for_teacher(options, given)
    assert options == TaskOptions(**given)
    return task, [str(choice) for choice in choices]


def test_a_teacher_alone_gets_a_dataset_classes_a_student_and_adaptation():
    task, lines = chosen(VIT)
    assert (task.dataset, task.classes, task.student) == ("uoft-cs/cifar100", CARNIVORES, MOBILE)
    assert (task.adapt_teacher, task.train_images_per_class) == ("lora", 100)
    names = ["dataset", "classes", "train_images_per_class", "adapt_teacher", "student"]
    assert [line.partition(" ")[0] for line in lines] == [f"--{name}" for name in names]
    assert all(line.partition(": ")[2] for line in lines)
    assert f"--student {MOBILE}: made for phones, and pretrained: few images" in lines[-1]


def test_a_teacher_that_takes_words_is_not_fitted_unasked(tmp_path):
    task, lines = chosen(f"--teacher {save_image_text_model(tmp_path, 'clip')}")
    assert (task.dataset, task.classes, task.adapt_teacher) == ("uoft-cs/cifar100", CARNIVORES, "no")
    assert not any("adapt_teacher" in line for line in lines)


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ("--student resnet:widths=8-8", "student", "resnet:widths=8-8"),
        ("--adapt-teacher no", "adapt_teacher", "no"),
        ("--train_images_per_class=7", "train_images_per_class", 7),
        ("--classes trout shark", "classes", ["trout", "shark"]),
    ],
)
def test_what_was_given_stays(given, field, value):
    task, lines = chosen(f"{VIT} {given}")
    assert getattr(task, field) == value
    assert not [line for line in lines if line.startswith(f"--{field} ")]
    assert task.dataset == "uoft-cs/cifar100"


def test_a_users_own_classes_or_dataset_are_not_cut_down():
    task, lines = chosen(f"{VIT} --dataset user/pets --classes cat dog")
    assert (task.dataset, task.classes, task.student) == ("user/pets", ["cat", "dog"], MOBILE)
    assert (task.train_images_per_class, task.adapt_teacher) == (None, "no")
    assert len(lines) == 1
    task, lines = chosen(f"{VIT} --classes trout shark")
    assert (task.dataset, task.train_images_per_class) == ("uoft-cs/cifar100", None)
    assert len(lines) == 2
    task, lines = chosen(f"{VIT} --dataset digits --classes all")
    assert (task.student, lines) == ("resnet:widths=16-24-32-48", [])


@pytest.mark.parametrize("given", ["", "--teacher glyphs-vit", "--teacher glyphs-vit --classes superclass:dice"])
def test_an_embedded_teacher_keeps_the_defaults_of_the_options(given):
    task, lines = chosen(given)
    assert (task.dataset, task.student, task.adapt_teacher) == ("glyphs-100", "resnet:widths=16-24-32-48", "no")
    assert lines == []


@pytest.mark.parametrize("teacher", [VIT, ""])
def test_a_dataset_needs_its_classes(teacher):
    with pytest.raises(SubDistillError, match="--dataset user/pets needs --classes: which of its classes"):
        chosen(f"{teacher} --dataset user/pets")


# From the images


def resolved(folder, options=None, images=100, size=(32, 32), **settings):
    open_settings = {"max_steps": -1, "num_train_epochs": 0, "teacher_cache": "auto", "learning_rate": 0}
    options, settings = TaskOptions(**options or {}), config(folder, **open_settings | settings)
    before = copy.deepcopy((options, settings))
    found = resolve(options, settings, images, size)
    assert (options, settings) == before
    assert found.options is not options
    assert found.config is not settings
    return found


def test_everything_that_follows_from_the_images_is_decided(tmp_path):
    found = resolved(tmp_path)
    assert (found.config.num_train_epochs, found.config.teacher_cache, found.config.views) == (93, "32", 32)
    assert (found.options.augmentation, found.options.flip) == ("pad_crop", False)
    assert (found.options.mix, found.options.cutmix) == (0.4, 0.3)
    decided = ["num_train_epochs", "teacher_cache", "augmentation", "flip", "mix", "cutmix"]
    assert [choice.option for choice in found.choices] == decided
    assert str(found.choices[0]) == "--num_train_epochs 93: at least 60 passes over the images, and 1200 steps"


@pytest.mark.parametrize(("given", "other"), [("mix", "cutmix"), ("cutmix", "mix")])
def test_where_one_way_to_mix_is_given_alone_it_is_told_that_the_other_is_off(tmp_path, given, other):
    found = resolved(tmp_path, {given: 0.1})
    assert (getattr(found.options, given), getattr(found.options, other)) == (0.1, 0.0)
    assert f"--{other} 0: {given} was given alone" in map(str, found.choices)
    assert not any(choice.option == given for choice in found.choices)


def test_what_was_given_stays_and_is_no_choice(tmp_path):
    options = {"augmentation": "none", "flip": True, "mix": 0.1}
    found = resolved(tmp_path, options, size=(9, 99), num_train_epochs=3, teacher_cache="off")
    assert (found.config.num_train_epochs, found.config.teacher_cache) == (3, "off")
    assert (found.options.augmentation, found.options.flip) == ("none", True)
    assert (found.options.mix, found.options.cutmix) == (0.1, None)
    assert found.choices == ()
    assert resolved(tmp_path, options, max_steps=5, teacher_cache=2).config.num_train_epochs == 0


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ({}, (64, 64), ("pad_crop", False)),
        ({}, (32, 65), ("resized_crop", False)),
        ({"dataset": "user/photographs", "classes": ["all"]}, (32, 32), ("pad_crop", False)),  # nobody knows
        ({"dataset": "uoft-cs/cifar100", "classes": ["all"]}, (32, 32), ("pad_crop", True)),
        ({"dataset": "digits", "classes": ["all"]}, (28, 28), ("pad_crop", False)),
        ({"dataset": "user/photographs", "classes": ["all"], "flip": False}, (300, 20), ("resized_crop", False)),
    ],
)
def test_augmentation_suits_size_and_kind_of_the_images(tmp_path, options, size, expected):
    found = resolved(tmp_path, options, size=size).options
    assert (found.augmentation, found.flip) == expected


@pytest.mark.parametrize(
    ("images", "images_per_step", "epochs"),
    [(100, 64, 600), (64, 64, 1200), (6400, 64, 60), (65, 64, 600), (3200, 64, 60), (640, 64, 120)],
)
def test_a_run_without_epochs_or_steps_makes_at_least_1200_steps_and_60_epochs(images, images_per_step, epochs):
    assert enough_epochs(images, images_per_step) == epochs


def test_images_of_other_classes_make_a_training_longer(tmp_path):
    given = [config(tmp_path, max_steps=-1, num_train_epochs=0, teacher_cache="auto") for _ in range(2)]
    closed = resolve(TaskOptions(), given[0], 96, (32, 32))
    opened = resolve(TaskOptions(), given[1], 96 + 40, (32, 32), other_images=40)
    assert closed.config.num_train_epochs == opened.config.num_train_epochs == 100  # 12 steps of 8 images
    assert str(opened.choices[0]).endswith("1200 steps with those of the classes")


def test_few_images_are_kept_in_many_views_and_many_images_in_none():
    found = [enough_views(images, passes=60)[0] for images in (1, 250, 400, 1000, 1001)]
    assert found == ["32", "32", "20", "8", "off"]


def test_there_are_never_more_views_than_passes_over_the_images(tmp_path):
    found = [enough_views(100, passes)[0] for passes in (0.5, 1, 1.2, 2, 31, 32, 33)]
    assert found == ["off", "off", "2", "2", "31", "32", "32"]
    assert resolved(tmp_path, num_train_epochs=3).config.teacher_cache == "3"
    # 13 steps of 8 images are a pass over 100
    assert resolved(tmp_path, max_steps=20).config.teacher_cache == "2"
    assert resolved(tmp_path, max_steps=13).config.teacher_cache == "off"


@pytest.mark.parametrize(("images", "epochs"), [(64, 200), (65, 100), (6400, 5), (2560, 5), (2561, 5), (1280, 10)])
def test_a_teacher_is_fitted_in_at_least_200_steps_and_5_epochs(images, epochs):
    assert enough_adaptation_epochs(images, 64) == epochs


@pytest.mark.parametrize(("inputs", "passes"), [(48, 667), (400, 250), (10240, 100), (400_000, 100)])
def test_a_head_alone_makes_at_most_2000_steps_or_100_passes(inputs, passes):
    assert most_head_epochs(inputs) == passes


@pytest.mark.parametrize(
    ("given", "head_alone", "chosen"),
    [
        ({}, False, {"adapt_epochs": 100, "adapt_learning_rate": 2e-3}),
        ({"adapt_epochs": 2.0}, False, {"adapt_learning_rate": 2e-3}),
        ({}, True, {"adapt_epochs": 667}),
        ({"adapt_learning_rate": 1e-2, "adapt_epochs": 7.0}, True, {}),
    ],
)
def test_what_is_open_about_an_adaptation_is_chosen_and_nothing_else(given, head_alone, chosen):
    options = TaskOptions(**given)
    resolved, choices = resolve_adaptation(options, 65 if not head_alone else 48, 64, head_alone)
    assert {choice.option: choice.value for choice in choices} == chosen
    assert resolved == replace(options, **chosen)


def test_a_choice_is_told_as_an_option_with_its_reason():
    assert str(Choice("classes", ["cat", "dog"], "two")) == "--classes cat dog: two"
    assert str(Choice("layer_weight", 1000.0, "early")) == "--layer_weight 1000: early"
    assert str(Choice("learning_rate", 4e-3, "few images", "kd")) == "--learning_rate 0.004 for kd: few images"


# From all networks


def test_the_largest_layers_of_a_run_decide_how_many_threads_share_them(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(auto, "suited_threads", lambda *given: asked.append(given))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    one, two = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(4, 2)), nn.Sequential(nn.Linear(2, 2))
    auto.resolve_threads(config(tmp_path, per_device_train_batch_size=10), [(one, 600), (two, 200)])
    assert asked == [(600 * 10 / 2, 3)]
