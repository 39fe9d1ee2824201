"""Read a benchmark's YAML file, and say what is wrong with it."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from subdistill_hf.config.explainers import EXPLAINERS
from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.yaml_text import read_texts, read_values
from subdistill_hf.errors import SubDistillError

Options = dict[str, Any]
Value = TypeVar("Value")
WEIGHT_FACTOR = "layer_weight_factor"
SCIENTIFIC = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")

KEYS_OF_TASK = {
    "classes": "subtasks",
    "student": "students",
    "train_images_per_class": "train_images",
    "train_fraction": "train_images",
    "compare": "methods",
}
"""Options of what to distil that a run gets from a key of the file, and from nothing else."""
KEYS_OF_TRAINING = {"seed": "seeds", "method": "methods"}
"""The same for training arguments."""


class BenchmarkError(SubDistillError):
    """A benchmark file that cannot be read, or runs that cannot be made of it."""


@dataclass(frozen=True)
class Tuning:
    """How the hyper-parameters of each method are chosen, on validation images.

    Attributes:
        stages: each a mapping from whom it is for to the trials: a list of options, or lists of values whose every
            combination is tried. Whom: the name of a method in the file, what it is (`fitnet`), `layer` for methods
            with layer losses, `logit` for those without, or `all`; the first of these that is there counts. A stage
            starts from the best of the stage before, and `{}` is that best itself.
        subtasks: name to classes, other than the final ones; without them, each final subtask is tuned by itself.
        seeds: of the tuning runs.
        train_images: the size at which all sizes are tuned; without it, each is tuned by itself.
        student: the student with which all students are tuned; without it, each is tuned by itself.
    """

    stages: Sequence[Mapping[str, Any]]
    subtasks: Mapping[str, list[str]]
    seeds: Sequence[int]
    train_images: float | None = None
    student: str | None = None


@dataclass(frozen=True)
class ExplainedRuns:
    """How the final runs are explained.

    Attributes:
        method: a key of `EXPLAINERS`.
        images: test images of each run.
    """

    method: str
    images: int = 32


@dataclass(frozen=True)
class Benchmark:
    """A grid of runs: methods x subtasks x training images x seeds x students x conditions.

    Attributes:
        name: the heading of the table.
        methods: name in the table to options, of which `method` says what it is (by default the name itself).
        subtasks: name to classes, as `--classes` takes them.
        students: recipes, folders or ids, as `--student` takes them.
        train_images: training images a class, or, below 1, shares of them.
        seeds: of everything random in a run.
        task: teacher, dataset and augmentation: the options of `subdistill distill` that say what to distil.
        training: options and training arguments that all runs share.
        validation_images: validation images a class, beside the training images; without it, `validation_fraction` of
            the training images is held out.
        reference: the method that others are compared with.
        tuning: how hyper-parameters are chosen; without it each method has those of its options.
        conditions: name to further options of what to distil, such as `mark_share`; each has a table of its own.
            Hyper-parameters are tuned without them.
        explanations: how the students of the final runs are explained and compared with their teacher; without it they
            are not.
    """

    name: str
    methods: Mapping[str, Options]
    subtasks: Mapping[str, list[str]]
    students: Sequence[str]
    train_images: Sequence[float]
    seeds: Sequence[int]
    task: Options
    training: Options
    validation_images: int | None = None
    reference: str = "kd"
    tuning: Tuning | None = None
    conditions: Mapping[str, Options] = field(default_factory=dict)
    explanations: ExplainedRuns | None = None

    def kind(self, method: str) -> str:
        """The key of `METHODS` of a method of the table."""
        return str(self.methods[method].get("method", method))

    def trials(self, stage: Mapping[str, Any], method: str) -> list[Options]:
        """The options that a stage tries for a method.

        Raises:
            BenchmarkError: when the stage has nothing for it.
        """
        kind = self.kind(method)
        family = "logit" if METHODS[kind].layer_weight is None else "layer"
        for key in (method, kind, family, "all"):
            if key in stage:
                return _combinations(stage[key])
        raise BenchmarkError(
            f"a stage of tuning has trials for {', '.join(stage)} but none for {method!r}: name it, or give {kind!r}, "
            f"{family!r} or 'all'"
        )


def read_benchmark(path: str | Path) -> Benchmark:
    """Read and check a benchmark's YAML file.

    Raises:
        BenchmarkError: naming the file, the entry and what was expected.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content, written = read_values(text), read_texts(text)
    except (OSError, UnicodeDecodeError) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise BenchmarkError(f"{path} is not YAML: {error}") from error
    try:
        return _benchmark(content, written)
    except BenchmarkError as error:
        raise BenchmarkError(f"{path}: {error}") from error


def _benchmark(content: Any, written: Any) -> Benchmark:
    """The benchmark of a file's values; classes and students are names, so they count as they are written."""
    entries = _entries(content, "the file")
    refuse_unknown(entries, [one.name for one in fields(Benchmark)], "entry")
    for name in ("methods", "subtasks", "students", "train_images", "seeds"):
        if entries.get(name) in (None, "", [], {}):
            raise BenchmarkError(f"{name} is missing or empty")
    benchmark = Benchmark(
        name=str(entries.get("name", "benchmark")),
        methods=_methods(entries["methods"]),
        subtasks=_subtasks(written["subtasks"], "subtasks"),
        students=_once([str(student) for student in _list(written["students"])], "students"),
        train_images=_once([_size(size) for size in _list(entries["train_images"])], "train_images"),
        seeds=_once([_whole(seed, "seeds") for seed in _list(entries["seeds"])], "seeds"),
        task=_mapping(entries.get("task", {}), "task"),
        training=_mapping(entries.get("training", {}), "training"),
        validation_images=None
        if entries.get("validation_images") is None
        else _whole(entries["validation_images"], "validation_images"),
        reference=str(entries.get("reference", "kd")),
        tuning=None if entries.get("tuning") is None else _tuning(entries["tuning"], written["tuning"]),
        conditions={
            name: _mapping(options or {}, f"condition {name!r}")
            for name, options in _entries(entries.get("conditions") or {}, "conditions").items()
        },
        explanations=None if entries.get("explanations") is None else _explained_runs(entries["explanations"]),
    )
    if benchmark.reference not in benchmark.methods:
        raise BenchmarkError(
            f"reference is {benchmark.reference!r}: expected one of the methods, {', '.join(benchmark.methods)}"
        )
    _refuse_options_of_keys(benchmark)
    sizes = [*benchmark.train_images, *_tuning_sizes(benchmark)]
    if benchmark.validation_images is not None and any(map(is_share, sizes)):
        raise BenchmarkError("validation_images needs train_images in whole numbers, not shares")
    if benchmark.tuning is not None:
        _check_tuning(benchmark, benchmark.tuning)
    return benchmark


def _tuning_sizes(benchmark: Benchmark) -> list[float]:
    """The training images of the tuning runs, where they are not those of the final runs."""
    size = None if benchmark.tuning is None else benchmark.tuning.train_images
    return [] if size is None else [size]


def _refuse_options_of_keys(benchmark: Benchmark) -> None:
    """Refuse options that keys of the file give each run: they would be ignored, or reported as something else."""
    of_task = dict(KEYS_OF_TASK)
    if benchmark.validation_images is not None:
        of_task["validation_fraction"] = "validation_images"
    of_method = {name: key for name, key in KEYS_OF_TRAINING.items() if name != "method"}
    places = [("task", benchmark.task, of_task), ("training", benchmark.training, KEYS_OF_TRAINING)]
    places += [(f"condition {name!r}", options, of_task) for name, options in benchmark.conditions.items()]
    places += [(f"method {name!r}", options, of_method) for name, options in benchmark.methods.items()]
    for stage in benchmark.tuning.stages if benchmark.tuning is not None else ():
        trials = [trial for method in benchmark.methods for trial in benchmark.trials(stage, method)]
        places += [("a trial of tuning", trial, KEYS_OF_TRAINING) for trial in trials]
    for where, options, keys in places:
        for name in options:
            if name in keys:
                raise BenchmarkError(f"{where} has {name!r}: give {keys[name]!r} of the file instead")


def _check_tuning(benchmark: Benchmark, tuning: Tuning) -> None:
    """Every method gets as many trials, on subtasks that are not the final ones."""
    for number, stage in enumerate(tuning.stages, start=1):
        counts = {method: len(benchmark.trials(stage, method)) for method in benchmark.methods}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{method} {count}" for method, count in counts.items())
            raise BenchmarkError(f"stage {number} of tuning is not the same number of trials for all methods: {told}")
    final = {frozenset(classes) for classes in benchmark.subtasks.values()}
    for name, classes in tuning.subtasks.items():
        if frozenset(classes) in final or name in benchmark.subtasks:
            raise BenchmarkError(f"{name!r} is among the tuning subtasks and the final ones: expected others")


def _tuning(content: Any, written: Any) -> Tuning:
    entries = _entries(content, "tuning")
    refuse_unknown(entries, [one.name for one in fields(Tuning)], "entry of tuning")
    if not entries.get("stages"):
        raise BenchmarkError("tuning has no stages")
    size = entries.get("train_images")
    student = entries.get("student")
    return Tuning(
        stages=[_mapping(stage, "a stage of tuning") for stage in _list(entries["stages"])],
        subtasks=_subtasks(written.get("subtasks") or {}, "subtasks of tuning"),
        seeds=[_whole(seed, "seeds of tuning") for seed in _list(entries.get("seeds", [0]))],
        train_images=None if size is None else _size(size),
        student=None if student is None else str(student),
    )


def _explained_runs(content: Any) -> ExplainedRuns:
    """How runs are explained: the name of a method, or its name and the number of images."""
    entries = {"method": content} if isinstance(content, str) else _entries(content, "explanations")
    refuse_unknown(entries, [one.name for one in fields(ExplainedRuns)], "entry of explanations")
    if entries.get("method") not in EXPLAINERS:
        raise BenchmarkError(
            f"explanations has the method {entries.get('method')!r}: expected one of {', '.join(EXPLAINERS)}"
        )
    images = _whole(entries.get("images", ExplainedRuns.images), "images of explanations")
    if images < 1:
        raise BenchmarkError(f"explanations has images {images}: expected at least 1")
    return ExplainedRuns(str(entries["method"]), images)


def _methods(content: Any) -> dict[str, Options]:
    if isinstance(content, list):
        content = {name: {} for name in _once([str(name) for name in content], "methods")}
    methods = {}
    for name, options in _mapping(content, "methods").items():
        methods[name] = _mapping(options or {}, f"method {name!r}")
        kind = methods[name].get("method", name)
        if kind not in METHODS:
            raise BenchmarkError(f"method {name!r} is {kind!r}: expected `method:` to be one of {', '.join(METHODS)}")
    return methods


def _subtasks(content: Any, where: str) -> dict[str, list[str]]:
    """Name to classes; an entry of a list is its own name, `superclass:` and `subtask:` apart."""
    if isinstance(content, list):
        names = [", ".join(str(one).rpartition(":")[2] for one in _list(entry)) for entry in content]
        content = dict(zip(_once(names, where), content, strict=True))
    return {name: [str(one) for one in _list(classes)] for name, classes in _entries(content, where).items()}


def _once(values: list[Value], where: str) -> list[Value]:
    """The same values.

    Raises:
        BenchmarkError: for one that is there twice.
    """
    for value in values:
        if values.count(value) > 1:
            raise BenchmarkError(f"{where} has {value!r} twice: leave one out, or give entries names of their own")
    return values


def _combinations(trials: Any) -> list[Options]:
    if isinstance(trials, Mapping):
        values = [_list(value) for value in trials.values()]
        return [dict(zip(trials, chosen, strict=True)) for chosen in itertools.product(*values)]
    return [_mapping(trial or {}, "a trial of tuning") for trial in _list(trials)]


def _mapping(content: Any, where: str) -> dict[str, Any]:
    return {name: _number(value) for name, value in _entries(content, where).items()}


def _entries(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise BenchmarkError(f"{where} is {content!r}: expected names with values")
    return {str(name): value for name, value in content.items()}


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text."""
    if isinstance(value, list):
        return [_number(one) for one in value]
    if isinstance(value, dict):
        return {name: _number(one) for name, one in value.items()}
    return float(value) if isinstance(value, str) and SCIENTIFIC.fullmatch(value) else value


def _list(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [content]


def _whole(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BenchmarkError(f"{where} has {value!r}: expected whole numbers")
    return value


def is_share(size: float) -> bool:
    """Whether a number of training images is a share of them: 1.0 is one, and 1 is an image a class."""
    return isinstance(size, float)


def _size(value: Any) -> float:
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    if not valid or (value > 1 and value != int(value)):
        raise BenchmarkError(f"train_images has {value!r}: expected numbers of images a class, or shares below 1")
    return int(value) if value > 1 or isinstance(value, int) else float(value)


def refuse_unknown(
    entries: Iterable[str], known: Sequence[str], what: str, near: Sequence[str] = (), otherwise: str = ""
) -> None:
    """Refuse names that are spelled wrongly, or stand under the wrong heading.

    Args:
        entries: the names.
        known: those that may be among them.
        what: what the known ones are.
        near: where else a name may belong, to be suggested.
        otherwise: what to say where nothing comes near; by default all that are known.

    Raises:
        BenchmarkError: for the first one that is not known.
    """
    for name in entries:
        if name not in known:
            meant = difflib.get_close_matches(name, [*known, *near], n=1)
            hint = f"did you mean {meant[0]!r}?" if meant else otherwise or f"expected {', '.join(known)}"
            raise BenchmarkError(f"{name!r} is no {what}; {hint}")
