"""The relevances of a network for many images, and whether they add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from tqdm.auto import tqdm

from subdistill_hf.acceleration.batch_size import within_memory
from subdistill_hf.config.explainers import ALWAYS_COMPLETE, EXPLAINERS
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.explain.explainers import Inputs, batches, make_explainer
from subdistill_hf.explain.networks import BATCH, ExplainedNetwork, evidence_of
from subdistill_hf.reporting.explained import Completeness

BOUND: Final = 0.01
"""The largest error of completeness that is let pass."""


@dataclass(frozen=True)
class Explained:
    """A network's explanations of N images, on the CPU.

    Attributes:
        relevance: of each pixel of the network's input, `(N, H, W)`, float64.
        logits: of the images, `(N, C)`.
        evidence: of the images, `(N,)`.
        baseline_evidence: of grey images, `(N,)`.
        completeness: how far the relevances are from adding up.
    """

    relevance: Tensor
    logits: Tensor
    evidence: Tensor
    baseline_evidence: Tensor
    completeness: Completeness


def explain_images(
    network: ExplainedNetwork,
    images: Sequence[Tensor],
    targets: Sequence[int],
    method: str,
    seed: int = 0,
    batch_size: int = BATCH,
    show: bool = True,
    refuse: bool = True,
) -> Explained:
    """Explain the evidence of a network for a class of each image.

    Args:
        network: the network.
        images: N byte images `(3, H, W)`.
        targets: N classes.
        method: a key of `EXPLAINERS`.
        seed: of a sampled method.
        batch_size: inputs of one pass, fewer where memory is short.
        show: show a bar.
        refuse: refuse a method that does not hold; otherwise that is only measured.

    Raises:
        ExplainError: for an unknown method, one that does not hold for this network, or evidence that is not finite.
        MissingExtraError: when the packages that the method needs are not installed.
    """
    make_explainer(method)  # before the network runs

    def explain(size: int) -> Explained:
        return _explain(network, images, torch.tensor(list(targets)), method, seed, size, show)

    found = within_memory(explain, batch_size)
    if refuse:
        check_completeness(network.name, method, found.completeness)
    return found


def _explain(
    network: ExplainedNetwork,
    images: Sequence[Tensor],
    targets: Tensor,
    method: str,
    seed: int,
    batch_size: int,
    show: bool,
) -> Explained:
    logits, evidence, baseline_evidence = _answers(network, images, targets, batch_size)
    differences = evidence - baseline_evidence
    if not bool(torch.isfinite(differences).all()):
        raise ExplainError(f"{network.name}: its logits are not finite on some image, so there is nothing to explain")
    scale = float(differences.abs().mean())
    explainer = make_explainer(method, tolerance=BOUND * scale, batch_size=batch_size, seed=seed)
    maps, evaluations = [], 0
    with tqdm(
        total=len(images), desc=f"{network.name}, {EXPLAINERS[method].label}", unit=" images", disable=not show
    ) as bar:
        for places in batches(len(images), batch_size):
            some = [images[place] for place in places.tolist()]
            pixels, baseline = network.pixels(some), network.baseline(some)
            inputs = Inputs(pixels, baseline, targets[places].to(network.device), differences[places].to(pixels))
            found = explainer.explain(network.evidence, inputs)
            maps.append(found.values.detach().double().cpu())
            evaluations = max(evaluations, found.evaluations)
            bar.update(len(some))
    relevance = torch.cat(maps)
    completeness = completeness_of(relevance, differences, method, evaluations)
    return Explained(relevance, logits, evidence, baseline_evidence, completeness)


@torch.no_grad()
def _answers(
    network: ExplainedNetwork, images: Sequence[Tensor], targets: Tensor, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, evidence, and evidence of grey images, on the CPU."""
    logits, evidence, baseline = [], [], []
    for places in batches(len(images), batch_size):
        some, wanted = [images[place] for place in places.tolist()], targets[places].to(network.device)
        found = network.logits(network.pixels(some))
        logits.append(found.double().cpu())
        evidence.append(evidence_of(found, wanted).double().cpu())
        baseline.append(network.evidence(network.baseline(some), wanted).double().cpu())
    return torch.cat(logits), torch.cat(evidence), torch.cat(baseline)


def completeness_of(relevance: Tensor, differences: Tensor, method: str, evaluations: int) -> Completeness:
    """How far relevances are from adding up to the evidence.

    Args:
        relevance: `(N, H, W)`.
        differences: evidence minus that of the baseline, `(N,)`.
        method: a key of `EXPLAINERS`.
        evaluations: of the network, for the image that took most.
    """
    gaps = (relevance.sum(dim=(1, 2)) - differences).abs()
    scale = float(differences.abs().mean())
    error = float(gaps.mean()) / scale if scale > 0 else 0.0 if float(gaps.mean()) == 0 else 1.0
    bound = BOUND if EXPLAINERS[method].complete else None
    return Completeness(error=error, bound=bound, evaluations=evaluations)


def check_completeness(name: str, method: str, completeness: Completeness) -> None:
    """Refuse relevances that should add up and do not.

    Raises:
        ExplainError: naming the network, the method, and another one.
    """
    if completeness.bound is None or completeness.error <= completeness.bound:
        return
    other = "" if method == ALWAYS_COMPLETE else f": give --method {ALWAYS_COMPLETE}, which adds up for every network"
    raise ExplainError(
        f"{EXPLAINERS[method].label} does not hold for the {name}: after {completeness.evaluations:,} evaluations its "
        f"relevances are {100 * completeness.error:.1f} % off what they should add up to, and at most "
        f"{100 * completeness.bound:g} % is let pass{other}"
    )
