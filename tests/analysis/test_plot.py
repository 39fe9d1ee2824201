"""The figure of a subspace analysis."""

import pytest
from PIL import Image

from subdistill_hf.analysis.plot import BASIS_COLOURS, Panel, plot_analysis
from subdistill_hf.config.bases import BASES
from subdistill_hf.reporting import drawing


def panel(heading, dimensions, errors=None):
    accuracy = {basis: [0.2 + 0.7 * place / len(dimensions) for place in range(len(dimensions))] for basis in BASES}
    return Panel(heading, dimensions, accuracy, 0.9, 0.2, errors and dict.fromkeys(BASES, errors))


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are saved."""
    figures, save = [], drawing.save_figure
    monkeypatch.setattr(
        "subdistill_hf.reporting.drawing.save_figure",
        lambda figure, path: (figures.append(figure), save(figure, path))[1],
    )
    return figures


def test_each_basis_has_a_colour_and_a_name_of_its_own():
    assert list(BASIS_COLOURS) == list(BASES)
    assert len(set(BASIS_COLOURS.values())) == len({basis.label for basis in BASES.values()}) == len(BASES)


def test_a_panel_a_layer_with_a_line_a_basis_and_one_legend(tmp_path, drawn):
    panels = [panel(f"stages.{n}", [1, 2, 4, 8, 10 + n], errors=[0.05] * 5) for n in range(5)]
    path = plot_analysis(panels, tmp_path / "new" / "analysis.png")
    (figure,) = drawn
    assert [ax.get_title(loc="left") for ax in figure.axes] == [one.heading for one in panels]
    for ax in figure.axes:
        curves = {line.get_color(): line for line in ax.lines if len(line.get_xdata()) == 5}
        assert set(curves) == set(BASIS_COLOURS.values())
        assert list(curves[BASIS_COLOURS["pca"]].get_ydata()) == panels[0].accuracy["pca"]
        assert sorted(line.get_ydata()[0] for line in ax.lines if len(line.get_xdata()) == 2) == [0.2, 0.9]
        assert ax.get_xscale() == "log"
        assert len(ax.collections) == len(BASES)  # error bars
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {
        *(basis.label for basis in BASES.values()),
        "teacher as it is",
        "chance",
    }
    with Image.open(path) as image:
        assert image.width > image.height > 400


@pytest.mark.parametrize("panels", [1, 2, 3])
def test_the_legend_is_whole_however_narrow_the_figure_is(tmp_path, drawn, panels):
    plot_analysis([panel(f"stages.{n}", [1, 2, 4]) for n in range(panels)], tmp_path / "analysis.png")
    (figure,) = drawn
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == 2 + len(BASES)
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert all(ax.get_tightbbox().y0 > box.y1 for ax in figure.axes)


def test_numbers_of_dimensions_are_written_where_they_have_room(tmp_path, drawn):
    plot_analysis([panel("one", [1, 2, 3, 4, 7, 9])], tmp_path / "one.png")
    (figure,) = drawn
    assert [round(place) for place in figure.axes[0].get_xticks()] == [9, 4, 2, 1]
