"""The network of a student as torch's exporter sees it, from which the formats are made."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from subdistill_hf.core.activations import logits_of
from subdistill_hf.export.errors import ExportError

PIXELS: Final = "pixel_values"


class _Logits(nn.Module):
    """A classifier as a function from pixels `(B, 3, H, W)` to logits `(B, C)`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The logits."""
        return logits_of(self.model(pixel_values=pixel_values))


class _LogitsAndProbabilities(_Logits):
    """The same with the softmax of the logits."""

    def forward(self, pixel_values: Tensor) -> Any:
        """The logits and the probabilities, `(B, C)` each."""
        logits = super().forward(pixel_values)
        return logits, logits.softmax(dim=-1)


def free_batch_program(model: nn.Module, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """The program of a classifier from `pixel_values` `(B, 3, H, W)` to logits `(B, C)`, B free.

    Args:
        model: in evaluation mode, on the CPU.
        size: H and W.

    Raises:
        ExportError: for a model that cannot be traced.
    """
    return _program(_Logits(model), size, 2, {PIXELS: {0: torch.export.Dim("batch")}})


def single_image_program(model: nn.Module, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """The program of a classifier from `pixel_values` `(1, 3, H, W)` to logits and probabilities `(1, C)`.

    Args:
        model: in evaluation mode, on the CPU.
        size: H and W.

    Raises:
        ExportError: for a model that cannot be traced.
    """
    return _program(_LogitsAndProbabilities(model), size, 1, None)


def _program(
    network: _Logits, size: tuple[int, int], batch: int, free: Mapping[str, Any] | None
) -> torch.export.ExportedProgram:
    pixels = torch.zeros(batch, 3, *size)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        try:
            return torch.export.export(network.eval(), (pixels,), dynamic_shapes=free)
        except Exception as error:  # whatever a model's own code raises when it is traced
            raise not_exported(
                network.model,
                f"{first_line(error)}. torch.export takes models whose Python code does not depend on the values of "
                "pixels",
            ) from error


def not_exported(model: nn.Module, why: str) -> ExportError:
    """The error of a network that a format does not take."""
    return ExportError(f"the student's {type(model).__name__} cannot be exported: {why}")


def without_counterpart(program: torch.export.ExportedProgram, operator: str, title: str) -> str:
    """An operator that a format does not have, and the layer that uses it, in words.

    Args:
        program: of the network.
        operator: its name, such as `aten.special_bessel_j0.default`.
        title: of the format.
    """
    said = f"{title} has no counterpart of {operator}"
    name = operator.removesuffix(".default").rpartition(".")[2]
    for node in program.graph.nodes:
        # which torch may have taken apart: aten.special_bessel_j0 has become prims.bessel_j0
        if node.op == "call_function" and name in str(node.target):
            layers = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
            return f"{said}, which the layer {layers[-1].removeprefix('model.')} uses" if layers else said
    return said


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
