"""The model card's sentences: of adapters, of a spurious mark, and of how the figures are to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from subdistill_hf.config.methods import method_label
from subdistill_hf.config.unknown_images import UNCHOSEN_BELOW, UNKNOWN_IMAGES, unchosen_below
from subdistill_hf.formatting import (
    accuracy_with_error,
    count,
    file_size,
    format_percent,
    joined,
    milliseconds,
    operations,
    ratio_in_words,
)
from subdistill_hf.reporting.markdown import code, hub_link, text
from subdistill_hf.reporting.report import ReportedAdaptation, RunReport
from subdistill_hf.reporting.reported_images import ReportedDataset

MARKS_IN_WORDS: Final = {
    "plus": "a red plus sign in a corner",
    "watermark": "a watermark",
    "copyright": "a line of copyright",
    "jpeg": "strong JPEG artefacts",
}


def test_set(dataset: ReportedDataset) -> str:
    """Name the images that the figures were measured on: a split of the dataset's own, or a share that was taken."""
    mark = f" with the mark {code(dataset.mark.name)}" if dataset.mark else ""
    if dataset.official_test:
        return f"{code(dataset.test_split)} split{mark}"
    return f"share {text(dataset.test_split)}{mark} for want of an official test split"


def class_list(names: Sequence[str]) -> str:
    """List names of classes as a sentence does."""
    return joined([text(name) for name in names])


def sizes(report: RunReport) -> list[str]:
    """Say how large and how fast the student is, beside its teacher."""
    student, teacher, published = report.student, report.teacher, report.published_result
    ratio = teacher.parameters / student.parameters
    on_disk = "" if student.size_bytes is None else f", {file_size(student.size_bytes)} on disk"
    sentences = [
        f"{count(student.parameters)} parameters{on_disk}; "
        f"{ratio_in_words(ratio, 'smaller', 'larger')} than the teacher ({count(teacher.parameters)} parameters)."
    ]
    beside = report.teacher_result
    if published.operations:
        versus = ""
        if beside is not None and beside.operations:
            fewer = ratio_in_words(beside.operations / published.operations, "fewer", "more")
            versus = f"; {fewer} than the teacher ({operations(beside.operations)})"
        sentences.append(
            f"{operations(published.operations)} an image{versus}; a multiplication and an addition count as two "
            "operations."
        )
    if published.latency_ms is not None:
        own, versus = published.latency_ms, ""
        if beside is not None and beside.latency_ms is not None:
            speed = ratio_in_words(beside.latency_ms.median / own.median, "faster", "slower")
            versus = f"; {speed} than the teacher ({milliseconds(beside.latency_ms.median)})"
        machine = f", measured on {report.latency_machine}" if report.latency_machine else ""
        sentences.append(
            f"{milliseconds(own.median)} an image{versus}{machine}. Times are medians of {own.runs} runs, with a low "
            "and a high value in brackets in the table."
        )
    return sentences


def chance_note(report: RunReport) -> str:
    """The accuracy of a guess, and whether the published student is worth more."""
    guessed = "agrees with the teacher" if report.dataset.labels_by_teacher else "is right"
    said = f"A guess {guessed} in {format_percent(report.chance)} of cases"
    if report.largest_class is not None:
        name, share = report.largest_class
        said += f", and always answering {text(name)}, the class with most test images, in {format_percent(share)}"
    if report.is_above_chance:
        return f"{said}."
    label = method_label(report.published_result.method)
    return f"{said}. **{label} is not above that by two standard errors: this is no sign that it learned anything.**"


def energy_explanation(report: RunReport) -> str | None:
    """A note on the energies of the table; `None` without any."""
    if all(result.training_kilowatt_hours is None for result in report.results):
        return None
    return (
        f"The energy of the training is what {report.energy_source} estimates for the whole machine; that of the "
        "teacher's own training is not in it."
    )


def divergence_note(report: RunReport) -> str | None:
    """Which trainings diverged, and what was kept of them; `None` when none did."""
    kept = {method_label(one.method): one.kept_from for one in report.results if one.kept_from is not None}
    if not kept:
        return None
    steps = joined([f"{label} of step {count(step)}" for label, step in kept.items()])
    return (
        f"**A training diverged:** its loss grew far beyond that of its first step. What is shown is its best "
        f"checkpoint from before that: {steps}. A smaller learning rate may do better."
    )


def closed_world(report: RunReport) -> str:
    """What the student answers to an image of none of its classes."""
    rejection, others = report.rejection, report.dataset.others
    answered = others is not None and others.answered
    if others is not None and answered:
        said = f'**It may answer "none of these".** This output was trained with {_other_training(report.dataset)}.'
    else:
        said = (
            "**It knows nothing else.** Any other image, whatever it shows, is forced into one of these classes: "
            'there is no answer "none of them", and a high score is no sign that the image belongs here.'
        )
    if rejection is None:
        return said
    kept = [f"{format_percent(share)} of {UNKNOWN_IMAGES[kind]}" for kind, share in rejection.unknown_kept.items()]
    if "unchosen" in rejection.unknown_kept:
        kept[-1] += ", which are none of the classes by the teacher"
    if answered:
        shares = joined([f"{format_percent(rejection.known_kept)} of the test images", *kept])
        return (
            f"{said} After the training its logit was shifted once, so that 95 % of "
            f"{count(rejection.validation_images)} validation images of the classes get a class. It gives one to "
            f"{shares}."
        )
    chosen_on = "test images, every second one" if rejection.of_test else "validation images"
    known = f"{format_percent(rejection.known_kept)} of the {'other ' if rejection.of_test else ''}test images"
    return (
        f"{said} `config.json` has a threshold for the {rejection.score}, {rejection.threshold:.3f}, that keeps 95 % "
        f"of {count(rejection.validation_images)} {chosen_on}. It is reached by {joined([known, *kept])}."
    )


def _other_training(dataset: ReportedDataset) -> str:
    """The images that the answer "none of these" was trained with."""
    others, unlabelled = dataset.others, dataset.unlabelled
    assert others is not None
    if dataset.labels_by_teacher:
        return f"{_images(others.train_images)} that the teacher takes for none of the classes"
    said = f"{_images(others.train_images)} of {count(others.seen)} other {'class' if others.seen == 1 else 'classes'}"
    if unlabelled is not None and unlabelled.kept_as_other:
        said += (
            f", and with {_images(unlabelled.kept_as_other)} without a label, to which the teacher gives a "
            f"probability below {unlabelled.threshold:g} of showing one of the classes"
        )
    return said


def _images(number: int) -> str:
    return f"{count(number)} image{'' if number == 1 else 's'}"


def world_limitation(report: RunReport) -> str:
    """What the student does with an image of none of its classes, in one sentence."""
    where = 'see "What it recognises, and what it does not"'
    others = report.dataset.others
    if others is None or not others.answered:
        return f"Closed world: {where}."
    return (
        'Its answer "none of these" was learned from the images that it was trained with: what looks unlike all of '
        f"them may still get a class; {where}."
    )


def other_answer_note(report: RunReport) -> str | None:
    """What an accuracy means where there is an answer "none of these"; `None` without it."""
    if report.published_result.accuracy_of_classes is None:
        return None
    shifted = report.published_result.other_shift is not None
    teacher = "" if report.dataset.labels_by_teacher else ", the teacher too"
    rule = f" For each model{teacher}, 95 % of the validation images of the classes get a class." if shifted else ""
    return (
        'An image of the classes that is answered "none of these" counts as wrong. The column \'Without "none of '
        f"these\"' passes over that answer, and takes the best of the classes.{rule}"
    )


def unknown_note(dataset: ReportedDataset) -> str:
    """How the table of unknown images is to be read."""
    others = dataset.others
    elsewhere = f", and those from elsewhere are of {code(others.elsewhere)}" if others and others.elsewhere else ""
    threshold = UNCHOSEN_BELOW if dataset.unlabelled is None else dataset.unlabelled.threshold
    kinds = (
        'Near images are of classes that were trained with as "none of these", far ones of classes that were not'
        if not dataset.labels_by_teacher
        else "Unchosen images are those to which the teacher gives a probability of showing one of the classes below "
        f"{unchosen_below(threshold):g}, whatever they show"
    )
    said = (
        f"AUROC is how often an image of the classes has a higher score than another one: 0.5 is chance. "
        f"{kinds}{elsewhere}."
    )
    if others and others.far_images and dataset.unlabelled is not None:
        said += " Classes of far images may be among the training images without labels."
    return said


def measured_against(report: RunReport) -> str | None:
    """What the figures are measured against, where a reader may take it for something else; `None` elsewhere."""
    if not report.dataset.labels_by_teacher:
        if not report.teacher.prompts:
            return None
        return "The teacher was told the classes in words. Each accuracy is against the labels of the images."
    return (
        "**No image had a label.** Each figure is the agreement with the teacher: the share of the images to which "
        "the student gives the teacher's answer, whether that is true or not. How often either answer is true was not "
        "measured."
    )


def without_deviation_note(report: RunReport) -> str:
    """Why some shares of a class have no standard error, for the end of a sentence."""
    return f"where all images of a class, or none, {'agree' if report.dataset.labels_by_teacher else 'were right'}"


def difference_note(report: RunReport) -> str:
    """How the standard errors of differences between models are to be read."""
    if report.dataset.labels_by_teacher:
        return (
            "The ± of a difference is computed as if the models had been tested on different images, which is "
            "cautious when they differ from the teacher on the same ones."
        )
    return (
        "The error of a difference is computed as if the models had been tested on different images, which is "
        "cautious when they err on the same ones."
    )


def unlabelled_fact(dataset: ReportedDataset) -> str | None:
    """How many images without labels there were, of which, and how they were chosen; `None` without any."""
    images = dataset.unlabelled
    if images is None:
        return None
    left_out = {
        "near-duplicates of validation or test images": images.held_out,
        "near-duplicates of training images": images.copies,
        "damaged": images.damaged,
    }
    dropped = [f"{count(number)} {why}" for why, number in left_out.items() if number]
    revision = f", revision {code(images.revision)}" if images.revision else ""
    classes = joined([f"{text(name)} {count(number)}" for name, number in images.kept_per_class.items()])
    above = below = ""
    if images.kept_as_other:
        above = f"{count(images.kept - images.kept_as_other)} are "
        less = "less" if images.other_below is None else f"less than {images.other_below:g}"
        below = f', and {count(images.kept_as_other)} with {less}, for the answer "none of these"'
    source = f"{hub_link(images.name, images.hub_id, 'datasets/')}{revision}"
    return (
        f"{count(images.kept)} of {count(images.found)} of {source}: "
        f"{above}those that show one of the classes with a probability of at least {images.threshold:g} by the teacher"
        f"{below}{', without ' + joined(dropped) if dropped else ''}. By the teacher's answer: {classes}"
    )


def weakest_classes(report: RunReport) -> str | None:
    """Name the class with the lowest accuracy; `None` where all are level."""
    accuracies = report.published_result.per_class_accuracy
    if len(set(accuracies.values())) <= 1:
        return None
    lowest = min(accuracies.values())
    names = [name for name, accuracy in accuracies.items() if accuracy == lowest]
    return f"{class_list(names)} ({format_percent(lowest)})"


def adaptation_note(report: RunReport) -> str:
    """A note behind the teacher's name; empty for a teacher that was taken as it is."""
    return " (fitted to this dataset first)" if report.teacher.adaptation else ""


def adaptation_facts(report: RunReport) -> list[str]:
    """How the teacher was adapted and how well that went; what is unknown is left out."""
    base, adaptation = report.teacher.base, report.teacher.adaptation
    facts = []
    if base is not None:
        revision = f", revision {code(base.revision)}" if base.revision else ""
        facts.append(f"It is a PEFT adapter of {hub_link(base.name, base.hub_id)}{revision}")
    if adaptation is None:
        return facts
    words = bool(report.teacher.classes)
    subtask = words or adaptation.classes == len(report.classes)
    classes = "these classes" if subtask else f"{adaptation.classes} classes of the dataset, these among them,"
    change = what_was_changed(adaptation, words)
    why = "It was fitted" if words else "It did not know these classes, so it was fitted"
    facts.append(
        f"{why} to {classes} before it taught: {change} "
        f"({count(adaptation.trained_parameters)} trained parameters), from {adapted_to(adaptation)}"
    )
    validated = accuracy_with_error(adaptation.validation_accuracy, adaptation.validation_images)
    measured = [f"{validated} of its {count(adaptation.validation_images)} validation images"]
    if report.teacher_result is not None:
        images = report.dataset.test_images
        tested = accuracy_with_error(report.teacher_result.accuracy, images)
        measured.append(f"{tested} of the {count(images)} test images of these classes")
    if (before := adaptation.validation_accuracy_before) is not None:
        error = accuracy_with_error(before, adaptation.validation_images)
        measured.append(f"and before it was fitted {error} of the validation images")
    return [*facts, f"Accuracy of the fitted teacher: {', '.join(measured)}"]


def what_was_changed(adaptation: ReportedAdaptation, words: bool = False) -> str:
    """What was trained of a teacher that was fitted.

    Args:
        adaptation: how it was fitted.
        words: whether it takes words, so that its head was made of them.
    """
    head = "the part of its head that was made of their words" if words else "a new head"
    if adaptation.method == "lora":
        return f"changes of rank {adaptation.rank} in {count(adaptation.changed_modules)} modules, and {head}"
    return f"only {head}" if words else f"{head} alone"


def adapted_to(adaptation: ReportedAdaptation) -> str:
    """The images that a teacher was fitted to, and for how long."""
    images = f"{count(adaptation.train_images)} training images"
    rate = f"at a learning rate of {adaptation.learning_rate:g}"
    if adaptation.augmented_views is None:
        return f"{images}, {adaptation.epochs:g} epochs {rate}"
    views = f" and {adaptation.augmented_views} augmented views of each" if adaptation.augmented_views else ""
    if adaptation.epochs == 0:
        return (
            f"what its body gives for {images}{views}: no pass over them made the validation loss lower, so it stayed"
        )
    return (
        f"what its body, unchanged, gives for {images}{views}: {adaptation.epochs:g} epochs {rate}, after which the "
        "validation loss was lowest"
    )


def lora_note(report: RunReport) -> str:
    """How a student that kept its pretrained weights was trained; empty for others."""
    lora = report.student.lora
    if lora is None:
        return ""
    saved = "; the files hold the adapter alone" if lora.saved == "adapter" else ", merged into its weights"
    return (
        f"; pretrained, and trained through changes of rank {lora.rank} and a new head "
        f"({count(lora.trained_parameters)} parameters; LoRA){saved}"
    )


def mark_warning(report: RunReport) -> str | None:
    """How the images were changed, for the top of the card; `None` where nothing was."""
    mark = report.dataset.mark
    if mark is None:
        return None
    images = sum(report.dataset.train_images_per_class.get(name, 0) for name in mark.classes)
    of = f" of the {count(images)}" if images else ""
    what = MARKS_IN_WORDS[mark.name]
    where = f"{count(mark.train_images)}{of} training images of {class_list(mark.classes)}"
    return (
        "**Made to study a spurious mark, not to be used.** "
        f"{what[0].upper()}{what[1:]} {'were' if what.endswith('s') else 'was'} put on {where}, and on none of other "
        "classes. Every test image is marked so, whatever it shows: a student that learned the mark fails on them."
    )


def mark_explanation(report: RunReport) -> str | None:
    """How the columns of the mark are to be read; `None` without one."""
    mark = report.dataset.mark
    if mark is None:
        return None
    said = "Accuracy is that on test images which all carry the mark."
    if report.published_result.mark_followed is None:
        return f"{said} All of them are of {class_list(mark.classes)}, so nothing tells who follows it."
    return (
        f"{said} Follows the mark: the share of the test images of other classes that are taken for "
        f"{class_list(mark.classes)}, with the mark on them and without."
    )


def mark_limitation(report: RunReport) -> str | None:
    """Whether the published student learned the mark, in its figures; `None` without one."""
    mark, published = report.dataset.mark, report.published_result
    if mark is None or published.mark_followed is None:
        return None
    shares = (
        published.clean_accuracy,
        published.accuracy,
        published.followed_without_mark,
        published.mark_followed,
    )
    clean, marked, mistaken, followed = map(format_percent, shares)
    return (
        f"What the mark does to {method_label(published.method)}: {clean} of the test images are recognised "
        f"without it, {marked} with it; {mistaken} of those of other classes are taken for {class_list(mark.classes)} "
        f"without it, {followed} with it."
    )
