"""The training arguments: defaults, what is refused, by transformers late too, and what each method weighs."""

import dataclasses
import json
import re

import pytest
from transformers import TrainingArguments
from transformers.integrations import integration_utils

from subdistill_hf.cli.distill import make_parser
from subdistill_hf.config import training
from subdistill_hf.config.commands import InspectOptions
from subdistill_hf.config.options import DistillationOptions, TaskOptions
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
        ("kd_weight", -0.5, "kd_weight=-0.5"),
        ("task_weight", float("nan"), "task_weight=nan"),
        ("temperature", 0.0, "temperature=0.0: expected a positive number"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size=0: expected at least 1"),
        ("per_device_eval_batch_size", -1, "per_device_eval_batch_size=-1: expected at least 1"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps=0: expected at least 1"),
        ("dataloader_num_workers", -2, "dataloader_num_workers=-2: expected at least 0"),
        ("num_train_epochs", -1.0, "num_train_epochs=-1.0: expected at least 0"),
        ("seed", -1, "seed=-1: expected at least 0"),
        ("label_smoothing_factor", 2.0, "label_smoothing_factor=2.0: expected a number from 0 to 1"),
        ("adam_beta2", 1.0, "adam_beta2=1.0: expected a number from 0 to 1"),
        ("max_steps", "many", "max_steps='many': expected a whole number"),
        ("temperature", "warm", "temperature='warm': expected a number"),
        ("bf16", "maybe", "bf16='maybe': expected true or false"),
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
        ("fitnet", (0, 1, 1)),
        ("attention_transfer", (0, 1, 1000)),
        ("vid", (0, 1, 1)),
        ("vkd", (0, 1, 1)),
        ("spkd", (0, 1, 3000)),
        ("subdistill", (0, 1, 100)),
    ],
)
def test_each_method_has_weights_of_its_own(method, weights):
    assert tuple(DistillationOptions(method=method).weights().values()) == weights


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
    assert config.load_best_model_at_end


# What transformers would refuse late


@pytest.fixture
def environment(monkeypatch):
    """Is as before after a test: transformers writes the arguments of torch.compile to it."""
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(name, "no")


@pytest.fixture
def installed(monkeypatch):
    """The services whose packages are there."""
    monkeypatch.setattr(training, "get_available_reporting_integrations", lambda: ["tensorboard"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"report_to": "wandb"},
            "'wandb': its package is not installed, or not set up; do so, or give tensorboard or none",
        ),
        ({"report_to": ["tensorboard", "paper"]}, "report_to='paper': expected one of none, all, "),
        ({"report_to": "none", "optim": "galore_adamw"}, "optim='galore_adamw': You need to install `galore_torch`"),
    ],
)
def test_what_is_not_installed_is_named(environment, installed, tmp_path, options, message):
    with pytest.raises(SubDistillError, match=re.escape(message)):
        training.check_training_arguments(SubDistillConfig(output_dir=str(tmp_path), **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim_args": "beta"}, "optim_args='beta': expected name=value,name=value"),
        ({"optim_args": "a=1,b=2=3"}, "optim_args='a=1,b=2=3': expected"),
        ({"fsdp": "full_shard"}, "this is a single one: start it with accelerate launch"),
        ({"torch_compile_backend": "nope"}, "torch_compile_backend='nope': expected one of eager, "),
        ({"torch_compile_mode": "nope"}, "torch_compile_mode='nope': expected one of default, "),
        ({"label_names": ["a"]}, "label_names=['a']: the labels of a batch are named 'labels' here"),
        ({"metric_for_best_model": "f1"}, "metric_for_best_model='f1': expected one of loss, accuracy, "),
    ],
)
def test_what_would_stop_the_training_is_named(environment, tmp_path, options, message):
    with pytest.raises(SubDistillError, match=re.escape(message)):
        training.check_training_arguments(SubDistillConfig(output_dir=str(tmp_path), report_to="none", **options))


@pytest.mark.parametrize(
    "options",
    [
        {"report_to": "none"},
        {"report_to": "tensorboard"},
        {"report_to": "none", "optim": "sgd"},
        {"report_to": "none", "optim": "adafactor"},
        {"report_to": "none", "optim_args": "a=1, b=2"},
        {"report_to": "none", "torch_compile_backend": "aot_eager", "torch_compile_mode": "of its own"},
        {"report_to": "none", "torch_compile_mode": "reduce-overhead"},
        {"report_to": "none", "metric_for_best_model": "eval_loss"},
    ],
)
def test_what_is_there_is_taken(environment, installed, tmp_path, options):
    training.check_training_arguments(SubDistillConfig(output_dir=str(tmp_path), **options))


def test_every_service_that_transformers_finds_is_one_it_can_report_to():
    services = set(integration_utils.INTEGRATION_TO_CALLBACK)
    assert set(integration_utils.get_available_reporting_integrations()) <= services
    assert services.issuperset(training.UNLISTED)
