"""Weights and activations of a network in 8 bits for ExecuTorch: the ways that are tried."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Final

import torch

from subdistill_hf.export.device_files import Array

SCHEMES: Final = ("static", "dynamic")


def quantised_program(
    program: torch.export.ExportedProgram, scheme: str, pixels: Sequence[Array]
) -> torch.export.ExportedProgram:
    """A program with weights and activations in 8 bits, as XNNPACK computes with them.

    Args:
        program: see `network_program.single_image_program`.
        scheme: one of `SCHEMES`.
        pixels: of calibration images, `(1, 3, H, W)` each.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example = torch.zeros(pixels[0].shape)  # no calibration image: numpy may give an axis of length 1 the stride 0
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torchao and torch's exporter about themselves
        network = prepare_pt2e(program.module(), _quantiser(scheme))
        for one in pixels:
            network(torch.from_numpy(one))
        return torch.export.export(convert_pt2e(network), (example,))


def _quantiser(scheme: str) -> Any:
    """XNNPACK's choice of what has 8 bits: all that it can in fixed ranges, or matrix products in those of each image.

    Dynamic convolutions would be possible, too, but a network of them is split into many parts, which takes longer.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    ranges = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=scheme == "dynamic")
    if scheme == "static":
        return XNNPACKQuantizer().set_global(ranges)
    return XNNPACKQuantizer().set_operator_type(torch.ops.aten.linear.default, ranges)
