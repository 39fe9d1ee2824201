"""Record the outputs of named layers, and bring maps and tokens to one form."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from subdistill_hf.errors import SubDistillError

MAX_PREFIX_TOKENS = 16
OUTPUT_HOOKS = "transformers.utils.output_capturing"  # idle unless hidden states or attentions are asked for


class LayerError(SubDistillError):
    """A layer name or a layer output that cannot be used."""


@dataclass(frozen=True)
class Features:
    """The output of a layer in one form, whatever the architecture.

    Attributes:
        values: activations `(B, d, P)`: B images, d channels, P positions.
        grid: height and width of the spatial grid, `P == prefix + height * width`.
        prefix: number of leading positions that are not on the grid (class and register tokens).
    """

    values: Tensor
    grid: tuple[int, int]
    prefix: int = 0

    def with_values(self, values: Tensor) -> Features:
        """The same geometry with other values `(B, d', P)`."""
        return Features(values, self.grid, self.prefix)

    def without_prefix(self) -> Features:
        """The grid positions alone, `(B, d, height * width)`."""
        if self.prefix == 0:
            return self
        return Features(self.values[:, :, self.prefix :], self.grid)

    def pooled(self, grid: tuple[int, int]) -> Features:
        """Average the grid down to `grid` (adaptive average pooling); prefix tokens stay as they are."""
        if grid == self.grid:
            return self
        height, width = self.grid
        maps = self.values[:, :, self.prefix :].reshape(*self.values.shape[:2], height, width)
        values = nn.functional.adaptive_avg_pool2d(maps, grid).flatten(2)
        if self.prefix:
            values = torch.cat([self.values[:, :, : self.prefix], values], dim=2)
        return Features(values, grid, self.prefix)


Geometry = tuple[tuple[int, int], int]  # grid and prefix


def apart(features: Sequence[Features]) -> tuple[list[Tensor], tuple[Geometry, ...]]:
    """The values of features, and their geometries."""
    return [each.values for each in features], tuple((each.grid, each.prefix) for each in features)


def together(values: Sequence[Tensor], geometries: Sequence[Geometry]) -> list[Features]:
    """Features of values and geometries."""
    return [Features(tensor, *geometry) for tensor, geometry in zip(values, geometries, strict=True)]


def token_geometry(positions: int, image_size: tuple[int, int] | None = None) -> tuple[int, tuple[int, int]]:
    """Split a token count into prefix tokens and a grid.

    Args:
        positions: number of tokens P.
        image_size: height and width of the model's input in pixels; with it, the grid must cut the image into
            equal square patches, without it the grid must be square.

    Returns:
        The number of prefix (class, register) tokens, the smallest that fits, and the grid (height, width).

    Raises:
        LayerError: when no grid with at most `MAX_PREFIX_TOKENS` prefix tokens fits.
    """
    height, width = image_size or (1, 1)
    for prefix in range(min(MAX_PREFIX_TOKENS, positions - 1) + 1):
        rows = math.isqrt((positions - prefix) * height // width)
        if rows == 0 or (positions - prefix) % rows:
            continue
        columns = (positions - prefix) // rows
        same_patch = rows * width == columns * height
        if same_patch and (image_size is None or height % rows == 0):
            return prefix, (rows, columns)
    raise LayerError(
        f"cannot place {positions} tokens on a grid for an input of {height}x{width} pixels: expected at "
        f"most {MAX_PREFIX_TOKENS} class and register tokens followed by one token per square patch"
    )


def to_features(
    output: Any,
    name: str,
    image_size: tuple[int, int] | None = None,
    channels_last: bool = False,
) -> Features:
    """Bring a layer's output to the form `(B, d, P)`.

    Args:
        output: a map `(B, d, H, W)`, a channels-last map `(B, H, W, d)`, tokens `(B, P, d)`, or a tuple, list
            or `ModelOutput` whose first element is one of these.
        name: the layer's name, for messages.
        image_size: height and width of the model's input in pixels, to place tokens on their grid.
        channels_last: whether four-dimensional outputs are `(B, H, W, d)` (as in timm's Swin).

    Raises:
        LayerError: when the output is not a floating point tensor of 3 or 4 dimensions.
    """
    tensor = first_tensor(output)
    if tensor is None or tensor.dim() not in (3, 4) or not tensor.is_floating_point():
        found = type(output).__name__ if tensor is None else f"a {tensor.dtype} tensor of shape {tuple(tensor.shape)}"
        raise LayerError(
            f"layer {name!r} gives {found}: expected a map (B, d, H, W) or tokens (B, P, d). "
            "Choose a layer that returns hidden states, such as a block or a stage"
        )
    if tensor.dim() == 4:
        if channels_last:
            tensor = tensor.permute(0, 3, 1, 2)
        return Features(tensor.flatten(2), (tensor.shape[2], tensor.shape[3]))
    prefix, grid = token_geometry(tensor.shape[1], image_size)
    return Features(tensor.transpose(1, 2), grid, prefix)


def height_and_width(pixels: Tensor) -> tuple[int, int]:
    """Height and width of a batch of images `(B, c, H, W)`, in pixels."""
    return int(pixels.shape[-2]), int(pixels.shape[-1])


def first_tensor(output: Any) -> Tensor | None:
    """The tensor itself, or the first element of a tuple, list or mapping when that is a tensor."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, list | tuple) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def logits_of(output: Any) -> Tensor:
    """The logits of a classifier's output: its `logits`, the tensor itself, or a tuple's first element.

    Raises:
        TypeError: when there are none.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if isinstance(logits, tuple | list) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"expected the model to return logits (B, C), or an output with `logits`, found {type(output).__name__}"
        )
    return logits


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """The layer's output with its first tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, tuple):
        changed = (tensor, *output[1:])
        return changed if type(output) is tuple else type(output)(*changed)  # a named tuple
    if isinstance(output, list):
        return [tensor, *output[1:]]
    first = next(iter(output.keys()))
    output[first] = tensor
    return output


def resolve_layers(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Turn module names and regular expressions into module names of `model`.

    A pattern that names a module is taken as it is; any other is a regular expression that must match whole
    names, and stands for all modules that match, in the model's order.

    Raises:
        LayerError: when a pattern matches no module; the message lists the nearest names.
    """
    names = list(layer_modules(model))
    known = set(names)
    resolved: list[str] = []
    for pattern in patterns:
        if pattern in known:
            matches = [pattern]
        else:
            try:
                expression = re.compile(pattern)
            except re.error as error:
                raise LayerError(f"layer pattern {pattern!r} is not a regular expression: {error}") from error
            matches = [name for name in names if expression.fullmatch(name)]
        if not matches:
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4)
            hint = f"nearest names: {', '.join(near)}" if near else f"names start with {', '.join(names[:5])}"
            raise LayerError(f"no module of {type(model).__name__} is named or matches {pattern!r}; {hint}")
        resolved += [name for name in matches if name not in resolved]
    return resolved


def layer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of `model` by name, without itself and without the insides of layers that hold a PEFT adapter.

    A model has the same layers under the same names with an adapter as without.
    """
    modules: dict[str, nn.Module] = {}
    inside: str | None = None
    for name, module in model.named_modules():
        if not name or (inside is not None and name.startswith(inside)):
            continue
        modules[name] = module
        replaced = hasattr(module, "base_layer") or hasattr(module, "original_module")
        inside = f"{name}." if replaced else None
    return modules


def named_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The modules of `model` with these names.

    Raises:
        LayerError: for an unknown name.
    """
    modules = {}
    for name in names:
        try:
            modules[name] = model.get_submodule(name)
        except AttributeError:
            resolve_layers(model, [re.escape(name)])
            raise
    return modules


def has_hooks(module: nn.Module) -> bool:
    """Whether Python of the user's runs with a module."""
    if module._backward_hooks or module._backward_pre_hooks:
        return True
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return any(getattr(hook, "__module__", None) != OUTPUT_HOOKS for hook in hooks)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; on exit every submodule gets back the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class ActivationRecorder:
    """What `record` yields: the latest output of each hooked layer.

    Attributes:
        outputs: layer name to what the layer returned last: its first tensor, or what `transform` made of it.
    """

    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {}
        self._versions: dict[str, tuple[Tensor, int]] = {}

    def modified_in_place(self) -> list[str]:
        """The layers whose recorded tensor was changed by a later in-place operation."""
        return [name for name, (tensor, version) in self._versions.items() if tensor._version != version]

    def check(self) -> None:
        """Raise `LayerError` if a recorded tensor no longer holds what the layer returned."""
        if changed := self.modified_in_place():
            raise LayerError(
                f"the output of {', '.join(changed)} is changed in place by a later operation, so what was "
                "recorded is not what the layer returned: record it with copy=True"
            )

    def _store(self, name: str, output: Any, copy: bool, transform: Callable[[str, Any], Any] | None) -> None:
        tensor = first_tensor(output)
        if transform is not None:
            self.outputs[name] = transform(name, output)
        elif tensor is not None and copy:
            self.outputs[name] = tensor.clone()
        else:
            # the tensor, not what holds it: a later layer may put another tensor into a list
            self.outputs[name] = output if tensor is None else tensor
            # a compiled model has no versions to compare, and must not be cut in pieces to ask for them
            if tensor is not None and not torch.compiler.is_compiling() and not tensor.is_inference():
                self._versions[name] = (tensor, tensor._version)


@contextmanager
def record(
    model: nn.Module,
    layers: Sequence[str],
    copy: Collection[str] | bool = (),
    transform: Callable[[str, Any], Any] | None = None,
) -> Iterator[ActivationRecorder]:
    """Record the outputs of `layers` during the forward passes inside the context; the hooks go on exit.

    Args:
        model: any module.
        layers: module names, as `model.named_modules()` gives them.
        copy: layers whose output is cloned when it is recorded (all with `True`), for outputs that a later
            operation changes in place.
        transform: called as `transform(name, output)` the moment a layer returns; its result is recorded in
            place of the output, so that nothing large is kept and later in-place changes do not matter.

    Raises:
        LayerError: for an unknown name.
    """
    recorder = ActivationRecorder()
    handles = []
    try:
        for name, module in named_layers(model, layers).items():
            clone = copy if isinstance(copy, bool) else name in copy

            def hook(module: nn.Module, inputs: Any, output: Any, name: str = name, clone: bool = clone) -> None:
                recorder._store(name, output, clone, transform)

            handles.append(module.register_forward_hook(hook))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
