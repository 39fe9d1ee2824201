"""Tables for the terminal."""

from __future__ import annotations

from subdistill_hf.formatting import table


def test_columns_are_aligned_under_a_ruled_header():
    rows = [("layer", "count"), ("stem", "7"), ("a long name", "12345")]
    assert table(rows).splitlines() == [
        "layer        count",
        "-----------  -----",
        "stem         7",
        "a long name  12345",
    ]


def test_numbers_are_aligned_to_the_right():
    rows = [("layer", "count"), ("stem", "7"), ("a long name", "12345")]
    assert table(rows, numbers_from=1).splitlines()[2] == "stem             7"
