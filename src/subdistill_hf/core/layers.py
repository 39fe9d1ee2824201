"""Describe what layers return, and find the layers at which a model splits naturally."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from subdistill_hf.core.activations import LayerError, first_tensor, to_features
from subdistill_hf.core.hooks import evaluation_mode, layer_modules, record

DEFAULT_STAGES = 4
# A last block that widens the channels more than this many times at the resolution of the block before it prepares
# the head (MobileNet's 1x1 convolution) and is no stage.
HEAD_WIDENING = 3
NUMBERED_BLOCK = re.compile(r"\d+|(dense)?(layer|stage|block|level|s)_?\d+|mixed_?\d+[a-z]", re.IGNORECASE)


@dataclass(frozen=True)
class LayerShape:
    """The shape of a layer's output for one image.

    Attributes:
        name: module name.
        width: channels, d for a teacher and K for a student.
        grid: height and width of the spatial grid.
        prefix: class and register tokens before the grid.
        channels_last: whether the output is `(B, H, W, d)`.
        modified_in_place: whether a later operation overwrites the output, so that it must be copied.
    """

    name: str
    width: int
    grid: tuple[int, int]
    prefix: int
    channels_last: bool = False
    modified_in_place: bool = False

    def __str__(self) -> str:
        tokens = f" + {self.prefix} tokens" if self.prefix else ""
        return f"{self.width} x {self.grid[0]}x{self.grid[1]}{tokens}"


def _shape_of(
    name: str, output: Any, image_size: tuple[int, int], modified: bool, declared_channels_last: bool
) -> LayerShape:
    tensor = first_tensor(output)
    channels_last = False
    if tensor is not None and tensor.dim() == 4:
        height, width = image_size

        def fits(rows: int, columns: int) -> bool:
            return rows * width == columns * height

        if fits(*tensor.shape[1:3]):  # where the channels could be a side of the grid, the model must say
            channels_last = declared_channels_last or not fits(*tensor.shape[2:4])
    features = to_features(output, name, image_size, channels_last)
    return LayerShape(name, features.values.shape[1], features.grid, features.prefix, channels_last, modified)


def _declares_channels_last(model: nn.Module) -> bool:
    """Whether a model says, as timm's do, that its maps are `(B, H, W, d)`."""
    return any(getattr(module, "output_fmt", None) == "NHWC" for module in model.modules())


@torch.no_grad()
def describe_layers(
    model: nn.Module, names: Sequence[str], forward: Callable[[], Any], image_size: tuple[int, int]
) -> list[LayerShape]:
    """Run `forward` once in evaluation mode and describe the outputs of the named layers.

    Raises:
        LayerError: for a layer that did not run, or whose output is no hidden state.
    """
    with evaluation_mode(model), record(model, names) as recorder:
        forward()
    if missing := [name for name in names if name not in recorder.outputs]:
        raise LayerError(f"layer {missing[0]!r} did not run in a forward pass, so it has no output to match")
    modified, declared = set(recorder.modified_in_place()), _declares_channels_last(model)
    return [_shape_of(name, recorder.outputs[name], image_size, name in modified, declared) for name in names]


@torch.no_grad()
def block_chain(model: nn.Module, forward: Callable[[], Any], image_size: tuple[int, int]) -> list[LayerShape]:
    """The blocks that a model is a chain of, in the order in which they return.

    A stage that ends by shrinking its map stands for its last block before that, and a last block that only widens
    for the head is left out.

    Args:
        model: any module.
        forward: runs the model on an example.
        image_size: height and width of the example in pixels.

    Raises:
        LayerError: when no chain of blocks is found.
    """
    modules = layer_modules(model)
    last_inner: dict[str, str] = {}
    for name in (blocks := _numbered_blocks(model)):
        if inner := _outermost(_with_children(modules[name])):
            last_inner[f"{name}.{inner[-1]}"] = name
    with evaluation_mode(model), record(model, [*last_inner, *blocks]) as recorder:
        forward()
    modified, declared = set(recorder.modified_in_place()), _declares_channels_last(model)
    shapes: dict[str, LayerShape] = {}
    for name, output in recorder.outputs.items():
        tensor = first_tensor(output)
        if tensor is None or tensor.dim() not in (3, 4):
            continue
        try:
            shapes[name] = _shape_of(name, output, image_size, name in modified, declared)
        except LayerError:
            continue  # not on a grid (attention weights, pooled vectors): no place to match
    for name in list(shapes):
        if name in last_inner and (stage := shapes.get(last_inner[name])):
            del shapes[stage.name if shapes[name].grid > stage.grid else name]
        elif name in last_inner:
            del shapes[name]
    chain = _without_bare_pooling(list(shapes.values()), modules)
    while len(chain) > 1 and chain[-1].grid == chain[-2].grid and chain[-1].width > HEAD_WIDENING * chain[-2].width:
        chain.pop()
    if not chain:
        raise LayerError(
            f"no chain of blocks was found in {type(model).__name__}: name the layer pairs, as in "
            "layers=['teacher.layer=student.layer', ...]"
        )
    return chain


def choose_stages(chain: Sequence[LayerShape], stages: int = DEFAULT_STAGES, last: bool = True) -> list[LayerShape]:
    """At most `stages` blocks of a chain that split it at its natural places, shallow to deep.

    A model that shrinks its maps in stages gives the last block at each of its last resolutions; one that keeps its
    tokens gives blocks at equal relative depths.

    Args:
        chain: what `block_chain` returns.
        stages: how many blocks at most.
        last: whether the last block may be chosen.
    """
    if not last and len(chain) > 1:
        chain = chain[:-1]
    last_at_resolution = {shape.grid: shape for shape in chain}
    if len(last_at_resolution) >= min(stages, 3):
        return list(last_at_resolution.values())[-stages:]
    count = min(stages, len(chain))
    return [chain[-(-len(chain) * (index + 1) // count) - 1] for index in range(count)]


def stage_outputs(
    model: nn.Module, forward: Callable[[], Any], image_size: tuple[int, int], stages: int = DEFAULT_STAGES
) -> list[str]:
    """The names of the blocks that `choose_stages` takes of a model; arguments as for `block_chain`."""
    return [shape.name for shape in choose_stages(block_chain(model, forward, image_size), stages)]


def _numbered_blocks(model: nn.Module) -> list[str]:
    """Modules with a numbered name (`stages.2`, `layer3`, `blocks.11`) that are in no other such module."""
    # without blocks, a plain chain of single modules
    single = [name for name in layer_modules(model) if name.rpartition(".")[2].isdigit()]
    return _outermost(_with_children(model) or single)


def _with_children(model: nn.Module) -> list[str]:
    """Numbered modules that are made of others."""
    modules = layer_modules(model)
    parents = {name.rpartition(".")[0] for name in modules}
    return [
        name
        for name, module in modules.items()
        if NUMBERED_BLOCK.fullmatch(name.rpartition(".")[2])
        and name in parents
        and "Norm" not in type(module).__name__
    ]


def _outermost(names: Sequence[str]) -> list[str]:
    """The names that are inside no other."""
    outermost: list[str] = []
    for name in names:
        if not any(name.startswith(f"{other}.") for other in outermost):
            outermost.append(name)
    return outermost


def _without_bare_pooling(chain: list[LayerShape], modules: dict[str, nn.Module]) -> list[LayerShape]:
    """Leave out resolutions at which no weight acts: a pooled map says nothing that the map before it does not."""
    weighted = {shape.grid for shape in chain if any(True for _ in modules[shape.name].parameters())}
    return [shape for shape in chain if shape.grid in weighted]
