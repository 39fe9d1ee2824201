"""The keys of a recipe shape its student."""

import pytest

from helpers import NAMES, processor
from subdistill_hf.models.loading import count_parameters, input_size_of
from subdistill_hf.models.students import build_student


def test_keys_of_recipes_shape_the_student():
    small = build_student("resnet:widths=8-12-16", NAMES, processor()).model
    assert small.config.hidden_sizes == [8, 12, 16]
    assert count_parameters(build_student("resnet:widths=8-12-16,depth=2", NAMES, processor()).model) > (
        count_parameters(small)
    )
    assert build_student("resnet:widths=8-12-16,width=0.5", NAMES, processor()).model.config.hidden_sizes == [4, 6, 8]
    assert build_student("convnext:width=0.25", NAMES, processor()).model.config.hidden_sizes == [4, 8, 12, 16]
    assert build_student("convnext:patch=4,image=32", NAMES, processor()).model.config.patch_size == 4
    assert build_student("mobilenetv2:width=0.1", NAMES, processor()).model.config.depth_multiplier == 0.1
    transformer = build_student("vit:hidden=24,layers=3,heads=2,patch=4", NAMES, processor()).model
    assert (transformer.config.num_hidden_layers, transformer.config.patch_size) == (3, 4)


@pytest.mark.parametrize(
    ("recipe", "size", "expected"),
    [
        ("resnet:depth=1", 96, 96),
        ("resnet:depth=1", 32, 64),  # of 32 pixels its four stages leave one position
        ("resnet:widths=8-8-8", 32, 32),
        ("mobilenetv2:width=0.1", 32, 64),
        ("resnet:image=32", 32, 32),
        ("convnext:width=0.25", 48, 48),
        ("vit:hidden=24,layers=1", 32, 32),
    ],
)
def test_a_recipe_takes_the_teachers_size_and_normalisation(recipe, size, expected):
    student = build_student(recipe, NAMES, processor(size, mean=0.25))
    assert input_size_of(student.processor) == (expected, expected)
    assert tuple(student.processor.image_mean) == (0.25, 0.25, 0.25)
