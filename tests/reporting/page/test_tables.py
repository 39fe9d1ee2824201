"""Tables of the page: what they sort by."""

import pytest
from markupsafe import Markup

from subdistill_hf.formatting import (
    accuracy_with_error,
    count,
    duration,
    energy,
    file_size,
    memory,
    milliseconds,
    operations,
)
from subdistill_hf.reporting.page.tables import sort_value, table


@pytest.mark.parametrize(
    ("write", "values"),
    [
        (count, [0, 7, 999, 1000, 42_913, 11_223_140]),
        (lambda share: accuracy_with_error(share, 500), [0.0, 0.2, 0.956, 0.99]),
        (operations, [12, 999, 4_318_000, 999_000_000, 1_113_000_000, 12_000_000_000]),
        (milliseconds, [0.012, 1.52, 20.4, 99.9, 100.0, 2500.0]),
        (duration, [0.4, 48.2, 59.0, 60.0, 203.7, 3599.0, 3600.0, 7300.0, 90_000.0]),
        (energy, [0.00001, 0.0009, 0.0037, 0.2, 12.0]),
        (file_size, [10, 179_304, 999_000, 1_500_000]),
        (memory, [2**20, 500 * 2**20, 2**30, 3 * 2**30]),
        (lambda value: f"{value:.2g}", [1e-9, 0.004, 0.1, 3.0]),
    ],
)
def test_cells_sort_as_the_numbers_that_they_are_written_from(write, values):
    found = [sort_value(write(value)) for value in values]
    assert None not in found
    assert found == sorted(found)
    assert len(set(found)) == len(values)


def test_almost_all_sorts_below_all_and_above_the_rest():
    assert sort_value("99.9 %") < sort_value("> 99.9 %") < sort_value("100.0 %")
    assert sort_value("**95.6 ± 0.9 %**") == 95.6
    assert sort_value("1.52 ms (1.48 to 1.75)") == pytest.approx(0.00152)
    assert sort_value("none") is None


def test_a_table_leaves_out_columns_that_nothing_is_known_of():
    rows = [{"Model": "a", "Size": None, "Share": "1.0 %"}, {"Model": "b", "Size": None, "Share": None}]
    made = table(rows, "Models")
    assert "Size" not in made
    assert '<td class="number" data-sort="1">1.0\u00a0%</td>' in made
    assert '<td class="number">–</td>' in made  # noqa: RUF001
    assert table([], "Models") == ""
    assert table([{"Model": None}], "Models") == ""


def test_a_name_is_never_markup():
    made = table([{"<b>": "&#60;i&#62;", "HTML": Markup("<i>x</i>")}], "<u>")
    assert "<b>" not in made
    assert "<u>" not in made
    assert "&lt;i&gt;" in made
    assert "<td><i>x</i></td>" in made
