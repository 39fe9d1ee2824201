"""Explain a student and its teacher on the same images, compare both, and leave what was found beside the student."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from subdistill_hf.config.commands import ExplainOptions
from subdistill_hf.config.explainers import EXPLAINERS
from subdistill_hf.config.output_folder import check_output_folder, held_for_this_run, refuse_other_files
from subdistill_hf.data.loading import SubtaskData
from subdistill_hf.explain.agreement import cosines, mean_with_interval, rank_correlations, similarity
from subdistill_hf.explain.comparison import Both, curves, explain_both, share_on_mark
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.explain.explainers import GRID, make_explainer
from subdistill_hf.explain.heatmaps import seen_by
from subdistill_hf.explain.images import ImagesToExplain, images_of_paths, test_images
from subdistill_hf.explain.networks import ExplainedNetwork
from subdistill_hf.explain.pair import Pair, load_pair
from subdistill_hf.explain.pictures import coloured, common_scale, panel, picture_of, save, shares_on, stacked
from subdistill_hf.explain.relevance import Explained
from subdistill_hf.explain.subspaces import explain_subspaces, other_subtasks
from subdistill_hf.explain.summary import summary
from subdistill_hf.pipeline.report import versions
from subdistill_hf.pipeline.student_images import evenly_spread
from subdistill_hf.reporting.explained import (
    EXPLANATIONS_FILE,
    EXPLANATIONS_FOLDER,
    MIRRORED,
    Agreement,
    ExplainedAnswer,
    ExplainedImage,
    Explanations,
)
from subdistill_hf.reporting.page.page import renew_page

OVERVIEW_FILE = "overview.png"
MOST_IN_OVERVIEW = 6
MOST_DIFFERENT = 6
DIGITS = 6  # of the figures of a heat map


def explain(student: str | Path, options: ExplainOptions) -> None:
    """Explain the student of a folder, and print what was found.

    Args:
        student: see `explain_student`.
        options: what to explain.
    """
    print(summary(explain_student(student, options), folder_of(student, options)))


def folder_of(student: str | Path, options: ExplainOptions) -> Path:
    """Where explanations go."""
    return Path(student, EXPLANATIONS_FOLDER) if options.output_dir is None else Path(options.output_dir)


def explain_student(student: str | Path, options: ExplainOptions | None = None) -> Explanations:
    """Explain the student of a folder and its teacher on the same images, and compare both.

    What was found lies in the folder `explanations` beside the student, as `reporting.explained` describes it, and
    replaces what was there. The page of the run, `report.html`, shows it.

    Args:
        student: a folder that `distill` or a trainer wrote.
        options: the teacher, the images and the method.

    Returns:
        What was found, as it is written to `explanations/explanations.json`.

    Raises:
        SubDistillError: for a folder that holds no student, a teacher without its classes, images that cannot be read,
            packages that are not installed, or a method that does not hold for one of the networks.
    """
    options = ExplainOptions() if options is None else options
    make_explainer(options.method)  # before anything is loaded
    target = folder_of(student, options).resolve()  # what replaces it lies beside it, also where it is called `.`
    _check_target(target, "student" if options.output_dir is None else "output_dir")
    pair = load_pair(Path(student), options)
    images = images_of(pair, options)
    others = other_subtasks(pair, options) if options.subspaces else {}
    with (
        held_for_this_run(target.parent),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".explain-") as name,
    ):
        made = Path(name, EXPLANATIONS_FOLDER)
        made.mkdir()
        found = _explained(pair, images, options, others, made)
        found.save(made)
        shutil.rmtree(target, ignore_errors=True)
        made.replace(target)
        renew_page(student)
    return found


def _check_target(target: Path, option: str) -> None:
    """Refuse a folder that cannot be written, or of somebody else's files."""
    check_output_folder(target.parent, option)
    check_output_folder(target, option)
    refuse_other_files(target, (EXPLANATIONS_FILE,), hidden=True, error=ExplainError)


def images_of(pair: Pair, options: ExplainOptions) -> ImagesToExplain:
    """The images that the user gave, or test images of the run.

    Raises:
        ExplainError: when they cannot be read.
    """
    if options.images:
        return images_of_paths(options.images, pair.known_classes, options.most_images)
    return test_images(pair.data, options.most_images)


def _explained(
    pair: Pair,
    images: ImagesToExplain,
    options: ExplainOptions,
    others: Mapping[str, SubtaskData],
    folder: Path,
) -> Explanations:
    targets = targets_of(pair, images, options)
    both = explain_both(pair, images.images, targets, options.method, options.seed)
    listed = _listed(pair, images, targets, both)
    agreement = _agreement(pair, targets, both, listed, options.method)
    pictured = _pictured(agreement.most_different, len(listed), options.pictures)
    listed = _with_pictures(pair, images, both, listed, pictured, folder)
    return Explanations(
        created=datetime.date.today().isoformat(),
        method=options.method,
        method_label=EXPLAINERS[options.method].label,
        teacher=pair.teacher_name,
        student=pair.student_name,
        classes=pair.classes,
        described=images.described,
        grid=GRID,
        teacher_completeness=both.teacher.completeness,
        student_completeness=both.student.completeness,
        images=tuple(listed),
        agreement=agreement,
        faithfulness=curves(pair, images.images, targets, both, options.method, options.seed),
        subspaces=explain_subspaces(pair, others, folder) if options.subspaces else (),
        versions=versions(),
    )


def _pictured(most_different: Sequence[int], images: int, wanted: int) -> list[int]:
    """The places of images that get pictures: half of them those that differ most, the others spread over all."""
    worst = list(most_different[: wanted // 2])
    chosen = dict.fromkeys([*worst, *evenly_spread(images, wanted - len(worst)), *range(images)])
    return sorted(list(chosen)[:wanted])


def targets_of(pair: Pair, images: ImagesToExplain, options: ExplainOptions) -> list[int]:
    """The class that is explained of each image: the one that was asked for, or the teacher's answer.

    Raises:
        ExplainError: for a class that is none of the student's.
    """
    if options.target_class is not None:
        if options.target_class not in pair.classes:
            raise ExplainError(
                f"target_class={options.target_class!r}: expected one of the student's classes, "
                f"{', '.join(pair.classes)}"
            )
        return [pair.classes.index(options.target_class)] * len(images.images)
    return pair.teacher.answers(images.images)


def _listed(pair: Pair, images: ImagesToExplain, targets: Sequence[int], both: Both) -> list[ExplainedImage]:
    """The figures of each image."""
    alike = cosines(*both.heatmaps), rank_correlations(*both.heatmaps)
    sides = [
        _answers(network, explained, maps, images, targets, pair.classes)
        for network, explained, maps in (
            (pair.teacher, both.teacher, both.heatmaps[0]),
            (pair.student, both.student, both.heatmaps[1]),
        )
    ]
    return [
        ExplainedImage(
            name=images.names[place],
            label=images.labels[place],
            target=pair.classes[target],
            teacher=sides[0][place],
            student=sides[1][place],
            cosine=float(alike[0][place]),
            rank_correlation=float(alike[1][place]),
        )
        for place, target in enumerate(targets)
    ]


def _answers(
    network: ExplainedNetwork,
    explained: Explained,
    maps: Tensor,
    images: ImagesToExplain,
    targets: Sequence[int],
    classes: Sequence[str],
) -> list[ExplainedAnswer]:
    probabilities = explained.logits.softmax(dim=1)
    return [
        ExplainedAnswer(
            answer=classes[int(explained.logits[place].argmax())],
            probability=float(probabilities[place, target]),
            evidence=float(explained.evidence[place]),
            baseline_evidence=float(explained.baseline_evidence[place]),
            relevance=float(explained.relevance[place].sum()),
            heatmap=tuple(tuple(float(f"{value:.{DIGITS}g}") for value in row) for row in maps[place].tolist()),
            on_mark=None
            if (mark := images.marks[place]) is None
            else share_on_mark(network, explained.relevance[place], mark),
        )
        for place, target in enumerate(targets)
    ]


def _agreement(
    pair: Pair, targets: Sequence[int], both: Both, listed: Sequence[ExplainedImage], method: str
) -> Agreement:
    teacher, student = both.heatmaps
    classes = np.asarray(targets)
    worst = np.argsort([image.cosine for image in listed], kind="stable")[: min(MOST_DIFFERENT, len(listed))]
    return Agreement(
        answers=mean_with_interval([float(image.same_answer) for image in listed]),
        explanations=similarity(teacher, student),
        ceiling=similarity(teacher, both.again),
        ceiling_from="another seed" if EXPLAINERS[method].sampled else MIRRORED,
        by_class={
            pair.classes[target]: similarity(teacher[classes == target], student[classes == target])
            for target in sorted(set(targets))
        },
        most_different=tuple(worst.tolist()),
    )


def _with_pictures(
    pair: Pair,
    images: ImagesToExplain,
    both: Both,
    listed: list[ExplainedImage],
    places: Sequence[int],
    folder: Path,
) -> list[ExplainedImage]:
    """The images, some of which have pictures now."""
    panels = []
    for place in places:
        image = images.images[place]
        picture = picture_of(image)
        shares = [
            shares_on(picture, explained.relevance[place], seen_by(network.classifier.processor, *image.shape[1:]))
            for network, explained in ((pair.teacher, both.teacher), (pair.student, both.student))
        ]
        scale = common_scale(shares)
        drawn = [picture, *(coloured(one, scale) for one in shares)]
        names = [f"{place:03d}{end}.png" for end in ("", "-teacher", "-student", "-panel")]
        for one, name in zip(drawn, names[:3], strict=True):
            save(one, folder, name)
        panels.append(panel(drawn, ("image", "teacher", "student")))
        save(panels[-1], folder, names[3])
        entry = listed[place]
        listed[place] = replace(
            entry,
            teacher=replace(entry.teacher, picture=names[1]),
            student=replace(entry.student, picture=names[2]),
            scale=scale,
            picture=names[0],
            panel=names[3],
        )
    if panels:
        save(stacked(panels[:MOST_IN_OVERVIEW]), folder, OVERVIEW_FILE)
    return listed
