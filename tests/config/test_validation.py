"""Values of options are of their field's type and in range, or refused by name."""

from dataclasses import dataclass, fields

import numpy as np
import pytest

from subdistill_hf.config.options import DataOptions, TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.config.validation import _kind, check_ranges, check_types, names_of_options
from subdistill_hf.errors import SubDistillError


@dataclass
class Described:
    whole: int = 1
    number: float = 0.5
    switch: bool = False
    open_number: "float | None" = None
    text: str = "any"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"whole": 7, "number": 2, "switch": True, "open_number": 1e-3},
        {"whole": np.int64(7), "number": np.float32(2)},
        {"open_number": None, "text": 3},
    ],
)
def test_values_of_their_type_are_taken(given):
    check_types(Described(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"whole": "many"}, "whole='many': expected a whole number"),
        ({"whole": 1e3}, "whole=1000.0: expected a whole number"),
        ({"whole": True}, "whole=True: expected a whole number"),
        ({"whole": float("nan")}, "whole=nan: expected a whole number"),
        ({"number": "fast"}, "number='fast': expected a number"),
        ({"open_number": [1]}, r"open_number=\[1\]: expected a number"),
        ({"switch": "maybe"}, "switch='maybe': expected true or false"),
        ({"switch": 1}, "switch=1: expected true or false"),
    ],
)
def test_values_of_another_type_are_refused(given, message):
    with pytest.raises(SubDistillError, match=message):
        check_types(Described(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"whole": 0}, "whole=0: expected at least 1"),
        ({"number": float("nan")}, "number=nan: expected a number from 0 to 1"),
        ({"number": 1.5}, "number=1.5: expected a number from 0 to 1"),
        ({"number": -0.5}, "number=-0.5: expected a number from 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_refused(given, message):
    with pytest.raises(SubDistillError, match=message):
        check_ranges(Described(**given), {"whole": 1}, {"number": (0, 1), "open_number": (2, 3)})


def test_numbers_in_range_are_taken_and_open_ones_are_in_any():
    check_ranges(Described(number=1), {"whole": 1, "open_number": 4}, {"number": (0, 1)})


@pytest.mark.parametrize("options", [SubDistillConfig, TaskOptions])
def test_numbers_and_switches_of_the_options_are_known_as_such(options):
    kinds = {field.name: _kind(field) for field in fields(options)}
    expected = (
        {"max_steps": "int", "learning_rate": "float", "bf16": "bool", "layer_weight": "float", "layer_pairs": "int"}
        if options is SubDistillConfig
        else {"train_images_per_class": "int", "mix": "float", "overwrite": "bool", "classes": None}
    )
    assert expected.items() <= kinds.items()


def test_options_of_data_are_checked_when_they_are_made():
    with pytest.raises(SubDistillError, match="train_images_per_class='ten': expected a whole number"):
        DataOptions(train_images_per_class="ten")


def test_names_are_those_of_all_fields():
    assert {"whole", "teacher", "dataset"} <= {*names_of_options(Described, TaskOptions)}
