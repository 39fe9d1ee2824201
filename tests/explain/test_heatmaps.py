"""Heat maps in the frame of the image, whatever a processor scales and cuts."""

import pytest
import torch
from transformers import BitImageProcessor, ViTImageProcessor
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from helpers import processor
from subdistill_hf.explain.heatmaps import WHOLE, Seen, on_grid, seen_by


@pytest.mark.parametrize("size", [32, 40, 224])
def test_a_processor_that_only_scales_shows_the_whole_image(size):
    assert seen_by(processor(size), 32, 32) == WHOLE
    assert seen_by(processor(size), 48, 64) == WHOLE


def test_a_centre_crop_shows_the_middle():
    cut = BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 48, "width": 48}, resample=2)
    seen = seen_by(cut, 64, 128)
    assert (seen.top, seen.bottom) == pytest.approx((0.125, 0.875), abs=0.01)
    assert (seen.left, seen.right) == pytest.approx((0.3125, 0.6875), abs=0.01)


def test_the_crop_of_a_timm_processor_is_found():
    cut = TimmWrapperImageProcessor(pretrained_cfg={"input_size": (3, 64, 64), "crop_pct": 0.875})
    seen = seen_by(cut, 64, 64)  # scaled to 73 pixels, of which 4 are cut off before and 5 behind
    assert (seen.top, seen.bottom) == pytest.approx((4 / 73, 68 / 73), abs=0.01)
    assert (seen.left, seen.right) == pytest.approx((4 / 73, 68 / 73), abs=0.01)


def test_a_processor_without_normalisation_is_understood():
    assert seen_by(ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False), 32, 32) == WHOLE


def test_cells_get_the_sums_of_their_pixels():
    relevance = torch.arange(16, dtype=torch.float64).reshape(1, 4, 4)
    assert on_grid(relevance, WHOLE, 2, 2).tolist() == [[[10.0, 18.0], [42.0, 50.0]]]
    spread = on_grid(relevance, WHOLE, 8, 8)
    assert torch.allclose(spread.reshape(4, 2, 4, 2).sum(dim=(1, 3)), relevance[0])
    assert torch.allclose(on_grid(relevance, WHOLE, 3, 5).sum(), relevance.sum())


def test_an_input_lies_where_the_image_was_cut():
    relevance = torch.ones(1, 4, 4, dtype=torch.float64)
    middle = on_grid(relevance, Seen(0.25, 0.75, 0.0, 0.5), 4, 4)[0]
    assert middle.tolist() == [[0, 0, 0, 0], [4, 4, 0, 0], [4, 4, 0, 0], [0, 0, 0, 0]]
    padded = on_grid(relevance, Seen(-0.5, 1.5, 0.0, 1.0), 2, 2)[0]  # half of the input shows nothing of the image
    assert padded.tolist() == [[2, 2], [2, 2]]
