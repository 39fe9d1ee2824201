"""`subdistill family`: what transformers refuses is one message, and a fault of ours is not told as such."""

import pytest

from command_line import run
from subdistill_hf.errors import SubDistillError
from subdistill_hf.family.experts import ExpertRun
from subdistill_hf.family.subtasks import Expert


def test_a_fault_is_not_taken_for_refused_arguments(monkeypatch):
    def fail(request):
        raise KeyError("a fault")

    monkeypatch.setattr("subdistill_hf.family.run.distill_family", fail)
    with pytest.raises(KeyError, match="a fault"):
        run("family", ["--subtasks", "superclass:dice"])


def test_arguments_that_transformers_refuses_are_one_message(tmp_path):
    training = {"eval_strategy": "steps", "save_strategy": "no", "load_best_model_at_end": True, "use_cpu": True}
    expert = ExpertRun(Expert("dice", ("superclass:dice",)), str(tmp_path), {}, training)
    with pytest.raises(SubDistillError, match=r"^training arguments: "):
        assert expert.config
