"""Columns of an image dataset: found by type and name, or given."""

import datasets
import pytest

from helpers import COLUMNS, glyph_rows
from subdistill_hf.data.columns import ImageColumns
from subdistill_hf.errors import DataError


def features(**kinds):
    """Columns by type: an image, texts, whole numbers, decimals, or a number of classes."""
    made = {"image": datasets.Image(), "text": datasets.Value("string"), "int": datasets.Value("int16")}
    made["float"] = datasets.Value("float32")
    return datasets.Features(
        {
            name: datasets.ClassLabel(num_classes=kind) if isinstance(kind, int) else made[kind]
            for name, kind in kinds.items()
        }
    )


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        ({"image": "image", "label": 10}, ("image", "label", None)),
        ({"coarse_label": 20, "fine_label": 100, "img": "image"}, ("img", "fine_label", "coarse_label")),
        ({"img": "image", "breed": 37, "species": 2, "id": "text"}, ("img", "breed", "species")),
        ({"img": "image", "label": 10, "source": 30}, ("img", "label", None)),
        ({"img": "image", "label": 10, "source": 3, "coarse_label": 4}, ("img", "label", "coarse_label")),
        ({"img": "image", "label": 10, "source": 3, "split": 4}, ("img", "label", None)),
        ({"jpg": "image", "cls": "int", "__key__": "text"}, ("jpg", "cls", None)),
        ({"jpg": "image", "species": "text", "weight": "float"}, ("jpg", "species", None)),
    ],
)
def test_columns_are_found(kinds, found):
    assert ImageColumns.of(features(**kinds)) == ImageColumns(*found)


def test_cifars_columns_are_found_in_any_order():
    assert ImageColumns.of(glyph_rows().features) == COLUMNS
    swapped = {name: glyph_rows().features[name] for name in ("coarse_label", "fine_label", "img")}
    assert ImageColumns.of(datasets.Features(swapped)) == COLUMNS


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (
            {"text": "text"},
            r"expected a column for the image, found text: string: expected images \(dat",
        ),
        (
            {"image": "image"},
            r"expected a column for the label, found image: Image: expected ClassLabel, tex",
        ),
        (
            {"a": "image", "b": "image", "label": 3},
            r"several columns may hold the image: a, b. Choose .* --image",
        ),
        ({"a": "image", "b": 3, "c": 3}, r"several columns may hold the label: b, c. Choose one with --label_column"),
        ({"a": "image", "b": 5, "c": 4, "d": 3}, r"several columns may hold the label: b, c, d"),
        ({"a": "image", "b": "text", "c": "int"}, r"several columns may hold the label: b, c"),
    ],
)
def test_what_is_missing_or_ambiguous_is_refused_with_the_names(kinds, message):
    with pytest.raises(DataError, match=message):
        ImageColumns.of(features(**kinds))


def test_given_columns_are_taken():
    both = features(front="image", back="image", kind=4, place=9, family="text")
    assert ImageColumns.of(both, "back", "kind") == ImageColumns("back", "kind")
    assert ImageColumns.of(both, "front", "place") == ImageColumns("front", "place", "kind")
    assert ImageColumns.of(both, "front", "place", "family") == ImageColumns("front", "place", "family")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("picture",),
            r"image_column='picture' is not there: expected one of img in img: Image, fine_label",
        ),
        (("fine_label",), r"image_column='fine_label' has type ClassLabel.*: expected one of img"),
        (("img", "img"), r"label_column='img' has type Image.*: expected one of fine_label, coarse_label in img"),
        (("img", "fine_label", "family"), r"superclass_column='family' is not there"),
    ],
)
def test_given_columns_that_do_not_fit_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        ImageColumns.of(glyph_rows().features, *given)
