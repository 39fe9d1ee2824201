"""The figures of the model card: their files, their size, and that no text covers another."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from reporting.samples import make_history, make_report, parsed
from reporting.test_class_names import FORMULAS, LINES, MARKUP, PLACES, UNICODE, YAML, report_with
from subdistill_hf.reporting import curves, drawing, plots
from subdistill_hf.reporting.fonts import drawable
from subdistill_hf.reporting.plots import PLOTS, plot_all, plot_confusion, plot_subspaces, plot_training

REJECTION = {
    "score": "none of these",
    "threshold": 0.35,
    "validation_images": 25,
    "known_kept": 0.94,
    "unknown_kept": {"near": 0.1},
    "histograms": {"known": [1, 0, 0, 9], "near": [40, 5, 4, 1]},
}


@pytest.fixture
def report():
    return make_report()


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved during the test."""
    saved = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: saved.append(figure) or save(figure, path))
    return saved


def crowd(report):
    """Many methods that end alike, many layers, a spectrum below zero, one without, long names."""
    template = report["subspaces"][0]
    report["subspaces"] = [
        template | {"teacher_layer": f"vit.encoder.layer.{i}.output", "dimensions": 8} for i in range(11)
    ]
    report["subspaces"][1] = report["subspaces"][1] | {"eigenvalues": [2.0, 1.0, 0.0, -0.5]}
    report["subspaces"][2] = report["subspaces"][2] | {"eigenvalues": []}
    layers = [subspace["teacher_layer"] for subspace in report["subspaces"]]
    report["histories"] = {
        method: make_history(end=0.9 + 0.001 * i, layers=layers if method == "subdistill" else ())
        for i, method in enumerate(["scratch", "kd", "subdistill", "fitnet", "vid", "attention"])
    }
    report["classes"] = [f"a rather long name {i}" for i in range(20)]
    report["results"][-1]["confusion"] = [[90 if i == j else 1 for j in range(20)] for i in range(20)]
    return report


@pytest.fixture(scope="module", params=[lambda report: report, crowd], ids=["usual", "crowd"])
def drawn(request, tmp_path_factory):
    """The files of all plots of a report, and the figures that were saved there."""
    saved, save = [], plots.save_figure
    report = request.param(make_report()) | {"rejection": REJECTION}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_figure", lambda figure, path: saved.append(figure) or save(figure, path))
        return plot_all(parsed(report), tmp_path_factory.mktemp("drawn")), saved


def test_files_have_their_size(drawn):
    paths, figures = drawn
    assert [path.name for path in paths] == list(PLOTS)
    for path, figure in zip(paths, figures, strict=True):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.size == tuple((figure.get_size_inches() * drawing.DPI).astype(int))
            assert len(image.convert("L").getcolors()) > 50


def test_size_follows_the_panels_and_the_same_report_gives_the_same_file(report, tmp_path):
    training = plot_training(parsed(report), tmp_path / "new" / "folder" / "a.png")
    assert Image.open(training).size == (1620, 930)
    assert Image.open(plot_subspaces(parsed(report).subspaces, str(tmp_path / "b.png"))).size == (1800, 750)
    assert plot_training(parsed(make_report()), tmp_path / "again.png").read_bytes() == training.read_bytes()


def test_texts_do_not_overlap_and_stay_inside(drawn):
    for figure in drawn[1]:
        renderer = figure.canvas.get_renderer()
        texts = [
            text
            for ax in figure.axes
            for text in (*ax.texts, ax.xaxis.label, ax.yaxis.label, ax._left_title)
            if text.get_text()
        ]
        boxes = [(text.get_text(), Text.get_window_extent(text, renderer)) for text in texts]
        for (one, box), (other, other_box) in itertools.combinations(boxes, 2):
            assert not box.overlaps(other_box), f"{one!r} covers {other!r}"
        inside = figure.get_tightbbox(renderer)  # inches
        assert inside.x0 >= -0.01
        assert inside.y0 >= -0.01
        assert (inside.max <= figure.get_size_inches() + 0.01).all()


def test_what_is_drawn(report, figures, tmp_path):
    plot_all(parsed(report), tmp_path)
    training, subspaces, confusion = (
        {text.get_text() for ax in figure.axes for text in (*ax.texts, ax._left_title)} for figure in figures
    )
    assert {"Accuracy on the validation images", "Training loss: SubDistill", "total", "stages.0"} <= training
    assert {"stages.3: K = 24 of 512", "94.1 %", "> 99.9 %", "random"} <= subspaces
    assert {"SubDistill: 500 test images", "94", "6", "100"} <= confusion
    assert [ax.get_xlabel() for ax in figures[0].axes] == ["epoch"] * 4


def test_the_colours_of_the_confusion_are_shares_of_the_true_class(report, figures, tmp_path):
    report["classes"] = ["many", "few", "none"]
    report["results"][-1] |= {"confusion": [[60, 30, 10], [1, 2, 1], [0, 0, 0]], "per_class_accuracy": {}}
    plot_confusion(parsed(report), tmp_path / "confusion.png")
    (image,) = figures[0].axes[0].images
    np.testing.assert_allclose(image.get_array(), [[0.6, 0.3, 0.1], [0.25, 0.5, 0.25], [0, 0, 0]])
    assert image.get_clim() == (0, 1)


def test_only_part_repeats_no_total_and_steps_without_epochs(report, figures, tmp_path):
    log = [{"step": step, "loss": 1 / step, "loss_kd": 1 / step} for step in range(1, 400)]
    plot_training(parsed(report | {"histories": {"kd": log}}), tmp_path / "a.png")
    (ax,) = figures[0].axes
    (line,) = ax.lines
    assert ax.get_xlabel() == "step"
    assert len(line.get_xdata()) <= curves.MOST_POINTS
    assert line.get_xdata()[-1] == 399


@pytest.mark.parametrize("empty", [{}, {"subdistill": []}, {"kd": [{"step": 1, "train_runtime": 2.0}]}])
def test_nothing_to_draw_writes_nothing(empty, report, tmp_path):
    report |= {"histories": empty, "subspaces": []}
    report["results"][-1]["confusion"] = None
    for plot in PLOTS.values():
        assert plot(parsed(report), tmp_path / "plot.png") is None
    assert plot_all(parsed(report), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_pyplot_is_left_alone(tmp_path):
    code = (
        "import sys, warnings; from reporting.samples import make_report, parsed; "
        "warnings.filterwarnings('ignore', category=DeprecationWarning, module='matplotlib'); "  # of its dependencies
        "from subdistill_hf.reporting.plots import plot_all; "
        "assert len(plot_all(parsed(make_report()), sys.argv[1])) == 3; assert 'matplotlib.pyplot' not in sys.modules"
    )
    folder = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], cwd=folder, check=True)


@pytest.mark.parametrize("number", [40, 91, 400])
def test_the_confusion_of_many_classes_has_a_bounded_size(number, report, tmp_path):
    names = [f"class number {index} with a name that is longer than any label" for index in range(number)]
    report["classes"] = names
    report["results"][-1] |= {"confusion": np.eye(number, dtype=int).tolist(), "per_class_accuracy": {}}
    with Image.open(plot_confusion(parsed(report), tmp_path / "confusion.png")) as image:
        assert max(image.size) <= 20 * drawing.DPI


def test_many_subspaces_have_a_bounded_size(report, tmp_path):
    subspaces = parsed(report).subspaces * 50
    with Image.open(plot_subspaces(subspaces, tmp_path / "a.png")) as image:
        assert image.height <= 32 * drawing.DPI


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("names", [PLACES, YAML, MARKUP, FORMULAS, LINES, UNICODE])
def test_names_of_classes_are_drawn_whatever_they_are(names, figures, tmp_path):
    plot_confusion(report_with(names), tmp_path / "confusion.png")
    drawn = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert drawn == [drawable(name) for name in names]


def test_the_scores_of_known_and_unknown_images_are_drawn_with_the_threshold(report, figures, tmp_path):
    assert plots.plot_scores(parsed(report), tmp_path / "none.png") is None
    report["rejection"] = REJECTION
    assert plots.plot_scores(parsed(report), tmp_path / "scores.png") == tmp_path / "scores.png"
    (ax,) = figures[0].axes
    heights = {patch.get_label(): patch.get_data().values.tolist() for patch in ax.patches}
    assert heights == {"images of the classes": [0.1, 0, 0, 0.9], "near unknown images": [0.8, 0.1, 0.08, 0.02]}
    (line,) = ax.lines
    assert list(line.get_xdata()) == [0.35, 0.35]


def test_a_plot_that_fails_leaves_the_others(report, tmp_path, monkeypatch, capsys):
    def fail(*given):
        raise RuntimeError("no room")

    monkeypatch.setitem(PLOTS, "subspaces.png", fail)
    assert [path.name for path in plot_all(parsed(report), tmp_path)] == ["training_curves.png", "confusion.png"]
    assert capsys.readouterr().err == "note: subspaces.png not drawn: RuntimeError: no room\n"
