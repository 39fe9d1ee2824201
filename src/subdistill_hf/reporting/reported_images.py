"""The parts of a report about images: of the classes, without labels, of other classes, and with a mark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ReportedMark:
    """A spurious mark that was put on images.

    Attributes:
        name: which.
        classes: the classes whose training images carry it; every test image does.
        share: of their training images.
        train_images: training images that carry it.
        validation_images: validation images that carry it.
    """

    name: str
    classes: tuple[str, ...]
    share: float
    train_images: int
    validation_images: int


@dataclass(frozen=True, kw_only=True)
class ReportedUnlabelled:
    """The images without labels that the student learned from, beside the others.

    Attributes:
        name: of their dataset.
        hub_id: its id, when it came from the Hub.
        revision: its commit there.
        found: images that the teacher looked at.
        damaged: of these, those that cannot be decoded.
        held_out: those that are near-duplicates of validation or test images.
        copies: those that are near-duplicates of training images.
        threshold: the least probability, by the teacher, of showing one of the classes.
        kept: number of images that the student learned from.
        kept_as_other: of these, those below the threshold, which show what "none of these" may be.
        other_below: the probability that these are below, where it is not the threshold.
        kept_per_class: class name to number of all these, by the teacher's answer.
        histogram: images in bins of equal width of that probability, from 0 to 1.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None
    found: int
    damaged: int = 0
    held_out: int = 0
    copies: int = 0
    threshold: float
    kept: int
    kept_as_other: int = 0
    other_below: float | None = None
    kept_per_class: Mapping[str, int] = field(default_factory=dict)
    histogram: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportedOthers:
    """The images of none of the classes.

    Attributes:
        answered: whether the student has an answer "none of these" for them.
        train_images: number of training images with this answer.
        seen: number of classes that these are of; 0 for a dataset without labels.
        unseen: number of classes that are tested with alone.
        near_images: test images of the first.
        far_images: test images of the others.
        elsewhere_images: images of another dataset.
        unchosen_images: of a dataset without labels, test images that the teacher takes for none of the classes.
        elsewhere: its name, of another dataset.
    """

    answered: bool
    train_images: int
    seen: int
    unseen: int
    near_images: int = 0
    far_images: int = 0
    elsewhere_images: int = 0
    unchosen_images: int = 0
    elsewhere: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportedUnknown:
    """How well a score tells images of the classes from others.

    Attributes:
        kind: `near` for classes that were trained with as "none of these", `far` for those that were not, `elsewhere`
            for another dataset, `unchosen` for those of a dataset without labels that the teacher takes for none.
        score: its name.
        images: number of unknown images.
        auroc: how often a known image has a higher score than an unknown one.
        auroc_error: its standard error.
        false_positives: share of the unknown images that are taken for known by a threshold that keeps 95 % of the
            known.
    """

    kind: str
    score: str
    images: int
    auroc: float
    auroc_error: float
    false_positives: float


@dataclass(frozen=True, kw_only=True)
class ReportedRejection:
    """A threshold below which an image is taken for none of the classes.

    Attributes:
        score: `largest probability` of a class; or `none of these`, the probability of the best class where it and
            "none of these" are the only answers.
        threshold: that keeps 95 % of some images of the classes; 0.5 for `none of these`, whose logit was shifted so.
        validation_images: their number.
        of_test: whether these are every second test image, for want of images held out for validation.
        known_kept: share of the test images of the classes that reach it; of the others, if `of_test`.
        unknown_kept: kind of unknown images, see `ReportedUnknown`, to the share of those that reach it.
        histograms: `known` or such a kind to the number of test images in equal steps of the score from 0 to 1.
    """

    score: str
    threshold: float
    validation_images: int
    of_test: bool = False
    known_kept: float
    unknown_kept: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportedDataset:
    """The images of the run.

    Attributes:
        name: of the dataset.
        hub_id: its id, when it came from the Hub.
        revision: its commit there.
        train_images: their number.
        validation_images: their number.
        test_images: their number.
        test_split: the split that the test images are, or where they were held out of, in words.
        official_test: whether they are a split of the dataset's own.
        train_images_per_class: class name to number of training images.
        mark: the spurious mark on the images, if there is one.
        augmentation: what was done to the training images, in words.
        unlabelled: the training images without labels, if there are some.
        others: the images of other classes, if they were looked at.
        labels_by_teacher: whether no image had a label, so that the teacher's answers stand for them.
    """

    name: str
    hub_id: str | None = None
    revision: str | None = None
    train_images: int | None = None
    validation_images: int | None = None
    test_images: int
    test_split: str
    official_test: bool = True
    train_images_per_class: Mapping[str, int] = field(default_factory=dict)
    mark: ReportedMark | None = None
    augmentation: str | None = None
    unlabelled: ReportedUnlabelled | None = None
    others: ReportedOthers | None = None
    labels_by_teacher: bool = False
