"""Names of repositories are those that the Hub takes, whatever a student was made of."""

import random

import pytest
from huggingface_hub.utils import validate_repo_id

from subdistill_hf.errors import SubDistillError
from subdistill_hf.hub.names import check_repository, repository_name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (("glyphs-resnet", "resnet:widths=8-8", "glyphs-100", ["superclass:dice"]), "glyphs-resnet-resnet-dice"),
        (("google/vit", "timm/resnet18", "user/pets", ["cat", "dog"]), "vit-resnet18-cat-dog"),
        (("a/b", "vit:hidden=7", "user/pets", [f"class {i}" for i in range(9)]), "b-vit-9-classes-of-pets"),
        (("./my teacher/", "x", "d", ["tabby, tabby cat", "1"]), "my-teacher-x-tabby-tabby-cat-1"),
        (("Größe/Café", "resnet:widths=8", "d", ["naïve"]), "Cafe-resnet-naive"),
        (("a/b", "x", "user/pets", ["猫", "犬"]), "b-x-2-classes-of-pets"),
        (("猫", "x", "猫", ["猫"]), "teacher-x-1-classes-of-images"),
        (("a..b", "x", "d", ["_a--b_"]), "a.b-x-_a-b_"),
        (("a", "x", "d", ["b.git"]), "a-x-b"),
        (("t" * 200, "x", "d", ["a", "b"]), "t" * 96),
    ],
)
def test_a_repository_is_named_after_what_the_student_is_made_of(given, name):
    assert repository_name(*given) == name


def test_whatever_the_names_the_hub_takes_the_repository():
    draw = random.Random(0)
    letters = "aB3-_.., /\\:猫é\n$%"
    for _ in range(500):
        teacher, student, dataset, *classes = [
            "".join(draw.choices(letters, k=draw.randrange(30))) + draw.choice(["", ".git", "-", "."])
            for _ in range(3 + draw.randrange(1, 5))
        ]
        name = repository_name(teacher, student, dataset, classes)
        validate_repo_id(name)
        check_repository(name)


@pytest.mark.parametrize("repo", ["", "a/b/c", "a--b", "café", "a.git", "-a", "me/猫", "x" * 97])
def test_a_name_that_the_hub_does_not_take_is_refused(repo):
    with pytest.raises(SubDistillError, match="cannot be the name of a repository: "):
        check_repository(repo)


@pytest.mark.parametrize("repo", ["a", "me/a", "me/a_b.c-d"])
def test_other_names_are_taken(repo):
    check_repository(repo)
