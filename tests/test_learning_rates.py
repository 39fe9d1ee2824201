"""The learning rate that suits a student."""

import pytest

from helpers import processor
from subdistill_hf.learning_rates import CAREFUL, NEW_WITH_LAYERS, NEW_WITHOUT_LAYERS, suited_learning_rate
from subdistill_hf.students import build_student


@pytest.mark.parametrize("layers", [True, False])
@pytest.mark.parametrize(
    ("recipe", "new", "suited"),
    [
        ("resnet:widths=4-4-4-4", True, True),
        ("mobilenetv2:width=0.1", True, True),
        ("resnet:widths=4-4-4-4", False, False),
        ("vit:hidden=12,layers=1", True, False),
        ("convnext:widths=4-4-4-4", True, False),
    ],
)
def test_new_networks_with_batch_norms_take_larger_steps_the_largest_with_layers(recipe, new, suited, layers):
    larger = NEW_WITH_LAYERS if layers else NEW_WITHOUT_LAYERS
    student = build_student(recipe, ["a", "b"], processor(32))
    assert suited_learning_rate(student.model, new, layers) == (larger if suited else CAREFUL)
