"""How to distil is said by names that are those of what other packages implement."""

import inspect
from typing import get_args

import pytest

from subdistill_hf.acceleration.cuda_graphs import GRAPHS
from subdistill_hf.config import distillation
from subdistill_hf.config.bases import BASES
from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import AUTO
from subdistill_hf.config.validation import choices_of
from subdistill_hf.losses.logits import decoupled_distillation, logit_distillation
from subdistill_hf.losses.procrustes import PROCRUSTES
from subdistill_hf.losses.rotations import FULL_WIDTH, ROTATIONS
from subdistill_hf.losses.subspace import CENTRINGS, TARGET_SCALES
from subdistill_hf.teacher.cache_files import PRECISIONS


@pytest.mark.parametrize(
    ("names", "registry"),
    [
        (distillation.CachePrecision, PRECISIONS),
        (distillation.Centring, CENTRINGS),
        (distillation.Graphs, GRAPHS),
        (distillation.Rotation, (*ROTATIONS, PROCRUSTES, FULL_WIDTH)),
        (distillation.TargetScale, TARGET_SCALES),
    ],
    ids=["CachePrecision", "Centring", "Graphs", "Rotation", "TargetScale"],
)
def test_names_are_those_of_the_registries(names, registry):
    assert get_args(names) == tuple(registry)


def test_defaults_are_those_of_the_losses_themselves():
    own = distillation.DistillationOptions()
    assert (own.temperature, own.dkd_beta, own.kd_weight) == (4.0, 8.0, 1.0)
    found = {name: each.default for name, each in inspect.signature(decoupled_distillation).parameters.items()}
    assert (found["temperature"], found["beta"]) == (own.temperature, own.dkd_beta)
    assert inspect.signature(logit_distillation).parameters["temperature"].default == own.temperature


def test_fields_have_the_choices_of_these_names():
    assert choices_of(distillation.DistillationOptions) == {
        "method": METHODS,
        "basis": BASES,
        "centring": get_args(distillation.Centring),
        "rotation": (*get_args(distillation.Rotation), AUTO),
        "target_scale": (*get_args(distillation.TargetScale), AUTO),
        "teacher_cache_precision": get_args(distillation.CachePrecision),
        "cuda_graphs": get_args(distillation.Graphs),
    }
