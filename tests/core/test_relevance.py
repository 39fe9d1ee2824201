"""Contexts of the subtask margin: against finite differences, in one pass, with the teacher left as it was."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from transformers import BatchFeature

from subdistill_hf.core.activations import LayerError
from subdistill_hf.core.relevance import activations_and_contexts, image_size_of, subtask_margin
from subdistill_hf.models.heads import new_classifier

SUBTASK = [4, 0, 3]


def make_resnet():
    model = new_classifier(
        "ResNetForImageClassification",
        embedding_size=4,
        hidden_sizes=[4, 6, 8],
        depths=[1, 2, 1],
        layer_type="basic",
        num_labels=6,
    )
    return model, [f"resnet.encoder.stages.{stage}" for stage in range(3)]


def make_transformer(class_name, layers, blocks, **configuration):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "num_labels": 6}
    model = new_classifier(class_name, num_hidden_layers=blocks, **sizes | configuration)
    return model, [f"{layers}.{block}" for block in range(blocks)]


def make_vit(image_size=32):
    return make_transformer("ViTForImageClassification", "vit.layers", 3, intermediate_size=16, image_size=image_size)


def make_registers():
    return make_transformer(
        "Dinov2WithRegistersForImageClassification", "dinov2_with_registers.encoder.layer", 2, mlp_ratio=2
    )


MAKERS = {"resnet": make_resnet, "vit": make_vit, "registers": make_registers}


def randomised(model):
    """Every parameter and batch statistic drawn anew, in float64 and evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            centre = 1.0 if name.endswith("running_var") or tensor.dim() == 1 else 0.0
            tensor.data = centre + 0.6 * (torch.rand(tensor.shape, generator=generator) - 0.5)
    return model.double().eval()


@pytest.fixture(params=MAKERS)
def teacher(request):
    model, layers = MAKERS[request.param]()
    return randomised(model), layers


def pixels_of(*batches, size=(32, 32)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, *size, dtype=torch.float64, generator=generator) for count in batches]


def subtask_logits(model):
    return lambda pixels: model(pixel_values=pixels).logits[:, SUBTASK]


def contexts_of(model, layers, batches, **options):
    return list(activations_and_contexts(subtask_logits(model), model, layers, batches, **options))


def shifted_margins(model, layer, pixels, shift):
    """The margins when `shift`, of the layer's own output shape, is added to its output."""

    def hook(module, inputs, output):
        return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

    handle = model.get_submodule(layer).register_forward_hook(hook)
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits[:, SUBTASK]
    handle.remove()
    ordered = logits.sort(dim=1, descending=True).values
    return ordered[:, 0] - ordered[:, 1]


def hook_count(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_margin_is_the_gap_of_the_two_largest_logits():
    logits = torch.tensor([[1.0, 5.0, 3.0], [2.0, 2.0, 2.0], [-1.0, -4.0, -9.0]])
    assert subtask_margin(logits).tolist() == [2.0, 0.0, 3.0]
    assert (subtask_margin(torch.randn(100, 7)) >= 0).all()


@pytest.mark.parametrize("shape", [(5, 1), (5,), (5, 0), (5, 2, 2)])
def test_margin_needs_two_classes(shape):
    with pytest.raises(ValueError, match="at least two classes"):
        subtask_margin(torch.zeros(shape))


def test_contexts_are_the_finite_differences_of_the_margin(teacher):
    model, layers = teacher
    (pixels,) = pixels_of(2)
    (batch,) = contexts_of(model, layers, [pixels])
    generator = torch.Generator().manual_seed(2)
    step = 1e-6
    for layer in layers:
        activation, context = batch[layer]
        assert context.values.abs().max() > 1e-4
        for _ in range(4):
            direction = torch.randn(activation.values.shape, dtype=torch.float64, generator=generator)
            if activation.prefix:
                shift = step * direction.transpose(1, 2)  # tokens (B, P, d)
            else:
                shift = step * direction.unflatten(2, activation.grid)  # map (B, d, H, W)
            forwards = shifted_margins(model, layer, pixels, shift)
            backwards = shifted_margins(model, layer, pixels, -shift)
            expected = (forwards - backwards) / (2 * step)
            found = (context.values * direction).sum(dim=(1, 2))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_activations_are_the_layers_outputs_and_contexts_share_their_geometry(teacher):
    model, layers = teacher
    (pixels,) = pixels_of(2)
    (batch,) = contexts_of(model, layers, [pixels])
    hidden = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    for layer, expected in zip(layers, hidden[1:], strict=True):
        activation, context = batch[layer]
        expected = expected.flatten(2) if expected.dim() == 4 else expected.transpose(1, 2)
        torch.testing.assert_close(activation.values, expected)
        assert activation.values.shape == context.values.shape
        assert (activation.grid, activation.prefix) == (context.grid, context.prefix)
        assert not activation.values.requires_grad
        assert not context.values.requires_grad


def test_one_forward_pass_a_batch_serves_all_layers(teacher):
    model, layers = teacher
    calls = []

    def forward(pixels):
        calls.append(len(pixels))
        return subtask_logits(model)(pixels)

    stream = activations_and_contexts(forward, model, layers, pixels_of(2, 1, 2))
    assert [len(batch[layers[0]][0].values) for batch in stream] == [2, 1, 2]
    assert calls == [2, 1, 2]


def test_contexts_do_not_depend_on_the_batch_or_on_the_other_layers_or_their_order(teacher):
    model, layers = teacher
    (pixels,) = pixels_of(3)
    (together,) = contexts_of(model, layers, [pixels])
    (reverse,) = contexts_of(model, layers[::-1], [pixels])
    single = contexts_of(model, layers, pixels.split(1))
    assert list(reverse) == layers[::-1]
    for layer in layers:
        (alone,) = contexts_of(model, [layer], [pixels])
        for index in (0, 1):
            expected = together[layer][index].values
            torch.testing.assert_close(reverse[layer][index].values, expected)
            torch.testing.assert_close(alone[layer][index].values, expected)
            parts = torch.cat([batch[layer][index].values for batch in single])
            torch.testing.assert_close(parts, expected)


def test_nested_layers_are_recorded_each_for_itself():
    model, layers = make_resnet()
    randomised(model)
    inner = f"{layers[1]}.layers.1"  # the last block of the stage: its output is the stage's
    (batch,) = contexts_of(model, [layers[1], inner], pixels_of(2))
    for index in (0, 1):
        torch.testing.assert_close(batch[inner][index].values, batch[layers[1]][index].values)


def test_no_parameter_gets_a_gradient_and_flags_come_back(teacher):
    model, layers = teacher
    parameters = dict(model.named_parameters())
    for index, parameter in enumerate(parameters.values()):
        parameter.requires_grad_(index % 3 != 0)
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    for _ in activations_and_contexts(subtask_logits(model), model, layers, pixels_of(1, 1)):
        assert not any(parameter.requires_grad for parameter in parameters.values())
    assert {name: parameter.requires_grad for name, parameter in parameters.items()} == before
    assert all(parameter.grad is None for parameter in parameters.values())


def test_a_frozen_teacher_gives_the_same_contexts_and_stays_frozen(teacher):
    model, layers = teacher
    batches = pixels_of(2)
    (expected,) = contexts_of(model, layers, batches)
    model.requires_grad_(False)
    with torch.no_grad():
        (frozen,) = contexts_of(model, layers, batches)
    for layer in layers:
        assert frozen[layer][1].values.abs().max() > 0
        assert torch.equal(frozen[layer][1].values, expected[layer][1].values)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("ending", ["exhausted", "exception", "closed"])
def test_the_teacher_is_in_evaluation_mode_and_gets_its_modes_flags_and_hooks_back(teacher, ending):
    model, layers = teacher
    model.train()
    next(model.children()).eval()
    before = {name: module.training for name, module in model.named_modules()}

    def forward(pixels):
        assert not any(module.training for module in model.modules())
        if len(pixels) == 3:
            raise RuntimeError("a broken image")
        return subtask_logits(model)(pixels)

    stream = activations_and_contexts(forward, model, layers, pixels_of(1, 3 if ending == "exception" else 2))
    if ending == "exhausted":
        assert len(list(stream)) == 2
    elif ending == "exception":
        with pytest.raises(RuntimeError, match="a broken image"):
            list(stream)
    else:
        next(stream)
        stream.close()
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(set(before.values())) == 2
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert hook_count(model) == 0


def make_chain(inplace, wrap=lambda output: output):
    """Convolutions whose outputs later layers overwrite when `inplace`; the second returns `wrap(output)`."""

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 5, 3)

        def forward(self, values):
            return wrap(self.conv(values))

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.second = Wrapped()
            self.head = nn.Linear(5, 6)
            self.activation = nn.ReLU(inplace=inplace)

        def forward(self, pixels):
            output = self.second(self.activation(self.first(pixels)))
            if isinstance(output, dict):
                output = output["values"]
            output = output if isinstance(output, torch.Tensor) else output[0]
            if inplace:
                output += 1
            else:
                output = output + 1
            return self.head(self.activation(output).mean(dim=(2, 3)))

    torch.manual_seed(0)
    return Chain().double().eval()


@pytest.mark.parametrize("with_context", [True, False])
def test_in_place_operations_after_a_layer_do_not_reach_what_is_recorded(with_context):
    layers, batches = ["first", "second"], pixels_of(2, size=(9, 9))
    found, expected = (
        next(activations_and_contexts(model, model, layers, batches, with_context=with_context))
        for model in (make_chain(inplace=True), make_chain(inplace=False))
    )
    for layer in layers:
        assert expected[layer][0].values.min() < -0.1
        torch.testing.assert_close(found[layer][0].values, expected[layer][0].values)
        if with_context:
            assert expected[layer][1].values.abs().max() > 0
            torch.testing.assert_close(found[layer][1].values, expected[layer][1].values)


Pair = namedtuple("Pair", ["values", "other"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda output: (output, "other"),
        lambda output: [output, "other"],
        lambda output: Pair(output, "other"),
        lambda output: OrderedDict(values=output, other="other"),
    ],
    ids=["tuple", "list", "named tuple", "mapping"],
)
def test_layers_that_return_containers_give_the_same_contexts(wrap):
    batches = pixels_of(2, size=(9, 9))
    found, expected = (
        next(activations_and_contexts(model, model, ["first", "second"], batches))
        for model in (make_chain(False, wrap), make_chain(False))
    )
    for layer in ("first", "second"):
        assert expected[layer][1].values.abs().max() > 0
        torch.testing.assert_close(found[layer][1].values, expected[layer][1].values)


@pytest.mark.parametrize("maker", [make_vit, make_registers])
def test_after_the_last_block_of_a_vit_only_the_class_token_has_a_context(maker):
    model, layers = maker()
    # The classifier of DINOv2 averages the patch tokens too: leave the class token alone there.
    randomised(model)
    if maker is make_registers:
        model.classifier.weight.data[:, 8:] = 0
    (batch,) = contexts_of(model, layers, pixels_of(2))
    last = batch[layers[-1]][1].values
    assert (last[:, :, 0].abs().amax(dim=1) > 0).all()
    assert (last[:, :, 1:] == 0).all()
    for layer in layers[:-1]:
        assert (batch[layer][1].values.abs().amax(dim=1) > 0).all()


class Forked(nn.Module):
    """Two branches, of which the logits use one."""

    def __init__(self):
        super().__init__()
        self.used = nn.Conv2d(3, 4, 3)
        self.unused = nn.Conv2d(3, 4, 3)
        self.never_run = nn.Conv2d(3, 4, 3)

    def forward(self, pixels):
        self.unused(pixels)
        return self.used(pixels).mean(dim=(2, 3))


@pytest.mark.parametrize("layers", [["used", "unused"], ["unused", "used"], ["unused"]])
def test_a_layer_that_the_logits_do_not_depend_on_has_zero_context(layers):
    model = Forked().double()
    (batch,) = activations_and_contexts(model, model, layers, pixels_of(2, size=(5, 5)))
    activation, context = batch["unused"]
    assert context.values.shape == activation.values.shape == (2, 4, 9)
    assert (context.values == 0).all()
    if "used" in layers:
        assert (batch["used"][1].values != 0).any()


def test_a_layer_that_does_not_run_or_does_not_exist_is_named():
    model, batches = Forked().double(), pixels_of(1, size=(5, 5))
    with pytest.raises(LayerError, match="'never_run' did not run"):
        next(activations_and_contexts(model, model, ["used", "never_run"], batches))
    with pytest.raises(LayerError, match="nearest names: used"):
        next(activations_and_contexts(model, model, ["usde"], batches))
    assert hook_count(model) == 0


def test_without_context_the_activations_are_the_same_and_nothing_is_differentiated(teacher):
    model, layers = teacher
    batches = pixels_of(2)
    (expected,) = contexts_of(model, layers, batches)
    (found,) = contexts_of(model, layers, batches, with_context=False)
    for layer in layers:
        assert found[layer][1] is None
        torch.testing.assert_close(found[layer][0].values, expected[layer][0].values)
        assert not found[layer][0].values.requires_grad


def test_channels_last_layers_are_permuted():
    class Permuted(nn.Conv2d):
        def forward(self, pixels):
            return super().forward(pixels).permute(0, 2, 3, 1)

    torch.manual_seed(0)
    model = nn.Sequential(Permuted(3, 4, 3), nn.Flatten(), nn.Linear(4 * 3 * 5, 3)).double()
    (batch,) = activations_and_contexts(model, model, ["0"], pixels_of(2, size=(5, 7)), channels_last=["0"])
    activation, context = batch["0"]
    assert activation.grid == context.grid == (3, 5)
    expected = nn.functional.conv2d(pixels_of(2, size=(5, 7))[0], model[0].weight, model[0].bias)
    torch.testing.assert_close(activation.values, expected.flatten(2))
    top = model(*pixels_of(2, size=(5, 7))).topk(2, dim=1).indices
    difference = model[2].weight[top[:, 0]] - model[2].weight[top[:, 1]]  # (B, H * W * d)
    torch.testing.assert_close(context.values, difference.unflatten(1, (15, 4)).transpose(1, 2))


@pytest.mark.parametrize("kind", [dict, BatchFeature])
def test_batches_may_be_mappings_and_tokens_of_wide_images_find_their_grid(kind):
    model, layers = make_vit(image_size=(16, 32))
    (pixels,) = pixels_of(2, size=(16, 32))
    batch = kind({"pixel_values": pixels})
    randomised(model)
    assert image_size_of(batch) == image_size_of(pixels) == (16, 32)
    (found,) = activations_and_contexts(
        lambda batch: subtask_logits(model)(batch["pixel_values"]), model, layers, [batch]
    )
    activation, context = found[layers[0]]
    assert (activation.grid, activation.prefix) == (context.grid, context.prefix) == ((2, 4), 1)


def test_the_size_of_other_batches_is_unknown():
    assert image_size_of({"input_ids": torch.zeros(2, 7)}) is None
    assert image_size_of(torch.zeros(2, 7)) is None
