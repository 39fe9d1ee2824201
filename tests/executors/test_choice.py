"""Which executor options ask for, and what is refused before anything is started."""

import sys

import pytest

from subdistill_hf.config.commands import BenchmarkOptions, FamilyOptions
from subdistill_hf.errors import MissingExtraError, SubDistillError
from subdistill_hf.executors import on_ray
from subdistill_hf.executors.choice import executor_of
from subdistill_hf.executors.local import LocalPool
from subdistill_hf.executors.on_ray import RayExecutor


@pytest.fixture
def with_ray(monkeypatch):
    monkeypatch.setattr(on_ray, "require_extra", lambda *given: None)


@pytest.mark.usefixtures("with_ray")
def test_the_number_of_workers_is_what_was_given_or_that_of_the_engine():
    ray = FamilyOptions(executor="ray", ray_address="auto")
    assert executor_of(FamilyOptions(), None, 3, 0) == LocalPool(3, 0)
    assert executor_of(FamilyOptions(), 0, 3, 2) == LocalPool(0, 2)
    assert executor_of(ray, None, 3, 0) == RayExecutor(None, gpu=False, address="auto")
    assert executor_of(ray, 4, 3, 2) == RayExecutor(4, gpu=True, address="auto")
    assert str(executor_of(ray, None, 3, 0)) == "as many at a time as Ray has room for"


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize(
    ("options", "workers", "message"),
    [
        ({}, -1, "workers=-1: expected at least 0"),
        ({"executor": "ray"}, 0, "workers=0 runs everything in this process"),
    ],
)
def test_a_number_of_workers_that_does_not_fit(options, workers, message):
    with pytest.raises(SubDistillError, match=message):
        executor_of(BenchmarkOptions(**options), workers, 2, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ray_address": "auto"}, "ray_address=auto has no meaning without --executor ray"),
        ({"executor": "slurm"}, "executor='slurm': expected one of local, ray"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(SubDistillError, match=message):
        FamilyOptions(**options)


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"executor=ray needs packages .*subdistill-hf\[ray\]"):
        RayExecutor()
