"""How few dimensions of each layer a teacher needs for a subtask: its accuracy with the layer projected on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from subdistill_hf.analysis.plot import Panel, plot_analysis
from subdistill_hf.analysis.projected_accuracy import projected_accuracies
from subdistill_hf.analysis.teacher_layers import BATCH, load_teacher_layers
from subdistill_hf.config.bases import BASES
from subdistill_hf.config.commands import AnalyseOptions
from subdistill_hf.config.extras import has_extra_or_note
from subdistill_hf.config.output_folder import held_for_this_run
from subdistill_hf.core.layers import LayerShape
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.subspaces import Subspace, fit_layer
from subdistill_hf.errors import SubspaceError
from subdistill_hf.formatting import accuracy_with_error, short_names, table
from subdistill_hf.reporting.optional import plot_is_optional

RANDOM_BASES = 3  # what is shown for a seeded basis is their mean
WITHIN = 0.02  # of the unprojected accuracy, for the number of dimensions that suffice


@dataclass(frozen=True)
class LayerAnalysis:
    """One layer on its subspaces.

    Attributes:
        layer: its name.
        output: its shape for one image, in words.
        width: channels d.
        dimensions: numbers of dimensions K, rising.
        accuracy: basis to the accuracy for each K.
        energy_fraction: basis to the share of the activations' variance that is kept, for each K.
    """

    layer: str
    output: str
    width: int
    dimensions: list[int]
    accuracy: dict[str, list[float]]
    energy_fraction: dict[str, list[float]]


@dataclass(frozen=True)
class SubspaceAnalysis:
    """The accuracy of a teacher on the test images of a subtask, with one layer projected at a time.

    Attributes:
        teacher: its name.
        dataset: its name.
        classes: the subtask's.
        train_images: images that the moments are of.
        test_images: images that the accuracies are of.
        mark: the spurious mark on the images, as the report of a training describes it; `None` without one.
        seed: of the choice of images and of the random bases.
        random_bases: number of random bases, whose mean is given.
        accuracy: of the teacher as it is, among the subtask's classes.
        layers: one entry a layer, in the teacher's order.
    """

    teacher: str
    dataset: str
    classes: list[str]
    train_images: int
    test_images: int
    mark: dict[str, Any] | None
    seed: int
    random_bases: int
    accuracy: float
    layers: list[LayerAnalysis]

    @property
    def chance(self) -> float:
        """The accuracy of a guess."""
        return 1 / len(self.classes)

    def panels(self) -> list[Panel]:
        """The drawn figures."""
        names = short_names([one.layer for one in self.layers])
        return [
            Panel(f"{name}: {one.output}", one.dimensions, one.accuracy, self.accuracy, self.chance)
            for name, one in zip(names, self.layers, strict=True)
        ]


@dataclass(frozen=True)
class _Curves:
    """The projections of one layer: each basis, drawn once or several times, at each number of dimensions."""

    layer: LayerShape
    dimensions: list[int]
    spaces: dict[str, list[Subspace]]

    @classmethod
    def fitted(
        cls, layer: LayerShape, moments: Moments, bases: Sequence[str], dimensions: list[int], seed: int
    ) -> _Curves:
        """Each basis once, a seeded one several times, at these or the default dimensions."""
        dimensions = dimensions or default_dimensions(moments)
        spaces = {
            basis: [
                fit_layer(layer.name, moments, dimensions[-1], basis, seed + draw)
                for draw in range(RANDOM_BASES if BASES[basis].seeded else 1)
            ]
            for basis in bases
        }
        return cls(layer, dimensions, spaces)

    def subspaces(self) -> list[Subspace]:
        """All of them, in the order of bases, draws of a basis, and dimensions."""
        return [space.truncated(k) for draws in self.spaces.values() for space in draws for k in self.dimensions]

    def analysed(self, accuracies: Sequence[float]) -> LayerAnalysis:
        """The curves from the accuracies of `subspaces`."""
        measured, accuracy, energy = iter(accuracies), {}, {}
        for basis, draws in self.spaces.items():
            accuracy[basis] = _means([[next(measured) for _ in self.dimensions] for _ in draws])
            energy[basis] = _means([[one.truncated(k).energy_fraction for k in self.dimensions] for one in draws])
        return LayerAnalysis(self.layer.name, str(self.layer), self.layer.width, self.dimensions, accuracy, energy)


def analyse(options: AnalyseOptions) -> SubspaceAnalysis:
    """Measure, print and plot a teacher's accuracy on a subtask against the dimensions that a layer is projected on.

    Raises:
        SubDistillError: for options that do not fit together.
    """
    with held_for_this_run(options.output_dir if PartialState().is_main_process else None):
        analysis = _measure(options)
    return analysis


def _measure(options: AnalyseOptions) -> SubspaceAnalysis:
    bases = list(dict.fromkeys(options.bases))
    found = load_teacher_layers(options)
    given = _checked_dimensions(options.dimensions, found.layers)
    test = found.data.views("test")
    moments = found.moments(with_context=any(BASES[basis].needs_context for basis in bases))
    curves = [
        _Curves.fitted(layer, moments[layer.name], bases, given[layer.name], options.seed + RANDOM_BASES * number)
        for number, layer in enumerate(found.layers)
    ]
    projections = [(one.layer, one.subspaces()) for one in curves]
    unprojected, accuracies = projected_accuracies(found.teacher, projections, test, found.collate, BATCH)
    analysis = SubspaceAnalysis(
        teacher=found.loaded.name,
        dataset=found.data.name,
        classes=list(found.data.subtask.names),
        train_images=len(found.data.train),
        test_images=len(test),
        mark=None if found.data.marking is None else found.data.marking.described(found.data.subtask),
        seed=options.seed,
        random_bases=RANDOM_BASES,
        accuracy=unprojected,
        layers=[one.analysed(values) for one, values in zip(curves, accuracies, strict=True)],
    )
    if PartialState().is_main_process:
        print(f"{found.heading()}\n\n{analysis_tables(analysis)}")
        if options.output_dir is not None:
            _write(analysis, Path(options.output_dir))
    return analysis


def default_dimensions(moments: Moments) -> list[int]:
    """Powers of two and the layer's width, as far as the positions determine so many dimensions."""
    powers = (2**power for power in range(moments.width.bit_length()))
    return sorted(k for k in {*powers, moments.width} if k < moments.count)


def sufficient_dimensions(
    dimensions: Sequence[int], accuracy: Sequence[float], unprojected: float, within: float = WITHIN
) -> int | None:
    """The fewest dimensions from which on the accuracy is at most `within` below the unprojected one.

    Args:
        dimensions: numbers of dimensions that were measured, rising.
        accuracy: for each.
        unprojected: the teacher's accuracy.
        within: what may be lost.

    Returns:
        One of `dimensions`, or `None` where not even the most suffice.
    """
    sufficient = None
    for k, value in zip(reversed(dimensions), reversed(accuracy), strict=True):
        if value < unprojected - within - 1e-9:
            break
        sufficient = k
    return sufficient


def analysis_tables(analysis: SubspaceAnalysis) -> str:
    """The accuracy of each layer, basis and number of dimensions, and how many dimensions suffice."""
    bases = list(analysis.layers[0].accuracy)
    parts = []
    for one in analysis.layers:
        rows: list[Sequence[str]] = [["dimensions", *bases]]
        for place, k in enumerate(one.dimensions):
            rows.append([str(k), *(f"{100 * one.accuracy[basis][place]:.1f}" for basis in bases)])
        parts.append(f"accuracy in %, {one.layer} ({one.output}) projected\n{table(rows, numbers_from=0)}")
    header = ["layer", *bases]
    needed = [[one.layer, *(_sufficient(one, basis, analysis.accuracy) for basis in bases)] for one in analysis.layers]
    parts.append(
        f"the teacher as it is: {accuracy_with_error(analysis.accuracy, analysis.test_images)} of "
        f"{analysis.test_images} test images; dimensions from which on at most {100 * WITHIN:g} points are lost\n"
        f"{table([header, *needed], numbers_from=1)}"
    )
    return "\n\n".join(parts)


def _sufficient(one: LayerAnalysis, basis: str, unprojected: float) -> str:
    k = sufficient_dimensions(one.dimensions, one.accuracy[basis], unprojected)
    return f"{k} of {one.width}" if k else f"more than {one.dimensions[-1]}"


def _checked_dimensions(dimensions: Sequence[int], layers: Sequence[LayerShape]) -> Mapping[str, list[int]]:
    """The numbers of dimensions that were asked for, by layer, rising; none where nothing was."""
    widths = ", ".join(f"{layer.name} has {layer.width}" for layer in layers)
    for k in dimensions:
        if not 1 <= k <= max(layer.width for layer in layers):
            raise SubspaceError(f"no layer can be projected on {k} dimensions: {widths}")
    by_layer = {layer.name: sorted({k for k in dimensions if k <= layer.width}) for layer in layers}
    if dimensions and (without := [name for name, ks in by_layer.items() if not ks]):
        raise SubspaceError(f"{without[0]!r} has fewer dimensions than any that were asked for: {widths}")
    return by_layer


def _means(curves: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]


def _write(analysis: SubspaceAnalysis, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**asdict(analysis), "chance": analysis.chance}, indent=2)
    (folder / "analysis.json").write_text(text + "\n", encoding="utf-8")
    drawn = False
    if has_extra_or_note("plots", "analysis.png is not drawn"):
        with plot_is_optional("analysis.png"):
            plot_analysis(analysis.panels(), folder / "analysis.png")
            drawn = True
    print(f"\nanalysis.json {'and analysis.png are' if drawn else 'is'} in {folder}")
