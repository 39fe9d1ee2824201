"""Show how much of a teacher's layers a subtask needs: the spectra of its subspaces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from subdistill_hf.activations import height_and_width, resolve_layers
from subdistill_hf.bases import BASES
from subdistill_hf.data import load_subtask
from subdistill_hf.distillation_module import logits_of
from subdistill_hf.errors import SubspaceError
from subdistill_hf.layers import AUTO
from subdistill_hf.models import load_teacher
from subdistill_hf.moments import collect_moments
from subdistill_hf.options import InspectOptions
from subdistill_hf.plots import plot_subspaces
from subdistill_hf.relevance import activations_and_contexts
from subdistill_hf.stages import LayerShape, describe_layers, stage_outputs
from subdistill_hf.subspaces import Subspace, save_subspaces
from subdistill_hf.subtask import match_teacher, matching_table
from subdistill_hf.tables import table
from subdistill_hf.views import ViewDataset, process

SHARES = (0.5, 0.9, 0.99)
BATCH = 64


def inspect(options: InspectOptions) -> dict[str, Subspace]:
    """Fit the whole basis of each layer, print how many directions keep which share of the energy, and plot it.

    Returns:
        Layer name to subspace, with all d directions.

    Raises:
        SubDistillError: for options that do not fit together.
    """
    if options.basis not in BASES:
        raise SubspaceError(f"unknown basis {options.basis!r}: expected one of {', '.join(BASES)}")
    data = load_subtask(options, options.seed)
    teacher = load_teacher(options.teacher, options.trust_remote_code)
    subtask = match_teacher(data.subtask, teacher.labels, data.class_names)
    images = ViewDataset(data.train, data.columns)

    def forward(batch: dict[str, Tensor]) -> Tensor:
        return logits_of(teacher.model(**batch))[:, list(subtask.teacher_ids or ())]

    def batches() -> Iterator[dict[str, Tensor]]:
        for start in tqdm(range(0, len(images), BATCH), desc="moments", unit="batch"):
            chosen = range(start, min(start + BATCH, len(images)))
            yield {"pixel_values": process(teacher.processor, [images.image(index) for index in chosen])}

    example = {"pixel_values": process(teacher.processor, [images.image(0)])}
    image_size = height_and_width(example["pixel_values"])
    with torch.no_grad():
        if options.layers == [AUTO]:
            names = stage_outputs(teacher.model, lambda: forward(example), image_size)
        else:
            names = resolve_layers(teacher.model, options.layers)
        shapes = describe_layers(teacher.model, names, lambda: forward(example), image_size)
    stream = activations_and_contexts(
        forward, teacher.model, names, batches(), [shape.name for shape in shapes if shape.channels_last]
    )
    subspaces = {name: Subspace.fit(moments, kind=options.basis) for name, moments in collect_moments(stream).items()}
    print(f"{matching_table(subtask, teacher.labels)}\n")
    print(spectrum_table(shapes, subspaces))
    if options.output_dir is not None:
        save_subspaces(subspaces, options.output_dir)
        path = Path(options.output_dir) / "spectra.png"
        described = [
            {"teacher_layer": name, "student_layer": "", **subspace.described()}
            for name, subspace in subspaces.items()
        ]
        plot_subspaces({"subspaces": described}, path)
        print(f"\nsubspaces and {path.name} are in {options.output_dir}")
    return subspaces


def spectrum_table(shapes: list[LayerShape], subspaces: dict[str, Subspace]) -> str:
    """For each layer, the number of directions that keep 50, 90 and 99 % of the energy."""
    header = ("layer", "output", *(f"{share:.0%} of energy" for share in SHARES))
    rows: list[tuple[str, ...]] = [header]
    for shape in shapes:
        kept = subspaces[shape.name].energies.cumsum(0) / subspaces[shape.name].total_energy
        needed = (int((kept < share - 1e-9).sum()) + 1 for share in SHARES)
        rows.append((shape.name, str(shape), *(f"{count} of {shape.width}" for count in needed)))
    return table(rows, numbers_from=2)
