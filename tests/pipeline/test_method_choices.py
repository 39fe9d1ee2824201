"""A method's learning rate, and the scale and weight of its layer losses, where the user leaves them open."""

import copy

import pytest

from helpers import config, processor, resnet, vit
from subdistill_hf.config.defaults import RUN_DEFAULTS
from subdistill_hf.config.methods import METHODS
from subdistill_hf.models.students import build_student
from subdistill_hf.pipeline.method_choices import (
    config_of_method,
    resolve_layer_losses,
    resolve_learning_rate,
    suited_learning_rate,
)

RATES = {  # with the teacher's layers, without
    "new": (1.6e-2, 4e-3),
    "pretrained": (4e-3, 1e-3),
    "adapter": (1e-3, 1e-3),
}


@pytest.mark.parametrize("start", RATES)
@pytest.mark.parametrize("recipe", ["resnet:widths=4-4-4-4", "mobilenetv2:width=0.1"])
def test_networks_with_batch_norms_take_larger_steps_with_layers_and_without_a_past(recipe, start):
    student = build_student(recipe, ["a", "b"], processor(32)).model
    assert tuple(suited_learning_rate(student, start, layers)[0] for layers in (True, False)) == RATES[start]


@pytest.mark.parametrize("start", RATES)
@pytest.mark.parametrize("layers", [True, False])
@pytest.mark.parametrize(
    ("recipe", "new"),
    [
        ("convnext:widths=4-4-4-4", 4e-3),
        ("vit:hidden=12,layers=1", 2e-3),
        ("timm/vit_tiny_patch16_224:width=0.34,image=48", 2e-3),
    ],
)
def test_networks_without_batch_norms_take_smaller_steps(recipe, new, start, layers):
    student = build_student(recipe, ["a", "b"], processor(32)).model
    expected = new if start == "new" and layers else 1e-3
    assert suited_learning_rate(student, start, layers)[0] == expected


def test_the_blocks_of_a_new_convnext_are_not_idle():
    """With the published scale of 1e-6 a short training leaves them so."""
    student = build_student("convnext:widths=4-4-4-4", ["a", "b"], processor(32)).model
    scales = [value for name, value in student.named_parameters() if "layer_scale" in name]
    assert len(scales) == 4
    assert all((scale == 1).all() for scale in scales)


def test_a_learning_rate_is_chosen_once_for_each_method_and_not_written_back(tmp_path):
    shared = config(tmp_path, learning_rate=0, method="subdistill", layer_weight=7.0, kd_weight=0.5)
    before = copy.deepcopy(shared)
    rates = {}
    for method in ("kd", "fitnet", "subdistill"):
        own = config_of_method(shared, method, tmp_path / method)
        found, choices = resolve_learning_rate(own, resnet(), "new")
        assert [(choice.option, choice.value, choice.method) for choice in choices] == [
            ("learning_rate", found.learning_rate, method)
        ]
        assert own.learning_rate == 0
        assert (found.method, found.output_dir) == (method, str(tmp_path / method))
        rates[method] = found.learning_rate
    assert rates == {"kd": 4e-3, "fitnet": 1.6e-2, "subdistill": 1.6e-2}
    assert shared == before
    given, choices = resolve_learning_rate(config(tmp_path, learning_rate=3e-5), vit(), "new")
    assert (given.learning_rate, choices) == (3e-5, [])


def test_weights_that_were_given_are_those_of_the_main_method(tmp_path):
    shared = config(
        tmp_path, method="subdistill", layer_weight=7.0, layer_weight_end=0.5, task_weight=0.5, kd_weight=0.25
    )
    assert config_of_method(shared, "subdistill", tmp_path).weights(1.0)["layer"] == 3.5
    assert config_of_method(shared, "fitnet", tmp_path).weights(1.0)["layer"] == 100.0
    assert config_of_method(shared, "subdistill", tmp_path).weights() == {"task": 0.5, "kd": 0.25, "layer": 7.0}
    assert config_of_method(shared, "fitnet", tmp_path).weights() == {"task": 0.0, "kd": 1.0, "layer": 100.0}


def test_the_weight_of_the_layers_falls_where_the_method_gains_by_it_and_nothing_else_was_asked_for(tmp_path):
    def resolved(**given):
        found, choices = resolve_layer_losses(config(tmp_path, **{"layer_weight_end": None, **given}))
        return found.weights()["layer"], found.weights(1.0)["layer"], [(one.option, one.value) for one in choices]

    falling = [("layer_weight", 1000.0), ("layer_weight_end", 0.001)]
    assert resolved(method="subdistill", target_scale="teacher") == (1000.0, pytest.approx(1.0), falling)
    from_less = [("layer_weight", 500.0), ("layer_weight_end", 0.001)]
    assert resolved(method="subdistill", target_scale="unit") == (500.0, pytest.approx(0.5), from_less)
    assert resolved(method="fitnet") == (1000.0, pytest.approx(1.0), falling)
    assert resolved(method="fitnet", target_scale="teacher") == (100.0, 100.0, [])  # not measured
    assert resolved(method="vid") == (1000.0, 1000.0, [])
    assert resolved(method="kd") == (0.0, 0.0, [])
    assert resolved(method="subdistill", layer_weight=7.0) == (7.0, 7.0, [])
    assert resolved(method="subdistill", layer_weight_end=0.5) == (100.0, 50.0, [])
    assert resolved(method="subdistill", layer_weight_end=1.0) == (100.0, 100.0, [])
    assert resolved(method="subdistill", kd_weight=0.0) == (100.0, 100.0, [])  # nothing else teaches late


@pytest.mark.parametrize("method", METHODS)
def test_the_command_line_scales_the_targets_where_the_method_does_not_and_says_so(tmp_path, method):
    assert RUN_DEFAULTS["target_scale"] == "auto"
    found, choices = resolve_layer_losses(config(tmp_path, method=method, target_scale="auto"))
    told = [str(choice) for choice in choices]
    if method in ("subdistill", "vkd"):
        reason = "a layer of the teacher times any factor teaches the same"
        assert (found.target_scale, told) == ("unit", [f"--target_scale unit for {method}: {reason}"])
    else:
        assert (found.scale_of_targets(), told) == (METHODS[method].target_scale, [])
    for scale in ("unit", "teacher"):
        assert resolve_layer_losses(config(tmp_path, method=method, target_scale=scale))[0].target_scale == scale


def test_the_command_line_leaves_the_weight_open_for_each_method_beside_it(tmp_path):
    assert RUN_DEFAULTS["layer_weight_end"] is None
    shared = config(tmp_path, method="subdistill", layer_weight_end=None)
    own, _ = resolve_layer_losses(config_of_method(shared, "fitnet", tmp_path))
    assert (own.layer_weight, own.layer_weight_end) == (1000.0, 0.001)
    given = config(tmp_path, method="subdistill")
    assert resolve_layer_losses(config_of_method(given, "fitnet", tmp_path))[0].weights(1.0)["layer"] == 100.0
