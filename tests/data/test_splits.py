"""Which rows train, validate and test."""

from itertools import pairwise

import numpy as np
import pytest

from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.splits import held_out_test, train_and_validation
from subdistill_hf.data.subtask import Subtask, SubtaskError

SUBTASK = Subtask(("ant", "bee", "cow"), (4, 9, 2))
COUNTS = (40, 20, 10)
OUTPUTS = np.random.default_rng(5).permutation(np.repeat(np.arange(3), COUNTS))
CONTENTS = [b"%d" % row for row in range(70)]


def chosen(seed=0, **options):
    train, validation = train_and_validation(OUTPUTS, SUBTASK, DataOptions(**options), seed)
    assert not set(train) & set(validation)
    return train, validation


def per_class(rows):
    return np.bincount(OUTPUTS[rows], minlength=3).tolist()


def test_shares_are_taken_of_each_class():
    train, validation = chosen(train_fraction=0.5, validation_fraction=0.2)
    assert per_class(train) == [16, 8, 4]
    assert per_class(validation) == [4, 2, 1]
    assert train == sorted(train)
    assert per_class(chosen()[0]) == [32, 16, 8]


def test_without_a_share_no_image_is_held_out():
    train, validation = chosen(train_images_per_class=5, validation_fraction=0)
    assert (per_class(train), validation) == ([5, 5, 5], [])
    held_out = chosen(train_images_per_class=5, validation_fraction=0.2)
    assert set(train) == {*held_out[0], *held_out[1]}


def test_a_smaller_share_is_a_part_of_a_larger_one():
    for seed in range(3):
        images = [
            set.union(*map(set, chosen(seed=seed, train_fraction=share))) for share in (0.05, 0.1, 0.25, 0.5, 0.8, 1)
        ]
        assert [len(rows) for rows in images] == [6, 8, 17, 35, 56, 70]
        assert all(smaller < larger for smaller, larger in pairwise(images))
    numbers = [set.union(*map(set, chosen(train_images_per_class=number))) for number in (2, 5, 10, 40)]
    assert [len(rows) for rows in numbers] == [6, 15, 30, 70]
    assert all(smaller < larger for smaller, larger in pairwise(numbers))


def test_the_rows_of_a_class_are_chosen_whatever_its_place_among_the_classes():
    expected = [set(part) & set(np.flatnonzero(OUTPUTS == 2)) for part in chosen(train_images_per_class=6)]
    alone = Subtask(SUBTASK.names[2:], SUBTASK.dataset_ids[2:])
    outputs = np.where(OUTPUTS == 2, 0, -1)
    found = train_and_validation(outputs, alone, DataOptions(train_images_per_class=6), 0)
    assert [set(part) for part in found] == expected


def test_shares_are_rounded_to_the_nearest_number():
    assert per_class(chosen(train_images_per_class=6, validation_fraction=0.3)[1]) == [2, 2, 2]  # of 1.8
    assert per_class(chosen(train_images_per_class=6, validation_fraction=0.2)[1]) == [1, 1, 1]  # of 1.2


def test_a_seed_gives_the_same_choice_and_another_another():
    assert chosen(seed=3) == chosen(seed=3)
    assert chosen(seed=3) != chosen(seed=4)


def test_the_test_share_is_taken_of_each_class():
    test = held_out_test(OUTPUTS, CONTENTS, 0.2)
    assert per_class(test) == [8, 4, 2]
    assert per_class(held_out_test(OUTPUTS, CONTENTS, 0.01)) == [1, 1, 1]
    assert not (test & ~held_out_test(OUTPUTS, CONTENTS, 0.3)).any()


def test_the_test_of_a_class_depends_on_neither_other_classes_nor_the_order_of_rows():
    test = held_out_test(OUTPUTS, CONTENTS, 0.25)
    order = np.random.default_rng(0).permutation(70)
    for rows in (order, order[OUTPUTS[order] != 1], order[OUTPUTS[order] == 2]):
        assert (held_out_test(OUTPUTS[rows], [CONTENTS[row] for row in rows], 0.25) == test[rows]).all()


def test_copies_are_on_one_side_and_count_once():
    copied = np.append(np.arange(70), np.repeat(np.flatnonzero(OUTPUTS == 2)[:3], 5))
    test = held_out_test(OUTPUTS[copied], [CONTENTS[row] for row in copied], 0.2)
    assert (test[:70] == held_out_test(OUTPUTS, CONTENTS, 0.2)).all()
    assert (test == test[copied]).all()


def test_a_class_with_too_few_rows_is_refused():
    outputs = np.array([0, 0, 1, 1, 2])
    with pytest.raises(SubtaskError, match="class 'cow' has 1 training images: expected at least 2"):
        train_and_validation(outputs, SUBTASK, DataOptions(), 0)
