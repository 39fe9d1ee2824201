"""scikit-learn's digits in the schema of glyphs-100."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from subdistill_hf.data.embedded.digits import DIGIT_NAMES, DIGIT_SUPERCLASS_NAMES, load_digits_dataset


@pytest.fixture(scope="module")
def digits():
    return load_digits_dataset()


def test_schema(digits):
    for rows in digits.values():
        assert list(rows.features) == ["img", "fine_label", "coarse_label"]
        assert rows.features["fine_label"].names == list(DIGIT_NAMES)
        assert rows.features["coarse_label"].names == list(DIGIT_SUPERCLASS_NAMES) == ["even", "odd"]
        labels = rows["fine_label"][:]
        assert rows["coarse_label"][:] == [label % 2 for label in labels]
        assert labels == sorted(labels)
        assert (rows[0]["img"].size, rows[0]["img"].mode) == ((32, 32), "RGB")


def test_split_is_stratified_and_complete(digits):
    total = np.bincount(load_digits().target)
    train = np.bincount(digits["train"]["fine_label"][:])
    test = np.bincount(digits["test"]["fine_label"][:])
    assert (train + test == total).all()
    assert np.abs(test - 0.3 * total).max() <= 0.5


def test_images_are_the_scans(digits):
    source = load_digits()
    first_three = source.images[source.target == 3][0]
    row = digits["train"]["fine_label"][:].index(3)
    shrunk = np.asarray(digits["train"][row]["img"].convert("L").resize((8, 8), 4), dtype=float)
    assert np.corrcoef(shrunk.ravel(), first_three.ravel())[0, 1] > 0.95


def test_deterministic_and_options_change_something(digits):
    again = load_digits_dataset()
    assert again["test"][5]["img"].tobytes() == digits["test"][5]["img"].tobytes()
    other = load_digits_dataset(test_share=0.5, image_size=16)
    assert other["test"].num_rows > digits["test"].num_rows
    assert other["test"][0]["img"].size == (16, 16)


@pytest.mark.parametrize("arguments", [{"test_share": 0.0}, {"test_share": 1.0}, {"image_size": 7}])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=r"expected .* found"):
        load_digits_dataset(**arguments)
