"""The command line's choices where the user makes none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VALIDATION_FRACTION = 0.2
"""Share of the training images that is held out where something is chosen by them."""

RUN_DEFAULTS: dict[str, Any] = {
    "output_dir": "subdistill-student",
    "learning_rate": 0.0,  # what suits student and method, see `method_choices.suited_learning_rate`
    "num_train_epochs": 0.0,  # as many as make a whole training, see `auto.enough_epochs`
    "layer_weight_end": None,  # what suits the method, see `method_choices.resolve_layer_losses`
    "target_scale": "auto",  # the same
    "teacher_cache": "auto",  # see `auto.enough_views`
    "cuda_graphs": "all",
    "rotation": "auto",  # see `procrustes.suited_rotation`
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "save_strategy": "steps",
    "save_steps": 0.1,
    "save_total_limit": 2,
    "logging_steps": 0.02,
    "load_best_model_at_end": False,  # the best of ten evaluations on few images is chance, and earlier weights
    "metric_for_best_model": "accuracy",
    "hub_strategy": "end",  # one push, of the finished student
}
"""The command line's changes of the training arguments' defaults: it evaluates where there are validation images, and
pushes only what is finished."""

ADAPT_DEFAULTS: dict[str, Any] = {"output_dir": "subdistill-teacher", "report_to": "none"}
"""The same of `subdistill adapt`, whose own options say how long and how fast it trains."""


def saved_when_evaluated(given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that follow what was given: a student is saved when it is evaluated, for the best one to be kept.

    Args:
        given: training arguments by name.

    Returns:
        `eval_steps` where `save_steps` alone is given, and the other way round; the same for the strategies.
    """
    follow = {}
    for kind in ("steps", "strategy"):
        for one, other in ((f"save_{kind}", f"eval_{kind}"), (f"eval_{kind}", f"save_{kind}")):
            both = kind == "steps" or given.get(one) in ("steps", "epoch")
            if one in given and other not in given and both:
                follow[other] = given[one]
    return follow
