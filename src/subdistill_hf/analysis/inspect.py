"""Show how much of a teacher's layers a subtask needs: the spectra of its subspaces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from subdistill_hf.analysis.teacher_layers import load_teacher_layers
from subdistill_hf.config.bases import BASES
from subdistill_hf.config.commands import InspectOptions
from subdistill_hf.config.extras import has_extra_or_note
from subdistill_hf.config.output_folder import held_for_this_run
from subdistill_hf.core.layers import LayerShape
from subdistill_hf.core.subspaces import Subspace, fit_layer, save_subspaces
from subdistill_hf.formatting import table
from subdistill_hf.reporting.decoding import decode
from subdistill_hf.reporting.optional import plot_is_optional
from subdistill_hf.reporting.report import ReportedSubspace

SHARES = (0.5, 0.9, 0.99)


def inspect(options: InspectOptions) -> dict[str, Subspace]:
    """Fit the whole basis of each layer, print how many directions keep which share of the energy, and plot it.

    Returns:
        Layer name to subspace, with all d directions.

    Raises:
        SubDistillError: for options that do not fit together.
    """
    with held_for_this_run(options.output_dir if PartialState().is_main_process else None):
        subspaces = _fit(options)
    return subspaces


def _fit(options: InspectOptions) -> dict[str, Subspace]:
    found = load_teacher_layers(options)
    moments = found.moments(with_context=BASES[options.basis].needs_context)
    subspaces = {
        layer.name: fit_layer(layer.name, moments[layer.name], kind=options.basis, seed=options.seed + number)
        for number, layer in enumerate(found.layers)
    }
    if not PartialState().is_main_process:
        return subspaces
    print(f"{found.heading()}\n")
    print(spectrum_table(found.layers, subspaces))
    if options.output_dir is not None:
        save_subspaces(subspaces, options.output_dir)
        drawn = _plot_spectra(subspaces, Path(options.output_dir) / "spectra.png")
        print(f"\nsubspaces{' and spectra.png' if drawn else ''} are in {options.output_dir}")
    return subspaces


def _plot_spectra(subspaces: dict[str, Subspace], path: Path) -> bool:
    """Plot the spectra, and say whether that was done: without the packages that draw, or on an error, it is not."""
    if not has_extra_or_note("plots", f"{path.name} is not drawn"):
        return False
    from subdistill_hf.reporting.plots import plot_subspaces

    reported = [
        decode(ReportedSubspace, {"teacher_layer": name, "student_layer": "", **subspace.described()})
        for name, subspace in subspaces.items()
    ]
    drawn = False
    with plot_is_optional(path.name):
        plot_subspaces(reported, path)
        drawn = True
    return drawn


def spectrum_table(shapes: Sequence[LayerShape], subspaces: dict[str, Subspace]) -> str:
    """For each layer, the number of directions that keep 50, 90 and 99 % of the energy."""
    header = ("layer", "output", *(f"{share:.0%} of energy" for share in SHARES))
    rows: list[tuple[str, ...]] = [header]
    for shape in shapes:
        kept = subspaces[shape.name].energies.cumsum(0) / subspaces[shape.name].total_energy
        needed = (int((kept < share - 1e-9).sum()) + 1 for share in SHARES)
        rows.append((shape.name, str(shape), *(f"{count} of {shape.width}" for count in needed)))
    return table(rows, numbers_from=2)
