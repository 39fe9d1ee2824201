"""The options of the commands beside `distill`, as plain dataclasses that import nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from subdistill_hf.config.bases import BASES
from subdistill_hf.config.explainers import DEFAULT_EXPLAINER, EXPLAINERS
from subdistill_hf.config.export_formats import EXPORT_FORMATS, Preprocessing
from subdistill_hf.config.options import AUTO, Augmentation, DataOptions, FittingOptions
from subdistill_hf.config.validation import check_choices, check_types
from subdistill_hf.errors import SubDistillError

MOST_POINTS: Final = 100
LAST_PORT: Final = 65_535


@dataclass
class TeacherOptions(DataOptions):
    """A teacher, and the images to look at it with."""

    teacher: str = field(default="glyphs-resnet", metadata={"help": "Teacher, as for distill."})
    layers: list[str] = field(
        default_factory=lambda: ["auto"],
        metadata={"help": "Teacher layers by module name or regular expression, or auto: the stages."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of the choice of images."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that comes with a repository."})


@dataclass
class AdaptOptions(FittingOptions, DataOptions):
    """A teacher, and the classes that it is adapted to."""

    teacher: str = field(default="glyphs-resnet", metadata={"help": "Teacher, as for distill."})
    classes: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": "Classes that the teacher is to know, as for distill; by default all of the dataset's."},
    )
    adapt_teacher: Literal["lora", "head"] = field(
        default="lora",
        metadata={
            "help": "What is trained: a new head and low-rank changes of the body (lora), or a new head alone (head), "
            "which is much quicker."
        },
    )
    augmentation: Literal[Augmentation, "auto"] = field(
        default=AUTO, metadata={"help": "Augmentation of training images, as for distill."}
    )
    flip: bool | None = field(
        default=None, metadata={"help": "Mirror half of the augmented training images, as for distill."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what an earlier run left in the output folder."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that comes with a repository."})


@dataclass
class InspectOptions(TeacherOptions):
    """Which subspaces to look at."""

    basis: str = field(default="prca", metadata={"help": "Basis of the subspaces, as for distill.", "choices": BASES})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the subspaces (safetensors, JSON) and a plot of their spectra."}
    )


@dataclass
class AnalyseOptions(TeacherOptions):
    """Which projections of a teacher's layers to measure."""

    bases: list[str] = field(
        default_factory=lambda: ["prca", "pca", "gradient_pca", "random", "identity"],
        metadata={
            "help": "Bases of the subspaces, separated by spaces; each is one of --basis of distill.",
            "choices": BASES,
        },
    )
    dimensions: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Numbers of dimensions, separated by spaces; each layer takes those that it has. By default "
            "powers of two, and each layer's width."
        },
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the figures (JSON) and their plot."})


@dataclass(kw_only=True)
class ExecutionOptions:
    """What runs several trainings, each of which needs nothing of the others."""

    executor: Literal["local", "ray"] = field(
        default="local",
        metadata={"help": "What runs them: processes of this machine (local), or Ray, which the extra ray installs."},
    )
    ray_address: str | None = field(
        default=None,
        metadata={
            "help": "Address of a Ray cluster, or auto for the one of this machine; by default a Ray is started here. "
            "Its machines need this package and the same folders."
        },
    )

    def __post_init__(self) -> None:
        """Refuse what does not fit, and an address without Ray."""
        check_types(self)
        check_choices(self)
        if self.ray_address is not None and self.executor != "ray":
            raise SubDistillError(f"ray_address={self.ray_address} has no meaning without --executor ray")


@dataclass
class FamilyOptions(ExecutionOptions):
    """The experts of a family, beside the options that they share, which are those of `distill`."""

    subtasks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "One expert for each: superclass:NAME, superclass:all for all superclasses of the dataset, "
            "subtask:NAME or subtask:all for the paper's, of ImageNet, or a YAML file that holds the classes of each "
            "expert by its name, or a list of such entries."
        },
    )
    workers: int | None = field(
        default=None,
        metadata={
            "help": "Experts at a time, a process each with a GPU, or with one CPU thread. By default they are "
            "trained one by one in this process, or on Ray as many as it has room for."
        },
    )


@dataclass
class PushOptions:
    """Where to push a student or a family; the access token is that of `hf auth login` or of HF_TOKEN."""

    repo: str | None = field(
        default=None,
        metadata={
            "help": "Repository: NAME or USER/NAME; by default named after teacher, student and classes. Of a family "
            "the beginning of each repository's name, and the title of the collection, by default its folder's name."
        },
    )
    private: bool = field(
        default=False, metadata={"help": "Make the repository private; otherwise it is what is usual for the account."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, made if it is not there; by default the main one."}
    )
    space: bool = field(
        default=False,
        metadata={"help": "Push the page of an exported student, see subdistill serve, as a static Space instead."},
    )
    runtime: str | None = field(
        default=None,
        metadata={
            "help": "With --space: folder dist of npm's onnxruntime-web; by default in node_modules here or above."
        },
    )

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        check_types(self)
        if self.runtime is not None and not self.space:
            raise SubDistillError("runtime: the folder of onnxruntime-web is for a page, expected --space too")


@dataclass
class ExportOptions:
    """What a student is exported as."""

    format: Literal["onnx", "executorch"] = field(
        default="onnx",
        metadata={
            "help": "Format of the files: onnx, for onnxruntime and browsers, or executorch, for phones and small "
            "boards (with XNNPACK)."
        },
    )
    int8: bool = field(
        default=False,
        metadata={
            "help": "Write a file with weights and activations of 8 bits too, if it is accurate enough; it needs "
            "images, see --calibration."
        },
    )
    preprocessing: Preprocessing | None = field(
        default=None,
        metadata={
            "help": "Scaling, cutting and normalisation of images: in the file, which then takes images of any size "
            "(inside, the default of onnx), or left to the device (outside, all that executorch can)."
        },
    )
    calibration: str | None = field(
        default=None,
        metadata={
            "help": "Images to measure with, and to find the ranges of int8: a dataset, as for distill, that has the "
            "student's classes, or a folder of images without classes. By default those that the student was "
            "trained and tested with."
        },
    )
    max_loss: float = field(
        default=1.0,
        metadata={"help": "Points of accuracy that int8 may cost; where it costs more, it is not kept."},
    )

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        check_types(self)
        check_choices(self)
        if not 0 <= self.max_loss <= MOST_POINTS:
            raise SubDistillError(f"max_loss={self.max_loss:g}: expected points of accuracy, from 0 to {MOST_POINTS}")
        known = EXPORT_FORMATS[self.format]
        if self.preprocessing is None:
            self.preprocessing = known.preprocessing[0]
        if self.preprocessing not in known.preprocessing:
            raise SubDistillError(
                f"preprocessing={self.preprocessing!r}: not with format={self.format!r}, for {known.without_inside}; "
                f"expected {' or '.join(known.preprocessing)}"
            )


@dataclass
class ExplainOptions:
    """What of a student and its teacher is explained."""

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Teacher, as for distill; by default that of the run, where it is embedded, on the Hub, or was "
            "adapted by the run."
        },
    )
    images: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Images to explain: files and folders, separated by spaces. By default test images of the run."
        },
    )
    method: str = field(
        default=DEFAULT_EXPLAINER,
        metadata={
            "help": "How evidence is given to the places of an image: gradient_x_input (quick, does not add up), "
            "integrated_gradients or shapley (slow); the last two need the extra explain.",
            "choices": EXPLAINERS,
        },
    )
    target_class: str | None = field(
        default=None, metadata={"help": "Class whose evidence is explained; by default the teacher's answer."}
    )
    most_images: int = field(
        default=64, metadata={"help": "Images that are explained at most, spread evenly over all that there are."}
    )
    pictures: int = field(
        default=12, metadata={"help": "Images of which pictures are drawn: half of them those that differ most."}
    )
    subspaces: bool = field(
        default=False,
        metadata={"help": "Show what excites the leading directions of each compared layer's subspace, too."},
    )
    other_subtasks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Subtasks of the same dataset, separated by spaces, to whose subspaces the angles are measured, "
            "with --subspaces; each as for --classes, with commas between classes."
        },
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of what was found; by default explanations, beside the student."}
    )
    seed: int = field(
        default=42, metadata={"help": "Seed of what is drawn: permutations of shapley, random rankings."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that comes with a repository."})

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        check_types(self)
        check_choices(self)
        if self.most_images < 1:
            raise SubDistillError(f"most_images={self.most_images}: expected at least 1")
        if self.pictures < 0:
            raise SubDistillError(f"pictures={self.pictures}: expected at least 0")
        if self.other_subtasks and not self.subspaces:
            raise SubDistillError("other_subtasks are compared with --subspaces: give both")


@dataclass
class ServeOptions:
    """Where the page of a student goes; it is served to this machine alone."""

    port: int = field(default=8000, metadata={"help": "Port on this machine; 0 takes one that is free."})
    space: str | None = field(
        default=None,
        metadata={"help": "Write the page to this folder, a static Space of the Hub, instead of serving it."},
    )
    runtime: str | None = field(
        default=None,
        metadata={
            "help": "Folder dist of npm's onnxruntime-web, which runs the student in the browser; by default in "
            "node_modules here or above."
        },
    )

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        check_types(self)
        if not 0 <= self.port <= LAST_PORT:
            raise SubDistillError(f"port={self.port}: expected a number from 0 to {LAST_PORT}")


@dataclass
class BenchmarkOptions(ExecutionOptions):
    """Where the results of a benchmark go, and how many processes train."""

    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the results, benchmark-NAME by default; runs that it holds are not repeated."},
    )
    workers: int | None = field(
        default=None,
        metadata={
            "help": "Runs at a time, a process each: by default as many as there are GPUs, else CPU cores. 0 runs "
            "them one by one in this process."
        },
    )
    report_only: bool = field(
        default=False,
        metadata={"help": "Train nothing: write the report of the runs that the folder holds, finished or not."},
    )
