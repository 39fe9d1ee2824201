"""Energy is told where codecarbon is installed and measures, and is unknown otherwise."""

import importlib.machinery
import importlib.metadata
import sys
import types
from typing import ClassVar

import pytest

from subdistill_hf.pipeline.energy import measured_energy


class Tracker:
    """Looks to us as codecarbon's tracker does."""

    made: ClassVar[list] = []

    def __init__(self, **options):
        self.options, self.events = options, []
        Tracker.made.append(self)

    def start(self):
        self.events.append("start")

    def stop(self):
        self.events.append("stop")
        self.final_emissions_data = types.SimpleNamespace(energy_consumed=0.0125)


@pytest.fixture
def codecarbon(monkeypatch):
    module = types.ModuleType("codecarbon")
    module.__spec__ = importlib.machinery.ModuleSpec("codecarbon", None)
    module.OfflineEmissionsTracker = Tracker
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    monkeypatch.setattr(importlib.metadata, "version", {"codecarbon": "3.3.2"}.__getitem__)
    Tracker.made.clear()
    return module


def test_the_energy_of_a_block_is_what_codecarbon_says_and_leaves_no_files(codecarbon):
    with measured_energy() as energy:
        assert Tracker.made[0].events == ["start"]
        assert energy.kilowatt_hours is None
    assert (energy.kilowatt_hours, energy.source) == (0.0125, "codecarbon 3.3.2")
    assert Tracker.made[0].events == ["start", "stop"]
    assert Tracker.made[0].options["save_to_file"] is False


def test_the_measurement_ends_with_a_training_that_fails(codecarbon):
    with pytest.raises(KeyError), measured_energy():
        raise KeyError("in the training")
    assert Tracker.made[0].events == ["start", "stop"]


def test_only_one_process_measures(codecarbon):
    with measured_energy(wanted=False) as energy:
        pass
    assert energy.kilowatt_hours is None
    assert Tracker.made == []


def test_nothing_is_made_up_where_codecarbon_is_missing_or_measures_nothing(codecarbon, monkeypatch, capsys):
    monkeypatch.setattr(Tracker, "stop", lambda self: None)
    with measured_energy() as energy:
        pass
    assert energy.kilowatt_hours is None
    assert "codecarbon measured nothing" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "codecarbon", None)  # as if it were not installed
    with measured_energy() as energy:
        pass
    assert energy.kilowatt_hours is None
    assert energy.source is None
