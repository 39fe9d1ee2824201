"""Which classes a student is for: resolved in the dataset, found in the teacher."""

import pytest

from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES, SUPERCLASSES
from subdistill_hf.data.subtask import (
    MissingClassesError,
    Subtask,
    SubtaskError,
    match_teacher,
    matching_table,
    resolve_classes,
)

CHESS = SUPERCLASSES["chess_pieces"]
IDS = tuple(CLASS_NAMES.index(name) for name in CHESS)


@pytest.mark.parametrize(
    "classes",
    [
        list(CHESS),
        list(IDS),
        [str(class_id) for class_id in IDS],
        ["superclass:chess_pieces"],
        ["superclass:Chess Pieces"],
        [name.replace("_", " ").title() for name in CHESS],
        [CHESS[0], "superclass:chess_pieces", IDS[3], CHESS[0]],
    ],
    ids=["names", "ids", "digits", "superclass", "superclass spelt otherwise", "names spelt otherwise", "mixed"],
)
def test_names_ids_and_superclasses_make_the_same_subtask(classes):
    subtask = resolve_classes(classes, CLASS_NAMES, SUPERCLASSES)
    assert subtask == Subtask(tuple(CHESS), IDS)
    assert subtask.id2label == dict(enumerate(CHESS))


def test_outputs_are_in_the_order_in_which_classes_were_given():
    subtask = resolve_classes(["12", CHESS[0], "die_one"], CLASS_NAMES)
    assert subtask.names == (CHESS[2], CHESS[0], "die_one")
    assert subtask.dataset_ids == (12, 10, CLASS_NAMES.index("die_one"))


def test_a_name_that_is_a_number_is_a_name_first():
    assert resolve_classes(["1", "0"], ["7", "1", "0"]).dataset_ids == (1, 2)
    assert resolve_classes(["1.5", "0.5"], ["0.5", "1.5"]).names == ("1.5", "0.5")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["white_chess_kin", "12"], r"unknown class 'white_chess_kin'; nearest: white_chess_king, "),
        (["qqqqqq", "12"], r"unknown class 'qqqqqq'; there are 100, such as "),
        (["superclass:chess", "12"], r"unknown superclass 'chess'; nearest: chess_pieces"),
        (["100", "12"], r"class id 100 is out of range: expected 0 to 99"),
        (["²", "12"], r"unknown class '²'"),
        (["-1", "12"], r"unknown class '-1'"),
        (["12"], r"at least two classes, found 1 in \['12'\]"),
        (["12", CLASS_NAMES[12]], r"at least two classes, found 1"),
        ([], r"at least two classes, found 0"),
    ],
)
def test_classes_that_make_no_subtask_are_refused_with_the_reason(classes, message):
    with pytest.raises(SubtaskError, match=message):
        resolve_classes(classes, CLASS_NAMES, SUPERCLASSES)


def test_a_superclass_of_a_dataset_without_superclasses_is_refused():
    with pytest.raises(SubtaskError, match="this dataset has no superclasses"):
        resolve_classes(["superclass:chess_pieces"], CLASS_NAMES)


def test_a_teacher_of_the_whole_dataset_is_matched_by_id():
    subtask = resolve_classes(["superclass:chess_pieces"], CLASS_NAMES, SUPERCLASSES)
    names = {index: name.replace("_", " ") for index, name in enumerate(CLASS_NAMES)}
    assert match_teacher(subtask, names, CLASS_NAMES).teacher_ids == IDS


def test_a_teacher_of_the_same_labels_twice_is_still_matched_by_id():
    # ImageNet has two classes named "crane": by name they could not be told apart.
    names = ["crane", "dog", "crane"]
    assert match_teacher(Subtask(("crane", "dog"), (2, 1)), dict(enumerate(names)), names).teacher_ids == (2, 1)


def test_a_teacher_with_other_labels_is_matched_by_name_or_synonym():
    teacher = {0: "Dog, hound", 3: "tabby, tabby-cat", "5": "white_chess_king"}
    subtask = Subtask(("Tabby cat", "white chess king", "hound"), (7, 8, 9))
    assert match_teacher(subtask, teacher, ["a"] * 10).teacher_ids == (3, 5, 0)


def test_a_teacher_that_lacks_a_class_is_refused_with_near_matches_and_the_remedy():
    subtask = Subtask(("white_chess_king", "die_one"), (0, 1))
    with pytest.raises(MissingClassesError) as refused:
        match_teacher(subtask, {0: "die_one", 1: "white king"}, ["a", "b", "c"])
    assert refused.value.missing == ("white_chess_king",)
    text = str(refused.value)
    assert "the teacher has no class 'white_chess_king'; nearest: white king" in text
    assert "Choose classes that the teacher knows" in text


def test_a_class_that_fits_several_outputs_of_the_teacher_is_refused():
    with pytest.raises(SubtaskError, match=r"'crane' matches several outputs of the teacher: 1 \(crane, bird\), 4"):
        match_teacher(Subtask(("crane", "dog"), (0, 1)), {1: "crane, bird", 4: "Crane", 6: "dog"}, ["crane", "dog"])


def test_classes_of_one_name_get_their_ids_and_are_asked_for_by_them():
    labels = ("ox", "crane", "owl", "crane")
    every = resolve_classes(["all"], labels)
    assert every.names == ("ox", "crane (1)", "owl", "crane (3)")
    with pytest.raises(SubtaskError, match=r"class 'crane' may be one of several: 1 \(crane\), 3 \(crane\)"):
        resolve_classes(["crane", "ox"], labels)
    both = resolve_classes(["3", "crane (1)"], labels)
    assert (both.names, both.dataset_ids) == (("crane (3)", "crane (1)"), (3, 1))
    assert match_teacher(both, dict(enumerate(labels)), labels).teacher_ids == (3, 1)
    assert match_teacher(both, dict(enumerate(labels)), both.names).teacher_ids == (3, 1)  # of a student's own names


def test_two_classes_that_fit_one_output_of_the_teacher_are_refused():
    with pytest.raises(SubtaskError, match=r"classes 'cat' and 'tabby' both match output 3 of .* \(tabby, cat\)"):
        match_teacher(Subtask(("cat", "tabby"), (0, 1)), {3: "tabby, cat", 4: "dog"}, ["cat", "tabby", "cow"])


def test_all_stands_for_every_class_unless_a_class_has_that_name():
    assert resolve_classes(["all"], ["a", "b", "c"]).dataset_ids == (0, 1, 2)
    assert resolve_classes(["all", "none"], ["none", "some", "all"]).dataset_ids == (2, 0)


def test_superclasses_are_asked_for_when_they_are_needed():
    asked = []

    def superclasses():
        asked.append(1)
        return SUPERCLASSES

    assert resolve_classes(["die_one", "12"], CLASS_NAMES, superclasses).names == ("die_one", CHESS[2])
    assert asked == []
    assert resolve_classes(["superclass:chess_pieces"], CLASS_NAMES, superclasses).names == tuple(CHESS)


def test_the_table_shows_what_was_matched_and_how():
    matched = match_teacher(Subtask(("hound", "cat"), (7, 2)), {0: "cat", 5: "dog, hound"}, ["a"] * 10)
    assert matching_table(matched, {0: "cat", 5: "dog, hound"}).splitlines() == [
        "output  class  label  teacher's output, by name",
        "------  -----  -----  -------------------------",
        "0       hound  7      5 (dog, hound)",
        "1       cat    2      0 (cat)",
    ]


def test_where_numbers_are_names_they_are_no_ids():
    names = ["1", "2", "3", "10"]
    assert resolve_classes(["1", "10"], names).dataset_ids == (0, 3)
    with pytest.raises(SubtaskError, match="unknown class '0'"):
        resolve_classes(["0", "1", "2"], names)
    assert resolve_classes(["0", "1"], ["a", "b"]).dataset_ids == (0, 1)


# The kinds of names that were mistaken for others


@pytest.mark.parametrize(
    ("of_dataset", "of_teacher"),
    [
        (["A", "a"], ["a", "A"]),
        (["-1", "1"], ["1", "-1"]),
        (["A", "A-", "B", "B-"], ["A-", "A", "B-", "B"]),
        (["cafe\u0301", "caf\u00e9"], ["caf\u00e9", "cafe\u0301"]),
        ([" cat", "cat"], ["cat", " cat"]),
        (["snake_case", "snake case", "snake-case"], ["snake case", "snake-case", "snake_case"]),
        (["stra\u00dfe", "strasse"], ["strasse", "stra\u00dfe"]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("more", [[], ["another"]], ids=["as many", "one more"])
def test_names_that_differ_by_spelling_alone_are_matched_letter_by_letter(of_dataset, of_teacher, more):
    matched = match_teacher(resolve_classes(["all"], of_dataset), dict(enumerate(of_teacher + more)), of_dataset)
    assert [(of_teacher + more)[output] for output in matched.teacher_ids] == of_dataset
    assert resolve_classes(of_dataset, of_dataset).dataset_ids == tuple(range(len(of_dataset)))


@pytest.mark.parametrize(
    ("classes", "of_dataset", "of_teacher"),
    [
        (["Pepper,_bell___healthy", "Apple"], ["Apple", "Pepper,_bell___healthy"], ["Pepper,_bell___scab", "Apple"]),
        (["A", "x"], ["A", "a", "x"], ["a", "x"]),  # the output is the other class's, letter by letter
        (["-1", "0"], ["-1", "0"], ["0", "1", "2"]),
        (["A-", "B"], ["A-", "B"], ["A", "A+", "B"]),
    ],
    ids=["part of a list", "of another class", "sign", "grade"],
)
def test_an_output_that_is_another_classs_is_not_taken(classes, of_dataset, of_teacher):
    with pytest.raises(MissingClassesError) as refused:
        match_teacher(resolve_classes(classes, of_dataset), dict(enumerate(of_teacher)), of_dataset)
    assert refused.value.missing == (classes[0],)


def test_an_output_that_two_classes_of_the_dataset_fit_alike_is_refused():
    with pytest.raises(SubtaskError, match=r"classes 'big cat' and 'Big_Cat' both match output 0 .*cannot be told"):
        match_teacher(
            resolve_classes(["big cat", "x"], ["big cat", "Big_Cat", "x"]),
            {0: "BIG-CAT", 1: "x"},
            ["big cat", "Big_Cat", "x"],
        )


def test_names_with_commas_are_taken_letter_by_letter():
    names = ["Apple___healthy", "Pepper,_bell___Bacterial_spot", "Pepper,_bell___healthy"]
    matched = match_teacher(resolve_classes(names[1:], names), dict(enumerate([*names, "Background"])), names)
    assert matched.teacher_ids == (1, 2)


def test_a_class_whose_name_looks_like_a_request_is_that_class():
    names = ["superclass:big", "subtask:bag", "all", "0"]
    assert resolve_classes(names, names).dataset_ids == (0, 1, 2, 3)


def test_superclasses_that_differ_by_spelling_alone_are_told_apart_or_refused():
    groups = {"Big": ["a", "b"], "big": ["c", "d"]}
    assert resolve_classes(["superclass:big"], ["a", "b", "c", "d"], groups).names == ("c", "d")
    with pytest.raises(SubtaskError, match="superclass 'BIG' may be one of several: 'Big', 'big'"):
        resolve_classes(["superclass:BIG"], ["a", "b", "c", "d"], groups)


def test_composed_and_decomposed_accents_are_one_spelling():
    assert resolve_classes(["caf\u00e9", "x"], ["x", "cafe\u0301", "cafe"]).dataset_ids == (1, 0)


def test_a_class_that_nothing_comes_near_gets_no_false_neighbour():
    with pytest.raises(MissingClassesError) as refused:
        match_teacher(Subtask(("mammal", "x"), (0, 1)), {0: "marimba", 1: "x"}, ["mammal", "x"])
    assert "nearest" not in str(refused.value)
    assert "subdistill distill with --adapt_teacher lora" in str(refused.value)
