"""What was made is used again where it was made from the same, and only there."""

from dataclasses import dataclass

import pytest
import torch

from subdistill_hf.training.made import Made, Same, up_to_date


@dataclass(frozen=True)
class Inputs:
    images: Same
    basis: str


def test_a_product_is_made_again_only_from_other_inputs():
    made, count = None, []

    def make():
        count.append(1)
        return f"product {len(count)}"

    images, others = [torch.zeros(2)], [torch.zeros(2)]
    for chosen, basis, expected in (
        (images, "prca", "product 1"),
        (images, "prca", "product 1"),
        (images, "pca", "product 2"),
        (others, "pca", "product 3"),
        (others, "pca", "product 3"),
    ):
        made = up_to_date(made, Inputs(Same(chosen), basis), make)
        assert made.product == expected


def test_what_could_not_be_made_leaves_what_there_was():
    def fail():
        raise ValueError("no images")

    made = Made(Inputs(Same(None), "prca"), "product")
    with pytest.raises(ValueError, match="no images"):
        up_to_date(made, Inputs(Same(None), "pca"), fail)
    assert up_to_date(made, Inputs(Same(None), "prca"), fail) is made


def test_objects_are_compared_by_identity_without_looking_into_them():
    class Untouchable:
        def __eq__(self, other):
            raise AssertionError("the images were compared")

        __hash__ = None

    first, second = Untouchable(), Untouchable()
    assert Same(first) == Same(first)
    assert Same(first) != Same(second)
    assert Same(first) != first.__class__
    assert len({Same(first), Same(first), Same(second)}) == 2
