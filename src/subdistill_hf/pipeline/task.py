"""The parts that all methods of a run share: images, teacher, and the subtask's classes in both."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import IntervalStrategy

from subdistill_hf.acceleration.threads import Threads
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig, with_arguments
from subdistill_hf.config.validation import NO_LABELS
from subdistill_hf.data.loading import SubtaskData, load_subtask
from subdistill_hf.data.other_classes import check_other_classes, with_images_from_elsewhere, with_other_classes
from subdistill_hf.data.preprocessing import check_fixed_size
from subdistill_hf.data.subtask import (
    MissingClassesError,
    Subtask,
    SubtaskError,
    match_teacher,
    matching_table,
    outputs_of,
)
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.errors import SubDistillError
from subdistill_hf.models.heads import several_classes_note
from subdistill_hf.models.loading import (
    LoadedModel,
    check_teacher_is_there,
    count_parameters,
    input_size_of,
    load_teacher,
)
from subdistill_hf.models.students import check_student_is_there
from subdistill_hf.models.words import Phrases, Words, check_no_ids, names_and_phrases, phrases_of_words
from subdistill_hf.models.zero_shot_teachers import is_zero_shot, load_zero_shot
from subdistill_hf.pipeline.auto import Resolved, held_out, resolve, resolve_threads
from subdistill_hf.pipeline.evaluation import Classifier, count_operations
from subdistill_hf.pipeline.selection import Selection, add_unlabelled
from subdistill_hf.pipeline.unchosen import check_teacher_knows_others
from subdistill_hf.pipeline.without_labels import load_without_labels

logger = logging.getLogger(__name__)


@dataclass
class Task:
    """The parts that all methods of a run share.

    Attributes:
        resolved: options and training arguments in which nothing is left open.
        data: the images of the subtask, with its classes matched to the teacher's.
        test: the test images, with the mark if there is one.
        teacher: frozen.
        to_adapt: whether the teacher is adapted before it teaches: it lacks classes, or takes words and this was
            asked for.
        adaptation: how it was adapted, if it was: see `adaptation.adapt`.
        selection: what became of the images without labels, if some were given.
    """

    resolved: Resolved
    data: SubtaskData
    test: ViewDataset
    teacher: LoadedModel
    to_adapt: bool = False
    adaptation: Mapping[str, Any] | None = None
    selection: Selection | None = None

    @property
    def options(self) -> TaskOptions:
        """The options of the task."""
        return self.resolved.options

    @property
    def config(self) -> SubDistillConfig:
        """The training arguments that all methods share."""
        return self.resolved.config

    @property
    def augmentation(self) -> str:
        """The augmentation of the training images."""
        return self.options.augmentation

    @property
    def flip(self) -> bool:
        """Whether half of the training images are mirrored."""
        return bool(self.options.flip)

    @property
    def folder(self) -> Path:
        """Where the student goes."""
        return Path(self.config.output_dir)

    def views(self, student: LoadedModel, split: str = "taught") -> ViewDataset:
        """The augmented training images, large enough for both networks.

        Args:
            student: the student.
            split: `"taught"`, or `"train"` without the images that have no labels.
        """
        heights, widths = zip(*(input_size_of(each.processor) for each in (student, self.teacher)), strict=True)
        return self.data.views(
            split,
            self.augmentation,
            self.flip,
            size=(max(heights), max(widths)),
            seed=self.config.seed,
            views=self.config.views,
            mix=self.options.mix or 0.0,
            cutmix=self.options.cutmix or 0.0,
        )

    @property
    def teacher_classifier(self) -> Classifier:
        """The teacher as a classifier of the student's outputs."""
        return Classifier(self.teacher.model, self.teacher.processor, self.data.subtask.teacher_ids, self.has_other)

    @property
    def has_other(self) -> bool:
        """Whether there is an answer "none of these"."""
        return self.data.others is not None and self.data.others.answered

    def plain(self, split: str) -> ViewDataset:
        """The images of a split without augmentation."""
        return self.data.views(split)

    def validation(self) -> ViewDataset | None:
        """The validation images without augmentation; `None` where none are held out."""
        return self.plain("validation") if len(self.data.validation) else None


def load_task(options: TaskOptions, config: SubDistillConfig, loaded: LoadedModel | None = None) -> Task:
    """Load images and teacher, match their classes, and decide what the options leave open.

    Args:
        options: teacher, dataset and classes.
        config: training arguments.
        loaded: the teacher, where another run has loaded it.

    Raises:
        SubDistillError: for a teacher or student that cannot be read, before any image is; for classes that images or
            teacher lack, or an image that cannot be decoded.
    """
    check_teacher_is_there(options.teacher, options.trust_remote_code)  # before images are read
    check_student_is_there(options.student, options.trust_remote_code)
    options = replace(options, validation_fraction=held_out(options, config))
    takes_words = is_zero_shot(options.teacher, options.trust_remote_code)
    check_adaptation(options, takes_words)
    adaptable, selection = options.adapt_teacher != "no", None
    if options.label_column == NO_LABELS:
        teacher = load_teacher_of(options, None, loaded)
        _tell_several_classes(teacher, options, config)
        data, selection = load_without_labels(options, config, teacher)
    else:
        options, phrases = _words_apart(options) if takes_words else (options, None)
        with config.main_process_first(desc="loading images"), _told_of_words(phrases is not None):
            data = load_subtask(options, config.seed, check=partial(check_other_classes, options))
        teacher = load_teacher_of(options, _phrases_of(data, phrases or {}), loaded, data.subtask.names)
    lacks_classes = teacher.without_head
    if not lacks_classes:
        try:
            data = replace(data, subtask=matched(data.subtask, teacher, data.class_names))
        except MissingClassesError:
            if not adaptable:
                raise
            lacks_classes = True
    if not lacks_classes and options.label_column != NO_LABELS:
        _tell_several_classes(teacher, options, config)
    data = _with_unknown(data, options, config)
    if not lacks_classes:
        check_teacher_knows_others(options, teacher, data.subtask)
    # decoded before training, so that a damaged image is found now
    test = data.views("test")
    test.check_images()
    if len(data.validation):
        data.views("validation", marked=None).check_images()
    else:
        config = with_arguments(config, eval_strategy=IntervalStrategy.NO)
    check_fixed_size(teacher.processor, data.sizes, f"the teacher {teacher.name!r}")
    size = (data.typical_side, data.typical_side)
    to_adapt = lacks_classes or (adaptable and teacher.words is not None)
    if options.unlabelled is not None:
        if to_adapt:
            raise SubDistillError(
                f"unlabelled={options.unlabelled} needs a teacher that is fitted already: fit this one first, without "
                "--unlabelled, and give the folder of the fitted teacher as --teacher"
            )
        data, selection = add_unlabelled(data, teacher, options, config)
    others = 0 if data.others is None else data.others.train_images
    resolved = resolve(options, config, len(data.rows("taught")), size, data.class_names, others)
    return Task(resolved, data, test, teacher, to_adapt, selection=selection)


def check_adaptation(options: TaskOptions, takes_words: bool) -> None:
    """Refuse a way of fitting the teacher that does not go with its kind.

    Args:
        options: the task's.
        takes_words: whether the teacher takes words.

    Raises:
        SubDistillError: naming the option.
    """
    if options.adapt_teacher == "no":
        return
    if takes_words and options.adapt_classes == "all":
        raise SubDistillError(
            f"adapt_classes=all: the teacher {options.teacher!r} takes words, and is fitted to those of --classes: "
            "leave it out"
        )
    if takes_words and options.other_class and options.adapt_teacher == "lora":
        raise SubDistillError(
            "other_class with adapt_teacher=lora: the texts of none of the classes are not trained, and what they are "
            "compared with would change. Use adapt_teacher=head, or leave out other_class"
        )
    if not takes_words and options.other_class and options.adapt_classes == "subtask":
        raise SubDistillError(
            "other_class needs a teacher that knows other classes: fit it to all of them, with adapt_classes=all"
        )


def _tell_several_classes(teacher: LoadedModel, options: TaskOptions, config: SubDistillConfig) -> None:
    """Log, once, what to know of a teacher that teaches as it is, and was not trained for one class an image."""
    note = several_classes_note(f"the teacher {teacher.name!r}", getattr(teacher.model, "config", None))
    if note is None or config.process_index != 0:
        return
    if options.unlabelled is not None or options.label_column == NO_LABELS:
        note += (
            ". The probability that an image without a label shows one of them is a softmax over all its outputs, for "
            "which they were not trained: see which are kept, and choose --unlabelled_threshold by that"
        )
    if options.other_class:
        note += (
            '. The answer "none of these" is the softmax of all its other outputs: no logit says that none is there'
        )
    logger.warning(note)


def _with_unknown(data: SubtaskData, options: TaskOptions, config: SubDistillConfig) -> SubtaskData:
    """The images with those of none of the classes that the user asked for."""
    has_others = len(data.class_names) > len(data.subtask.names)
    # where images from elsewhere are given, a test needs no other classes
    asked = options.other_class or (options.test_unknown and (has_others or options.unknown_images is None))
    if asked and not data.labels_by_teacher:  # without labels the teacher chose them
        with config.main_process_first(desc="loading images of other classes"):
            data = with_other_classes(data, options, config.seed)
    if options.unknown_images is not None:
        with config.main_process_first(desc="loading images from elsewhere"):
            data = with_images_from_elsewhere(data, options, config.seed)
    return data


def _words_apart(options: TaskOptions) -> tuple[TaskOptions, dict[str, tuple[str, ...]]]:
    """The options with the names of classes alone, and the phrases beside them, for a teacher that takes words."""
    names, phrases = names_and_phrases([str(entry) for entry in options.classes])
    return replace(options, classes=list(names)), phrases


@contextmanager
def _told_of_words(zero_shot: bool) -> Iterator[None]:
    """Say of an unknown class how words are given where the images have labels, to a teacher that takes words."""
    try:
        yield
    except SubtaskError as error:
        if not zero_shot:
            raise
        raise SubtaskError(
            f"{error}. These images have labels, and --classes names those: give 'LABEL | your words' for a class, or "
            "--label_column none to leave the labels aside"
        ) from error


def _phrases_of(data: SubtaskData, phrases: Mapping[str, tuple[str, ...]]) -> Phrases:
    """The phrases of each class of a dataset: those that were given, or its name."""
    own = {outputs_of([name], data.subtask, data.class_names)[0]: each for name, each in phrases.items()}
    return tuple(own.get(output, (name,)) for output, name in enumerate(data.subtask.names))


def load_teacher_of(
    options: TaskOptions, classes: Phrases | None, loaded: LoadedModel | None = None, names: Sequence[str] = ()
) -> LoadedModel:
    """Load a classifier, or an image-text model as a classifier of words.

    Args:
        options: the teacher, and for an image-text model the prompts.
        classes: the phrases of the subtask's classes in the dataset; `None` where `options.classes` are the words.
        loaded: the classifier, where it is loaded already.
        names: of these classes; where empty, the first phrase of each.

    Raises:
        SubDistillError: when it cannot be loaded, or prompts are given to a classifier.
    """
    if is_zero_shot(options.teacher, options.trust_remote_code):
        if classes is None:
            classes = phrases_of_words(options.classes)
            if not options.prompts:
                check_no_ids(classes)
        words = Words(classes, tuple(options.prompts), tuple(options.other_prompts), tuple(names))
        return load_zero_shot(options.teacher, words, options.trust_remote_code)
    if options.prompts or options.other_prompts:
        raise SubDistillError(
            f"prompts are for a teacher that takes words, and {options.teacher!r} has classes of its own: leave them "
            "out, or give a model such as openai/clip-vit-base-patch32"
        )
    return loaded or load_teacher(options.teacher, options.trust_remote_code, options.adapt_teacher != "no")


def matched(subtask: Subtask, teacher: LoadedModel, names: Sequence[str]) -> Subtask:
    """The subtask with its classes among the teacher's outputs.

    Args:
        subtask: of a dataset.
        teacher: of a zero-shot teacher whose words are the subtask's classes these are the first outputs.
        names: all class names of the dataset.

    Raises:
        SubtaskError: when the teacher lacks classes, or they cannot be told.
    """
    if teacher.words is not None:
        return subtask.with_teacher(range(len(subtask.names)), "name")
    return match_teacher(subtask, teacher.class_labels, names)


def announce(task: Task) -> None:
    """Print what a run works with."""
    data, config = task.data, task.config
    print(f"{config.world_size} process{'es' if config.world_size > 1 else ''} on {config.device.type}")
    print(f"teacher  {task.teacher.name}: {count_parameters(task.teacher.model):,} parameters")
    validation = f"{len(data.validation)} to validate, " if len(data.validation) else ""
    counts = f"{len(data.train)} to train, {validation}{len(data.test)} to test"
    if task.selection is not None:
        counts += "" if data.labels_by_teacher else f", {task.selection.kept} without labels to train"
    print(f"images   {data.name}: {counts}")
    if data.labels_by_teacher:
        print("labels   none: the teacher's answers stand for them, and each figure is the agreement with the teacher")
    if (others := data.others) is not None:
        tested = ", ".join(f"{count} {kind}" for kind, count in others.counts().items())
        what = "that the teacher takes for none of the classes" if data.labels_by_teacher else "of other classes"
        trained = f"{others.train_images} images {what} to train; " if others.train_images else ""
        print(f"unknown  {trained}{tested} to test")
        if task.selection is not None and others.far is not None:
            print("         classes of far images may be among the images without labels")
    if data.marking is not None:
        print(f"mark     {data.marking.sentence(data.subtask)}")
    if task.selection is not None:
        print(f"\n{task.selection}\n")
    print(f"subtask\n{matching_table(data.subtask, task.teacher.labels)}")
    if task.resolved.choices:
        print("\nchosen for these images, as nothing else was asked for:", *task.resolved.choices, sep="\n  ")


def take_threads(task: Task, *networks: Classifier) -> Threads | None:
    """Use as many threads as suit networks on a CPU; those of a GPU's steps stay as they are.

    Args:
        task: its test images are what the networks read.
        networks: those of a run.
    """
    if task.config.device.type != "cpu":
        return None
    counted = [(network.model, count_operations(network, task.test)) for network in networks]
    threads = resolve_threads(task.config, counted)
    torch.set_num_threads(threads.count)
    return threads
