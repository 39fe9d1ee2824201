"""Classes in words: phrases, and words that are refused."""

import pytest

from subdistill_hf.errors import SubDistillError
from subdistill_hf.models.words import Words, phrases_of_names, phrases_of_words


def test_phrases_of_a_class_stand_between_bars_and_the_first_is_its_name():
    classes = phrases_of_words(["a ripe tomato | a red tomato", " an unripe tomato|"])
    assert classes == (("a ripe tomato", "a red tomato"), ("an unripe tomato",))
    assert Words(classes).names == ("a ripe tomato", "an unripe tomato")


def test_names_of_a_dataset_are_taken_letter_by_letter():
    assert phrases_of_names(["red|rotten", "A", "a", "all"]) == (("red|rotten",), ("A",), ("a",), ("all",))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a cat", "A cat"], "is given twice"),
        (["a cat", "a dog", "a cat"], "is given twice"),
        (["a cat | a kitten", "a dog | a kitten"], "'a kitten' is given twice"),
        (["superclass:cats", "a dog"], "takes words"),
        (["all"], "takes words"),
        (["a cat"], "at least two classes"),
        (["a cat", " | "], "expected a word or a phrase"),
    ],
)
def test_words_that_tell_no_classes_apart_are_refused(classes, message):
    with pytest.raises(SubDistillError, match=message):
        phrases_of_words(classes)
