"""How names of classes are compared."""

import pytest

from subdistill_hf.data.class_names import matching_labels, nearest, normalised, synonyms

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
