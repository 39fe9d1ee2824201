"""Subspace pictures: what excites the leading directions of compared layers, and how subspaces of subtasks meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from subdistill_hf.analysis.projected_accuracy import projected_accuracies
from subdistill_hf.config.commands import ExplainOptions
from subdistill_hf.config.options import DataOptions
from subdistill_hf.config.output_folder import RUNS_FOLDER
from subdistill_hf.core.layers import LayerShape, describe_layers
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.relevance import activations_and_contexts
from subdistill_hf.core.subspaces import Subspace, load_subspaces
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.loading import OTHER, SubtaskData, load_subtask
from subdistill_hf.data.subtask import match_teacher
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.explain.heatmaps import seen_by
from subdistill_hf.explain.images import data_of_run, spread
from subdistill_hf.explain.networks import ExplainedNetwork
from subdistill_hf.explain.pair import Pair
from subdistill_hf.explain.pictures import framed, picture_of, save, side_by_side, stacked
from subdistill_hf.models.heads import names_of
from subdistill_hf.reporting.explained import (
    AccuracyAtDimensions,
    ExcitedPlace,
    ExplainedDirection,
    ExplainedLayer,
    SubspaceAngles,
)
from subdistill_hf.reporting.report import ReportedSubspace, RunReport
from subdistill_hf.teacher.fitting import FitRequest, fit_pairs
from subdistill_hf.teacher.teacher import Teacher
from subdistill_hf.training.checkpoints import last_complete_checkpoint

DIRECTIONS: Final = 3
PLACES: Final = 3
MOST_IMAGES: Final = 500
BATCH: Final = 64


def check_subspaces(pair: Pair, options: ExplainOptions) -> None:
    """Refuse what cannot be shown, before any image is explained.

    Args:
        pair: teacher and student, with the report of the run.
        options: of them the other subtasks.

    Raises:
        ExplainError: for a run that compares no subspaces, or whose images cannot be loaded.
        SubDistillError: for other subtasks that images or teacher lack.
    """
    _report_of(pair)
    data_of_run(pair.image_options, pair.known_classes)
    for entry in options.other_subtasks:
        _other_subtask(pair, entry)


def _report_of(pair: Pair) -> RunReport:
    """The report of a run that compares subspaces."""
    report = pair.report
    if report is None or not report.subspaces:
        raise ExplainError(
            "subspaces: the run of this student compared no subspaces, or its report is gone: subdistill inspect "
            "shows those of a teacher"
        )
    return report


def explain_subspaces(pair: Pair, options: ExplainOptions, folder: Path) -> tuple[ExplainedLayer, ...]:
    """The subspaces of a run's compared layers, in figures and pictures.

    Args:
        pair: teacher and student, with the report of the run.
        options: of them the other subtasks.
        folder: of the pictures.

    Raises:
        SubDistillError: see `check_subspaces`.
    """
    report = _report_of(pair)
    data = data_of_run(pair.image_options, pair.known_classes)
    teacher = teacher_of(pair.teacher)
    layers = layer_pairs(pair, teacher, report.subspaces, data)
    collate = ViewCollator(pair.teacher.classifier.processor)
    subspaces = subspaces_of(Path(pair.folder or "."), report, teacher, layers, data.views("taught"), collate)
    images = _some(data.views("test"))
    excited = excitations(teacher, [pair.teacher for pair in layers], subspaces, images, collate)
    accuracies = _accuracies(teacher, layers, subspaces, images, collate)
    angles = [(entry, _subspaces_of_other(pair, report, layers, entry)) for entry in options.other_subtasks]
    found = []
    for number, (layer, reported) in enumerate(zip(layers, report.subspaces, strict=True)):
        subspace = subspaces[layer.teacher.name]
        directions = described_directions(excited[layer.teacher.name], subspace, images, pair.known_classes)
        found.append(
            ExplainedLayer(
                teacher_layer=layer.teacher.name,
                student_layer=layer.student.name,
                kind=reported.kind,
                width=subspace.width,
                dimensions=subspace.dimensions,
                total_energy=subspace.total_energy,
                energies=tuple(subspace.energies.tolist()),
                eigenvalues=tuple(subspace.eigenvalues.tolist()),
                directions=tuple(
                    _with_pictures(direction, number, layer.teacher, pair.teacher, images, folder)
                    for direction in directions
                ),
                accuracies=accuracies[1][number],
                unprojected_accuracy=accuracies[0],
                angles=tuple(angles_between(name, subspace, others[layer.teacher.name]) for name, others in angles),
            )
        )
    return tuple(found)


def teacher_of(network: ExplainedNetwork) -> Teacher:
    """The teacher as layers are fitted to it."""
    own = network.classifier
    return Teacher(own.model, own.class_ids, network.device, other=own.other)


def layer_pairs(
    pair: Pair, teacher: Teacher, reported: Sequence[ReportedSubspace], data: SubtaskData
) -> list[LayerPair]:
    """The compared layers of a run, with their shapes.

    Args:
        pair: teacher and student.
        teacher: the same teacher.
        reported: what the report says of them.
        data: images, of which one is an example.
    """
    example = [data.views("test").image(0)]
    pixels = pair.teacher.pixels(example), pair.student.pixels(example)
    student: Any = pair.student.classifier.model
    shapes = (
        describe_layers(
            teacher.model,
            [one.teacher_layer for one in reported],
            lambda: teacher.all_logits(pixels[0]),
            (pixels[0].shape[2], pixels[0].shape[3]),
        ),
        describe_layers(
            student,
            [one.student_layer for one in reported],
            lambda: student(pixel_values=pixels[1]),
            (pixels[1].shape[2], pixels[1].shape[3]),
        ),
    )
    return [LayerPair(*both) for both in zip(*shapes, strict=True)]


def subspaces_of(
    folder: Path,
    report: RunReport,
    teacher: Teacher,
    layers: Sequence[LayerPair],
    images: ViewDataset,
    collate: ViewCollator,
) -> dict[str, Subspace]:
    """The subspaces of a run: those of its last checkpoint, or the same fitted again, by teacher layer.

    Args:
        folder: of the student.
        report: of the run.
        teacher: the teacher.
        layers: the compared layers.
        images: that the run was fitted to.
        collate: makes the teacher's batches.
    """
    checkpoint = last_complete_checkpoint(folder / RUNS_FOLDER / report.published)
    if checkpoint is not None:
        kept = load_subspaces(checkpoint)
        if all(layer.teacher.name in kept for layer in layers):
            return kept
    return fitted(report, teacher, layers, images, collate)


def fitted(
    report: RunReport, teacher: Teacher, layers: Sequence[LayerPair], images: Any, collate: ViewCollator
) -> dict[str, Subspace]:
    """The subspaces of teacher layers on some images, as a run would fit them."""
    positions = report.hyperparameters.get("positions")
    request = FitRequest(
        positions=positions if isinstance(positions, int) else None,
        seed=int(report.image_options.get("seed", 0)),
        batch_size=BATCH,
    )
    reported = report.subspaces
    full_width = all(one.dimensions == one.width for one in reported)
    return fit_pairs(teacher, layers, images, collate, request, reported[0].kind, full_width)


def _some(images: ViewDataset) -> torch.utils.data.Subset[Any]:
    """At most `MOST_IMAGES` images, spread evenly over all."""
    return torch.utils.data.Subset(images, spread(len(images), MOST_IMAGES))


@dataclass(frozen=True)
class Excitation:
    """What some images do to the leading directions of a layer.

    Attributes:
        grid: rows and columns of the layer.
        largest: coordinate, relevance and place on the grid where the coordinate is largest, `(N, L, 3)`.
        smallest: the same where it is smallest.
        relevance: of all places of an image together, `(N, L)`.
        mean: coordinate over the places of an image, `(N, L)`.
        answers: of the teacher, `(N,)`.
    """

    grid: tuple[int, int]
    largest: Tensor
    smallest: Tensor
    relevance: Tensor
    mean: Tensor
    answers: Tensor


def excitations(
    teacher: Teacher,
    layers: Sequence[LayerShape],
    subspaces: Mapping[str, Subspace],
    images: Any,
    collate: ViewCollator,
) -> dict[str, Excitation]:
    """What images do to the leading directions of teacher layers, by layer, in one pass.

    The relevance of a place along a direction u is u·(a - μ) times u·c, where c is the gradient of the margin
    (docs/method.md, "Margin and context"). Class and register tokens have no place, and count in the sums alone.

    Args:
        teacher: the teacher.
        layers: of it.
        subspaces: of the layers, by name.
        images: N images.
        collate: makes the teacher's batches.
    """
    answers: list[Tensor] = []

    def forward(batch: Mapping[str, Tensor]) -> Tensor:
        logits = teacher.logits(batch["pixel_values"])
        answers.append(logits.detach().argmax(dim=1).cpu())
        return logits

    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, collate_fn=collate)
    stream = activations_and_contexts(
        forward,
        teacher.model,
        [layer.name for layer in layers],
        ({"pixel_values": batch["pixel_values"].to(teacher.device)} for batch in loader),
        [layer.name for layer in layers if layer.channels_last],
    )
    found: dict[str, list[tuple[Tensor, ...]]] = {layer.name: [] for layer in layers}
    for batch in stream:
        for layer in layers:
            activation, context = batch[layer.name]
            assert context is not None
            leading = subspaces[layer.name].truncated(min(DIRECTIONS, subspaces[layer.name].dimensions))
            coordinates = leading.project(activation.values.double()).cpu()
            along = torch.einsum("dk,bdp->bkp", leading.basis.double(), context.values.double().cpu())
            found[layer.name].append(_extremes(coordinates, coordinates * along, activation.prefix))
    excited = {}
    for layer in layers:
        largest, smallest, relevance, mean = (torch.cat([*parts]) for parts in zip(*found[layer.name], strict=True))
        excited[layer.name] = Excitation(layer.grid, largest, smallest, relevance, mean, torch.cat(answers))
    return excited


def _extremes(coordinates: Tensor, relevance: Tensor, prefix: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Largest, smallest, relevance and mean of an `Excitation`, of `(B, L, P)` each."""
    on_grid, of_places = coordinates[:, :, prefix:], relevance[:, :, prefix:]
    ends = []
    for places in (on_grid.argmax(dim=2), on_grid.argmin(dim=2)):
        at = places[:, :, None]
        ends.append(torch.stack([on_grid.gather(2, at)[..., 0], of_places.gather(2, at)[..., 0], places.double()], 2))
    return ends[0], ends[1], relevance.sum(dim=2), on_grid.mean(dim=2)


def described_directions(
    excited: Excitation, subspace: Subspace, images: Any, classes: Sequence[str]
) -> list[ExplainedDirection]:
    """The leading directions of a layer, with the places that excite them most and least.

    Args:
        excited: of N images.
        subspace: of the layer.
        images: a subset of a `ViewDataset`.
        classes: of the student.
    """

    def places(ends: Tensor, number: int, descending: bool) -> tuple[ExcitedPlace, ...]:
        order = ends[:, number, 0].argsort(descending=descending, stable=True)[:PLACES].tolist()
        return tuple(_place(ends[image, number], image) for image in order)

    def _place(values: Tensor, image: int) -> ExcitedPlace:
        row, column = divmod(int(values[2]), excited.grid[1])
        label = images.dataset.labels[images.indices[image]]
        return ExcitedPlace(
            image=f"test image {images.indices[image]}",
            label=classes[label] if label >= 0 else None,
            row=row,
            column=column,
            coordinate=float(values[0]),
            relevance=float(values[1]),
        )

    answered = sorted(set(excited.answers.tolist()))
    names = (*classes, OTHER)
    return [
        ExplainedDirection(
            number=number + 1,
            energy=float(subspace.energies[number]),
            eigenvalue=float(subspace.eigenvalues[number]),
            relevance=float(excited.relevance[:, number].mean()),
            by_class={
                names[answer]: float(excited.mean[excited.answers == answer, number].mean()) for answer in answered
            },
            most=places(excited.largest, number, True),
            least=places(excited.smallest, number, False),
        )
        for number in range(excited.mean.shape[1])
    ]


def _with_pictures(
    direction: ExplainedDirection,
    number: int,
    layer: LayerShape,
    network: ExplainedNetwork,
    images: Any,
    folder: Path,
) -> ExplainedDirection:
    """The direction, with a picture of each place."""

    rows = []

    def drawn(places: Sequence[ExcitedPlace], end: str) -> tuple[ExcitedPlace, ...]:
        found, row = [], []
        for rank, place in enumerate(places, start=1):
            image = images.dataset.image(int(place.image.rpartition(" ")[2]))
            seen = seen_by(network.classifier.processor, *image.shape[1:])
            picture = framed(picture_of(image), place.row, place.column, layer.grid, seen)
            name = f"layer{number + 1}-direction{direction.number}-{end}{rank}.png"
            row.append(picture)
            found.append(replace(place, picture=save(picture, folder, name)))
        rows.append(side_by_side(row, [f"{end}: {place.coordinate:.2f}" for place in places]))
        return tuple(found)

    most, least = drawn(direction.most, "most"), drawn(direction.least, "least")
    whole = save(stacked(rows), folder, f"layer{number + 1}-direction{direction.number}.png")
    return replace(direction, most=most, least=least, picture=whole)


def _accuracies(
    teacher: Teacher,
    layers: Sequence[LayerPair],
    subspaces: Mapping[str, Subspace],
    images: Any,
    collate: ViewCollator,
) -> tuple[float, list[tuple[AccuracyAtDimensions, ...]]]:
    """The teacher's accuracy as it is, and projected on the first 1, 2, 4 ... directions of each layer."""
    projections = []
    for layer in layers:
        subspace = subspaces[layer.teacher.name]
        counts = sorted({*(2**power for power in range(subspace.dimensions.bit_length())), subspace.dimensions})
        projections.append((layer.teacher, [subspace.truncated(count) for count in counts]))
    whole, each = projected_accuracies(teacher, projections, images, collate, BATCH)
    return whole, [
        tuple(
            AccuracyAtDimensions(dimensions=subspace.dimensions, accuracy=accuracy)
            for subspace, accuracy in zip(tried, accuracies, strict=True)
        )
        for (_, tried), accuracies in zip(projections, each, strict=True)
    ]


def _other_subtask(pair: Pair, entry: str) -> SubtaskData:
    """The images of other classes of the run's dataset, without its mark, matched to the teacher's classes."""
    known = {one.name for one in fields(DataOptions)}
    given = {name: value for name, value in pair.image_options.items() if name in known}
    given |= {"classes": [name.strip() for name in entry.split(",")], "mark": None, "mark_classes": []}
    data = load_subtask(DataOptions(**given), int(pair.image_options.get("seed", 0)))
    outputs = dict(enumerate(names_of(pair.teacher.classifier.model.config)))
    return replace(data, subtask=match_teacher(data.subtask, outputs, data.class_names))


def _subspaces_of_other(pair: Pair, report: RunReport, layers: Sequence[LayerPair], entry: str) -> dict[str, Subspace]:
    """The subspaces of the same layers on the images of another subtask."""
    data, own = _other_subtask(pair, entry), pair.teacher.classifier
    teacher = Teacher(own.model, data.subtask.teacher_ids, pair.teacher.device)
    return fitted(report, teacher, layers, data.views("train"), ViewCollator(own.processor))


def angles_between(name: str, subspace: Subspace, other: Subspace) -> SubspaceAngles:
    """The principal angles between two subspaces of a layer (Björck and Golub, 1973).

    Args:
        name: of the other subtask.
        subspace: of K directions.
        other: of as many.
    """
    cosines = torch.linalg.svdvals(subspace.basis.T.double() @ other.basis.double()).clamp(max=1.0)
    return SubspaceAngles(
        subtask=name,
        degrees=tuple(torch.rad2deg(torch.arccos(cosines)).tolist()),
        overlap=float(cosines.square().mean()),
        by_chance=subspace.dimensions / subspace.width,
    )
