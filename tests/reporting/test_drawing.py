"""What every figure has in common: ticks that differ, texts that are no formulas, names that a font draws."""

import itertools

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from subdistill_hf.reporting import fonts
from subdistill_hf.reporting.colours import METHOD_COLOURS, distinct_colours
from subdistill_hf.reporting.drawing import Percent, figure_of_panels, save_figure, set_heading
from subdistill_hf.reporting.fonts import drawable, drawable_all, file_of, width_in_characters


def test_no_two_methods_of_a_figure_share_a_colour():
    kinds = [
        "scratch",
        "kd",
        "fitnet",
        "subdistill",
        "somebody's own",
        *["kd"] * 12,
        *["subdistill"] * 12,
        *["x"] * 20,
    ]
    names = [f"{kind} {number}" for number, kind in enumerate(kinds)]
    colours = distinct_colours(zip(names, kinds, strict=True))
    assert list(colours) == names
    assert len(set(colours.values())) == len(names)
    assert colours["kd 1"] == METHOD_COLOURS["kd"]
    assert all(len(colour) == 7 for colour in colours.values())


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0, 0.25, 0.5, 1], ["0 %", "25 %", "50 %", "100 %"]),
        ([-0.024, -0.02, -0.016, -0.012, -0.004], ["-2.4 %", "-2.0 %", "-1.6 %", "-1.2 %", "-0.4 %"]),
        ([-0.02, -0.01, -1e-18, 0.01], ["-2 %", "-1 %", "0 %", "1 %"]),
        ([0.9985, 0.999, 0.9995], ["99.85 %", "99.90 %", "99.95 %"]),
        ([-0.05, -0.025, 0, 0.025], ["-5.0 %", "-2.5 %", "0.0 %", "2.5 %"]),
        ([0.3], ["30 %"]),
    ],
)
def test_no_tick_is_repeated_or_moved_by_rounding_and_zero_has_no_sign(ticks, labels):
    assert Percent().format_ticks(ticks) == labels
    assert Percent(sign="").format_ticks(ticks) == [label.removesuffix(" %") for label in labels]


def test_a_text_with_dollar_signs_is_no_formula(tmp_path):
    figure, (ax,) = figure_of_panels(1, 1, panel=(3, 2))
    ax.plot([0, 1], [0, 1])
    ax.set_xticks([0, 1], ["$x_1$", "Ba$$in"])
    set_heading(ax, r"$\frac{broken$")
    save_figure(figure, tmp_path / "a.png")
    assert not any(text.get_parse_math() for text in (*ax.get_xticklabels(), ax._left_title))


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("zodiac_aries", "zodiac_aries"),
        ("two\nlines\t.", "two\\nlines\\t."),
        ("\u202eabc", "\\u202eabc"),
        ("\udcff\0", "\\udcff\\x00"),
        ("é ❤\ufe0f", "é ❤\ufe0f"),
        ("a" * 60, "a" * 21 + "…" + "a" * 10),
    ],
)
def test_a_name_is_drawn_in_one_line_with_escapes(name, drawn):
    assert drawable(name) == drawn


def test_names_that_would_look_alike_are_told_apart():
    drawn = drawable_all(["x" * 60, "x" * 61, "y"])
    assert len(set(drawn)) == 3
    assert drawn[2] == "y"


def test_what_no_font_has_is_escaped_and_a_font_that_has_it_is_found(monkeypatch):
    monkeypatch.setattr(fonts, "_fonts_of_the_machine", tuple)
    fonts._family_of.cache_clear()
    assert drawable("猫") == "\\u732b"
    serif = font_manager.FontEntry(fname="/fonts/cat.ttf", name="Cat")
    characters = {serif.fname: frozenset(map(ord, "猫é"))}
    own = fonts._characters_of
    monkeypatch.setattr(fonts, "_fonts_of_the_machine", lambda: (serif,))
    monkeypatch.setattr(fonts, "_characters_of", lambda path: characters[path] if path in characters else own(path))
    fonts._family_of.cache_clear()
    try:
        assert drawable("猫é") == "猫é"
        assert fonts.families("猫é") == ["DejaVu Sans", "Cat"]
        assert (file_of("猫"), file_of("é")) == ("/fonts/cat.ttf", font_manager.findfont("DejaVu Sans"))
    finally:
        fonts._family_of.cache_clear()
    assert width_in_characters("猫ab") == 4


def test_every_axis_has_ticks_of_its_own(tmp_path):
    figure, axes = figure_of_panels(1, 2, panel=(3, 2))
    for ax, top in zip(axes, (1, 0.02), strict=True):
        ax.plot([0, 1], [0, top])
        ax.yaxis.set_major_formatter(Percent())
    path = save_figure(figure, tmp_path / "a.png")
    assert np.asarray(Image.open(path)).std() > 0
    for ax in axes:
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert all(one != other for one, other in itertools.combinations(labels, 2))
