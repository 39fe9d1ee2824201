"""Names of repositories: what the Hub takes, and one made of what a student was made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from subdistill_hf.config.class_entries import SUPERCLASS_PREFIX
from subdistill_hf.errors import SubDistillError
from subdistill_hf.formatting import slug

LONGEST_NAME: Final = 96
LONGEST_CLASSES: Final = 40


def repository_name(teacher: str, student: str, dataset: str, classes: Sequence[str]) -> str:
    """A name for the repository of a student, of what it was made of.

    Args:
        teacher: the teacher's name.
        student: the student's recipe or name.
        dataset: the dataset's name.
        classes: the classes as they were asked for: names, or `superclass:NAME`.

    Returns:
        For example `glyphs-resnet-resnet-dice`; without the owner. Classes whose names have letters that the Hub does
        not take are counted.
    """
    kind = student.partition(":")[0].rstrip("/").rpartition("/")[2].partition(".")[0]
    words = [slug(str(entry).removeprefix(SUPERCLASS_PREFIX), "") for entry in classes]
    subtask = "-".join(words)
    if len(subtask) > LONGEST_CLASSES or not all(words):
        subtask = f"{len(classes)}-classes-of-{slug(dataset.rpartition('/')[2], 'images')}"
    return shortened("-".join([slug(teacher.rstrip("/").rpartition("/")[2], "teacher"), slug(kind), subtask]))


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """A name without what the Hub does not take: repeated or outer dashes and dots, the end `.git`, too many letters.

    Args:
        name: of letters, digits, `-`, `_` and `.`.
        longest: how many letters it may have.
    """
    name = re.sub(r"([-.])[-.]+", r"\1", name)[:longest].strip("-.")
    return re.sub(r"(\.(git|ipynb))+$", "", name) or "student"


def check_repository(repo: str) -> None:
    """Refuse a name that the Hub does not take, before anything is done for a repository of that name.

    Args:
        repo: `name` or `user/name`.

    Raises:
        SubDistillError: with what is expected.
    """
    try:
        validate_repo_id(repo)
        if not (repo and repo.isascii()):
            raise HFValidationError(f"expected letters from A to Z, digits, '-', '_' and '.', found {repo!r}")
    except HFValidationError as error:
        raise SubDistillError(f"{repo!r} cannot be the name of a repository: {error}") from error
