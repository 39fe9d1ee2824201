"""How names of classes are compared, and ImageNet's classes in the label spaces that are in use."""

import pytest
from timm.data import ImageNetInfo

from subdistill_hf.data.class_names import (
    IMAGENET_SUBTASKS,
    imagenet_name,
    matching_labels,
    nearest,
    normalised,
    synonyms,
    unique_names,
    wordnet_ids,
)
from subdistill_hf.data.subtask import MissingClassesError, SubtaskError, match_teacher, resolve_classes

LABELS = (
    "tabby, tabby cat",
    "lesser panda, red panda, panda",
    "giant panda, panda, panda bear",
    "Cardigan, Cardigan Welsh corgi",
    "cardigan",
    "projectile, missile",
    "missile",
    "great_grey-Owl",
)


def test_repeated_names_get_their_ids():
    assert unique_names(("ox", "crane", "crane")) == ("ox", "crane (1)", "crane (2)")
    assert unique_names(("crane", "ox", "crane"), (134, 5, 517)) == ("crane (134)", "ox", "crane (517)")
    assert unique_names(("crane (1)", "crane", "crane")) == ("crane (1) (0)", "crane (1)", "crane (2)")


def test_spelling_is_levelled():
    assert normalised("  Great_Grey-  Owl ") == "great grey owl"
    assert synonyms("Tabby, tabby-cat, ") == {"tabby, tabby cat,", "tabby", "tabby cat"}


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("tabby", [0]),
        ("Tabby Cat", [0]),
        ("tabby, tabby cat", [0]),
        ("panda", [1, 2]),
        ("PANDA", [1, 2]),
        ("red panda", [1]),
        ("cardigan", [4]),  # that is its whole label
        ("Cardigan", [3, 4]),
        ("CARDIGAN", [4]),
        ("missile", [6]),
        ("Missile", [6]),
        ("Projectile", [5]),
        ("great grey owl", [7]),
        ("owl", []),
        ("tab", []),
        ("", []),
    ],
)
def test_a_name_finds_the_labels_that_it_may_mean(name, places):
    assert matching_labels(name, LABELS) == places


def test_a_message_names_what_is_near_also_among_synonyms_or_else_some():
    assert nearest("taby", LABELS) == "; nearest: tabby, tabby cat"
    assert nearest("qqqqqqqqqqqqqqqqqqqqqqq", LABELS).startswith("; there are 8, such as tabby, tabby cat, lesser")


# ImageNet

IDS = tuple(ImageNetInfo().label_names())
DESCRIPTIONS = tuple(ImageNetInfo().label_descriptions())
CRANE, CRANE_MACHINE = 134, 517
# as in ILSVRC/imagenet-1k, where names are unique
NAMES = tuple("crane2" if place == CRANE_MACHINE else name for place, name in enumerate(DESCRIPTIONS))
TABBY = 281


def test_the_usual_label_spaces_are_known():
    assert wordnet_ids(NAMES) == wordnet_ids(DESCRIPTIONS) == IDS
    assert wordnet_ids(tuple(name.split(",")[0].replace(" ", "_") for name in NAMES)) == IDS
    assert wordnet_ids(IDS[40:50]) == IDS[40:50]
    larger = ImageNetInfo("imagenet-12k")
    assert wordnet_ids(tuple(larger.label_descriptions())) == tuple(larger.label_names())


def test_other_label_spaces_are_not_taken_for_it():
    assert wordnet_ids(()) is None
    assert wordnet_ids(tuple(f"LABEL_{place}" for place in range(1000))) is None
    assert wordnet_ids(NAMES[::-1]) is None
    assert wordnet_ids(NAMES[:999]) is None
    assert wordnet_ids((*IDS[:3], "tench")) is None


@pytest.mark.parametrize(
    "entry", ["tabby", "Tabby Cat", "tabby, tabby cat", "n02123045", str(TABBY), TABBY], ids=lambda entry: str(entry)
)
@pytest.mark.parametrize("names", [NAMES, IDS], ids=["names", "WordNet ids"])
def test_a_class_is_found_by_any_of_its_names(entry, names):
    subtask = resolve_classes([entry, "n01440764"], names)
    assert subtask.dataset_ids == (TABBY, 0)
    assert subtask.names == ("tabby, tabby cat", "tench, Tinca tinca")


@pytest.mark.parametrize("names", [NAMES, IDS], ids=["names", "WordNet ids"])
def test_ambiguous_names_are_refused_with_the_candidates(names):
    with pytest.raises(SubtaskError, match=r"class 'panda' may be one of several: 387 \(.*\), 388 \(.*\)\. Give"):
        resolve_classes(["panda", "tabby"], names)


def test_a_wordnet_id_of_no_class_is_refused():
    with pytest.raises(SubtaskError, match="unknown class 'n00004475'"):
        resolve_classes(["n00004475", "tabby"], NAMES)
    with pytest.raises(SubtaskError, match="unknown class 'n02123045'"):
        resolve_classes(["n02123045", "a"], ["a", "b"])


def test_the_papers_subtasks():
    assert all(len(set(classes)) == 5 for classes in IMAGENET_SUBTASKS.values())
    assert len({class_id for classes in IMAGENET_SUBTASKS.values() for class_id in classes}) == 40
    assert resolve_classes(["subtask:domestic-cat"], NAMES).names == (
        "tabby, tabby cat",
        "tiger cat",
        "Persian cat",
        "Siamese cat, Siamese",
        "Egyptian cat",
    )
    backwards = IDS[::-1]
    assert resolve_classes(["subtask:truck"], backwards).dataset_ids == tuple(
        999 - class_id for class_id in IMAGENET_SUBTASKS["truck"]
    )


@pytest.mark.parametrize(
    ("entry", "names", "message"),
    [
        ("subtask:cats", NAMES, "unknown subtask 'cats': expected one of wading-bird, retriever, working-dog, "),
        ("subtask:bag", ["a", "b"], "'subtask:bag' is a subtask of ImageNet; this dataset has other classes"),
        ("subtask:retriever", IDS[:208], f"this dataset lacks {IDS[208]}, {IDS[209]}"),
    ],
)
def test_a_subtask_that_is_not_there_is_refused(entry, names, message):
    with pytest.raises(SubtaskError, match=message):
        resolve_classes([entry], names)


def test_two_classes_of_one_name_are_told_apart():
    subtask = resolve_classes([IDS[CRANE], IDS[CRANE_MACHINE]], IDS)
    assert subtask.names == (f"crane ({IDS[CRANE]})", f"crane ({IDS[CRANE_MACHINE]})")
    assert imagenet_name(IDS[TABBY]) == "tabby, tabby cat"
    assert imagenet_name("n00004475") == "n00004475"


# The teacher


def test_a_teacher_of_imagenet_is_matched_by_id():
    subtask = match_teacher(resolve_classes(["crane", "crane2", "tabby"], NAMES), dict(enumerate(DESCRIPTIONS)), NAMES)
    assert subtask.teacher_ids == (CRANE, CRANE_MACHINE, TABBY)
    assert subtask.matched_by == "id"


def test_folders_of_wordnet_ids_are_matched_in_any_order_and_number():
    folders = (IDS[CRANE_MACHINE], IDS[TABBY], IDS[CRANE])
    subtask = match_teacher(resolve_classes(["all"], folders), dict(enumerate(DESCRIPTIONS)), folders)
    assert subtask.teacher_ids == (CRANE_MACHINE, TABBY, CRANE)
    assert subtask.matched_by == "WordNet id"


def test_a_teacher_of_a_larger_imagenet_is_matched_by_wordnet_id():
    larger = ImageNetInfo("imagenet-12k")
    labels = dict(enumerate(larger.label_descriptions()))
    subtask = match_teacher(resolve_classes(["tabby", "crane"], NAMES), labels, NAMES)
    assert subtask.teacher_ids == tuple(larger.label_names().index(IDS[place]) for place in (TABBY, CRANE))
    missing = [place for place in range(1000) if IDS[place] not in larger.label_names()]
    with pytest.raises(MissingClassesError) as refused:
        match_teacher(resolve_classes([TABBY, missing[0]], NAMES), labels, NAMES)
    assert refused.value.missing == (NAMES[missing[0]],)


def test_a_small_dataset_is_matched_to_imagenet_by_name():
    names = ("tench", "English springer", "cassette player", "church", "French horn", "golf ball")
    subtask = match_teacher(resolve_classes(["all"], names), dict(enumerate(DESCRIPTIONS)), names)
    assert subtask.teacher_ids == (0, 217, 482, 497, 566, 574)
    assert subtask.matched_by == "name"
    with pytest.raises(SubtaskError, match=r"'crane' matches several outputs of the teacher: 134 \(crane\), 517"):
        match_teacher(resolve_classes(["all"], ["tench", "crane"]), dict(enumerate(DESCRIPTIONS)), ["tench", "crane"])


def test_imagenets_names_in_another_order_are_not_taken_by_their_places():
    swapped = [*NAMES]
    swapped[3], swapped[4] = swapped[4], swapped[3]
    assert wordnet_ids(tuple(swapped)) is None
    subtask = resolve_classes([NAMES[3], NAMES[7]], NAMES)
    assert match_teacher(subtask, dict(enumerate(swapped)), NAMES).teacher_ids == (4, 7)
