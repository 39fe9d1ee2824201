"""The evidence is the margin of a class, and grey images are the baseline of each network."""

import pytest
import torch

from helpers import CLASS_IDS, processor, teacher_resnet
from subdistill_hf.core.relevance import subtask_margin
from subdistill_hf.explain.networks import GREY, ExplainedNetwork, evidence_of
from subdistill_hf.pipeline.evaluation import Classifier


def test_evidence_is_the_logit_minus_the_largest_other():
    logits = torch.tensor([[1.0, 4.0, 2.5], [1.0, 4.0, 2.5], [3.0, 3.0, 0.0]], dtype=torch.float64)
    assert evidence_of(logits, torch.tensor([1, 0, 0])).tolist() == [1.5, -3.0, 0.0]
    assert torch.equal(evidence_of(logits, logits.argmax(dim=1)), subtask_margin(logits))
    with pytest.raises(ValueError, match=r"at least two classes, found shape \(3, 1\)"):
        evidence_of(logits[:, :1], torch.zeros(3, dtype=torch.int64))


def test_a_network_is_seen_from_its_pixels_and_restricted_to_the_classes():
    network = ExplainedNetwork("teacher", Classifier(teacher_resnet(), processor(40), CLASS_IDS))
    images = [torch.randint(0, 256, (3, height, 32), dtype=torch.uint8) for height in (32, 24)]
    pixels = network.pixels(images).requires_grad_()
    logits = network.logits(pixels)
    assert logits.shape == (2, 3)
    assert torch.equal(logits.detach(), network.classifier.logits(pixels.detach()))
    network.evidence(pixels, torch.tensor([0, 1])).sum().backward()
    assert float(pixels.grad.abs().sum()) > 0
    baseline = network.baseline(images)
    assert baseline.shape == pixels.shape
    assert torch.allclose(baseline, torch.tensor((GREY / 255 - 0.5) / 0.5), atol=1e-6)
