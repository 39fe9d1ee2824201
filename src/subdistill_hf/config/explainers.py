"""The registry of explainers: one entry for each way to give the places of an image their share of the evidence.

An explainer is one class of `explain.explainers` and one entry here, which names it as `module:name`, so that the
command line knows the explainers without importing torch. An entry added at run time may hold the class itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class ExplainerEntry:
    """One way to explain.

    Attributes:
        label: what tables and pictures call it.
        make: subclass of `explain.explainers.Explainer`, or where it is: `module:name`.
        extra: of this package, which installs what it needs.
        complete: whether its relevances add up to the evidence minus that of the baseline.
        sampled: whether they depend on a seed.
    """

    label: str
    make: str | Callable[..., Any]
    extra: str | None = None
    complete: bool = True
    sampled: bool = False


EXPLAINERS: dict[str, ExplainerEntry] = {
    "gradient_x_input": ExplainerEntry(
        "gradient x input", "subdistill_hf.explain.explainers:GradientTimesInput", complete=False
    ),
    "integrated_gradients": ExplainerEntry(
        "integrated gradients", "subdistill_hf.explain.explainers:IntegratedGradients", extra="explain"
    ),
    "shapley": ExplainerEntry(
        "Shapley value sampling", "subdistill_hf.explain.explainers:ShapleySampling", extra="explain", sampled=True
    ),
}
"""Name to explainer, in the order of tables; the first is the cheapest, and the default."""

DEFAULT_EXPLAINER: Final = next(iter(EXPLAINERS))
ALWAYS_COMPLETE: Final = "shapley"
"""The explainer that adds up for every network; what is offered where another does not."""
