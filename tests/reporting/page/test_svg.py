"""The drawings of the page: axes, and colours that are seen."""

import random
import re
from xml.etree import ElementTree

import pytest

from subdistill_hf.reporting.colours import METHOD_COLOURS, OTHER_COLOURS, SOFT, VARIANT_COLOURS
from subdistill_hf.reporting.curves import FURTHER_COLOURS, PART_COLOURS
from subdistill_hf.reporting.page.svg import (
    DARK,
    LEAST_CONTRAST,
    LIGHT,
    Axis,
    Plot,
    both_papers,
    contrast,
    linear_axis,
    log_axis,
)

COLOURS = [*METHOD_COLOURS.values(), *VARIANT_COLOURS, *OTHER_COLOURS, *FURTHER_COLOURS, *PART_COLOURS.values(), SOFT]


@pytest.mark.parametrize("colour", COLOURS)
def test_each_colour_is_seen_on_both_papers(colour):
    light, dark = re.fullmatch(r"light-dark\((#\w{6}), (#\w{6})\)", both_papers(colour)).groups()
    assert contrast(light, LIGHT) >= LEAST_CONTRAST
    assert contrast(dark, DARK) >= LEAST_CONTRAST
    for found, paper in ((light, LIGHT), (dark, DARK)):
        if contrast(colour, paper) >= LEAST_CONTRAST:
            assert found == colour


def test_contrast_is_that_of_the_guidelines():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_axes_have_a_few_ticks_within_their_range():
    rng = random.Random(0)
    for _ in range(300):
        low = rng.uniform(-1, 1) * 10 ** rng.randint(-6, 6)
        high = low + 10 ** rng.uniform(-6, 6)
        axis = linear_axis(low, high)
        assert 1 <= len(axis.ticks) <= 11
        assert all(-1e-6 <= axis.share(tick) <= 1 + 1e-6 for tick in axis.ticks)
        low, high = 10 ** rng.uniform(-6, 0), 10 ** rng.uniform(1, 4)
        axis = log_axis(low, high)
        assert 1 <= len(axis.ticks) <= 12
        assert all(-1e-6 <= axis.share(tick) <= 1 + 1e-6 for tick in axis.ticks)


def test_axes_of_one_value_are_axes():
    assert linear_axis(3, 3).share(3) == 0
    assert linear_axis(0, 2, whole=True).ticks == [0, 1, 2]


def test_a_plot_is_xml_with_a_text_for_those_who_do_not_see_it():
    plot = Plot(Axis(0, 1, [0, 1]), Axis(0, 10, [0, 5, 10]), "x < y", "y & z")
    plot.line([0, 1], [0, 10], style="--c: red")
    plot.line([0.5], [5])
    plot.dot(0, 0, 3, "a <b>")
    root = ElementTree.fromstring(plot.drawn("what & how"))
    assert root.attrib["role"] == "img"
    assert root[0].tag == "title"
    assert root[0].text == "what & how"
    assert [one.text for one in root.iter("title")] == ["what & how", "a <b>"]
    (line,) = root.iter("path")
    assert line.attrib["d"] == "M64 248L494 34"
