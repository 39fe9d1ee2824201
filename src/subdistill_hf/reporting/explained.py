"""What was found when a teacher and its student were explained, and the folder that holds it.

`subdistill explain` writes a folder `explanations` into the folder of the student. It holds `explanations.json`, which
is an `Explanations` as `json` writes it, and PNG pictures. Each attribute `picture` below is the name of a file of the
folder, and `None` where no picture was drawn. The figures are there for every image, the pictures for some.

All heat maps are of relevance: the share of the evidence that each place of the image is given. Positive relevance
speaks for the target class, negative relevance against it. A heat map in the JSON is the relevance pooled to a grid by
sums, rows from top to bottom, in the frame of the whole image, so that those of teacher and student compare place by
place. In the pictures, each heat map is divided by the sum of its absolute values, and those of one image share one
colour scale, which runs from -`ExplainedImage.scale` (against) over 0 (white) to `scale` (for).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from subdistill_hf.config.output_folder import written_whole
from subdistill_hf.errors import SubDistillError
from subdistill_hf.reporting.decoding import DecodingError, decode

EXPLANATIONS_FOLDER: Final = "explanations"
EXPLANATIONS_FILE: Final = "explanations.json"
RANDOM: Final = "random"
"""The ranking that faithfulness is compared with, beside those of the explainers."""

FEWEST_OF_INTERVAL: Final = 8
"""Images that an interval needs: of 2, 3 and 5 the bootstrap's cover the mean in 54, 72 and 86 % of cases, not 95."""

MIRRORED: Final = "mirrored images"
"""The `Agreement.ceiling_from` of methods that draw nothing."""

HeatMap = tuple[tuple[float, ...], ...]
"""Relevance pooled to a grid, `(rows, columns)`, in logits."""


class ExplanationsError(SubDistillError):
    """Explanations that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over images with its bootstrap interval of 95 %.

    Attributes:
        mean: of the images.
        low: the lower end of the interval; `None` for fewer than `FEWEST_OF_INTERVAL` images, which have none.
        high: the upper end; `None` for so few.
        count: number of images.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    count: int


@dataclass(frozen=True, kw_only=True)
class Completeness:
    """How much of the evidence the relevances of one network add up to.

    Attributes:
        error: mean over the images of |sum of relevance - (evidence - evidence of the baseline)|, as a share of the
            mean of |evidence - evidence of the baseline|; for a method without completeness too, where it says how far
            the sum is off and is no fault.
        bound: the largest error that is let pass; `None` for a method that promises no completeness.
        evaluations: of the network, for the image that took most: steps of the integral, or images with some patches
            replaced.
    """

    error: float
    bound: float | None = None
    evaluations: int


@dataclass(frozen=True, kw_only=True)
class ExplainedAnswer:
    """One network's answer to one image, explained.

    Attributes:
        answer: the class that it answers with, among those of the student.
        probability: of the target class, among the classes of the student.
        evidence: logit of the target class minus the largest other logit.
        baseline_evidence: the same of the baseline, a grey image.
        relevance: sum of all relevance, in logits.
        heatmap: relevance on the grid.
        on_mark: share of the absolute relevance that lies on the spurious mark, where the image carries one.
        picture: of the relevance of each pixel, as wide and high as the picture of the image.
    """

    answer: str
    probability: float
    evidence: float
    baseline_evidence: float
    relevance: float
    heatmap: HeatMap
    on_mark: float | None = None
    picture: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExplainedImage:
    """One image, as teacher and student explain their evidence for the same class.

    Attributes:
        name: of the image: its file's, or its place among the test images.
        label: its class, where it is known.
        target: the class that is explained; the teacher's answer, if no other was asked for.
        teacher: the teacher's.
        student: the student's.
        cosine: of both heat maps.
        rank_correlation: of both heat maps (Spearman).
        scale: end of the colour scale: the share of all absolute relevance that lies in one pixel of the picture;
            larger values have the same colour. `None` without pictures.
        picture: of the image, alone.
        panel: picture of image, teacher's and student's heat maps side by side.
    """

    name: str
    label: str | None = None
    target: str
    teacher: ExplainedAnswer
    student: ExplainedAnswer
    cosine: float
    rank_correlation: float
    scale: float | None = None
    picture: str | None = None
    panel: str | None = None

    @property
    def same_answer(self) -> bool:
        """Whether teacher and student answer alike."""
        return self.teacher.answer == self.student.answer


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How alike the heat maps of some images are.

    Attributes:
        cosine: over the images.
        rank_correlation: over the images.
    """

    cosine: Interval
    rank_correlation: Interval


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far teacher and student answer and explain alike.

    Attributes:
        answers: share of the images that both answer alike.
        explanations: teacher and student.
        ceiling: the teacher and the teacher explained again.
        ceiling_from: how the teacher was explained again, in words: `another seed`, and no student can be expected to
            exceed the ceiling, or `mirrored images`, and one may, where the teacher never saw mirrored images.
        by_class: target class to the similarity of teacher and student on its images.
        most_different: places in `Explanations.images` of the images whose heat maps differ most, the worst first.
    """

    answers: Interval
    explanations: Similarity
    ceiling: Similarity
    ceiling_from: str
    by_class: Mapping[str, Similarity] = field(default_factory=dict)
    most_different: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FlippingCurve:
    """How fast a network loses a class when the most relevant patches go first (pixel flipping, Samek et al., 2017).

    Attributes:
        network: `teacher` or `student`.
        ranking: the method whose heat maps give the order, or `random`.
        flipped: shares of the patches that are replaced by grey, from 0 to 1.
        probability: mean probability of the target class at each of them.
        area: under the curve; lower is better.
        interval: of the images' areas.
    """

    network: str
    ranking: str
    flipped: tuple[float, ...]
    probability: tuple[float, ...]
    area: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class ExcitedPlace:
    """One place of one image, and what a direction of a subspace has there.

    Attributes:
        image: name of the image.
        label: its class, where it is known.
        row: of the place on the layer's grid, from the top.
        column: from the left.
        coordinate: u·(a - μ) at that place.
        relevance: coordinate times the gradient of the margin along the direction: what it adds to the margin there.
        picture: the image with the place framed.
    """

    image: str
    label: str | None = None
    row: int
    column: int
    coordinate: float
    relevance: float
    picture: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExplainedDirection:
    """A leading direction of a layer's subspace.

    Attributes:
        number: from 1 on, leading first.
        energy: variance of the activations along it.
        eigenvalue: of the basis.
        relevance: mean over images of the relevance of all places.
        by_class: class to the mean coordinate over its images and places; classes as the teacher answers.
        most: the places with the largest coordinates, the largest first, each of another image.
        least: those with the smallest, the smallest first.
        picture: of all these places, the most exciting above the least.
    """

    number: int
    energy: float
    eigenvalue: float
    relevance: float
    by_class: Mapping[str, float] = field(default_factory=dict)
    most: tuple[ExcitedPlace, ...] = ()
    least: tuple[ExcitedPlace, ...] = ()
    picture: str | None = None


@dataclass(frozen=True, kw_only=True)
class AccuracyAtDimensions:
    """The teacher's accuracy with the layer projected on the first K directions.

    Attributes:
        dimensions: K.
        accuracy: among the classes of the student.
    """

    dimensions: int
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class SubspaceAngles:
    """Principal angles between this layer's subspaces of two subtasks: small where they share machinery.

    Attributes:
        subtask: the other subtask's classes, in words.
        degrees: the angles, the smallest first.
        overlap: mean of the squared cosines: 1 for the same subspace, K/d for two that know nothing of each other.
        by_chance: K/d.
    """

    subtask: str
    degrees: tuple[float, ...]
    overlap: float
    by_chance: float


@dataclass(frozen=True, kw_only=True)
class ExplainedLayer:
    """The subspace of one compared layer, in pictures.

    Attributes:
        teacher_layer: its name.
        student_layer: the layer that is compared with it.
        kind: the basis.
        width: channels d of the teacher's layer.
        dimensions: directions K.
        total_energy: variance of all d channels.
        energies: variance along each direction, `(K,)`.
        eigenvalues: of the basis, `(K,)`.
        directions: the leading ones.
        accuracies: of the teacher, projected on the first directions.
        unprojected_accuracy: of the teacher as it is, on the same images.
        angles: to the subspaces of other subtasks.
    """

    teacher_layer: str
    student_layer: str
    kind: str
    width: int
    dimensions: int
    total_energy: float
    energies: tuple[float, ...]
    eigenvalues: tuple[float, ...]
    directions: tuple[ExplainedDirection, ...] = ()
    accuracies: tuple[AccuracyAtDimensions, ...] = ()
    unprojected_accuracy: float | None = None
    angles: tuple[SubspaceAngles, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Explanations:
    """A student and its teacher, explained on the same images.

    Attributes:
        created: the day, `YYYY-MM-DD`.
        method: the explainer, a key of `config.explainers.EXPLAINERS`.
        method_label: its name for readers.
        teacher: name of the teacher.
        student: name of the student.
        classes: names of the student's classes.
        described: the images, in words.
        grid: rows and columns of the heat maps.
        teacher_completeness: of the teacher's relevances.
        student_completeness: of the student's.
        images: that were explained.
        agreement: of teacher and student.
        faithfulness: of the heat maps of both, beside random rankings.
        subspaces: of the compared layers, if they were asked for.
        versions: package to version.
    """

    created: str
    method: str
    method_label: str
    teacher: str
    student: str
    classes: tuple[str, ...]
    described: str
    grid: int
    teacher_completeness: Completeness
    student_completeness: Completeness
    images: tuple[ExplainedImage, ...]
    agreement: Agreement
    faithfulness: tuple[FlippingCurve, ...] = ()
    subspaces: tuple[ExplainedLayer, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write `explanations.json` into a folder."""
        text = json.dumps(asdict(self), indent=1)
        with written_whole(Path(folder, EXPLANATIONS_FILE)) as part:
            part.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Explanations:
        """Read explanations.

        Args:
            folder: `explanations`, or the folder of the student that holds it.

        Raises:
            ExplanationsError: when there are none, or they cannot be read; naming the file.
        """
        own = Path(folder, EXPLANATIONS_FOLDER)
        path = (own if own.is_dir() else Path(folder)) / EXPLANATIONS_FILE
        try:
            return decode(cls, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ExplanationsError(f"{path}: expected what subdistill explain wrote, found no file") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ExplanationsError(f"{path}: expected JSON, found something else ({error})") from error
        except DecodingError as error:
            raise ExplanationsError(f"{path}: expected what subdistill explain wrote: {error}") from error
