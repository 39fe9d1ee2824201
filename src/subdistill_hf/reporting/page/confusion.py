"""Confusion matrices of a page: a table where there are few classes, a drawing where there are many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from subdistill_hf.formatting import count, format_percent
from subdistill_hf.reporting.card_tables import Row
from subdistill_hf.reporting.markdown import text
from subdistill_hf.reporting.page import inline
from subdistill_hf.reporting.page.svg import element
from subdistill_hf.reporting.report import MethodResult, RunReport

MOST_NAMED: Final = 25
"""Classes of a matrix that is a table."""
MOST_PAIRS: Final = 30
SIDE: Final = 600.0
_DARK: Final = 0.55
"""Share from which a cell's number is written in the colour of the paper."""

Confusion = Sequence[Sequence[int]]


def matrix(report: RunReport, result: MethodResult) -> Markup:
    """What a model takes the test images of each class for.

    Args:
        report: of the run.
        result: of the model; with a confusion.
    """
    assert result.confusion is not None
    if len(report.classes) <= MOST_NAMED:
        return _table(report.classes, result.confusion)
    return _drawing(result.confusion)


def pair_rows(report: RunReport, result: MethodResult) -> list[Row]:
    """The classes that are mistaken for each other most often, as rows of a table."""
    confusion: Confusion = result.confusion or ()
    pairs = [
        (images, true, predicted)
        for true, row in enumerate(confusion)
        for predicted, images in enumerate(row)
        if images and true != predicted
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [
        {
            "Class": text(report.classes[true]),
            "Taken for": text(report.classes[predicted]),
            "Images": count(images),
            "Share": format_percent(images / sum(confusion[true])),
        }
        for images, true, predicted in pairs[:MOST_PAIRS]
    ]


def _table(classes: Sequence[str], confusion: Confusion) -> Markup:
    names = [inline.text(name) for name in classes]
    head = Markup("").join(Markup('<th scope="col"><span>{}</span></th>').format(name) for name in names)
    rows = []
    for true, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        images = max(sum(counts), 1)
        cells = [_cell(number, number / images, predicted == true) for predicted, number in enumerate(counts)]
        rows.append(Markup('<tr><th scope="row">{}</th>{}</tr>').format(name, Markup("").join(cells)))
    return Markup("<thead><tr><td></td>{}</tr></thead>\n<tbody>\n{}\n</tbody>").format(head, Markup("\n").join(rows))


def _cell(number: int, share: float, right: bool) -> Markup:
    """A number of images on a shade for their share of the class."""
    if not number:
        return Markup('<td class="none">0</td>')
    kind = ("right" if right else "wrong") + (" deep" if _shade(share, right) > _DARK else "")
    return Markup('<td class="{}" style="--share: {}">{}</td>').format(kind, f"{_shade(share, right):.3f}", number)


def _shade(share: float, right: bool) -> float:
    """How dark a share is drawn: errors are stronger, since they are few."""
    return share if right else min(1.0, 3 * share)


def _drawing(confusion: Confusion) -> Markup:
    size = SIDE / len(confusion)
    cells = []
    for true, counts in enumerate(confusion):
        images = max(sum(counts), 1)
        for predicted, number in enumerate(counts):
            if number:
                shade = _shade(number / images, true == predicted)
                cells.append(
                    element(
                        "rect",
                        x=predicted * size,
                        y=true * size,
                        width=size,
                        height=size,
                        fill_opacity=max(0.08, shade),
                        class_="right" if true == predicted else "wrong",
                    )
                )
    frame = element("rect", x=0, y=0, width=SIDE, height=SIDE, class_="frame")
    title = element("title", f"Confusion of {len(confusion)} classes: true ones from top to bottom, answers across.")
    return element(
        "svg",
        title + frame + Markup("").join(cells),
        viewBox=f"-1 -1 {SIDE + 2:g} {SIDE + 2:g}",
        role="img",
        class_="matrix",
    )
