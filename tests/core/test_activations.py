"""Recording layer outputs, and the one form they are brought to."""

import itertools
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from subdistill_hf.core.activations import (
    MAX_PREFIX_TOKENS,
    Features,
    LayerError,
    evaluation_mode,
    first_tensor,
    record,
    resolve_layers,
    to_features,
    token_geometry,
)


def make_model(inplace=False):
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 4, 3),
            act=nn.ReLU(inplace=inplace),
            block_1=nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)),
            block_2=nn.Sequential(nn.Conv2d(5, 6, 3), nn.BatchNorm2d(6)),
        )
    ).eval()


def hook_count(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))


# One form


def test_a_map_keeps_each_pixels_channels_and_its_grid():
    output = torch.randn(2, 5, 3, 4)
    features = to_features(output, "layer")
    assert (features.grid, features.prefix) == ((3, 4), 0)
    for row, column in itertools.product(range(3), range(4)):
        assert torch.equal(features.values[:, :, row * 4 + column], output[:, :, row, column])


def test_a_channels_last_map_is_the_same_map():
    output = torch.randn(2, 5, 3, 4)
    features = to_features(output.permute(0, 2, 3, 1), "layer", channels_last=True)
    expected = to_features(output, "layer")
    assert torch.equal(features.values, expected.values)
    assert features.grid == expected.grid


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(("image_size", "patch"), [((32, 32), 8), ((224, 224), 16), ((16, 32), 8), ((96, 32), 16)])
def test_tokens_split_into_prefix_and_grid(prefix, image_size, patch):
    rows, columns = image_size[0] // patch, image_size[1] // patch
    output = torch.randn(2, prefix + rows * columns, 7)
    features = to_features(output, "layer", image_size)
    assert (features.prefix, features.grid) == (prefix, (rows, columns))
    assert torch.equal(features.values, output.transpose(1, 2))
    grid_only = features.without_prefix()
    assert (grid_only.prefix, grid_only.grid) == (0, (rows, columns))
    last = output[:, prefix + 1 * columns + columns - 1]  # second row, last column
    assert torch.equal(grid_only.values[:, :, 2 * columns - 1], last)


@pytest.mark.parametrize("image_size", [None, (32, 32), (24, 48), (30, 30)])
def test_token_geometry_is_the_smallest_prefix_with_square_patches(image_size):
    height, width = image_size or (1, 1)
    for positions in range(1, 120):
        fits = [
            (positions - rows * columns, (rows, columns))
            for rows, columns in itertools.product(range(1, 121), repeat=2)
            if 0 <= positions - rows * columns <= MAX_PREFIX_TOKENS
            and math.isclose(height / rows, width / columns)
            and (image_size is None or height % rows == 0)
        ]
        if fits:
            assert token_geometry(positions, image_size) == min(fits)
        else:
            with pytest.raises(LayerError, match=f"cannot place {positions} tokens"):
                token_geometry(positions, image_size)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda output: (output, "attention"),
        lambda output: [output, None],
        lambda output: {"hidden": output, "other": torch.zeros(1)},
        lambda output: BaseModelOutput(last_hidden_state=output, hidden_states=(output,)),
    ],
    ids=["tuple", "list", "mapping", "ModelOutput"],
)
def test_the_first_element_of_a_container_counts(wrap):
    output = torch.randn(2, 5, 3, 4)
    assert first_tensor(wrap(output)) is output
    assert torch.equal(to_features(wrap(output), "layer").values, output.flatten(2))


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (None, "NoneType"),
        ((), "tuple"),
        ("text", "str"),
        (("text", torch.zeros(1, 2, 3)), "tuple"),
        (torch.zeros(2, 5), r"shape \(2, 5\)"),
        (torch.zeros(2, 5, 3, 3, 3), r"shape \(2, 5, 3, 3, 3\)"),
        (torch.zeros(2, 5, 3, 3, dtype=torch.long), r"torch\.int64"),
    ],
)
def test_an_output_that_is_no_hidden_state_is_named_with_what_was_found(output, found):
    with pytest.raises(LayerError, match=rf"'some\.layer' gives .*{found}.*expected a map .* or tokens"):
        to_features(output, "some.layer")


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (6, 1), (4, 5)])
def test_pooling_averages_adaptive_windows_and_leaves_the_prefix(prefix, grid):
    height, width = 6, 5
    values = torch.randn(2, 3, prefix + height * width, dtype=torch.float64)
    pooled = Features(values, (height, width), prefix).pooled(grid)
    assert (pooled.grid, pooled.prefix) == (grid, prefix)
    assert torch.equal(pooled.values[:, :, :prefix], values[:, :, :prefix])
    maps = values[:, :, prefix:].reshape(2, 3, height, width)
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        rows = slice(row * height // grid[0], -(-(row + 1) * height // grid[0]))
        columns = slice(column * width // grid[1], -(-(column + 1) * width // grid[1]))
        expected = maps[:, :, rows, columns].mean(dim=(2, 3))
        torch.testing.assert_close(pooled.values[:, :, prefix + row * grid[1] + column], expected)


def test_with_values_keeps_the_geometry():
    features = Features(torch.zeros(2, 5, 13), (3, 4), 1)
    narrower = features.with_values(torch.ones(2, 3, 13))
    assert (narrower.grid, narrower.prefix, narrower.values.shape[1]) == ((3, 4), 1, 3)
    assert features.values.shape[1] == 5


# Names


def test_names_stand_for_themselves_and_expressions_for_whole_names_in_model_order():
    model = make_model()
    assert resolve_layers(model, ["block_2", "stem"]) == ["block_2", "stem"]
    assert resolve_layers(model, [r"block_\d"]) == ["block_1", "block_2"]
    assert resolve_layers(model, [r"block_\d\.0", "stem"]) == ["block_1.0", "block_2.0", "stem"]


def test_a_name_is_no_expression_and_each_layer_comes_once():
    model = make_model()
    assert resolve_layers(model, ["block_1.0"]) == ["block_1.0"]
    assert resolve_layers(model, ["block_2", r"block_\d", "block_2"]) == ["block_2", "block_1"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("block_3", r"named or matches 'block_3'; nearest names: .*block_2"),
        ("block", r"nearest names: .*block_1"),  # an expression must match the whole name
        ("zzzzzzzz", "names start with stem, act, block_1"),
        ("block_(", "is not a regular expression"),
        ("", "Sequential"),  # the model itself is no layer
    ],
)
def test_a_pattern_without_match_names_the_likely_slips(pattern, message):
    with pytest.raises(LayerError, match=message):
        resolve_layers(make_model(), ["stem", pattern])


# Recording


def test_record_keeps_the_latest_output_of_each_layer(pixels):
    model = make_model()
    with record(model, ["block_1", "stem"]) as recorder:
        model(pixels)
        model(2 * pixels)
    stem = model.stem(2 * pixels)
    assert torch.equal(recorder.outputs["stem"], stem)
    assert torch.equal(recorder.outputs["block_1"], model.block_1(model.act(stem)))
    assert set(recorder.outputs) == {"stem", "block_1"}


def test_recording_does_not_change_the_models_output(pixels):
    model = make_model()
    plain = model(pixels)
    with record(model, ["stem", "block_1"], copy=True):
        assert torch.equal(model(pixels), plain)


def test_hooks_go_on_exit_and_on_exception(pixels):
    model = make_model()
    with record(model, ["stem", "block_1"]):
        assert hook_count(model) == 2
    assert hook_count(model) == 0
    with pytest.raises(RuntimeError, match="expected input"), record(model, ["stem", "block_1"]):
        model(pixels[:, :1])
    assert hook_count(model) == 0


def test_an_unknown_layer_is_refused_with_near_matches_and_leaves_no_hook():
    model = make_model()
    with pytest.raises(LayerError, match=r"nearest names: .*block_1"), record(model, ["stem", "block_1.9"]):
        pass
    assert hook_count(model) == 0


@pytest.mark.parametrize("grad", [True, False])
def test_check_detects_a_later_in_place_change(pixels, grad):
    model = make_model(inplace=True)
    with torch.set_grad_enabled(grad), record(model, ["stem", "block_1"]) as recorder:
        model(pixels)
    assert recorder.modified_in_place() == ["stem"]
    with pytest.raises(LayerError, match=r"output of stem is changed in place .* copy=True"):
        recorder.check()


def test_check_passes_where_nothing_is_changed(pixels):
    model = make_model(inplace=False)
    with record(model, ["stem", "act", "block_1"]) as recorder:
        model(pixels)
    recorder.check()
    assert recorder.modified_in_place() == []


@pytest.mark.parametrize("copy", [True, ["stem"]])
def test_copy_keeps_what_the_layer_returned(pixels, copy):
    expected = make_model().stem(pixels)
    model = make_model(inplace=True)
    with torch.no_grad(), record(model, ["stem", "block_1"], copy=copy) as recorder:
        model(pixels)
    assert expected.min() < 0
    assert torch.equal(recorder.outputs["stem"], expected)
    recorder.check()


def test_copy_of_other_layers_does_not_help(pixels):
    model = make_model(inplace=True)
    with torch.no_grad(), record(model, ["stem", "block_1"], copy=["block_1"]) as recorder:
        model(pixels)
    assert recorder.modified_in_place() == ["stem"]


def test_a_list_into_which_a_later_layer_puts_another_tensor_does_not_change_what_is_recorded(pixels):
    class Branches(nn.Module):
        def forward(self, pixels):
            return [pixels + 1, pixels + 2]

    class Changing(nn.Module):
        def forward(self, branches):
            branches[0] = branches[0] * 5
            return branches

    model = nn.Sequential(OrderedDict(first=Branches(), second=Changing()))
    with record(model, ["first"]) as recorder:
        model(pixels)
    recorder.check()
    assert torch.equal(first_tensor(recorder.outputs["first"]), pixels + 1)


def test_transform_is_called_at_once_and_its_result_is_recorded(pixels):
    model = make_model(inplace=True)
    expected = make_model().stem(pixels)
    calls = []

    def transform(name, output):
        calls.append((name, output.min().item()))
        return to_features(output, name).values.sum(dim=2)

    with torch.no_grad(), record(model, ["block_1", "stem"], transform=transform) as recorder:
        model(pixels)
    assert [name for name, _ in calls] == ["stem", "block_1"]
    assert calls[0][1] == expected.min().item() < 0  # before the activation after it overwrote the output
    torch.testing.assert_close(recorder.outputs["stem"], expected.flatten(2).sum(dim=2))
    recorder.check()


def test_recording_works_in_inference_mode(pixels):
    model = make_model()
    with torch.inference_mode(), record(model, ["stem"]) as recorder:
        model(pixels)
    assert torch.equal(recorder.outputs["stem"], model.stem(pixels))
    assert recorder.modified_in_place() == []


def test_evaluation_mode_gives_every_submodule_its_own_mode_back():
    model = make_model().train()
    model.block_1[1].eval()  # a frozen batch norm
    before = {name: module.training for name, module in model.named_modules()}
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == before
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(set(before.values())) == 2
