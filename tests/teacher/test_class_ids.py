"""The teacher's outputs of the classes, in every form in which they come; other forms are refused by name."""

import numpy as np
import pytest
import torch

from helpers import CLASS_IDS, teacher_resnet
from subdistill_hf.errors import DistillationError
from subdistill_hf.teacher.class_ids import class_numbers
from subdistill_hf.teacher.teacher import Teacher


@pytest.mark.parametrize(
    "given",
    [
        [3, 7, 1],
        (3, 7, 1),
        np.array([3, 7, 1], dtype=np.int16),
        torch.tensor([3, 7, 1], dtype=torch.int32),
        [torch.tensor(3), np.int64(7), 1],
        iter([3, 7, 1]),
        {0: 3, 1: 7, 2: 1},
        {2: 1, 0: 3, 1: 7},
        {"0": 3, "1": 7, "2": np.int64(1)},
    ],
    ids=lambda given: type(given).__name__,
)
def test_class_ids_are_the_teachers_outputs_in_the_students_order(given):
    assert class_numbers(given) == [3, 7, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({3: 0, 7: 1, 1: 2}, "maps 3, 7, 1: expected the student's outputs, 0 to 2, as keys"),
        ({"cat": 3, "dog": 7}, "maps 'cat', 'dog': expected the student's outputs"),
        ([False, True, False, True], r"is a mask of 4 outputs: .* this mask has 1, 3"),
        (np.array([False, True, True]), r"is a mask of 3 outputs: .* this mask has 1, 2"),
        (torch.tensor([True, False]), r"is a mask of 2 outputs: .* this mask has 0"),
        ([3.0, 7.0], r"has 3\.0, 7\.0: expected whole numbers"),
        ([3, True], "has True: expected whole numbers"),
        (["3", "7"], "has '3', '7': expected whole numbers"),
        ([[3, 7, 1]], r"has \[3, 7, 1\]: expected whole numbers"),
        ({3, 7, 1}, "is a set: expected a list"),
        ("371", "is a str: expected a list"),
        (np.array(3), "teacher_class_ids=3: expected one number for each output"),
    ],
)
def test_other_forms_of_class_ids_are_refused(given, message):
    with pytest.raises(DistillationError, match=f"teacher_class_ids{'' if message.startswith('teacher') else ' '}"):
        class_numbers(given)
    with pytest.raises(DistillationError, match=message):
        Teacher(teacher_resnet(), given)


def test_a_mapping_teaches_as_the_list_does():
    images = torch.randn(4, 3, 32, 32)
    listed, mapped = (Teacher(teacher_resnet(), ids) for ids in (CLASS_IDS, dict(enumerate(CLASS_IDS))))
    assert torch.equal(listed.logits(images), mapped.logits(images))
