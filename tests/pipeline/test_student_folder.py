"""The folder of a student: report and card are there before any plot, and do not depend on one."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import processor, resnet, views
from reporting.samples import make_report, parsed
from subdistill_hf.pipeline import student_folder
from subdistill_hf.pipeline.student_folder import write_student
from subdistill_hf.reporting import plots
from subdistill_hf.reporting.report import RunReport, Usage

NAMES = ("Ba$$in", "/a/airfield", "two\nlines")


@pytest.fixture
def report(monkeypatch):
    monkeypatch.setattr(student_folder, "_run_usage", lambda *given: Usage(code="code", output="output"))
    report = make_report()
    report["usage"] = None
    report["classes"], report["subspaces"], report["histories"] = list(NAMES), [], {}
    for result in report["results"]:
        result |= {"confusion": [[6, 0, 0]] * 3, "per_class_accuracy": dict.fromkeys(NAMES, 0.5)}
    report["dataset"]["train_images_per_class"] = dict.fromkeys(NAMES, 4)
    return parsed(report)


def write(folder, report):
    example = views(1, "test").image(0).permute(1, 2, 0).numpy()
    from PIL import Image

    return write_student(folder, resnet(), processor(), Image.fromarray(example), views(4), report)


def test_plots_come_last_and_the_card_shows_what_was_drawn(report, tmp_path, monkeypatch):
    there = []
    draw = plots.plot_all
    monkeypatch.setattr(
        plots, "plot_all", lambda *given: (there.extend(path.name for path in tmp_path.iterdir()), draw(*given))[1]
    )
    written = write(tmp_path, report)
    assert written.usage is not None
    assert {"report.json", "README.md", "model.safetensors", "example.png"} <= set(there)
    assert RunReport.load(tmp_path) == replace(written, usage=None)  # for the pictures of errors and the page to come
    assert written.student.size_bytes == (tmp_path / "model.safetensors").stat().st_size
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "(confusion.png)" in card
    assert "(contact_sheet.png)" in card


def test_a_run_whose_plots_fail_has_report_and_card(report, tmp_path, monkeypatch, capsys):
    def fail(*given):
        raise MemoryError

    monkeypatch.setattr(plots, "plot_all", fail)
    monkeypatch.setattr(student_folder, "contact_sheet", fail)
    assert write(tmp_path, report).usage.output == "output"
    assert RunReport.load(tmp_path).student.size_bytes > 0
    assert ".png)" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    notes = [line for line in capsys.readouterr().err.splitlines() if "not drawn" in line]
    assert notes == ["note: the plots not drawn: MemoryError", "note: contact_sheet.png not drawn: MemoryError"]


def test_the_figures_are_kept_when_the_student_cannot_be_written(report, tmp_path, monkeypatch):
    model = resnet()

    def cut_short(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(model, "save_pretrained", cut_short)
    with pytest.raises(OSError, match="disk full"):
        write_student(tmp_path, model, processor(), None, views(4), report)
    assert RunReport.load(tmp_path) == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]  # no half of a student


def test_report_and_card_stay_whole_when_the_disk_fills(report, tmp_path, monkeypatch):
    write(tmp_path, report)
    before = {name: (tmp_path / name).read_bytes() for name in ("report.json", "README.md")}
    write_text = Path.write_text

    def fill(path, text, *given, **options):
        write_text(path, text[:9], *given, **options)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", fill)
    with pytest.raises(OSError, match="No space left"):
        report.save(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not list(tmp_path.glob("*.part"))
