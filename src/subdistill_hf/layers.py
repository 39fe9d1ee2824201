"""Choose which teacher layer teaches which student layer, and describe the choice."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from subdistill_hf.activations import (
    LayerError,
    evaluation_mode,
    first_tensor,
    named_layers,
    record,
    resolve_layers,
    to_features,
)
from subdistill_hf.tables import table

AUTO = "auto"
DEFAULT_PAIRS = 4
# A last block that widens the channels more than this many times prepares the head (MobileNet's 1x1
# convolution) and is no stage.
HEAD_WIDENING = 3
NUMBERED_BLOCK = re.compile(r"\d+|(dense)?(layer|stage|block)_?\d+")


@dataclass(frozen=True)
class LayerShape:
    """What a layer returns for one image.

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


@dataclass(frozen=True)
class LayerPair:
    """A teacher layer and the student layer that is made to match it."""

    teacher: LayerShape
    student: LayerShape

    @property
    def dimensions(self) -> int:
        """Dimensions of the teacher's subspace: the student's width, at most the teacher's."""
        return min(self.teacher.width, self.student.width)

    @property
    def drops_prefix(self) -> bool:
        """Whether the class and register tokens are left out of the comparison, and so of the moments."""
        return self.teacher.prefix != self.student.prefix

    def __str__(self) -> str:
        return f"{self.teacher.name}={self.student.name}"


def _shape_of(name: str, output: Any, image_size: tuple[int, int], modified: bool) -> LayerShape:
    tensor = first_tensor(output)
    channels_last = False
    if tensor is not None and tensor.dim() == 4:
        height, width = image_size

        def fits(rows: int, columns: int) -> bool:
            return rows * width == columns * height

        channels_last = fits(*tensor.shape[1:3]) and not fits(*tensor.shape[2:4])
    features = to_features(output, name, image_size, channels_last)
    return LayerShape(name, features.values.shape[1], features.grid, features.prefix, channels_last, modified)


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
    modified = set(recorder.modified_in_place())
    return [_shape_of(name, recorder.outputs[name], image_size, name in modified) for name in names]


@torch.no_grad()
def stage_outputs(
    model: nn.Module,
    forward: Callable[[], Any],
    image_size: tuple[int, int],
    stages: int = DEFAULT_PAIRS,
    last: bool = True,
) -> list[str]:
    """The names of at most `stages` layers that split the model at its natural places, shallow to deep.

    A model that shrinks its maps in stages gives the last block at each of its last resolutions; one that
    keeps its tokens gives blocks at equal relative depths.

    Args:
        model: any module.
        forward: runs the model on an example.
        image_size: height and width of the example in pixels.
        stages: how many layers at most.
        last: whether the model's last block may be chosen.

    Raises:
        LayerError: when no chain of blocks is found.
    """
    order: list[tuple[str, LayerShape]] = []
    handles = []

    def make_hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is None or tensor.dim() not in (3, 4):
                return
            try:
                order.append((name, _shape_of(name, output, image_size, False)))
            except LayerError:
                return  # not on a grid (attention weights, pooled vectors): no place to match

        return hook

    try:
        for name, module in named_layers(model, _numbered_blocks(model)).items():
            handles.append(module.register_forward_hook(make_hook(name)))
        with evaluation_mode(model):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    while len(order) > 1 and order[-1][1].width > HEAD_WIDENING * order[-2][1].width:
        order.pop()
    if not last and len(order) > 1:
        order.pop()
    if not order:
        raise LayerError(
            f"no chain of blocks was found in {type(model).__name__}: name the layer pairs, as in "
            "layers=['teacher.layer=student.layer', ...]"
        )
    last_at_resolution: dict[tuple[int, int], str] = {}
    for name, shape in order:
        last_at_resolution[shape.grid] = name
    if len(last_at_resolution) >= min(stages, 3):
        return list(last_at_resolution.values())[-stages:]
    count = min(stages, len(order))
    return [order[-(-len(order) * (index + 1) // count) - 1][0] for index in range(count)]


def _numbered_blocks(model: nn.Module) -> list[str]:
    """Modules with a numbered name (`stages.2`, `layer3`, `blocks.11`) that are in no other such module."""
    numbered = [
        name
        for name, module in model.named_modules()
        if NUMBERED_BLOCK.fullmatch(name.rpartition(".")[2])
        and any(True for _ in module.children())
        and "Norm" not in type(module).__name__
    ]
    if not numbered:  # a plain chain of single modules
        numbered = [name for name, _ in model.named_modules() if name.rpartition(".")[2].isdigit()]
    outermost: list[str] = []
    for name in numbered:
        if not any(name.startswith(f"{other}.") for other in outermost):
            outermost.append(name)
    return outermost


def pair_layers(
    teacher: nn.Module,
    student: nn.Module,
    layers: Sequence[str],
    teacher_forward: Callable[[], Any],
    student_forward: Callable[[], Any],
    teacher_image_size: tuple[int, int],
    student_image_size: tuple[int, int],
    pairs: int = DEFAULT_PAIRS,
) -> list[LayerPair]:
    """Resolve the `layers` option to pairs of layers with their shapes.

    Args:
        teacher: teacher model.
        student: student model.
        layers: `["auto"]`, or entries `"teacher_layer=student_layer"`; each side is a module name or a
            regular expression, and an entry whose two sides match several modules pairs them in the models'
            order.
        teacher_forward: runs the teacher on an example.
        student_forward: runs the student on an example.
        teacher_image_size: height and width of the teacher's example in pixels.
        student_image_size: height and width of the student's example in pixels.
        pairs: how many pairs `"auto"` makes at most.

    Raises:
        LayerError: for names that match nothing, sides that match different numbers of layers, or layers
            whose outputs cannot be compared.
    """

    def described(teacher_names: list[str], student_names: list[str]) -> list[LayerPair]:
        teacher_shapes = describe_layers(teacher, teacher_names, teacher_forward, teacher_image_size)
        student_shapes = describe_layers(student, student_names, student_forward, student_image_size)
        return [LayerPair(*shapes) for shapes in zip(teacher_shapes, student_shapes, strict=True)]

    def automatic(last: bool) -> list[LayerPair]:
        teacher_names = stage_outputs(teacher, teacher_forward, teacher_image_size, pairs, last)
        student_names = stage_outputs(student, student_forward, student_image_size, len(teacher_names))
        if len(student_names) < len(teacher_names):
            count = len(student_names)
            teacher_names = stage_outputs(teacher, teacher_forward, teacher_image_size, count, last)
        return described(teacher_names, student_names)

    if list(layers) != [AUTO]:
        return described(*parse_layers(teacher, student, layers))
    paired = automatic(last=True)
    if paired[-1].drops_prefix and paired[-1].teacher.prefix:
        # After a transformer's last block only the class token reaches the logits, and it is left out
        # here: the other tokens have no context.
        return automatic(last=False)
    return paired


def parse_layers(teacher: nn.Module, student: nn.Module, layers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split entries `teacher=student` and resolve each side; see `pair_layers`."""
    teacher_names: list[str] = []
    student_names: list[str] = []
    for entry in layers:
        left, separator, right = entry.partition("=")
        if not separator or not left.strip() or not right.strip():
            raise LayerError(
                f"layer entry {entry!r} is not of the form 'teacher_layer=student_layer' (or 'auto' alone)"
            )
        found_teacher = resolve_layers(teacher, [left.strip()])
        found_student = resolve_layers(student, [right.strip()])
        if len(found_teacher) != len(found_student):
            raise LayerError(
                f"layer entry {entry!r} matches {len(found_teacher)} teacher layers "
                f"({', '.join(found_teacher)}) and {len(found_student)} student layers "
                f"({', '.join(found_student)}): expected as many on each side"
            )
        teacher_names += found_teacher
        student_names += found_student
    if len(set(teacher_names)) < len(teacher_names):
        repeated = next(name for name in teacher_names if teacher_names.count(name) > 1)
        raise LayerError(f"teacher layer {repeated!r} is in two pairs: expected each once")
    return teacher_names, student_names


def layer_table(pairs: Sequence[LayerPair]) -> str:
    """A preview of the pairs as text: names, shapes, and the dimensions of each subspace."""
    rows = [("teacher layer", "output", "student layer", "output", "subspace")]
    for pair in pairs:
        teacher, student = pair.teacher, pair.student
        subspace = f"{pair.dimensions} of {teacher.width}"
        rows.append((teacher.name, str(teacher), student.name, str(student), subspace))
    return table(rows)
