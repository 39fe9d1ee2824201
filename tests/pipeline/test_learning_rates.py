"""The learning rate that suits a student."""

import pytest

from helpers import processor
from subdistill_hf.models.students import build_student
from subdistill_hf.pipeline.learning_rates import (
    CAREFUL,
    NEW_WITH_LAYERS,
    NEW_WITHOUT_LAYERS,
    PRETRAINED_WITH_LAYERS,
    suited_learning_rate,
)

RATES = {  # with the teacher's layers, without
    "new": (NEW_WITH_LAYERS, NEW_WITHOUT_LAYERS),
    "pretrained": (PRETRAINED_WITH_LAYERS, CAREFUL),
    "adapter": (CAREFUL, CAREFUL),
}


@pytest.mark.parametrize("start", RATES)
@pytest.mark.parametrize("recipe", ["resnet:widths=4-4-4-4", "mobilenetv2:width=0.1"])
def test_networks_with_batch_norms_take_larger_steps_with_layers_and_without_a_past(recipe, start):
    student = build_student(recipe, ["a", "b"], processor(32)).model
    assert tuple(suited_learning_rate(student, start, layers) for layers in (True, False)) == RATES[start]
    assert RATES["new"] > RATES["pretrained"] > RATES["adapter"]


@pytest.mark.parametrize("start", RATES)
@pytest.mark.parametrize("layers", [True, False])
@pytest.mark.parametrize("recipe", ["vit:hidden=12,layers=1", "convnext:widths=4-4-4-4"])
def test_networks_without_batch_norms_take_small_steps(recipe, start, layers):
    student = build_student(recipe, ["a", "b"], processor(32)).model
    assert suited_learning_rate(student, start, layers) == CAREFUL
