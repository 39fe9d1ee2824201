"""The subspaces of a run's compared layers: pictures of what excites them, accuracies, angles to other subtasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from subdistill_hf.analysis.projected_accuracy import projected_accuracies
from subdistill_hf.config.commands import ExplainOptions
from subdistill_hf.config.output_folder import RUNS_FOLDER
from subdistill_hf.core.layers import LayerShape, describe_layers
from subdistill_hf.core.pairing import LayerPair
from subdistill_hf.core.subspaces import Subspace, load_subspaces
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.loading import SubtaskData, load_subtask
from subdistill_hf.data.subtask import match_teacher
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.explain.excitation import described_directions, excitations
from subdistill_hf.explain.heatmaps import seen_by
from subdistill_hf.explain.networks import BATCH, ExplainedNetwork
from subdistill_hf.explain.pair import Pair
from subdistill_hf.explain.pictures import framed, picture_of, save, side_by_side, stacked
from subdistill_hf.models.zero_shot import class_labels
from subdistill_hf.pipeline.student_images import evenly_spread, options_of_run
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

MOST_IMAGES: Final = 500


def other_subtasks(pair: Pair, options: ExplainOptions) -> dict[str, SubtaskData]:
    """The images of the other subtasks, in words; refuses what cannot be shown, before any image is explained.

    Args:
        pair: teacher and student, with the report of the run.
        options: of them the other subtasks.

    Raises:
        ExplainError: for a run that compares no subspaces, or whose images cannot be loaded, or have no labels that
            tell other subtasks.
        SubDistillError: for other subtasks that images or teacher lack.
    """
    _report_of(pair)
    data = pair.data  # before the others, which are of the same dataset
    if options.other_subtasks and data.labels_by_teacher:
        raise ExplainError(
            f"other_subtasks: the dataset of this run, {data.name}, has no labels, and images of other classes are "
            "told by labels: leave them out"
        )
    return {entry: _other_subtask(pair, entry) for entry in options.other_subtasks}


def _report_of(pair: Pair) -> RunReport:
    """The report of a run that compares subspaces."""
    report = pair.report
    if report is None or not report.subspaces:
        raise ExplainError(
            "subspaces: the run of this student compared no subspaces, or its report is gone: subdistill inspect "
            "shows those of a teacher"
        )
    return report


def explain_subspaces(pair: Pair, others: Mapping[str, SubtaskData], folder: Path) -> tuple[ExplainedLayer, ...]:
    """The subspaces of a run's compared layers, in figures and pictures.

    Args:
        pair: teacher and student, with the report of the run.
        others: see `other_subtasks`.
        folder: of the pictures.

    Raises:
        SubDistillError: see `other_subtasks`.
    """
    report = _report_of(pair)
    data = pair.data
    teacher = teacher_of(pair.teacher)
    layers = layer_pairs(pair, teacher, report.subspaces, data)
    collate = ViewCollator(pair.teacher.classifier.processor)
    subspaces = subspaces_of(Path(pair.folder or "."), report, teacher, layers, data.views("taught"), collate)
    images = _some(data.views("test"))
    excited = excitations(teacher, [pair.teacher for pair in layers], subspaces, images, collate)
    accuracies = _accuracies(teacher, layers, subspaces, images, collate)
    angles = [(entry, _subspaces_of_other(pair, report, layers, other)) for entry, other in others.items()]
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
                angles=tuple(
                    angles_between(name, subspace, of_other[layer.teacher.name]) for name, of_other in angles
                ),
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
    return torch.utils.data.Subset(images, evenly_spread(len(images), MOST_IMAGES))


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
    options, seed = options_of_run(pair.image_options)
    classes = [name.strip() for name in entry.split(",")]
    data = load_subtask(replace(options, classes=classes, mark=None, mark_classes=[]), seed)
    outputs = class_labels(pair.teacher.classifier.model)
    return replace(data, subtask=match_teacher(data.subtask, outputs, data.class_names))


def _subspaces_of_other(
    pair: Pair, report: RunReport, layers: Sequence[LayerPair], data: SubtaskData
) -> dict[str, Subspace]:
    """The subspaces of the same layers on the images of another subtask."""
    own = pair.teacher.classifier
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
