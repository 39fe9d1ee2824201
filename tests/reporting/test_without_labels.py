"""A run without labels: no page, card, plot or table speaks of accuracy, or of what is right or wrong."""

import re

import pytest
from matplotlib.text import Text

from reporting.page.samples import full_report, write_explanations, write_run
from reporting.samples import parsed
from subdistill_hf.export.summary import summary
from subdistill_hf.pipeline.report import results_table
from subdistill_hf.reporting import export_plot, family_plot, plots
from subdistill_hf.reporting.family_page import ExpertEntry, FamilyIndex, accuracies_of, render_index
from subdistill_hf.reporting.model_card import render_card, render_on_device
from subdistill_hf.reporting.page.page import render_page

ALLOWED = ("standard error", "calibration error")
"""Terms of statistics, which no label has to do with."""
WORDS = re.compile(r"accura\w*|\bright\b|\bwrong\w*|\bcorrect\w*|\berr(?:ors?)?\b|\btrue class", re.IGNORECASE)


def words_in(text):
    for term in ALLOWED:
        text = re.sub(term, "", text, flags=re.IGNORECASE)
    return WORDS.findall(text)


def shown_in(html):
    """What a page shows or says, without what only its style and its program use."""
    html = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    return re.sub(r' (?:class|style|src|content)="[^"]*"', "", html)


@pytest.fixture
def report():
    """All that a report of a run without labels may hold."""
    given = full_report()
    given["dataset"]["labels_by_teacher"] = True
    (export,) = given["exports"]
    for file in export["files"]:
        del file["accuracy"]
    export["files"].append(export["files"][0] | {"name": "model_quantized.onnx", "precision": "int8"})
    export["images"] += ", without labels"
    export["tried"] = [{"name": "static", "agreement": 0.98, "size_bytes": 100_000}]
    export["calibration_images"] = 100
    return given


@pytest.fixture
def texts(monkeypatch):
    """The texts of all figures that are saved during the test."""
    found = []
    for module in (plots, export_plot, family_plot):
        save = module.save_figure

        def save_and_read(figure, path, save=save):
            written = save(figure, path)
            found.extend(text.get_text() for text in figure.findobj(Text))
            return written

        monkeypatch.setattr(module, "save_figure", save_and_read)
    return found


def test_the_page(report, tmp_path):
    write_run(tmp_path, report)
    write_explanations(tmp_path)
    shown = shown_in(render_page(parsed(report), tmp_path))
    assert words_in(shown) == []
    assert "Agreement against K" in shown
    assert "Classes and other answers than the teacher&#39;s" in shown
    assert words_in(shown_in(render_page(parsed(report | {"wrong_answers": []})))) == []


def test_the_page_of_a_run_with_labels_has_these_words(tmp_path):
    write_run(tmp_path)
    write_explanations(tmp_path)
    assert len(words_in(shown_in(render_page(parsed(full_report()), tmp_path)))) > 20


def test_the_card(report):
    per_class = report["results"][-1]["per_class_accuracy"]
    per_class[next(iter(per_class))] = 1.0
    card = str(render_card(parsed(report))).split("## Citation")[0]
    assert words_in(card) == []
    assert words_in(render_on_device(parsed(report))) == []


def test_the_plots(report, texts, tmp_path):
    plots.plot_all(parsed(report), tmp_path)
    export_plot.plot_export(parsed(report).exports[0], tmp_path / "export.png")
    family_plot.plot_family({"a": accuracies_of(parsed(report))}, tmp_path / "family.png", parsed(report).figure)
    assert words_in("; ".join(texts)) == []
    assert "Agreement with the teacher on the validation images" in texts
    assert "agreement with the teacher on the test images" in texts


def test_the_tables_of_the_terminal_and_the_index_of_a_family(report):
    assert words_in(results_table(parsed(report))) == []
    assert words_in(summary(parsed(report).exports[0], "folder")) == []
    entries = (ExpertEntry("a", ("b", "c"), parsed(report)),) * 2
    assert words_in(render_index(FamilyIndex("experts", entries), plot="family.png")) == []
