"""What a user should know of a dataset is logged as it is found, and kept."""

import logging

from subdistill_hf.data.notices import Notices, untested_classes, unused_splits
from subdistill_hf.data.subtask import Subtask


class Splits:
    """Three splits, of which one says no count and one has two images without a class."""

    splits = ("train", "validation", "extra", "test")

    def count(self, split):
        return {"validation": 4, "extra": None}[split]

    def without_class(self, split, label):
        return {("train", "label"): 2, ("test", "label"): 0}[split, label]


def test_notices_are_logged_and_kept_in_order(caplog):
    with caplog.at_level(logging.WARNING):
        notices = Notices(["first"])
        notices.add(["second", "third"])
    assert notices.said == ["first", "second", "third"]
    assert [record.message for record in caplog.records] == notices.said


def test_splits_that_are_not_used_are_counted_where_the_count_is_known():
    assert unused_splits(Splits(), "label", "train", "test") == [
        "left out: 2 images of the split train without a class (no label, a blank one, or one below 0)",
        "not used: the split validation of 4 images",
        "not used: the split extra",
    ]


def test_classes_without_test_images_are_named():
    subtask = Subtask(names=("cat", "dog", "hen"), dataset_ids=(0, 1, 2))
    assert untested_classes(subtask, [1, 1]) == [
        "no test images of cat, hen: each figure is that of the other classes"
    ]
    assert untested_classes(subtask, [2, 0, 1]) == []
