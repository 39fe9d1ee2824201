"""What the command line chooses where the user does not, and what follows from what was given."""

import pytest

from subdistill_hf.cli.distill import parse
from subdistill_hf.config.defaults import saved_when_evaluated
from subdistill_hf.config.training import SubDistillConfig


@pytest.mark.parametrize(
    ("text", "follow"),
    [
        ("", {}),
        ("--save_steps 50", {"eval_steps": 50}),
        ("--eval-steps=0.5 --classes a b", {"save_steps": 0.5}),
        ("--save_steps 5 --save_steps 9", {"eval_steps": 9}),
        ("--save_steps 50 --eval_steps 25", {}),
        ("--save_strategy epoch", {"eval_strategy": "epoch"}),
        ("--eval_strategy epoch --save_steps 3", {"save_strategy": "epoch", "eval_steps": 3}),
        ("--save_strategy no", {}),
        ("--save_strategy best", {}),
    ],
)
def test_a_student_is_saved_when_it_is_evaluated(tmp_path, text, follow):
    given = parse(text.split())
    assert saved_when_evaluated(given) == follow
    if "strategy" not in text:
        config = SubDistillConfig(output_dir=str(tmp_path), **follow)
        assert {name: getattr(config, name) for name in follow} == follow
