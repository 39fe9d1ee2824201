"""A training that SIGTERM stops at a checkpoint ends as interrupted, and goes on from there."""

import os
import signal

import pytest
from transformers import TrainerCallback
from transformers.trainer_jit_checkpoint import CheckpointManager

from helpers import assert_equal_weights, config, task_options, trainer, weights_of, write_task
from subdistill_hf.cli import main
from subdistill_hf.errors import INTERRUPTED, InterruptedTrainingError
from subdistill_hf.pipeline.run import distill
from subdistill_hf.training.interruption import train_to_its_end
from subdistill_hf.training.trainer import SubDistillTrainer

pytestmark = pytest.mark.usefixtures("datasets_cache", "quick_reports")
JIT = {"enable_jit_checkpoint": True, "max_steps": 6, "save_strategy": "steps", "save_steps": 50}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """transformers waits for three seconds, in which a tiny training would be over."""
    monkeypatch.setattr(CheckpointManager, "_sigterm_handler", lambda manager, *given: manager._enable_checkpoint())
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("interrupted"))


class Stops(TrainerCallback):
    """Ends the training at a step, as early stopping does, or by SIGTERM."""

    def __init__(self, step, by_signal):
        self.step, self.by_signal = step, by_signal

    def on_step_end(self, args, state, control, **given):
        if state.global_step == self.step and self.by_signal:
            os.kill(os.getpid(), signal.SIGTERM)
        elif state.global_step == self.step:
            control.should_training_stop = True


def stopped_by_sigterm(monkeypatch, method):
    """Let SIGTERM come in the second step of a method's training."""
    step = SubDistillTrainer.training_step

    def training_step(run, *given, **options):
        if run.args.method == method and run.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, *given, **options)

    monkeypatch.setattr(SubDistillTrainer, "training_step", training_step)


def test_a_training_that_sigterm_stops_is_no_finished_one_and_goes_on_to_the_same_weights(tmp_path):
    whole = trainer(tmp_path / "whole", **JIT)
    train_to_its_end(whole, None, "method subdistill", lambda: "")
    run = trainer(tmp_path / "stopped", **JIT, parts={"callbacks": [Stops(2, by_signal=True)]})
    with pytest.raises(InterruptedTrainingError, match=r"the training of method kd at step \d of 6.* Do go on"):
        train_to_its_end(run, None, "method kd", lambda: "Do go on")
    (folder,) = (tmp_path / "stopped").glob("checkpoint-*")
    again = trainer(tmp_path / "stopped", **JIT)
    train_to_its_end(again, str(folder), "method kd", lambda: "")
    assert again.state.global_step == 6
    assert_equal_weights(weights_of(again.model), weights_of(whole.model))


@pytest.mark.parametrize("listens", [True, False])
def test_a_stopping_rule_ends_a_training_as_it_should(tmp_path, listens):
    run = trainer(
        tmp_path, **JIT | {"enable_jit_checkpoint": listens}, parts={"callbacks": [Stops(2, by_signal=False)]}
    )
    train_to_its_end(run, None, "method subdistill", lambda: "")
    assert run.state.global_step == 2


@pytest.mark.parametrize("stopped", ["scratch", "kd"])
def test_a_run_that_sigterm_stops_leaves_no_student_and_is_resumed(inputs, tmp_path, monkeypatch, stopped):
    options = task_options(inputs, compare=["scratch"], html_report=False)
    with monkeypatch.context() as patch:
        stopped_by_sigterm(patch, stopped)
        with pytest.raises(InterruptedTrainingError, match=f"of method {stopped} .*resume_from_checkpoint true"):
            distill(options, config(tmp_path / "out", method="kd", **JIT))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["runs"]
    report = distill(options, config(tmp_path / "out", method="kd", resume_from_checkpoint="true", **JIT))
    assert {result.method for result in report.results} >= {"scratch", "kd"}
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_command_that_sigterm_stops_has_the_status_of_an_interruption(inputs, tmp_path, monkeypatch, capsys):
    stopped_by_sigterm(monkeypatch, "kd")
    given = {"teacher": inputs / "teacher", "dataset": inputs / "images", "student": "resnet:widths=8-8-8,image=32"}
    given |= {"output_dir": tmp_path / "out", "method": "kd", "report_to": "none", "use_cpu": "true"}
    words = [word for name, value in (given | JIT).items() for word in (f"--{name}", str(value))]
    classes = task_options(inputs).classes
    assert main(["distill", *words, "--classes", *classes]) == INTERRUPTED
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: SIGTERM stopped the training of method kd at step ")
    assert "the same command with --resume_from_checkpoint true" in last
