"""Training arguments that transformers would refuse late are refused by name, with what was expected."""

import re

import pytest
from transformers.integrations import integration_utils

from subdistill_hf.config import training_arguments
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.config.training_arguments import check_training_arguments
from subdistill_hf.errors import SubDistillError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Is as before after a test: transformers writes the arguments of torch.compile to it."""
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(name, "no")


@pytest.fixture
def installed(monkeypatch):
    """The services whose packages are there."""
    monkeypatch.setattr(training_arguments, "get_available_reporting_integrations", lambda: ["tensorboard"])


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
def test_what_is_not_installed_is_named(installed, tmp_path, options, message):
    with pytest.raises(SubDistillError, match=re.escape(message)):
        check_training_arguments(SubDistillConfig(output_dir=str(tmp_path), **options))


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
def test_what_would_stop_the_training_is_named(tmp_path, options, message):
    with pytest.raises(SubDistillError, match=re.escape(message)):
        check_training_arguments(SubDistillConfig(output_dir=str(tmp_path), report_to="none", **options))


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
def test_what_is_there_is_taken(installed, tmp_path, options):
    check_training_arguments(SubDistillConfig(output_dir=str(tmp_path), **options))


def test_every_service_that_transformers_finds_is_one_it_can_report_to():
    services = set(integration_utils.INTEGRATION_TO_CALLBACK)
    assert set(integration_utils.get_available_reporting_integrations()) <= services
    assert services.issuperset(training_arguments.UNLISTED)
