"""The options of the commands beside `distill`, as plain dataclasses that import nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from subdistill_hf.config.bases import BASES
from subdistill_hf.config.options import DataOptions


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


@dataclass
class PushOptions:
    """Where to push a student; the access token is that of `hf auth login` or of HF_TOKEN."""

    repo: str | None = field(
        default=None,
        metadata={"help": "Repository: NAME or USER/NAME; by default named after teacher, student and classes."},
    )
    private: bool = field(
        default=False, metadata={"help": "Make the repository private; otherwise it is what is usual for the account."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, made if it is not there; by default the main one."}
    )


@dataclass
class BenchmarkOptions:
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
