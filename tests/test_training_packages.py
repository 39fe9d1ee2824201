"""Arguments that need a package that is not there are refused with its name."""

import re

import pytest
from transformers.integrations import integration_utils

from subdistill_hf import training_packages
from subdistill_hf.config import SubDistillConfig
from subdistill_hf.errors import SubDistillError
from subdistill_hf.training_packages import check_packages


@pytest.fixture
def installed(monkeypatch):
    """The services whose packages are there."""
    monkeypatch.setattr(training_packages, "get_available_reporting_integrations", lambda: ["tensorboard"])


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
        check_packages(SubDistillConfig(output_dir=str(tmp_path), **options))


@pytest.mark.parametrize(
    "options",
    [
        {"report_to": "none"},
        {"report_to": "tensorboard"},
        {"report_to": "none", "optim": "sgd"},
        {"report_to": "none", "optim": "adafactor"},
    ],
)
def test_what_is_there_is_taken(installed, tmp_path, options):
    check_packages(SubDistillConfig(output_dir=str(tmp_path), **options))


def test_every_service_that_transformers_finds_is_one_it_can_report_to():
    services = set(integration_utils.INTEGRATION_TO_CALLBACK)
    assert set(integration_utils.get_available_reporting_integrations()) <= services
    assert services.issuperset(training_packages.UNLISTED)
