"""The model that goes on with a projection, against forward passes written out by hand."""

from collections import namedtuple

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from families import FAMILIES, build, with_batch_statistics
from helpers import resnet, vit, with_confident_head
from subdistill_hf.analysis.projection import projected
from subdistill_hf.core.activations import LayerError
from subdistill_hf.core.layers import describe_layers
from subdistill_hf.core.moments import Moments
from subdistill_hf.core.subspaces import Subspace


def subspace(width, dimensions=None, seed=0):
    """Of activations with a mean far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    activations = mixing @ torch.randn(width, width + 40, generator=generator, dtype=torch.float64) + 3
    return Subspace.fit(Moments.of(activations), dimensions, "pca")


def slowly_projected(vector, space):
    """μ + Σ_k (u_kᵀ(a - μ)) u_k of one activation, number by number."""
    width, dimensions = space.basis.shape
    result = [float(space.mean[i]) for i in range(width)]
    for k in range(dimensions):
        coordinate = sum(float(space.basis[i, k]) * (float(vector[i]) - float(space.mean[i])) for i in range(width))
        for i in range(width):
            result[i] += coordinate * float(space.basis[i, k])
    return torch.tensor(result, dtype=torch.float64)


def images(count=2, size=8):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


class ChannelsLast(nn.Module):
    """A stem that gives maps `(B, H, W, d)`, as timm's Swin does, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, pixels):
        return self.head(torch.tanh(self.stem(pixels.permute(0, 2, 3, 1))).mean(dim=(1, 2)))


def test_a_map_goes_on_projected_at_every_position():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.Tanh(), nn.Conv2d(6, 4, 2), nn.Flatten()).double().eval()
    space, pixels = subspace(6, 2), images()
    with projected(model, "1", [space]), torch.no_grad():
        found = model(pixels)
    with torch.no_grad():
        hidden = torch.tanh(model[0](pixels))
        for image in range(2):
            for row in range(hidden.shape[2]):
                for column in range(hidden.shape[3]):
                    hidden[image, :, row, column] = slowly_projected(hidden[image, :, row, column], space)
        expected = model[2](hidden).flatten(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert float((found - model(pixels)).detach().abs().max()) > 0.1


def test_a_channels_last_map_goes_on_projected():
    torch.manual_seed(0)
    model = ChannelsLast().double()
    space, pixels = subspace(5, 2), images(1, 4)
    with projected(model, "stem", [space], channels_last=True), torch.no_grad():
        found = model(pixels)
    with torch.no_grad():
        hidden = [
            torch.tanh(slowly_projected(model.stem(pixels[0, :, row, column]), space))
            for row in range(4)
            for column in range(4)
        ]
        expected = model.head(torch.stack(hidden).mean(dim=0, keepdim=True))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_tokens_go_on_projected_the_class_token_too():
    model = vit(hidden=8, layers=3, attn_implementation="eager").double().eval()
    space, pixels = subspace(8, 3), images(1, 32)
    with projected(model, "vit.layers.1", [space]), torch.no_grad():
        found = model(pixels).logits
    with torch.no_grad():
        tokens = model.vit.embeddings(pixels)
        for block in model.vit.layers[:2]:
            tokens = block(tokens)
        tokens = torch.stack([slowly_projected(token, space) for token in tokens[0]])[None]
        expected = model.classifier(model.vit.layernorm(model.vit.layers[2](tokens))[:, 0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("model", "layer"), [(resnet(), "resnet.encoder.stages.1"), (vit(), "vit.layers.2")])
def test_all_dimensions_change_nothing_and_one_does(model, layer):
    model = model.eval()
    width = 12 if "stages" in layer else 24
    pixels = images(2, 32).float()
    with torch.no_grad():
        untouched = model(pixels).logits
        with projected(model, layer, [subspace(width)]):
            torch.testing.assert_close(model(pixels).logits, untouched, rtol=0, atol=1e-4)
        with projected(model, layer, [subspace(width, 1)]):
            assert float((model(pixels).logits - untouched).abs().max()) > 1e-3
        torch.testing.assert_close(model(pixels).logits, untouched, rtol=0, atol=0)


def test_a_projection_projected_again_is_itself():
    space, values = subspace(6, 2), torch.randn(3, 6, 4, 4, dtype=torch.float64)
    with projected(model := nn.Sequential(nn.Identity()), "0", [space]):
        once = model(values)
        torch.testing.assert_close(model(once), once, rtol=0, atol=1e-12)


def test_with_several_subspaces_the_batch_goes_on_once_for_each():
    model, pixels = vit(hidden=8, layers=3).eval(), images(3, 32).float()
    spaces = [subspace(8, 2), subspace(8, 5, seed=1)]
    with torch.no_grad():
        with projected(model, "vit.layers.0", spaces):
            both = model(pixels).logits
        for space, found in zip(spaces, both.split(3), strict=True):
            with projected(model, "vit.layers.0", [space]):
                torch.testing.assert_close(found, model(pixels).logits, rtol=0, atol=1e-5)


class Returns(nn.Module):
    """Returns what a function makes of the hidden state."""

    def __init__(self, wrap):
        super().__init__()
        self.inner = nn.Identity()
        self.inner.forward = wrap

    def forward(self, hidden):
        return self.inner(hidden)


Pair = namedtuple("Pair", ["hidden", "weights"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda hidden: (hidden, "weights"),
        lambda hidden: [hidden, "weights"],
        lambda hidden: Pair(hidden, "weights"),
        lambda hidden: BaseModelOutput(last_hidden_state=hidden, attentions="weights"),
    ],
    ids=["tuple", "list", "named tuple", "ModelOutput"],
)
def test_what_a_layer_returns_beside_its_hidden_state_stays(wrap):
    model, space, hidden = Returns(wrap), subspace(6, 2), torch.randn(1, 3, 6, dtype=torch.float64)
    with projected(model, "inner", [space]):
        output = model(hidden)
    assert type(output) is type(wrap(hidden))
    first, second = output.to_tuple() if isinstance(output, BaseModelOutput) else output
    assert second == "weights"
    expected = torch.stack([slowly_projected(token, space) for token in hidden[0]])[None]
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-12)


def test_half_precision_stays_and_costs_its_own_rounding_alone():
    space = subspace(64, 40)
    values = torch.randn(2, 5, 64).to(torch.bfloat16)
    with projected(model := nn.Sequential(nn.Identity()), "0", [space]):
        found, exact = model(values), model(values.double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_goes_on_with_each_of_several_projections(name):
    """What comes after a stage sees n batches as it sees one, and all dimensions change nothing."""
    size = FAMILIES[name].size
    pixels = images(2, 64).float()[:, :, : size[0], : size[1]]
    model = with_batch_statistics(with_confident_head(build(name)), pixels).eval()
    untouched = model(pixels).logits
    layers = describe_layers(model, list(FAMILIES[name].stages), lambda: model(pixels), size)
    for layer in layers[:-1]:
        spaces = [subspace(layer.width), subspace(layer.width, 1)]
        with projected(model, layer.name, spaces, layer.channels_last):
            whole, reduced = model(pixels).logits.split(2)
        with projected(model, layer.name, spaces[1:], layer.channels_last):
            alone = model(pixels).logits
        scale = float(untouched.abs().max())
        torch.testing.assert_close(whole, untouched, rtol=0, atol=1e-3 * scale)
        torch.testing.assert_close(reduced, alone, rtol=0, atol=1e-3 * scale)
        assert float((alone - untouched).abs().max()) > 1e-3 * scale


def hooks_of(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_no_hook_stays_after_an_exception():
    model = resnet()
    with projected(model, "resnet.encoder.stages.0", [subspace(8)]):
        assert hooks_of(model) == 1
    for width, pixels in ((9, images(1, 32).float()), (8, "no images")):
        spaces = [subspace(width)]
        with pytest.raises((LayerError, AttributeError)), projected(model, "resnet.encoder.stages.0", spaces):
            model(pixels)
        assert hooks_of(model) == 0


@pytest.mark.parametrize(
    ("layer", "width", "message"),
    [
        ("resnet.encoder.stage.0", 8, "nearest names: resnet.encoder.stages.0"),
        ("resnet.encoder.stages.0", 9, "gives 8 channels, and the subspace is of 9"),
        ("classifier", 3, r"gives a torch.float32 tensor \(1, 3\): expected a map"),
    ],
)
def test_layers_that_cannot_be_projected_are_refused(layer, width, message):
    model = resnet().eval()
    with pytest.raises(LayerError, match=message), projected(model, layer, [subspace(width)]):
        model(images(1, 32).float())
