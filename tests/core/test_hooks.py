"""Layers by name, the hooks on them, and what is recorded: all of it is gone on exit."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from subdistill_hf.core.activations import LayerError, first_tensor, to_features
from subdistill_hf.core.hooks import evaluation_mode, hooked, record, resolve_layers


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


# Hooks


def test_hooks_see_each_module_by_name_and_may_replace_what_it_returns(pixels):
    model, seen = make_model(), []

    def hook(name, inputs, output):
        seen.append((name, inputs[0].shape[1], output.shape[1]))
        return output + 1 if name == "block_2" else None

    expected = model(pixels) + 1
    with hooked({"stem": model.stem, "block_2": model.block_2}, hook):
        assert torch.equal(model(pixels), expected)
    assert seen == [("stem", 3, 4), ("block_2", 5, 6)]
    assert hook_count(model) == 0


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
