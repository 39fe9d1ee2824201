"""The explanations of a page: heat maps side by side, how alike they are, and what subspaces hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from subdistill_hf.formatting import count, format_percent
from subdistill_hf.reporting.card_tables import Row, capitalised
from subdistill_hf.reporting.colours import METHOD_COLOURS, SOFT
from subdistill_hf.reporting.explained import (
    EXPLANATIONS_FILE,
    EXPLANATIONS_FOLDER,
    RANDOM,
    ExcitedPlace,
    ExplainedAnswer,
    ExplainedDirection,
    ExplainedImage,
    ExplainedLayer,
    Explanations,
    ExplanationsError,
    HeatMap,
    Similarity,
)
from subdistill_hf.reporting.explained_words import interval_in_words
from subdistill_hf.reporting.local_paths import file_name, without_folders
from subdistill_hf.reporting.markdown import text
from subdistill_hf.reporting.page.figures import STUDENT_COLOUR, Figure, Key, style_of
from subdistill_hf.reporting.page.pictures import Pictures
from subdistill_hf.reporting.page.svg import DASHES, SHARES, Plot, linear_axis

HEATMAP_PIXELS: Final = 200
PLACE_PIXELS: Final = 112
MOST_DIRECTIONS: Final = 4
"""Of a layer, in the page."""
MOST_PLACES: Final = 4
"""Of a direction, at each end."""
UNREADABLE: Final = f"{EXPLANATIONS_FILE} of this folder cannot be read: subdistill explain writes it again."


def load_explanations(folder: Path | None) -> tuple[Explanations | None, str | None]:
    """The explanations beside a student, or why there are none.

    Args:
        folder: of the student; without one there are none.
    """
    if folder is None or not (folder / EXPLANATIONS_FOLDER / EXPLANATIONS_FILE).is_file():
        return None, "The student was not explained: subdistill explain makes heat maps."
    try:
        found = Explanations.load(folder)
    except ExplanationsError:
        return None, UNREADABLE
    return replace(found, described=without_folders(found.described)), None


@dataclass(frozen=True)
class ShownImage:
    """An explained image, with the addresses of its pictures.

    Attributes:
        image: what was found.
        name: of the image.
        picture: of it.
        teacher: heat map of the teacher.
        student: that of the student.
    """

    image: ExplainedImage
    name: str
    picture: str
    teacher: str
    student: str


def shown_images(found: Explanations, pictures: Pictures) -> list[ShownImage]:
    """The images that have pictures, in their order."""
    shown = []
    for image in found.images:
        addresses = [
            pictures.address(EXPLANATIONS_FOLDER, name, HEATMAP_PIXELS)
            for name in (image.picture, image.teacher.picture, image.student.picture)
        ]
        known = [address for address in addresses if address is not None]
        if len(known) == len(addresses):
            shown.append(ShownImage(image, file_name(image.name), *known))
    return shown


def answer_rows(image: ExplainedImage) -> list[Row]:
    """What teacher and student answer to an image, and what their relevances come to."""
    both = {"Teacher": image.teacher, "Student": image.student}
    return [{"Network": name, **_answer_cells(answer)} for name, answer in both.items()]


def _answer_cells(answer: ExplainedAnswer) -> Row:
    return {
        "Answer": text(answer.answer),
        "Probability of the class": format_percent(answer.probability),
        "Evidence": f"{answer.evidence:.2f}",
        "Evidence of grey": f"{answer.baseline_evidence:.2f}",
        "Sum of relevance": f"{answer.relevance:.2f}",
        "Relevance on the mark": format_percent(answer.on_mark),
    }


def grid_rows(heatmap: HeatMap) -> list[Row]:
    """A heat map as numbers."""
    return [
        {"Row": str(number), **{f"{column + 1}": f"{value:.3g}" for column, value in enumerate(row)}}
        for number, row in enumerate(heatmap, 1)
    ]


def agreement_rows(found: Explanations) -> list[Row]:
    """How alike the heat maps are: in all, at most, and of each class."""
    agreement = found.agreement
    alike = {
        "Teacher and student": agreement.explanations,
        f"Ceiling: the teacher again, {agreement.ceiling_from}": agreement.ceiling,
        **{f"Class {text(name)}": one for name, one in agreement.by_class.items()},
    }
    return [{"Heat maps": name, **_similarity_cells(one)} for name, one in alike.items()]


def _similarity_cells(similarity: Similarity) -> Row:
    return {
        "Images": count(similarity.cosine.count),
        "Cosine": interval_in_words(similarity.cosine),
        "Rank correlation": interval_in_words(similarity.rank_correlation),
    }


def flipping_figure(found: Explanations) -> Figure | None:
    """How fast each network loses a class when the most relevant patches go first; `None` if not measured."""
    curves = found.faithfulness
    if not curves:
        return None
    plot = Plot(SHARES, SHARES, "patches replaced by grey", "probability of the class")
    keys = []
    for curve in curves:
        student, random = curve.network == "student", curve.ranking == RANDOM
        style = style_of(STUDENT_COLOUR if student else SOFT, thick=not random)
        dash = DASHES[2] if random else DASHES[0]
        plot.line(curve.flipped, curve.probability, style=style, stroke_dasharray=dash or None)
        name = f"{curve.network}, {'at random' if random else 'most relevant first'}"
        keys.append(Key(name, style, dash, last=f"area {curve.area:.2f}"))
    rows: list[Row] = [
        {"Patches replaced": format_percent(flipped)}
        | {key.name: format_percent(curve.probability[place]) for key, curve in zip(keys, curves, strict=True)}
        for place, flipped in enumerate(curves[0].flipped)
    ]
    described = "Pixel flipping. " + " ".join(f"{key.name.capitalize()}: {key.last}." for key in keys)
    note = "The smaller the area under a curve, the better its heat maps name what the network needs."
    return Figure("Pixel flipping", plot.drawn(described), keys, rows, note)


def layer_of(found: Explanations | None, teacher_layer: str) -> ExplainedLayer | None:
    """What was found of the subspace of a layer."""
    layers = () if found is None else found.subspaces
    return next((layer for layer in layers if layer.teacher_layer == teacher_layer), None)


def accuracy_figure(layer: ExplainedLayer, labels_by_teacher: bool) -> Figure | None:
    """The teacher's accuracy with the layer projected on the first K directions; `None` where it was not measured.

    Args:
        layer: what was found.
        labels_by_teacher: whether no image had a label, so that this is how often the answer stays the teacher's.
    """
    if not layer.accuracies:
        return None
    dimensions = [one.dimensions for one in layer.accuracies]
    accuracies = [one.accuracy for one in layer.accuracies]
    short = "agreement" if labels_by_teacher else "accuracy"
    figure = "agreement with the teacher" if labels_by_teacher else "accuracy of the teacher"
    plot = Plot(linear_axis(0, max(dimensions), whole=True), SHARES, "directions K", figure)
    keys = [Key("projected", style_of(METHOD_COLOURS["subdistill"]), "", last=format_percent(accuracies[-1]))]
    if layer.unprojected_accuracy is not None:
        whole = layer.unprojected_accuracy
        keys.append(Key("as it is", style_of(SOFT), DASHES[1], last=format_percent(whole)))
        plot.line([0, max(dimensions)], [whole, whole], style=keys[1].style, stroke_dasharray=DASHES[1])
    plot.line(dimensions, accuracies, style=keys[0].style)
    for dimension, accuracy in zip(dimensions, accuracies, strict=True):
        plot.dot(dimension, accuracy, 3, f"K = {dimension}: {format_percent(accuracy)}", style=keys[0].style)
    rows: list[Row] = [
        {"Directions K": str(one.dimensions), capitalised(figure): format_percent(one.accuracy)}
        for one in layer.accuracies
    ]
    described = "; ".join(f"K = {one.dimensions}: {format_percent(one.accuracy)}" for one in layer.accuracies)
    title = f"{capitalised(short)} against K"
    return Figure(title, plot.drawn(f"{capitalised(figure)}. {described}."), keys, rows)


def angle_rows(layer: ExplainedLayer) -> list[Row]:
    """How far the subspaces of other subtasks overlap with this one."""
    return [
        {
            "Other subtask": text(one.subtask),
            "Overlap": format_percent(one.overlap),
            "By chance": format_percent(one.by_chance),
            "Smallest angles, in degrees": ", ".join(f"{angle:.0f}" for angle in one.degrees[:4]),
        }
        for one in layer.angles
    ]


@dataclass(frozen=True)
class ShownPlace:
    """A place of an image that a direction is excited by.

    Attributes:
        place: what was found.
        name: of the image.
        picture: with the place framed.
    """

    place: ExcitedPlace
    name: str
    picture: str


@dataclass(frozen=True)
class ShownDirection:
    """A direction of a subspace, with its pictures.

    Attributes:
        direction: what was found.
        most: the places that excite it most.
        least: those that excite it least.
    """

    direction: ExplainedDirection
    most: Sequence[ShownPlace]
    least: Sequence[ShownPlace]


def shown_directions(layer: ExplainedLayer, pictures: Pictures) -> list[ShownDirection]:
    """The leading directions that have pictures."""
    shown = [
        ShownDirection(one, _shown_places(one.most, pictures), _shown_places(one.least, pictures))
        for one in layer.directions[:MOST_DIRECTIONS]
    ]
    return [one for one in shown if one.most or one.least]


def _shown_places(places: Sequence[ExcitedPlace], pictures: Pictures) -> list[ShownPlace]:
    shown = []
    for place in places[:MOST_PLACES]:
        picture = pictures.address(EXPLANATIONS_FOLDER, place.picture, PLACE_PIXELS)
        if picture is not None:
            shown.append(ShownPlace(place, file_name(place.image), picture))
    return shown
