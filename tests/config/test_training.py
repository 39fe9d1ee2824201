"""The training arguments: defaults, what is refused, by transformers late too, and what each method weighs."""

import dataclasses
import json

import pytest
from transformers import TrainingArguments

from subdistill_hf.cli.distill import make_parser
from subdistill_hf.config.commands import InspectOptions
from subdistill_hf.config.distillation import DistillationOptions
from subdistill_hf.config.methods import METHODS
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.errors import SubDistillError


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("method", "fitnets", "method='fitnets': expected one of scratch, kd, ce_kd"),
        ("basis", "prcaposdef", "basis='prcaposdef': expected one of prca, "),
        ("centring", "batchnorm", "centring='batchnorm': expected one of mean, batch_norm, none"),
        ("rotation", "cayley", "rotation='cayley': expected one of orthogonal, linear, procrustes, full_width"),
        ("layer_weight", -1.0, "layer_weight=-1.0: expected at least 0"),
        ("layer_weight_end", 0.0, "layer_weight_end=0.0: expected a positive number"),
        ("kd_weight", -0.5, "kd_weight=-0.5"),
        ("task_weight", float("nan"), "task_weight=nan"),
        ("adam_epsilon", 0.0, "adam_epsilon=0.0: expected a positive number"),
        ("temperature", 0.0, "temperature=0.0: expected a positive number"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size=0: expected at least 1"),
        ("per_device_eval_batch_size", -1, "per_device_eval_batch_size=-1: expected at least 1"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps=0: expected at least 1"),
        ("dataloader_num_workers", -2, "dataloader_num_workers=-2: expected a number from 0 to 1024"),
        ("dataloader_num_workers", 2**31, "dataloader_num_workers=2147483648: expected a number from 0 to 1024"),
        ("eval_accumulation_steps", 0, "eval_accumulation_steps=0: expected at least 1"),
        ("num_train_epochs", -1.0, "num_train_epochs=-1.0: expected at least 0"),
        ("seed", -1, "seed=-1: expected at least 0"),
        ("label_smoothing_factor", 2.0, "label_smoothing_factor=2.0: expected a number from 0 to 1"),
        ("adam_beta2", 1.0, "adam_beta2=1.0: expected a number from 0 to 1"),
        ("max_steps", "many", "max_steps='many': expected a whole number"),
        ("temperature", "warm", "temperature='warm': expected a number"),
        ("bf16", "maybe", "bf16='maybe': expected true or false"),
        ("seed", 2**32, "seed=4294967296: expected a number from 0 to 4294967295"),
        ("data_seed", 2**63, "data_seed=9223372036854775808: expected a number from 0 to 4294967295"),
        ("logging_steps", float("inf"), "logging_steps=inf: expected a finite number"),
        ("learning_rate", float("inf"), "learning_rate=inf: expected a finite number"),
        ("kd_weight", float("nan"), "kd_weight=nan: expected a finite number"),
        ("accelerator_config", "no file", "accelerator_config='no file': expected JSON such as '{"),
        ("lr_scheduler_kwargs", "[1]", "lr_scheduler_kwargs='[1]': expected JSON such as '{"),
        ("fsdp_config", "{", "fsdp_config='{': expected JSON such as '{\"name\": 1}' or a file of it"),
        ("layer_pairs", 0, "layer_pairs=0: expected at least 1"),
        ("positions", 0, "positions=0"),
        ("teacher_cache", 0, "teacher_cache='0'"),
        ("teacher_cache", "some", "teacher_cache='some': expected auto, off, or a number of views"),
        ("teacher_cache_limit", 0.0, "teacher_cache_limit=0.0"),
        ("teacher_cache_precision", "int8", "teacher_cache_precision='int8'"),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(tmp_path, option, value, message):
    with pytest.raises(SubDistillError) as refused:
        SubDistillConfig(output_dir=str(tmp_path), **{option: value})
    assert message in str(refused.value)


def test_weights_that_leave_nothing_to_train_are_refused(tmp_path):
    with pytest.raises(SubDistillError, match="all 0"):
        SubDistillConfig(output_dir=str(tmp_path), layer_weight=0, kd_weight=0)
    with pytest.raises(SubDistillError, match="all 0"):
        SubDistillConfig(output_dir=str(tmp_path), method="kd", kd_weight=0)


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("subdistill", {"task": 0.25, "kd": 2.0, "layer": 3.0}),
        ("kd", {"task": 0.25, "kd": 2.0, "layer": 0.0}),
        ("scratch", {"task": 0.25, "kd": 0.0, "layer": 0.0}),
        ("ce_kd", {"task": 0.25, "kd": 2.0, "layer": 0.0}),
        ("dkd", {"task": 0.25, "kd": 2.0, "layer": 0.0}),
        ("fitnet", {"task": 0.25, "kd": 2.0, "layer": 3.0}),
    ],
)
def test_each_method_uses_its_own_weights(method, weights):
    options = DistillationOptions(method=method, task_weight=0.25, kd_weight=2.0, layer_weight=3.0)
    assert options.weights() == weights


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("scratch", (1, 0, 0)),
        ("kd", (0, 1, 0)),
        ("ce_kd", (1, 1, 0)),
        ("dkd", (1, 1, 0)),
        ("fitnet", (0, 1, 100)),
        ("attention_transfer", (0, 1, 100)),
        ("vid", (0, 1, 1000)),
        ("vkd", (0, 1, 1000)),
        ("spkd", (0, 1, 3e5)),
        ("subdistill", (0, 1, 100)),
    ],
)
def test_each_method_has_weights_of_its_own(method, weights):
    assert tuple(DistillationOptions(method=method).weights().values()) == weights


@pytest.mark.parametrize(
    ("given", "at_the_end", "half_way"),
    [
        ({}, 100.0, 100.0),
        ({"layer_weight_end": 0.25}, 25.0, 50.0),
        ({"layer_weight": 50.0, "layer_weight_end": 1e-4}, 0.005, 0.5),
        ({"method": "kd", "layer_weight_end": 0.25}, 0.0, 0.0),
    ],
)
def test_the_weight_of_the_layers_falls_to_a_share_of_it(given, at_the_end, half_way):
    options = DistillationOptions(**given)
    assert [options.weights(part)["layer"] for part in (1.0, 0.5)] == pytest.approx([at_the_end, half_way])
    assert {options.weights(part)["kd"] for part in (0.0, 0.5, 1.0)} == {1.0}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_a_scale_of_its_own_and_another_may_be_given(method):
    own = "unit" if method in ("fitnet", "vid") else "teacher"
    assert DistillationOptions(method=method).scale_of_targets() == own
    for scale in ("unit", "teacher"):
        assert DistillationOptions(method=method, target_scale=scale).scale_of_targets() == scale
    suited = "unit" if method in ("fitnet", "vid", "vkd", "subdistill") else "teacher"
    assert DistillationOptions(method=method, target_scale="auto").scale_of_targets() == suited


def test_a_method_is_not_made_another_by_a_weight_of_zero():
    for method in ("scratch", "ce_kd"):
        assert DistillationOptions(method=method, task_weight=0.0).weights()["task"] == 1
    assert DistillationOptions(method="dkd", task_weight=0.0).weights() == {"task": 0, "kd": 1, "layer": 0}


def test_defaults_are_the_papers_where_it_gives_them(tmp_path):
    config = SubDistillConfig(output_dir=str(tmp_path))
    assert (config.learning_rate, config.per_device_train_batch_size) == (1e-3, 64)
    assert (config.weight_decay, config.num_train_epochs) == (0.0, 100)
    assert config.weights()["task"] == 0
    assert (config.weights()["kd"], config.temperature) == (1, 4)
    assert config.layers == ["auto"]


def test_one_layer_entry_may_be_given_without_a_list(tmp_path):
    assert SubDistillConfig(output_dir=str(tmp_path), layers="a.0=b.1").layers == ["a.0=b.1"]


def test_the_arguments_can_be_written_as_json(tmp_path):
    config = SubDistillConfig(output_dir=str(tmp_path), layers=["a=b", "c=d"], positions=20)
    described = json.loads(config.to_json_string())
    assert described["layers"] == ["a=b", "c=d"]
    assert described["positions"] == 20


@pytest.mark.parametrize("options", [TaskOptions, DistillationOptions, InspectOptions])
def test_every_option_has_a_help_text(options):
    for option in dataclasses.fields(options):
        assert len(option.metadata["help"]) > 20, option.name


def test_our_fields_do_not_hide_arguments_of_transformers():
    theirs = {option.name for option in dataclasses.fields(TrainingArguments)}
    ours = {option.name for options in (TaskOptions, DistillationOptions) for option in dataclasses.fields(options)}
    assert not theirs & ours


def test_the_command_line_reads_every_kind_of_option(tmp_path):
    arguments = (
        f"--output_dir {tmp_path} --classes 3 superclass:dice white_chess_king --layers a.0=b.0 a.1=b.1 "
        "--centring mean --positions 20 --normalise_energy false --flip true --method subdistill --compare scratch kd "
        "--learning_rate 0.5 --train_images_per_class 25 --teacher_cache 4"
    )
    parser = make_parser(all_arguments=True)
    task, config = parser.parse_args_into_dataclasses(arguments.split(), look_for_args_file=False)
    assert task.classes == ["3", "superclass:dice", "white_chess_king"]
    assert task.compare == ["scratch", "kd"]
    assert (task.flip, task.train_images_per_class) == (True, 25)
    assert config.layers == ["a.0=b.0", "a.1=b.1"]
    assert (config.centring, config.positions, config.normalise_energy, config.views) == ("mean", 20, False, 4)
    assert config.learning_rate == 0.5
    assert not config.load_best_model_at_end
