"""`subdistill family`: one expert after the other from one teacher, an index of all, and the way to go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from subdistill_hf.config.commands import FamilyOptions
from subdistill_hf.config.options import EMBEDDED_TEACHERS, TaskOptions
from subdistill_hf.config.output_folder import held_for_this_run, refuse_other_files, written_whole
from subdistill_hf.config.validation import with_home
from subdistill_hf.errors import InterruptedTrainingError, PushError
from subdistill_hf.executors.base import ExecutionError, Executor
from subdistill_hf.executors.choice import executor_of
from subdistill_hf.family.experts import LOGS_FOLDER, ExpertRun, finished_report, train_expert
from subdistill_hf.family.subtasks import Expert, FamilyError, experts_of
from subdistill_hf.formatting import duration
from subdistill_hf.hub.family import FAMILY_FILE, finished_experts, name_of_family, push_family
from subdistill_hf.hub.files import CARD_FILE, weights_identity
from subdistill_hf.hub.publish import sign_in
from subdistill_hf.pipeline.auto import options_for_teacher
from subdistill_hf.pipeline.validation import validate_options
from subdistill_hf.reporting.family_page import PLOT_FILE, ExpertEntry, FamilyIndex, told_result, write_index
from subdistill_hf.training.resuming import PARTS

FORMAT: Final = 1
WEIGHTS_ENTRY: Final = "teacher_weights"
"""The entry of `FAMILY_FILE` with the digest of the teacher's weights."""
FOR_THE_HUB: Final = ("push_to_hub", "hub_private_repo", "hub_token")
"""Training arguments that are the family's, and none of its experts'."""
NO_MEANING: Final = {
    "classes": "give --subtasks",
    "resume_from_checkpoint": "the same command, without --overwrite, goes on with what is not finished",
    "hub_model_id": "the repositories are named after the folder, or push it with subdistill push --repo",
    "hub_strategy": "each expert is pushed when it is finished",
    "hub_revision": "push the folder with subdistill push --revision",
}
OWN_NAMES: Final = (FAMILY_FILE, CARD_FILE, PLOT_FILE, LOGS_FOLDER)
"""What the folder of a family holds beside its experts."""
FREE: Final = {name for part in PARTS if part.change == "free" for name in part.arguments} | {
    "disable_tqdm",
    "report_to",
    "overwrite",
}
"""Options that may be others when a family is continued."""


@dataclass(frozen=True)
class FamilyRequest:
    """A family that is to be there.

    Attributes:
        options: which experts, and what runs them.
        folder: of the family.
        task: options of what to distil that were given, without classes; fields of `TaskOptions`.
        training: training arguments that were given, without a folder; fields of `SubDistillConfig`.
        command: how to make it again, for the index.
    """

    options: FamilyOptions
    folder: Path
    task: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None

    def __post_init__(self) -> None:
        """Take the folder that its experts are written to, whose training arguments take `~` for the home folder."""
        object.__setattr__(self, "folder", Path(with_home("output_dir", self.folder)))

    @property
    def compared(self) -> dict[str, Any]:
        """The given options that shape the experts, JSON-able."""
        given = {**self.task, **self.training}
        kept = {name: value for name, value in sorted(given.items()) if name not in FREE and name not in FOR_THE_HUB}
        found: dict[str, Any] = json.loads(json.dumps(kept))
        return found

    @property
    def teacher_weights(self) -> str | None:
        """A digest of the weights of a teacher in a folder, which may be fitted anew; `None` for any other."""
        name = self.task.get("teacher", EMBEDDED_TEACHERS[0])
        return None if name in EMBEDDED_TEACHERS or not Path(name).is_dir() else weights_identity(name)


def distill_family(request: FamilyRequest) -> Path:
    """Distil one expert for each subtask; those that are finished are kept, and one that was cut short is resumed.

    Experts of other subtasks that an earlier call has left in the folder stay in the family. The folder gets a folder
    for each expert, as `distill` leaves it, `README.md` with a table and a plot, and `logs/` with what the runs print.

    Args:
        request: teacher, dataset, subtasks and options.

    Returns:
        The folder.

    Raises:
        FamilyError: for options, subtasks or a folder that do not fit, before anything is trained; or at the end,
            when an expert has failed: the others are whole.
        InterruptedTrainingError: when SIGTERM stopped a training (`enable_jit_checkpoint`).
        PushError: when the Hub cannot be written; the folder is whole. It tells of experts that have failed, too.
    """
    _check(request)
    task = _with_student(request.task)
    training = {name: value for name, value in request.training.items() if name not in FOR_THE_HUB}
    experts = experts_of(TaskOptions(**task), request.options.subtasks)
    taken = [expert.name for expert in experts if expert.name.casefold() in map(str.casefold, OWN_NAMES)]
    if taken:
        raise FamilyError(
            f"an expert cannot be called {taken[0]!r}, as the family's folder has a file or folder of this name: give "
            "it another one in a YAML file"
        )
    runs = [ExpertRun(expert, str(request.folder), task, training) for expert in experts]
    for run in runs:
        config = run.config
        if config.world_size > 1:
            raise FamilyError("a family is distilled by one process: it was started by a launcher of several")
        validate_options(run.options, config)
    executor = executor_of(request.options, request.options.workers, 0, torch.cuda.device_count())
    pushed = bool(request.training.get("push_to_hub"))
    if pushed:
        sign_in(name_of_family(request.folder), token=request.training.get("hub_token"))
    with held_for_this_run(request.folder):
        family, commands = _open_folder(request, experts)
        failed = _train_all(runs, executor)
        _write_index([ExpertRun(expert, str(request.folder), task, training) for expert in family], failed, commands)
    told = (
        f"{len(failed)} of {len(runs)} experts failed; the others are whole. The same command, without --overwrite, "
        "tries again:\n" + "\n".join(f"  {name}: {reason}" for name, reason in failed.items())
    )
    if pushed and finished_experts(request.folder):
        try:
            _push(request)
        except PushError as error:
            raise PushError(f"{error}\n{told}" if failed else str(error)) from error
    if failed:
        raise FamilyError(told)
    print(f"\nThe family is in {request.folder}; its index is {request.folder / 'README.md'}")
    return request.folder


def _push(request: FamilyRequest) -> None:
    """Push the finished experts of a family as its training arguments say, and print the collection's address."""
    private, token = request.training.get("hub_private_repo"), request.training.get("hub_token")
    print(push_family(request.folder, private=private, token=token))


def _check(request: FamilyRequest) -> None:
    """Refuse options that a family has no use for.

    Raises:
        FamilyError: naming the option.
    """
    for name, instead in NO_MEANING.items():
        if name in request.task or name in request.training:
            raise FamilyError(f"{name} has no meaning for a family: {instead}")
    if request.task.get("adapt_teacher", "no") != "no":
        raise FamilyError(
            "adapt_teacher would fit the teacher anew for each expert: fit it to all classes once, with subdistill "
            "adapt, and give its folder as --teacher. One that takes words: with subdistill distill --classes all, "
            "and give the folder teacher-adapter that this leaves"
        )
    if request.task.get("teacher", EMBEDDED_TEACHERS[0]) not in EMBEDDED_TEACHERS and "dataset" not in request.task:
        raise FamilyError("a family needs --dataset: the images of the classes")


def _with_student(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options of the task, and the student that suits the teacher where none was given."""
    task = {name: value for name, value in given.items() if name != "overwrite"}
    _, choices = options_for_teacher(TaskOptions(**task), {*task, "dataset", "classes"})
    for choice in choices:
        print(f"chosen for this teacher, as nothing else was asked for:\n  {choice}\n")
    return task | {choice.option: choice.value for choice in choices}


def _open_folder(request: FamilyRequest, experts: Sequence[Expert]) -> tuple[list[Expert], list[str]]:
    """Note what the family is; refuse the folder of another one, or of something else.

    Returns:
        All experts of the family, those of earlier calls first; and the commands that make them.

    Raises:
        FamilyError: naming what differs.
    """
    path = request.folder / FAMILY_FILE
    classes = {expert.name: list(expert.classes) for expert in experts}
    weights = request.teacher_weights
    earlier: dict[str, list[str]] = {}
    commands: list[str] = []
    if path.is_file() and request.task.get("overwrite"):
        for name in [*json.loads(path.read_text(encoding="utf-8"))["experts"], LOGS_FOLDER]:
            shutil.rmtree(request.folder / name, ignore_errors=True)
    elif path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        before, now = known["options"], request.compared
        differing = [name for name in before | now if before.get(name) != now.get(name)]
        differing += [
            name for name in known["experts"] if classes.get(name, known["experts"][name]) != known["experts"][name]
        ]
        if differing:
            raise FamilyError(
                f"{request.folder} holds a family with another choice of {', '.join(differing)}: continue it with the "
                "same options, or use --overwrite to replace it, or another --output_dir"
            )
        if known.get(WEIGHTS_ENTRY, weights) != weights:
            raise FamilyError(
                f"the teacher {request.task['teacher']} has other weights than when the family in {request.folder} "
                "was begun, and a family has one teacher: continue it with the earlier weights, or use --overwrite "
                "to replace all experts, or another --output_dir"
            )
        others = {name: of_expert for name, of_expert in known["experts"].items() if name not in classes}
        earlier = {name: of_expert for name, of_expert in others.items() if (request.folder / name).is_dir()}
        commands = known.get("commands", []) if earlier else []
    else:
        refuse_other_files(request.folder, (), error=FamilyError)
    request.folder.mkdir(parents=True, exist_ok=True)
    commands = list(dict.fromkeys([*commands, *([request.command] if request.command else [])]))
    content = {
        "format": FORMAT,
        "options": request.compared,
        WEIGHTS_ENTRY: weights,
        "experts": earlier | classes,
        "commands": commands,
    }
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [*(Expert(name, tuple(of_expert)) for name, of_expert in earlier.items()), *experts], commands


def _train_all(runs: Sequence[ExpertRun], executor: Executor) -> dict[str, str]:
    """Distil what is missing, with a line for each expert.

    Returns:
        Name to reason of those that failed.
    """
    missing = [run for run in runs if finished_report(run) is None]
    print(f"{len(runs) - len(missing)} of {len(runs)} experts are there", flush=True)
    failed = {}
    try:
        for number, (run, outcome) in enumerate(executor.run(missing, train_expert), start=1):
            place = f"[{number}/{len(missing)}] {run}"
            report = finished_report(run)
            if report is None:
                failed[str(run)] = outcome.error or f"the run ended without a student: see {run.log}"
                print(f"{place}: failed: {failed[str(run)]}", flush=True)
            else:
                print(f"{place}: {told_result(report)} ({duration(outcome.seconds)})", flush=True)
    except InterruptedTrainingError as error:
        raise InterruptedTrainingError(
            "SIGTERM stopped the training of an expert, and no other was begun. Those that "
            "are finished are whole. To go on: the same command, without --overwrite"
        ) from error
    except ExecutionError as error:  # a process was killed
        unfinished = [run for run in missing if str(run) not in failed and finished_report(run) is None]
        failed |= {str(run): str(error) for run in unfinished}
    return failed


def _write_index(runs: Sequence[ExpertRun], failed: Mapping[str, str], commands: Sequence[str]) -> None:
    """Write the index of all experts of a family, whose runs are given."""
    entries = [
        ExpertEntry(run.expert.name, run.expert.classes, finished_report(run), failed.get(str(run))) for run in runs
    ]
    folder = Path(runs[0].folder)
    write_index(FamilyIndex(folder.resolve().name, tuple(entries), tuple(commands)), folder)
