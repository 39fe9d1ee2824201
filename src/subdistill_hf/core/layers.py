"""Describe what layers return, and find the layers at which a model splits naturally."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subdistill_hf.core.activations import LayerError, first_tensor, to_features
from subdistill_hf.core.hooks import evaluation_mode, layer_modules, record
from subdistill_hf.core.token_order import check_token_order

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


def _can_be_grid(grid: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether square cells of one size give this grid of an image, where each side is rounded up or down."""
    (rows, columns), (height, width) = grid, image_size
    return (rows - 1) * width < (columns + 1) * height and (columns - 1) * height < (rows + 1) * width


def _is_channels_last(maps: Tensor, image_size: tuple[int, int], declared_last: bool | None) -> bool:
    """Whether a map is `(B, H, W, d)`: what alone can be a grid of the image, or what the model says; or else not.

    Args:
        maps: of four dimensions.
        image_size: height and width of the image in pixels.
        declared_last: what the model says of it, if anything.
    """
    height, width = image_size
    last, first = (maps.shape[1], maps.shape[2]), (maps.shape[2], maps.shape[3])

    def is_exactly(grid: tuple[int, int]) -> bool:
        return grid[0] * width == grid[1] * height

    if _can_be_grid(last, image_size) != _can_be_grid(first, image_size):
        return _can_be_grid(last, image_size)
    if declared_last is not None:
        return declared_last
    return is_exactly(last) and not is_exactly(first)


def _declared_last(model: nn.Module, name: str) -> bool | None:
    """Whether a layer's maps are `(B, H, W, d)`, as the nearest module around it says that says so, as timm's do."""
    while True:
        if (said := getattr(model.get_submodule(name), "output_fmt", None)) is not None:
            return bool(said == "NHWC")
        if not name:
            return None
        name = name.rpartition(".")[0]


@dataclass(frozen=True)
class _ForwardPass:
    """What layers of a model returned in one forward pass.

    Attributes:
        model: the model.
        outputs: layer name to output, in the order in which layers returned first.
        modified: the layers whose output a later operation overwrote.
        images: how many images the pass was of; `None` where what the model returns does not say so.
        image_size: their height and width in pixels.
    """

    model: nn.Module
    outputs: dict[str, Any]
    modified: frozenset[str]
    images: int | None
    image_size: tuple[int, int]

    @classmethod
    def run(
        cls, model: nn.Module, names: Sequence[str], forward: Callable[[], Any], image_size: tuple[int, int]
    ) -> _ForwardPass:
        """Run `forward` once in evaluation mode, and record the named layers."""
        with evaluation_mode(model), record(model, names) as recorder:
            logits = first_tensor(forward())
        images = logits.shape[0] if logits is not None and logits.dim() else None
        return cls(model, recorder.outputs, frozenset(recorder.modified_in_place()), images, image_size)

    def shape_of(self, name: str) -> LayerShape:
        """Describe what a layer returned.

        Raises:
            LayerError: for what is no hidden state of each image.
        """
        output = self.outputs[name]
        tensor = first_tensor(output)
        if tensor is not None and tensor.dim() in (3, 4) and self.images not in (None, tensor.shape[0]):
            raise LayerError(
                f"layer {name!r} gives a tensor of shape {tuple(tensor.shape)} where the model gives logits of "
                f"{self.images} images: expected the images as the first dimension. Choose a layer that returns the "
                "hidden states of whole images"
            )
        if tensor is not None and tensor.dim() == 3:
            check_token_order(self.model, name, tensor.shape[1])
        declared_last = _declared_last(self.model, name)
        channels_last = (
            tensor is not None and tensor.dim() == 4 and _is_channels_last(tensor, self.image_size, declared_last)
        )
        features = to_features(output, name, self.image_size, channels_last)
        width = features.values.shape[1]
        return LayerShape(name, width, features.grid, features.prefix, channels_last, name in self.modified)

    def gives_tokens(self, name: str) -> bool:
        """Whether a layer returned tokens `(B, P, d)`."""
        tensor = first_tensor(self.outputs[name])
        return tensor is not None and tensor.dim() == 3

    def shapes(self, names: Sequence[str]) -> tuple[dict[str, LayerShape], list[LayerError]]:
        """Layer name to shape, of the layers that can be matched, and why others of 3 or 4 dimensions cannot."""
        shapes: dict[str, LayerShape] = {}
        refused: list[LayerError] = []
        for name in names:
            tensor = first_tensor(self.outputs[name])
            if tensor is None or tensor.dim() not in (3, 4):
                continue
            try:
                shapes[name] = self.shape_of(name)
            except LayerError as error:  # not on a grid (attention weights, pooled vectors): no place to match
                refused.append(error)
        return shapes, refused


@torch.no_grad()
def describe_layers(
    model: nn.Module, names: Sequence[str], forward: Callable[[], Any], image_size: tuple[int, int]
) -> list[LayerShape]:
    """Run `forward` once in evaluation mode and describe the outputs of the named layers.

    Raises:
        LayerError: for a layer that did not run, or whose output is no hidden state.
    """
    seen = _ForwardPass.run(model, names, forward, image_size)
    if missing := [name for name in names if name not in seen.outputs]:
        raise LayerError(f"layer {missing[0]!r} did not run in a forward pass, so it has no output to match")
    return [seen.shape_of(name) for name in names]


@torch.no_grad()
def block_chain(model: nn.Module, forward: Callable[[], Any], image_size: tuple[int, int]) -> list[LayerShape]:
    """The blocks that a model is a chain of, in the order in which they return.

    A stage that ends by shrinking its map stands for its last block before that. Left out are a last block that only
    widens for the head, and the convolutions that make the tokens of a transformer.

    Args:
        model: any module.
        forward: runs the model on an example.
        image_size: height and width of the example in pixels.

    Raises:
        LayerError: when no chain of blocks is found.
    """
    modules = layer_modules(model)
    numbered = _numbered_modules(model)
    seen = _ForwardPass.run(model, numbered, forward, image_size)
    returned = [name for name in numbered if name in seen.outputs]  # not lists of blocks, which are never called
    blocks = _outermost(returned)
    last_inner: dict[str, str] = {}
    for name in blocks:
        if inner := _outermost([other for other in returned if other.startswith(f"{name}.")]):
            last_inner[inner[-1]] = name
    shapes, refused = seen.shapes([name for name in seen.outputs if name in last_inner or name in blocks])
    for name in list(shapes):
        if name in last_inner and (stage := shapes.get(last_inner[name])):
            del shapes[stage.name if _is_shrunk(shapes[name], stage, image_size) else name]
        elif name in last_inner:
            del shapes[name]
    chain = _without_bare_pooling(list(shapes.values()), modules)
    if chain and seen.gives_tokens(chain[-1].name):
        chain = _without_patch_embeddings(chain, modules)
    while len(chain) > 1 and chain[-1].grid == chain[-2].grid and chain[-1].width > HEAD_WIDENING * chain[-2].width:
        chain.pop()
    if not chain:
        reason = f"{refused[0]}. Name" if refused else "name"
        raise LayerError(
            f"no chain of blocks was found in {type(model).__name__}: {reason} the layer pairs, as in "
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


def _is_shrunk(inner: LayerShape, stage: LayerShape, image_size: tuple[int, int]) -> bool:
    """Whether a stage ends by shrinking the map of its last inner block.

    What is no map of the image, such as the windows of an image beside each other, was not shrunk.
    """
    is_map = _can_be_grid(inner.grid, image_size) or not _can_be_grid(stage.grid, image_size)
    return is_map and inner.grid > stage.grid


def _numbered_modules(model: nn.Module) -> list[str]:
    """Modules with a numbered name (`stages.2`, `layer3`, `blocks.11`) that are made of others; outer before inner.

    Where there are none, the single modules of a plain chain.
    """
    modules = layer_modules(model)
    parents = {name.rpartition(".")[0] for name in modules}
    made_of_others = [
        name
        for name, module in modules.items()
        if NUMBERED_BLOCK.fullmatch(name.rpartition(".")[2])
        and name in parents
        and "Norm" not in type(module).__name__
    ]
    return made_of_others or [name for name in modules if name.rpartition(".")[2].isdigit()]


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


def _without_patch_embeddings(chain: list[LayerShape], modules: dict[str, nn.Module]) -> list[LayerShape]:
    """Leave out what a transformer makes its tokens with: blocks of one weight matrix before its first of more."""
    for index, shape in enumerate(chain):
        weights = [getattr(module, "weight", None) for module in modules[shape.name].modules()]
        if sum(isinstance(weight, Tensor) and weight.dim() > 1 for weight in weights) > 1:
            return chain[index:]
    return chain
