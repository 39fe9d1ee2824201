"""What is chosen for a user who names little: by teacher, and never over what was given."""

import pytest

from subdistill_hf.cli.distill import parse
from subdistill_hf.config.defaults import choose_defaults, saved_when_evaluated
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.errors import SubDistillError

VIT = "--teacher google/vit-base-patch16-224"
MOBILE = "timm/mobilenetv4_conv_small.e2400_r224_in1k"
CARNIVORES = ["superclass:large_carnivores"]


def chosen(text):
    """The options after the choice, and what was said of it."""
    given = parse(text.split())
    task = TaskOptions(**given)
    lines = choose_defaults(task, set(given))
    return task, lines


def test_a_teacher_alone_gets_a_dataset_classes_a_student_and_adaptation():
    task, lines = chosen(VIT)
    assert (task.dataset, task.classes, task.student) == ("uoft-cs/cifar100", CARNIVORES, MOBILE)
    assert (task.adapt_teacher, task.train_images_per_class) == ("lora", 100)
    names = ["dataset", "classes", "train_images_per_class", "adapt_teacher", "student"]
    assert [line.partition(" ")[0] for line in lines] == [f"--{name}" for name in names]
    assert all(line.partition(": ")[2] for line in lines)
    assert f"--student {MOBILE}: made for phones, and pretrained: few images" in lines[-1]


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


@pytest.mark.parametrize(
    ("text", "follow"),
    [
        ("", {}),
        ("--save_steps 50", {"eval_steps": 50}),
        ("--eval-steps=0.5 --classes a b", {"save_steps": 0.5}),
        ("--save_steps 5 --save_steps 9", {"eval_steps": 9}),
        ("--save_steps 50 --eval_steps 25", {}),
        ("--save_strategy epoch", {"eval_strategy": "epoch"}),
        ("--eval_strategy epoch --save_steps 3", {"save_strategy": "epoch", "eval_steps": 3}),
        ("--save_strategy no", {}),
        ("--save_strategy best", {}),
    ],
)
def test_a_student_is_saved_when_it_is_evaluated(tmp_path, text, follow):
    given = parse(text.split())
    assert saved_when_evaluated(given) == follow
    if "strategy" not in text:
        config = SubDistillConfig(output_dir=str(tmp_path), **follow)
        assert {name: getattr(config, name) for name in follow} == follow
