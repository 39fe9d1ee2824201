"""ONNX graphs of a student: its network, and the preprocessing and probabilities around it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from subdistill_hf.errors import with_causes
from subdistill_hf.export.network_program import (
    PIXELS,
    first_line,
    free_batch_program,
    not_exported,
    without_counterpart,
)
from subdistill_hf.export.onnx_runtime import LOGITS
from subdistill_hf.export.preprocessing import CentreCrop, Normalise, Resize, Step

OPSET: Final = 20
IR_VERSION: Final = 10
"""Formats that onnxruntime 1.18 of 2024 and all later ones read."""
IMAGES: Final = "images"
PROBABILITIES: Final = "probabilities"
PRODUCER: Final = "subdistill_hf"
_OPERATOR: Final = re.compile(r"OpOverload\(op='([\w.]+)'")
"""How torch's exporter names the operator that it has no function for."""
_MODES: Final = {"bilinear": "linear", "bicubic": "cubic"}
_BICUBIC: Final = -0.5
"""The coefficient of the cubic filter of Pillow and torchvision with antialiasing."""


def network_graph(model: nn.Module, size: tuple[int, int]) -> onnx.ModelProto:
    """The network of a classifier: `pixel_values` float32 `(B, 3, H, W)` to `logits` float32 `(B, C)`, B free.

    Names of torch's modules and lines of source, which the exporter notes in the graph, are taken out.

    Args:
        model: in evaluation mode, on the CPU.
        size: H and W.

    Raises:
        ExportError: for an operator that has no counterpart in ONNX, naming it and its layer.
    """
    program = free_batch_program(model, size)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        try:
            exported: Any = torch.onnx.export(
                program,
                input_names=[PIXELS],
                output_names=[LOGITS],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise not_exported(model, _unsupported(program, error)) from error
    graph: onnx.ModelProto = exported.model_proto
    graph.ir_version = IR_VERSION
    return without_notes(graph)


def _unsupported(program: Any, error: BaseException) -> str:
    """The operator that ONNX does not have, and the layer that uses it."""
    found = next((one for each in with_causes(error) if (one := _OPERATOR.search(str(each)))), None)
    return first_line(error) if found is None else without_counterpart(program, found[1], "ONNX")


def without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the exporter's notes, which hold paths of this machine and are larger than small weights."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


def with_preprocessing(network: onnx.ModelProto, steps: tuple[Step, ...]) -> onnx.ModelProto:
    """A network whose input are images: `images` uint8 `(B, H, W, 3)`, of any size, the same in a batch.

    Args:
        network: see `network_graph`.
        steps: of the student's image processor.
    """
    nodes = _Nodes(IMAGES)
    nodes.apply("Transpose", perm=[0, 3, 1, 2])
    for step in steps:
        nodes.take(step)
    nodes.apply("Identity", output=PIXELS)
    result = onnx.ModelProto()
    result.CopyFrom(network)
    images = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["batch", "height", "width", 3])
    _replace_input(result, images, nodes)
    return result


def preprocessing_graph(steps: tuple[Step, ...]) -> onnx.ModelProto:
    """The steps alone: `images` uint8 `(B, H, W, 3)` to their pixels, which are called `logits` as those of networks.

    Args:
        steps: of the student's image processor.
    """
    pixels, same = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, "high", "wide"])
        for name in (PIXELS, LOGITS)
    )
    graph = helper.make_graph([helper.make_node("Identity", [PIXELS], [LOGITS])], "pixels", [pixels], [same])
    nothing = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    return with_preprocessing(nothing, steps)


def with_pixels_of_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that takes images in the form of transformers.js: `pixel_values` float32 `(B, 3, H, W)`, from 0 to 255.

    Args:
        model: a graph that takes `images`.
    """
    nodes = _Nodes(PIXELS)
    nodes.apply("Round")
    nodes.apply("Cast", to=TensorProto.UINT8)
    nodes.apply("Transpose", perm=[0, 2, 3, 1], output=IMAGES)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for node in result.graph.node:  # whose inner name it is
        node.output[:] = ["processed" if name == PIXELS else name for name in node.output]
        node.input[:] = ["processed" if name == PIXELS else name for name in node.input]
    pixels = helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, ["batch", 3, "height", "width"])
    _replace_input(result, pixels, nodes)
    return result


def with_probabilities(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that gives the softmax of its logits too: `probabilities` float32 `(B, C)`."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    shape = result.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    result.graph.node.append(helper.make_node("Softmax", [LOGITS], [PROBABILITIES], name="probabilities", axis=-1))
    result.graph.output.append(
        helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", shape or "classes"])
    )
    return result


def with_metadata(model: onnx.ModelProto, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """A graph that carries facts about itself; texts as they are, other values as JSON."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.producer_name, result.producer_version = PRODUCER, ""
    result.graph.name = "student"
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    helper.set_model_props(result, dict(sorted(texts.items())))
    return result


def as_bytes(model: onnx.ModelProto) -> bytes:
    """The content of the file, the same for the same model."""
    return bytes(model.SerializeToString(deterministic=True))


def _replace_input(model: onnx.ModelProto, value: onnx.ValueInfoProto, nodes: _Nodes) -> None:
    """Put nodes before those of a graph, and take what they take."""
    graph = model.graph
    own = list(graph.node)
    del graph.input[:]
    del graph.node[:]
    graph.input.append(value)
    graph.node.extend([*nodes.nodes, *own])
    graph.initializer.extend(nodes.constants)
    del graph.value_info[:]  # of shapes that may be others now


class _Nodes:
    """A chain of ONNX nodes in the making.

    Args:
        start: the name of what goes in.
    """

    def __init__(self, start: str) -> None:
        self.start = self.current = start
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node; gives the name of its output."""
        name = output or f"{self.start}_{len(self.nodes)}_{operator.lower()}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def apply(self, operator: str, *further: str, output: str | None = None, **attributes: Any) -> None:
        """Append a node that takes what the chain has come to, and becomes what it has come to."""
        self.current = self.add(operator, self.current, *further, output=output, **attributes)

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """A constant; gives its name."""
        name = f"{self.start}_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def take(self, step: Step) -> None:
        """Append the nodes of a step; images are bytes `(B, 3, H, W)` up to the first normalisation."""
        if isinstance(step, Resize):
            self._resize(step)
        elif isinstance(step, CentreCrop):
            self._crop(step)
        else:
            self._normalise(step)

    def _size(self) -> str:
        """Height and width of the images that the chain has come to."""
        return self.add("Shape", self.current, start=2)

    def _resize(self, step: Resize) -> None:
        old = self._size()
        new = self.constant([step.height, step.width]) if step.width else self._in_proportion(old, step.height)
        if step.order == "pillow13":
            lost = self.add("Max", self.add("Sub", old, new), self.constant([0]))
            of_width = self.add("Mul", self._part(lost, 1), self.constant([2]))
            first = self.add("Greater", self._part(lost, 0), of_width)
            vertical = self.add("Concat", self._part(new, 0), self._part(old, 1), axis=0)
            horizontal = self.add("Concat", self._part(old, 0), self._part(new, 1), axis=0)
            self._scale_to(self.add("Where", first, vertical, horizontal), step)
        self._scale_to(new, step)

    def _scale_to(self, size: str, step: Resize) -> None:
        attributes: dict[str, Any] = {"mode": _MODES[step.interpolation], "antialias": 1, "exclude_outside": 1}
        if step.interpolation == "bicubic":
            attributes["cubic_coeff_a"] = _BICUBIC
        # sizes of all four axes: given two axes alone, onnxruntime fails where it moves the transposition behind this
        sizes = self.add("Concat", self.add("Shape", self.current, start=0, end=2), size, axis=0)
        self.apply("Resize", "", "", sizes, coordinate_transformation_mode="half_pixel", **attributes)

    def _in_proportion(self, size: str, shorter: int) -> str:
        """The size whose shorter side is given: the longer one is rounded down."""
        least = self.add("ReduceMin", size, keepdims=1)
        return self.add("Div", self.add("Mul", size, self.constant([shorter])), least)

    def _part(self, size: str, axis: int) -> str:
        """One entry of a size, `(1,)`."""
        return self.add("Gather", size, self.constant([axis]), axis=0)

    def _crop(self, step: CentreCrop) -> None:
        wanted, zero = self.constant([step.height, step.width]), self.constant([0, 0])
        lacking = self.add("Max", self.add("Sub", wanted, self._size()), zero)
        before = self.add("Div", lacking, self.constant([2]))
        # of all four axes, as the sizes in `_scale_to`, and for the same reason
        pads = self.add("Concat", zero, before, zero, self.add("Sub", lacking, before), axis=0)
        self.apply("Pad", pads, self.constant(0, np.uint8))
        margin = self.add("Sub", self._size(), wanted)
        if step.half_even:
            half = self.add("Mul", self.add("Cast", margin, to=TensorProto.FLOAT), self.constant(0.5, np.float32))
            first = self.add("Cast", self.add("Round", half), to=TensorProto.INT64)
        else:
            first = self.add("Div", margin, self.constant([2]))
        self.apply("Slice", first, self.add("Add", first, wanted), self.constant([2, 3]))

    def _normalise(self, step: Normalise) -> None:
        self.apply("Cast", to=TensorProto.FLOAT)  # does nothing the second time
        for operator, values in (("Sub", step.mean), ("Div", step.deviation)):
            self.apply(operator, self.constant(np.reshape(values, (1, 3, 1, 1)), np.float32))
