"""What a run of `distill` is about: teacher, student, images and classes, as dataclasses that import nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from subdistill_hf.config.defaults import VALIDATION_FRACTION
from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.validation import check_data_options, check_task_options

AUTO: Literal["auto"] = "auto"
EMBEDDED_TEACHERS = ("glyphs-resnet", "glyphs-vit")
EMBEDDED_DATASETS = ("glyphs-100", "digits")
NO_CLASS = -100
"""The label of an image without a class, as the loss of torch ignores it too."""

# The names of what other packages implement; tests hold each equal to the registry there.
Augmentation = Literal["none", "pad_crop", "resized_crop"]
Mark = Literal["plus", "watermark", "copyright", "jpeg"]


@dataclass
class DataOptions:
    """Which images: dataset, classes, columns and splits."""

    dataset: str = field(
        default="glyphs-100",
        metadata={
            "help": "Dataset: glyphs-100 or digits (embedded), the id of an image dataset on the Hub, a local folder "
            "of images (train/CLASS/NAME.png, test/CLASS/NAME.png) or of parquet files (train-*.parquet, "
            "test-*.parquet), or one parquet file."
        },
    )
    classes: list[str] = field(
        default_factory=lambda: ["superclass:chess_pieces"],
        metadata={
            "help": "Classes of the subtask, separated by spaces: names or one of their synonyms, ids, WordNet ids, "
            "superclass:NAME, subtask:NAME (the paper's, of ImageNet), or all."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration (subset) of the dataset, where it has several."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the dataset on the Hub."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found by its type."})
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the classes: ClassLabel, texts or whole numbers; found by its type. none: the images "
            "have no labels, or they are not looked at; the classes are then some of the teacher's."
        },
    )
    superclass_column: str | None = field(
        default=None, metadata={"help": "Column of the superclasses; by default another, coarser ClassLabel."}
    )
    train_split: str = field(default="train", metadata={"help": "Split for training and validation."})
    test_split: str | None = field(
        default=None,
        metadata={"help": "Split for the final figures; by default test, or validation where test has no labels."},
    )
    test_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Hold out this share of the train split, per class, for the final figures: for datasets without a "
            "test split. The same images for every seed."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read the dataset as a stream and keep only the subtask's images, without downloading it."},
    )
    train_images_per_class: int | None = field(
        default=None,
        metadata={"help": "Use at most this many training images of each class (validation images included)."},
    )
    train_fraction: float | None = field(
        default=None,
        metadata={"help": "Use this share of each class's training images (validation images included)."},
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Share of the training images that is held out for validation, per class. A run holds out none by "
            "default, and a fifth where something is chosen by them (the best checkpoint, the fit of a teacher, the "
            "threshold of other_class and test_unknown), and with mark."
        },
    )
    mark: Mark | None = field(
        default=None,
        metadata={
            "help": "Put a spurious mark on training images of some classes and on all test images, to see what "
            "learns it: plus (red, in a corner), watermark, copyright (a line of text) or jpeg (strong artefacts)."
        },
    )
    mark_classes: list[str] = field(
        default_factory=list,
        metadata={"help": "Classes whose training images carry the mark; the first of the subtask by default."},
    )
    mark_share: float = field(
        default=1.0,
        metadata={"help": "Share of the training and validation images of these classes that carry it, 0 to 1."},
    )

    def __post_init__(self) -> None:
        """Refuse what does not fit, as a YAML file or a caller may give it."""
        check_data_options(self)

    @property
    def validation_share(self) -> float:
        """The share that is held out for validation; `VALIDATION_FRACTION` where nothing was said."""
        return VALIDATION_FRACTION if self.validation_fraction is None else self.validation_fraction


@dataclass
class FittingOptions:
    """How a teacher is fitted to classes that it lacks."""

    adapt_teacher: Literal["no", "lora", "head"] = field(
        default="no",
        metadata={
            "help": "What to do with a teacher that lacks the classes: refuse it (no), or fit it to the dataset "
            "first, by a new head and low-rank changes of its body (lora), or a new head alone (head). A teacher that "
            "takes words is fitted too, from these on."
        },
    )
    adapt_target_modules: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Modules that get low-rank changes: names, ends of names, or regular expressions. By default the "
            "linear maps of attention and MLPs, and 1x1 and 3x3 convolutions."
        },
    )
    adapt_rank: int = field(default=8, metadata={"help": "Rank of the low-rank changes of lora."})
    adapt_epochs: float = field(
        default=0.0,
        metadata={
            "help": "Passes over the images to fit the teacher; 0 takes enough. A new head alone (head) is trained "
            "for at most so many, and stops when the validation loss no longer falls."
        },
    )
    adapt_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate to fit the teacher; by default 2e-3 for lora, and the best of three for head."
        },
    )
    adapt_views: int = field(
        default=0,
        metadata={
            "help": "Augmented views of each image that a new head alone (head) is trained on, beside the image "
            "itself; each costs a pass of the teacher."
        },
    )


@dataclass
class AdaptationOptions(FittingOptions):
    """How a teacher that lacks the subtask's classes is fitted to their dataset."""

    adapt_classes: Literal["subtask", "all"] = field(
        default="subtask",
        metadata={"help": "What the teacher is fitted to: the classes of the subtask, or all of the dataset's."},
    )


@dataclass
class UnlabelledOptions:
    """Images without labels, which the student learns from beside the others."""

    unlabelled: str | None = field(
        default=None,
        metadata={
            "help": "Images without labels: a folder of any layout, parquet files, glyphs-100, or the id of a dataset "
            "on the Hub, whose labels are not looked at. The teacher tells the student what they show."
        },
    )
    unlabelled_images: int = field(
        default=10_000,
        metadata={
            "help": "Look at this many of them at most, drawn with the seed; of a dataset without labels, in each "
            "split."
        },
    )
    unlabelled_threshold: float = field(
        default=0.5,
        metadata={
            "help": "Keep images without labels to which the teacher gives at least this probability of showing one "
            "of the classes, 0 to 1; 0 keeps all."
        },
    )


@dataclass
class OtherOptions:
    """An answer "none of these", and how well unknown images are told from known ones."""

    other_class: bool = field(
        default=False,
        metadata={
            "help": "Give the student one more output, none of these: the teacher's answer for it is all that it "
            "gives to its other classes."
        },
    )
    other_images: int | None = field(
        default=None,
        metadata={
            "help": "Training images of other classes of the dataset, spread over them; by default as many as two "
            "classes have. Of a dataset without labels they are images that the teacher takes for none of the classes."
        },
    )
    test_unknown: bool | None = field(
        default=None,
        metadata={
            "help": "Measure how well images of other classes of the dataset are told from the classes, and give the "
            "student a threshold that keeps 95 %% of the known. By default with a few images that are at hand, after "
            "the training; true takes more, measures the teacher too, and holds out validation images for the "
            "threshold; false leaves it out. Always done with --other_class."
        },
    )
    unknown_images: str | None = field(
        default=None,
        metadata={
            "help": "Images that show none of the classes, from elsewhere: a folder of any layout, parquet files, "
            "glyphs-100, or the id of a dataset on the Hub, whose labels are not looked at. It is measured how well "
            "they are told from the classes."
        },
    )


@dataclass
class WordsOptions:
    """How the classes of a zero-shot teacher are put into words."""

    prompts: list[str] = field(
        default_factory=list,
        metadata={
            "help": "For a teacher that compares images with texts: what a class is put into, with {} for its words, "
            "such as 'a photo of {}.'; of several the mean counts. By default some that suit the teacher."
        },
    )
    other_prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "For such a teacher: texts of images that show none of the classes. By default some."},
    )


@dataclass
class TaskOptions(WordsOptions, OtherOptions, UnlabelledOptions, AdaptationOptions, DataOptions):
    """The task: teacher, student, dataset and classes."""

    teacher: str = field(
        default="glyphs-resnet",
        metadata={
            "help": "Teacher: id of an image classifier on the Hub, a local folder, or an embedded teacher "
            "(glyphs-resnet, glyphs-vit)."
        },
    )
    student: str = field(
        default="resnet:widths=16-24-32-48",
        metadata={
            "help": "Student: a new one by a recipe (resnet:widths=16-24-32-48, vit:hidden=72,layers=4, "
            "convnext:widths=16-32-48-64, mobilenetv2:width=0.35, timm/NAME:width=0.5,image=64), or a pretrained one "
            "by its id on the Hub or its local folder. It gets one output per class of the subtask. With a teacher "
            "that is not embedded, and images that are not, a pretrained one of the Hub is the default."
        },
    )
    student_lora: bool = field(
        default=False,
        metadata={"help": "Train low-rank changes and the head of a pretrained student, instead of all its weights."},
    )
    student_lora_rank: int = field(default=8, metadata={"help": "Rank of the student's changes."})
    student_lora_target_modules: list[str] = field(
        default_factory=list, metadata={"help": "The student's modules that get changes, as adapt_target_modules."}
    )
    student_lora_save: Literal["merged", "adapter"] = field(
        default="merged",
        metadata={"help": "Save the student as one plain model (merged), or as a PEFT adapter of its base (adapter)."},
    )
    augmentation: Literal[Augmentation, "auto"] = field(
        default=AUTO,
        metadata={"help": "Augmentation of training images: none, pad_crop, resized_crop, or auto (by dataset)."},
    )
    flip: bool | None = field(
        default=None,
        metadata={
            "help": "Mirror half of the training images; by default only where a mirrored image is known to show the "
            "same."
        },
    )
    mix: float | None = field(
        default=None,
        metadata={
            "help": "Share, from 0 to 1, of the training views that are blended with a view of another image (mixup); "
            "by default chosen by the images, and 0 where --cutmix is given alone."
        },
    )
    cutmix: float | None = field(
        default=None,
        metadata={
            "help": "Share, from 0 to 1, of the training views that get a rectangle of a view of another image "
            "(CutMix); by default chosen by the images, and 0 where --mix is given alone."
        },
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Other methods to train with the same student, budget and seed, for the table of the card: "
            + ", ".join(METHODS)
            + ".",
            "choices": METHODS,
        },
    )
    html_report: bool = field(
        default=True, metadata={"help": "Write report.html beside the card: all figures of the run as one page."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the run that is already in the output folder."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run model code that comes with a Hub repository. Off unless you ask for it."},
    )

    def __post_init__(self) -> None:
        """Refuse what does not fit, as a YAML file or a caller may give it."""
        check_task_options(self)
