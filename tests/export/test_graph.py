"""ONNX graphs of networks: torch's logits, nothing of this machine, and what has no counterpart is named."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from helpers import resnet, vit
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.graph import as_bytes, network_graph, with_metadata, with_probabilities
from subdistill_hf.export.onnx_runtime import session


@pytest.fixture(scope="module")
def model():
    return resnet(widths=(8, 12)).eval()


@pytest.fixture(scope="module")
def network(model):
    return network_graph(model, (32, 32))


def logits_of(network, pixels):
    return session(as_bytes(network)).run(["logits"], {"pixel_values": pixels.numpy()})[0]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_logits_are_those_of_torch(model, network, batch):
    pixels = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits.numpy()
    np.testing.assert_allclose(logits_of(network, pixels), expected, atol=2e-5)


def test_attention_is_exported_too():
    model = vit(layers=1).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pixel_values=pixels).logits.numpy()
    np.testing.assert_allclose(logits_of(network_graph(model, (32, 32)), pixels), expected, atol=2e-5)


def test_the_exporter_s_notes_are_taken_out(network):
    content = as_bytes(network)
    assert b"site-packages" not in content
    assert b"pkg.torch" not in content
    onnx.checker.check_model(network, full_check=True)


def test_the_same_model_gives_the_same_bytes(model, network):
    assert as_bytes(network_graph(model, (32, 32))) == as_bytes(network)


def test_probabilities_and_facts_are_added(network):
    whole = with_metadata(with_probabilities(network), {"labels": "[]", "preprocessing": [{"step": "Resize"}]})
    running = session(as_bytes(whole))
    pixels = np.zeros((2, 3, 32, 32), np.float32)
    logits, probabilities = running.run(["logits", "probabilities"], {"pixel_values": pixels})
    np.testing.assert_allclose(probabilities, torch.softmax(torch.from_numpy(logits), dim=1), rtol=1e-5)
    facts = running.get_modelmeta().custom_metadata_map
    assert facts == {"labels": "[]", "preprocessing": '[{"step": "Resize"}]'}


class Strange(nn.Module):
    """A classifier with an operator that ONNX does not have, in a layer of its own."""

    class Bessel(nn.Module):
        def forward(self, values):
            return torch.special.bessel_j0(values)

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), self.Bessel())

    def forward(self, pixel_values):
        return self.features(pixel_values)


class Asking(nn.Module):
    """A classifier whose code asks for the values of pixels."""

    def forward(self, pixel_values):
        return pixel_values.mean((2, 3)) if pixel_values.sum() > 0 else pixel_values.amax((2, 3))


def test_an_operator_without_a_counterpart_is_named_with_its_layer():
    with pytest.raises(ExportError, match=r"bessel_j0.*features\.1"):
        network_graph(Strange().eval(), (4, 4))


def test_a_model_that_cannot_be_traced_is_refused():
    with pytest.raises(ExportError, match=r"Asking cannot be exported"):
        network_graph(Asking().eval(), (4, 4))
