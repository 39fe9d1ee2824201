"""The parts of a report about single answers: how far their probabilities can be trusted, and the worst of them."""

from __future__ import annotations

from dataclasses import dataclass

THUMBNAILS_FOLDER = "wrong_answers"
"""The folder of a run with the pictures of its `WrongAnswer`s."""


@dataclass(frozen=True, kw_only=True)
class CalibrationBin:
    """Test images whose predicted class has a similar probability.

    Attributes:
        low: the least probability, which is not in the bin.
        high: the largest one, which is.
        images: their number.
        confidence: their mean probability of the predicted class; unknown without images.
        accuracy: the share that is classified correctly; unknown without images.
    """

    low: float
    high: float
    images: int
    confidence: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReportedCalibration:
    """How far the probabilities of a classifier's answers can be trusted, on the test images.

    Attributes:
        expected_error: mean over the images of `|accuracy - confidence|` of their bin.
        bins: of equal width, from 0 to 1.
    """

    expected_error: float
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True, kw_only=True)
class WrongAnswer:
    """A test image that the published student puts into a wrong class.

    Attributes:
        image: its place among the test images, from 0.
        label: its class, from 0.
        answer: the class that the student puts it in.
        probability: that the student gives to its answer.
        label_probability: that it gives to the image's class.
        teacher_answer: the class that the teacher puts it in.
        teacher_probability: that the teacher gives to its own answer.
    """

    image: int
    label: int
    answer: int
    probability: float
    label_probability: float
    teacher_answer: int
    teacher_probability: float

    @property
    def thumbnail(self) -> str:
        """The name of its picture, in `THUMBNAILS_FOLDER`."""
        return f"{self.image}.webp"
