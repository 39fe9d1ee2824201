"""Choose which teacher layer teaches which student layer, and describe the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from subdistill_hf.config.options import AUTO
from subdistill_hf.core.activations import LayerError
from subdistill_hf.core.hooks import resolve_layers
from subdistill_hf.core.layers import DEFAULT_STAGES, LayerShape, block_chain, choose_stages, describe_layers
from subdistill_hf.formatting import table


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

    @property
    def pooled_grid(self) -> tuple[int, int] | None:
        """The grid to which the teacher's map is pooled before it is compared; `None` where it is not pooled."""
        height, width = (min(sides) for sides in zip(self.teacher.grid, self.student.grid, strict=True))
        return None if (height, width) == self.teacher.grid else (height, width)

    def __str__(self) -> str:
        return f"{self.teacher.name}={self.student.name}"


def pair_layers(
    teacher: nn.Module,
    student: nn.Module,
    layers: Sequence[str],
    teacher_forward: Callable[[], Any],
    student_forward: Callable[[], Any],
    teacher_image_size: tuple[int, int],
    student_image_size: tuple[int, int],
    pairs: int = DEFAULT_STAGES,
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

    if list(layers) == [AUTO]:
        return pair_chains(
            block_chain(teacher, teacher_forward, teacher_image_size),
            block_chain(student, student_forward, student_image_size),
            pairs,
        )
    teacher_names, student_names = parse_layers(teacher, student, layers)
    teacher_shapes = describe_layers(teacher, teacher_names, teacher_forward, teacher_image_size)
    student_shapes = describe_layers(student, student_names, student_forward, student_image_size)
    return [LayerPair(*shapes) for shapes in zip(teacher_shapes, student_shapes, strict=True)]


def pair_chains(
    teacher: Sequence[LayerShape], student: Sequence[LayerShape], pairs: int = DEFAULT_STAGES
) -> list[LayerPair]:
    """Pair the stages of two chains of blocks, the last with the last; the side with fewer stages decides.

    Args:
        teacher: the teacher's blocks, as `block_chain` returns them.
        student: the student's.
        pairs: how many pairs at most.
    """

    def paired(last: bool) -> list[LayerPair]:
        teacher_stages = choose_stages(teacher, pairs, last)
        student_stages = choose_stages(student, len(teacher_stages))
        if len(student_stages) < len(teacher_stages):
            teacher_stages = choose_stages(teacher, len(student_stages), last)
        return [LayerPair(*stages) for stages in zip(teacher_stages, student_stages, strict=True)]

    chosen = paired(last=True)
    if chosen[-1].drops_prefix and chosen[-1].teacher.prefix:
        # After most transformers' last block only the class token reaches the logits, and it is left out here: the
        # other tokens have no context.
        return paired(last=False)
    return chosen


def parse_layers(teacher: nn.Module, student: nn.Module, layers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split entries `teacher=student` and resolve each side; see `pair_layers`."""
    teacher_names: list[str] = []
    student_names: list[str] = []
    for entry in layers:
        left, right = split_entry(entry)
        found_teacher = resolve_layers(teacher, [left])
        found_student = resolve_layers(student, [right])
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


def split_entry(entry: str) -> tuple[str, str]:
    """Both sides of an entry `teacher=student`.

    Raises:
        LayerError: for an entry of another form.
    """
    left, _, right = (side.strip() for side in entry.partition("="))
    if not left or not right:
        raise LayerError(f"layer entry {entry!r} is not of the form 'teacher_layer=student_layer' (or 'auto' alone)")
    return left, right


def layer_table(pairs: Sequence[LayerPair], subspaces: bool = True) -> str:
    """A preview of the pairs as text: names, shapes, and the dimensions of each subspace where there are any."""
    rows = [["teacher layer", "output", "student layer", "output", "subspace"]]
    for pair in pairs:
        teacher, student = pair.teacher, pair.student
        subspace = f"{pair.dimensions} of {teacher.width}"
        rows.append([teacher.name, str(teacher), student.name, str(student), subspace])
    return table(rows if subspaces else [row[:-1] for row in rows])
