"""A family of three experts: one cannot be, one is cut short and goes on, and all are those of separate runs."""

import collections
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from helpers import NAMES, assert_equal_weights, save_teacher, teacher_resnet, write_task
from subdistill_hf.config.commands import FamilyOptions
from subdistill_hf.config.defaults import RUN_DEFAULTS
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.core.subspaces import load_subspaces
from subdistill_hf.errors import InterruptedTrainingError, PushError, SubDistillError
from subdistill_hf.family import experts
from subdistill_hf.family.experts import ExpertRun, finished_report
from subdistill_hf.family.run import FamilyRequest, distill_family
from subdistill_hf.family.subtasks import Expert, FamilyError
from subdistill_hf.hub.family import finished_experts
from subdistill_hf.pipeline.run import distill
from subdistill_hf.reporting.exported import Latency
from subdistill_hf.reporting.report import RunReport, Usage
from subdistill_hf.teacher import teacher
from subdistill_hf.training.checkpoints import last_complete_checkpoint
from subdistill_hf.training.trainer import SubDistillTrainer

pytestmark = pytest.mark.usefixtures("datasets_cache")
STRANGER = "zzz_unknown_to_the_teacher"
SUBTASKS = {"first": list(NAMES[:2]), "stranger": [NAMES[0], STRANGER], "second": list(NAMES[1:])}
TRAINING = {
    "use_cpu": True,
    "max_steps": 4,
    "save_steps": 2,
    "eval_steps": 2,
    "per_device_train_batch_size": 8,
    "report_to": "none",
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_task(tmp_path_factory.mktemp("inputs"))
    for split in ("train", "test"):
        place = folder / "images" / split / STRANGER
        shutil.copytree(folder / "images" / split / NAMES[0], place)
        for path in place.iterdir():
            path.write_bytes(path.read_bytes() + b"other")
    (folder / "subtasks.yaml").write_text(yaml.safe_dump(SUBTASKS, sort_keys=False), encoding="utf-8")
    return folder


def task_of(inputs):
    return {
        "teacher": str(inputs / "teacher"),
        "dataset": str(inputs / "images"),
        "student": "resnet:widths=8-8-8,image=32",
    }


def request_of(inputs, folder, subtasks=None, **changed):
    given = {**TRAINING, "teacher_cache_dir": str(inputs / "targets"), **task_of(inputs), **changed}
    task = {name: given.pop(name) for name in (*task_of(inputs), "overwrite", "adapt_teacher") if name in given}
    return FamilyRequest(
        FamilyOptions(subtasks=list(subtasks or [str(inputs / "subtasks.yaml")])),
        folder,
        task,
        given,
        command="subdistill family ...",
    )


@pytest.fixture(scope="module")
def patch_usage():
    with pytest.MonkeyPatch.context() as patch:
        usage = Usage(code="code", output="output")
        patch.setattr("subdistill_hf.pipeline.student_folder._run_usage", lambda *given: usage)
        latency = Latency(median=1.0, low=1.0, high=1.0, runs=1)
        measured = lambda networks, *given: dict.fromkeys(networks, latency)  # noqa: E731
        patch.setattr("subdistill_hf.pipeline.report.measure_latency", measured)
        yield


@pytest.fixture(scope="module")
def family(inputs, patch_usage, tmp_path_factory):
    """The folder, what was said at the end, and how often some things were done in each of two attempts."""
    folder, attempts = tmp_path_factory.mktemp("family") / "out", []
    experts._loaded_teacher.cache_clear()
    for cut in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            counts = count(patch, (experts, "load_teacher"), (teacher, "weights_digest"), (experts, "distill"))
            if cut:
                interrupt_at(patch, NAMES[2], step=2)
            with pytest.raises(KeyboardInterrupt if cut else FamilyError) as error:
                distill_family(request_of(inputs, folder))
        attempts.append(counts)
        if cut:
            experts._loaded_teacher.cache_clear()  # as in a new process
    return folder, str(error.value), attempts


def count(patch, *functions):
    counts = collections.Counter()

    def counted(owner, name):
        real = getattr(owner, name)

        def call(*given, **options):
            counts[name] += 1
            return real(*given, **options)

        patch.setattr(owner, name, call)

    for owner, name in functions:
        counted(owner, name)
    return counts


def interrupt_at(patch, name, step):
    """Ctrl-C after a step of the student that knows a class as its last."""
    real = SubDistillTrainer.training_step

    def training_step(trainer, *given, **options):
        if trainer.state.global_step == step and trainer.model.config.id2label[1] == name:
            raise KeyboardInterrupt
        return real(trainer, *given, **options)

    patch.setattr(SubDistillTrainer, "training_step", training_step)


@pytest.mark.parametrize("name", ["first", "second"])
def test_an_expert_is_that_of_a_separate_run(family, inputs, patch_usage, tmp_path, name):
    """Also the one that was cut short in the middle: students equal bit for bit, and subspaces to 1e-8."""
    folder, _, _ = family
    options = TaskOptions(**task_of(inputs), classes=SUBTASKS[name])
    arguments = TRAINING | {"output_dir": str(tmp_path / name), "teacher_cache_dir": str(tmp_path / "targets")}
    distill(options, SubDistillConfig(**RUN_DEFAULTS | arguments))
    assert_equal_weights(*(load_file(place / name / "model.safetensors") for place in (folder, tmp_path)))
    found, alone = (
        load_subspaces(last_complete_checkpoint(place / name / "runs" / "subdistill")) for place in (folder, tmp_path)
    )
    assert found.keys() == alone.keys()
    assert found
    for layer, subspace in found.items():
        assert float((subspace.basis - alone[layer].basis).abs().max()) <= 1e-8
    figures = [RunReport.load(place / name) for place in (folder, tmp_path)]
    assert figures[0].results[0].accuracy == figures[1].results[0].accuracy
    assert figures[0].teacher.digest == figures[1].teacher.digest


def test_the_teacher_is_loaded_and_hashed_once_in_a_process(family):
    _, _, (before, after) = family
    assert before == {"load_teacher": 1, "weights_digest": 1, "distill": 3}
    assert after == {"load_teacher": 1, "weights_digest": 1, "distill": 2}  # what was finished is not repeated


def test_a_failure_leaves_the_others_whole_and_is_told_at_the_end(family):
    folder, said, _ = family
    assert said.startswith("1 of 3 experts failed; the others are whole. The same command, without --overwrite, tries")
    assert STRANGER in said
    assert not (folder / "stranger").exists()
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "[first](first/README.md)" in page
    assert "[second](second/README.md)" in page
    assert f"- stranger: the teacher has no class '{STRANGER}'" in page
    assert "subdistill family ..." in page
    assert (folder / "accuracies.png").is_file()
    assert {path.name for path in (folder / "logs").iterdir()} == {"first.txt", "second.txt", "stranger.txt"}


def test_a_line_tells_of_each_expert(family, inputs, capsys):
    folder, _, _ = family
    with pytest.raises(FamilyError):
        distill_family(request_of(inputs, folder))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 of 3 experts are there"
    assert lines[1].startswith("[1/1] stranger: failed: the teacher has no class")


def test_a_family_that_is_whole_is_left_as_it_is(family, inputs, capsys):
    folder, _, _ = family
    distill_family(request_of(inputs, folder, subtasks=(str(write(inputs, {"first": SUBTASKS["first"]})),)))
    assert "1 of 1 experts are there" in capsys.readouterr().out


def test_subtasks_may_be_added_and_experts_that_are_there_stay_in_the_family(
    inputs, patch_usage, tmp_path, monkeypatch
):
    """Also in what is pushed, which goes by the same file; an expert that never began is forgotten."""

    def add(name, command):
        one = request_of(inputs, tmp_path / "out", subtasks=(str(write(inputs, {name: SUBTASKS[name]})),))
        return distill_family(replace(one, command=command))

    with pytest.raises(FamilyError):
        add("stranger", "make stranger")
    add("first", "make first")
    folder = add("second", "make second")
    assert finished_experts(folder) == ["first", "second"]
    assert json.loads((folder / "family.json").read_text(encoding="utf-8"))["experts"].keys() == {"first", "second"}
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "\n2 experts for classes of " in page
    assert [line.split("](")[0] for line in page.splitlines() if line.startswith("| [")] == ["| [first", "| [second"]
    assert "make first\nmake second\n" in page
    add("first", "make first")
    assert finished_experts(folder) == ["second", "first"]
    monkeypatch.setattr("subdistill_hf.family.run.train_expert", lambda run: experts.Outcome(0.0, "not tried"))
    with pytest.raises(FamilyError, match="not tried"):
        distill_family(request_of(inputs, folder, overwrite=True))
    assert not (folder / "first").exists()
    assert not (folder / "second").exists()


def test_the_folder_of_a_family_is_that_of_its_experts(inputs, tmp_path, monkeypatch):
    """Though `~` is the home folder for training arguments, and a folder's name for Python."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    request = request_of(inputs, Path("~/fam"))
    run = ExpertRun(Expert("first", NAMES[:2]), str(request.folder), request.task, request.training)
    assert Path(run.config.output_dir) == run.place == tmp_path / "home" / "fam" / "first"


def write(inputs, subtasks):
    path = inputs / "some.yaml"
    path.write_text(yaml.safe_dump(subtasks), encoding="utf-8")
    return path


def test_other_options_or_classes_are_refused(family, inputs):
    folder, _, _ = family
    with pytest.raises(FamilyError, match=r"another choice of max_steps, seed: continue it"):
        distill_family(request_of(inputs, folder, max_steps=5, seed=1))
    changed = write(inputs, {"first": list(NAMES)})
    with pytest.raises(FamilyError, match="another choice of first"):
        distill_family(request_of(inputs, folder, subtasks=(str(changed),)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"resume_from_checkpoint": "true"}, "the same command, without --overwrite, goes on"),
        ({"hub_model_id": "a"}, "subdistill push --repo"),
        ({"adapt_teacher": "lora"}, "fit it to all classes once"),
        ({"mix": 3.0}, "mix=3.0: expected a share"),
        ({"basis": "no"}, "basis='no'"),
    ],
)
def test_options_are_refused_before_any_work(inputs, tmp_path, changed, message):
    request = request_of(inputs, tmp_path / "out", **changed)
    if "mix" in changed:
        request = FamilyRequest(request.options, request.folder, {**request.task, **changed}, TRAINING)
    with pytest.raises(ValueError, match=message):
        distill_family(request)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(inputs, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FamilyError, match="already holds other files"):
        distill_family(request_of(inputs, tmp_path))


def test_overwriting_begins_again(inputs, tmp_path, monkeypatch):
    request = request_of(inputs, tmp_path, overwrite=True, max_steps=7)
    (tmp_path / "family.json").write_text(json.dumps({"options": {}, "experts": {"old": ["a"]}}), encoding="utf-8")
    (tmp_path / "old").mkdir()
    monkeypatch.setattr("subdistill_hf.family.run.train_expert", lambda run: experts.Outcome(0.0, "not tried"))
    with pytest.raises(FamilyError, match="not tried"):
        distill_family(request)
    assert not (tmp_path / "old").exists()
    assert json.loads((tmp_path / "family.json").read_text(encoding="utf-8"))["experts"] == SUBTASKS


@pytest.mark.parametrize("name", ["logs", "README.md", "Accuracies.png"])
def test_an_expert_cannot_have_a_name_of_the_family_s_own(inputs, tmp_path, name):
    (tmp_path / "subtasks.yaml").write_text(yaml.safe_dump({name: list(NAMES[:2])}), encoding="utf-8")
    request = FamilyRequest(FamilyOptions([str(tmp_path / "subtasks.yaml")]), tmp_path / "family", task_of(inputs))
    with pytest.raises(FamilyError, match=f"cannot be called '{name}'"):
        distill_family(request)
    assert not (tmp_path / "family").exists()


def test_a_mistake_of_ours_is_told_as_a_failure(inputs, tmp_path, monkeypatch, capsys):
    def mistaken(*given):
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(experts, "distill", mistaken)
    run = ExpertRun(Expert("first", NAMES[:2]), str(tmp_path), task_of(inputs), TRAINING)
    assert experts.train_expert(run).error == "ZeroDivisionError: of ours"
    assert "Traceback" in capsys.readouterr().err


def test_the_command_of_an_expert_distils_it_alone():
    run = ExpertRun(Expert("dice", ("superclass:dice",)), "out", {"flip": False, "compare": ["kd"]}, {"max_steps": 2})
    assert run.command == (
        "subdistill distill --flip False --compare kd --classes superclass:dice --max_steps 2 --output_dir out/dice"
    )


def test_a_run_of_other_classes_is_not_finished(family):
    folder, _, _ = family
    run = ExpertRun(Expert("first", tuple(NAMES[:2])), str(folder), {}, {})
    assert finished_report(run) is not None
    assert finished_report(ExpertRun(Expert("first", tuple(NAMES[1:])), str(folder), {}, {})) is None


@pytest.mark.parametrize("moment", ["student_folder.save_card", "student_folder._draw", "run.write_page"])
def test_an_expert_that_is_cut_short_while_its_folder_is_written_is_not_finished(
    inputs, patch_usage, tmp_path, monkeypatch, moment
):
    def interrupt(*given):
        raise KeyboardInterrupt

    subtasks = (str(write(inputs, {"first": SUBTASKS["first"]})),)
    request = request_of(inputs, tmp_path / "out", subtasks=subtasks, max_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(f"subdistill_hf.pipeline.{moment}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            distill_family(request)
    assert (tmp_path / "out" / "first" / "report.json").is_file()
    assert finished_experts(tmp_path / "out") == []
    distill_family(request)
    assert finished_experts(tmp_path / "out") == ["first"]
    left = {path.name for path in (tmp_path / "out" / "first").iterdir()}
    assert {"README.md", "confusion.png", "contact_sheet.png", "report.html"} <= left
    assert "(confusion.png)" in (tmp_path / "out" / "first" / "README.md").read_text(encoding="utf-8")


def test_an_error_that_comes_of_an_interruption_is_no_failure_of_an_expert(inputs, tmp_path, monkeypatch):
    def interrupted(*given):
        raise SubDistillError("the images cannot be read") from KeyboardInterrupt()

    monkeypatch.setattr(experts, "distill", interrupted)
    run = ExpertRun(Expert("first", NAMES[:2]), str(tmp_path), task_of(inputs), TRAINING)
    with pytest.raises(SubDistillError):
        experts.train_expert(run)


# Its teacher


def test_after_sigterm_no_other_expert_is_begun(inputs, tmp_path, monkeypatch):
    begun = []

    def stopped(options, config, command, teacher):
        begun.append(list(options.classes))
        raise InterruptedTrainingError("SIGTERM stopped the training of method kd at step 2 of 4")

    monkeypatch.setattr(experts, "distill", stopped)
    with pytest.raises(InterruptedTrainingError, match=r"To go on: the same command, without --overwrite"):
        distill_family(request_of(inputs, tmp_path / "family"))
    assert begun == [SUBTASKS["first"]]
    assert not (tmp_path / "family" / "README.md").exists()


def test_a_teacher_that_was_fitted_anew_is_refused(inputs, tmp_path, monkeypatch):
    """Its folder is called as before, so the options are the same."""
    monkeypatch.setattr("subdistill_hf.family.run.train_expert", lambda run: experts.Outcome(0.0, "not tried"))
    teacher_folder = save_teacher(tmp_path / "teacher")
    request = request_of(inputs, tmp_path / "out", teacher=str(teacher_folder))
    for _ in range(2):
        with pytest.raises(FamilyError, match="not tried"):
            distill_family(request)
    save_teacher(teacher_folder, teacher_resnet(seed=9))
    with pytest.raises(FamilyError, match=r"teacher has other weights than when the family in .* use --overwrite"):
        distill_family(request)
    known = json.loads((tmp_path / "out" / "family.json").read_text(encoding="utf-8"))
    del known["teacher_weights"]  # as an earlier version left it
    (tmp_path / "out" / "family.json").write_text(json.dumps(known), encoding="utf-8")
    with pytest.raises(FamilyError, match="not tried"):
        distill_family(request)


# The Hub


@pytest.fixture
def pushes(monkeypatch):
    """What was asked of a Hub, and the error that a push ends with, if any."""
    asked = {"signed in": [], "pushed": [], "error": None}

    def push_family(folder, **options):
        asked["pushed"].append(options)
        if asked["error"] is not None:
            raise asked["error"]
        return "the collection"

    monkeypatch.setattr("subdistill_hf.family.run.sign_in", lambda name, **options: asked["signed in"].append(name))
    monkeypatch.setattr("subdistill_hf.family.run.push_family", push_family)
    monkeypatch.setattr("subdistill_hf.family.run.train_expert", lambda run: experts.Outcome(0.0, "no such class"))
    return asked


TOKEN = "a-token-of-the-user"


def test_a_family_is_pushed_under_the_name_of_its_folder_and_as_private_as_asked(
    family, inputs, pushes, tmp_path, capsys
):
    folder = shutil.copytree(family[0], tmp_path / "my family")
    subtasks = (str(write(inputs, {"first": SUBTASKS["first"]})),)
    for private in (True, False, None):
        asked = {} if private is None else {"hub_private_repo": private}
        distill_family(request_of(inputs, folder, subtasks, push_to_hub=True, hub_token=TOKEN, **asked))
    assert pushes["signed in"] == ["my-family"] * 3
    assert pushes["pushed"] == [{"private": private, "token": TOKEN} for private in (True, False, None)]
    assert "the collection" in capsys.readouterr().out


def test_no_file_of_a_family_holds_the_token(inputs, pushes, tmp_path, monkeypatch):
    given = []
    tried = lambda run: (given.append(run), experts.Outcome(0.0, "no such class"))[1]  # noqa: E731
    monkeypatch.setattr("subdistill_hf.family.run.train_expert", tried)
    request = request_of(inputs, tmp_path / "out", push_to_hub=True, hub_token=TOKEN, hub_private_repo=True)
    with pytest.raises(FamilyError, match="3 of 3 experts failed"):
        distill_family(request)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"family.json", "README.md"}
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)
    options = json.loads((tmp_path / "out" / "family.json").read_text(encoding="utf-8"))["options"]
    assert options.keys().isdisjoint({"hub_token", "hub_private_repo", "push_to_hub"})
    assert len(given) == 3
    assert all(TOKEN not in run.command for run in given)
    assert all(run.training.keys().isdisjoint({"hub_token", "push_to_hub"}) for run in given)


def test_a_push_hides_no_experts_that_failed(family, inputs, pushes, tmp_path):
    """Where none is finished nothing is pushed, and where the push fails too both are told."""
    failed = r"1 of 1 experts failed; .*\n  stranger: no such class"
    alone = (str(write(inputs, {"stranger": SUBTASKS["stranger"]})),)
    with pytest.raises(FamilyError, match=failed):
        distill_family(request_of(inputs, tmp_path / "none", alone, push_to_hub=True))
    assert pushes["pushed"] == []
    folder = shutil.copytree(family[0], tmp_path / "some")
    with pytest.raises(FamilyError, match=failed):
        distill_family(request_of(inputs, folder, alone, push_to_hub=True))
    assert len(pushes["pushed"]) == 1
    pushes["error"] = PushError("the Hub was not reached")
    with pytest.raises(PushError, match=rf"^the Hub was not reached\n{failed}"):
        distill_family(request_of(inputs, folder, alone, push_to_hub=True))
