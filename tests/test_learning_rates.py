"""The learning rate that suits a student."""

import pytest

from helpers import processor
from subdistill_hf.learning_rates import NEW_WITH_BATCH_NORM, OTHERS, suited_learning_rate
from subdistill_hf.students import build_student


@pytest.mark.parametrize(
    ("recipe", "new", "rate"),
    [
        ("resnet:widths=4-4-4-4", True, NEW_WITH_BATCH_NORM),
        ("mobilenetv2:width=0.1", True, NEW_WITH_BATCH_NORM),
        ("resnet:widths=4-4-4-4", False, OTHERS),
        ("vit:hidden=12,layers=1", True, OTHERS),
        ("convnext:widths=4-4-4-4", True, OTHERS),
    ],
)
def test_new_networks_with_batch_norms_take_larger_steps(recipe, new, rate):
    student = build_student(recipe, ["a", "b"], processor(32))
    assert suited_learning_rate(student.model, new) == rate
