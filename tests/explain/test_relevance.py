"""Relevances of many images: measured, and refused where a method does not hold."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from helpers import processor, resnet, vit, with_confident_head
from subdistill_hf.config import extras
from subdistill_hf.config.explainers import EXPLAINERS, ExplainerEntry
from subdistill_hf.errors import MissingExtraError
from subdistill_hf.explain.errors import ExplainError
from subdistill_hf.explain.explainers import Explainer, Relevance
from subdistill_hf.explain.networks import ExplainedNetwork
from subdistill_hf.explain.relevance import BOUND, check_completeness, completeness_of, explain_images
from subdistill_hf.pipeline.evaluation import Classifier
from subdistill_hf.reporting.explained import Completeness

IMAGES = [torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(n)).byte() for n in range(3)]
TARGETS = [0, 2, 1]


def network(model=None):
    model = with_confident_head(resnet(widths=(4, 4))) if model is None else model
    return ExplainedNetwork("student", Classifier(model.requires_grad_(False), processor()))


class Half(Explainer):
    """Shares out half of what it should."""

    def explain(self, evidence, inputs):
        height, width = inputs.pixels.shape[2:]
        share = inputs.differences[:, None, None] / (2 * height * width)
        return Relevance(share.expand(-1, height, width), 3)


@pytest.mark.parametrize("method", ["gradient_x_input", "integrated_gradients"])
def test_every_image_is_explained_in_batches(method):
    found = explain_images(network(), IMAGES, TARGETS, method, batch_size=2, show=False)
    assert found.relevance.shape == (3, 32, 32)
    assert found.relevance.dtype == torch.float64
    for place in range(3):
        alone = explain_images(network(), [IMAGES[place]], [TARGETS[place]], "gradient_x_input", show=False)
        assert torch.allclose(found.evidence[place], alone.evidence[0], atol=1e-5)
        if method == "gradient_x_input":
            assert torch.allclose(found.relevance[place], alone.relevance[0], atol=1e-5)
    gaps = (found.relevance.sum(dim=(1, 2)) - (found.evidence - found.baseline_evidence)).abs()
    error = float(gaps.mean() / (found.evidence - found.baseline_evidence).abs().mean())
    assert found.completeness.error == pytest.approx(error)
    complete = EXPLAINERS[method].complete
    assert found.completeness.bound == (BOUND if complete else None)
    assert found.completeness.error <= BOUND or not complete  # the gradient times the input may add up by chance


@pytest.mark.parametrize("model", [lambda: vit(layers=2), lambda: resnet(widths=(4, 4))])
def test_shapley_values_add_up_for_every_network(model):
    small = network(model())
    found = explain_images(small, IMAGES[:1], [1], "shapley", show=False)
    assert found.completeness.error < 1e-4
    assert found.completeness.evaluations == 1601


def test_a_network_for_which_a_method_does_not_hold_is_refused(monkeypatch):
    monkeypatch.setitem(EXPLAINERS, "half", ExplainerEntry("half of it", Half))
    with pytest.raises(ExplainError) as refused:
        explain_images(network(), IMAGES, TARGETS, "half", show=False)
    assert str(refused.value) == (
        "half of it does not hold for the student: after 3 evaluations its relevances are 50.0 % off what they should "
        "add up to, and at most 1 % is let pass: give --method shapley, which adds up for every network"
    )
    monkeypatch.setitem(EXPLAINERS, "half", ExplainerEntry("half of it", Half, complete=False))
    assert explain_images(network(), IMAGES, TARGETS, "half", show=False).completeness.error == pytest.approx(0.5)


@pytest.mark.parametrize(("error", "refused"), [(0.01, False), (0.0101, True)])
def test_up_to_one_percent_is_let_pass(error, refused):
    found = Completeness(error=error, bound=BOUND, evaluations=16)
    with pytest.raises(ExplainError, match=r"are 1\.0 % off") if refused else nullcontext():
        check_completeness("student", "integrated_gradients", found)


def test_the_figures_of_images_are_their_own(monkeypatch):
    class Counted(Half):
        """Takes most evaluations for the first image."""

        def explain(self, evidence, inputs):
            tolerances.add(self.tolerance)
            return replace(super().explain(evidence, inputs), evaluations=len(inputs.pixels) + self.seed)

    monkeypatch.setitem(EXPLAINERS, "counted", ExplainerEntry("counted", Counted, complete=False))
    small, tolerances = network(), set()
    found = explain_images(small, IMAGES, TARGETS, "counted", seed=5, batch_size=2, show=False)
    assert found.completeness.evaluations == 2 + 5
    scale = float((found.evidence - found.baseline_evidence).abs().mean())
    assert [*tolerances] == [pytest.approx(0.01 * scale)]
    logits = small.logits(small.pixels(IMAGES))
    grey = small.logits(small.pixels([torch.full((3, 32, 32), 128, dtype=torch.uint8)]))[0]
    torch.testing.assert_close(found.logits, logits.double(), rtol=0, atol=1e-5)
    for place, target in enumerate(TARGETS):
        others = [output for output in range(3) if output != target]
        evidence, baseline = (float(row[target] - row[others].max()) for row in (logits[place], grey))
        assert float(found.evidence[place]) == pytest.approx(evidence, abs=1e-5)
        assert float(found.baseline_evidence[place]) == pytest.approx(baseline, abs=1e-5)


def test_logits_that_are_not_finite_are_refused():
    broken = network()
    with torch.no_grad():
        next(broken.classifier.model.parameters()).fill_(float("nan"))
    with pytest.raises(ExplainError, match="student: its logits are not finite on some image"):
        explain_images(broken, IMAGES, TARGETS, "gradient_x_input", show=False)


def test_a_missing_package_is_refused_before_the_network_runs(monkeypatch):
    monkeypatch.setattr(extras, "has_extra", lambda extra: False)
    with pytest.raises(MissingExtraError, match=r"method 'shapley' needs packages .*subdistill-hf\[explain\]"):
        explain_images(None, IMAGES, TARGETS, "shapley", show=False)


def test_an_image_as_grey_as_the_baseline_adds_up_to_nothing():
    nothing = completeness_of(torch.zeros(1, 2, 2), torch.zeros(1), "integrated_gradients", 16)
    assert nothing.error == 0
    assert completeness_of(torch.ones(1, 2, 2), torch.zeros(1), "integrated_gradients", 16).error == 1
