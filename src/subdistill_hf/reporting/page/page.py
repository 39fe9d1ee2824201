"""The page of a run: one file of HTML that needs no other, made from the report of the run."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from subdistill_hf.config.methods import method_label
from subdistill_hf.config.output_folder import check_output_folder, written_whole
from subdistill_hf.formatting import count, format_percent
from subdistill_hf.reporting import card_notes, card_tables, explained_words, on_device
from subdistill_hf.reporting.card_notes import adaptation_note
from subdistill_hf.reporting.markdown import hub_link
from subdistill_hf.reporting.model_card import class_phrase, publishable, standing
from subdistill_hf.reporting.optional import plot_is_optional
from subdistill_hf.reporting.page import confusion, explained, figures, headline, inline, tables
from subdistill_hf.reporting.page.explained import load_explanations
from subdistill_hf.reporting.page.pictures import Pictures
from subdistill_hf.reporting.page.sections import EARLIER, SECTIONS
from subdistill_hf.reporting.report import TEACHER, ReportError, RunReport
from subdistill_hf.reporting.reported_answers import THUMBNAILS_FOLDER

PAGE_FILE: Final = "report.html"


def write_page(folder: str | Path) -> Path:
    """Write the page of a run into its folder; one that is there stays as it is if the writing fails.

    Args:
        folder: that `distill` wrote, of which nothing but `report.json` and pictures is read.

    Returns:
        The page.

    Raises:
        ReportError: when there is no report of a run, or it cannot be read.
        SubDistillError: when the folder cannot be written.
    """
    folder = Path(folder)
    report = RunReport.load(folder)
    check_output_folder(folder, "folder")
    page = render_page(report, folder)
    with written_whole(folder / PAGE_FILE) as part:
        part.write_text(page, encoding="utf-8", newline="\n")
    return folder / PAGE_FILE


def renew_page(folder: str | Path) -> None:
    """Write the page of a run again where there is one, since there is more to show; a failure is told in a line.

    Args:
        folder: of the run.
    """
    if Path(folder, PAGE_FILE).is_file():
        with plot_is_optional(PAGE_FILE):
            write_page(folder)


def render_page(report: RunReport, folder: Path | None = None) -> str:
    """The page of a run as HTML.

    It has the words and figures of the card: both are made by the functions of `card_tables` and `card_notes`.

    Args:
        report: what was measured. Where it lacks something, the page says why.
        folder: of the run, for the pictures of wrong answers and the explanations.

    Raises:
        ReportError: when the report holds the result of no student.
    """
    if all(result.method == TEACHER for result in report.results):
        raise ReportError("expected the result of at least one student in the report, found none")
    report = publishable(report)
    published = report.published_result
    found, why_not = load_explanations(folder)
    style, script = (_template_text(f"page/{name}") for name in ("style.css", "script.js"))
    return (
        _environment()
        .get_template("page/page.html.jinja")
        .render(
            report=report,
            published=published,
            label=method_label(published.method),
            title=f"{report.dataset.name} expert: {class_phrase(report)}",
            dataset=hub_link(report.dataset.name, report.dataset.hub_id, "datasets/"),
            teacher=hub_link(report.teacher.name, report.teacher.hub_id) + adaptation_note(report),
            standing=standing(report),
            sections=SECTIONS,
            reasons={section.name: section.absent(report) for section in SECTIONS} | {"explanations": why_not},
            found=found,
            pictures=Pictures(folder),
            thumbnails=THUMBNAILS_FOLDER,
            earlier=EARLIER,
            style=Markup(style),
            script=Markup(script),
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


@cache
def _environment() -> jinja2.Environment:
    """The templates of the page, with what they call."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("subdistill_hf.reporting"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    modules: dict[str, Any] = {
        "tables": card_tables,
        "notes": card_notes,
        "device": on_device,
        "figures": figures,
        "confusion": confusion,
        "explained": explained,
        "words": explained_words,
        "headline": headline,
    }
    environment.globals |= modules
    environment.filters |= {
        "count": count,
        "percent": format_percent,
        "text": inline.text,
        "code": inline.code,
        "markdown": inline.from_markdown,
        "table": tables.table,
        "label": method_label,
        "together": tables.kept_together,
    }
    return environment


@cache
def _template_text(name: str) -> str:
    return files("subdistill_hf.reporting").joinpath("templates", name).read_text(encoding="utf-8")
