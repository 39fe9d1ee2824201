"""Tokens in another order than row by row."""

import pytest
import torch
from timm.models.hiera import Hiera
from torch import nn

from subdistill_hf.core.activations import LayerError
from subdistill_hf.core.layers import block_chain, describe_layers
from subdistill_hf.core.token_order import check_token_order
from subdistill_hf.models.heads import new_classifier

SIZE = (128, 128)  # 32 x 32, 16 x 16, 8 x 8 and 4 x 4 tokens


def hiera(library, depths):
    """A tiny Hiera, what runs it, and the names of the last block of each of its stages."""
    pixels = torch.randn(1, 3, *SIZE)
    last = [sum(depths[: stage + 1]) - 1 for stage in range(4)]
    if library == "timm":
        model = Hiera(img_size=SIZE, embed_dim=8, num_heads=1, stages=depths, num_classes=3)
        return model, lambda: model(pixels), [f"blocks.{index}" for index in last]
    configuration = {"image_size": list(SIZE), "embed_dim": 8, "num_heads": [1, 2, 4, 8], "depths": list(depths)}
    model = new_classifier("HieraForImageClassification", num_labels=3, **configuration)
    return model, lambda: model(pixel_values=pixels), [f"hiera.encoder.stages.{stage}" for stage in range(4)]


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_hiera_is_compared_at_its_last_stage_alone(library):
    model, forward, last = hiera(library, (1, 1, 2, 1))
    (shape,) = block_chain(model, forward, SIZE)
    assert (shape.name, shape.grid) == (last[-1], (4, 4))
    assert describe_layers(model, last[-1:], forward, SIZE) == [shape]


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_other_stages_of_hiera_are_refused_with_what_can_be_used(library, stage):
    model, forward, last = hiera(library, (1, 1, 2, 1))
    expected = rf"layer '{last[stage]}' gives {(32 >> stage) ** 2} tokens .*not row by row.*return 4x4 tokens"
    with pytest.raises(LayerError, match=expected):
        describe_layers(model, [last[stage]], forward, SIZE)


def test_what_embeds_the_patches_of_hiera_is_in_order():
    model, forward, _ = hiera("timm", (1, 1, 2, 1))
    (shape,) = describe_layers(model, ["patch_embed"], forward, SIZE)
    assert shape.grid == (32, 32)


class Rerolled(nn.Module):
    """A model of blocks that says in which order they keep their 3 x 4 tokens."""

    def __init__(self, turned):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity()])
        self.turned = turned
        self.schedule = {0: ((), [3, 4])}

    def reroll(self, tokens, stage):
        maps = tokens.view(1, 4, 3, 1).transpose(1, 2) if self.turned else tokens.view(1, 3, 4, 1)
        assert stage == 0
        return maps


def test_only_an_order_that_a_reroll_changes_is_refused():
    check_token_order(Rerolled(turned=False), "blocks.0", 12)
    check_token_order(Rerolled(turned=True), "blocks.0", 13)  # of another grid than the model says
    check_token_order(nn.Sequential(nn.Identity()), "0", 12)
    with pytest.raises(
        LayerError, match=r"'blocks\.0' gives 12 tokens that Rerolled .*none of its blocks can be used"
    ):
        check_token_order(Rerolled(turned=True), "blocks.0", 12)
