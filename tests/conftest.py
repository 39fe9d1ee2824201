"""What several test modules share: one thread, and the arrays computed with the released research code."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(__file__).parent / "reference"

LONGEST = (
    "test_literal_command.py",
    "test_processes.py",
    "test_families.py",
    "test_model_families.py",
    "test_notebook.py",
)

torch.set_num_threads(1)


def pytest_configure(config):
    """Files go to pytest-xdist's workers in our order, and not by their numbers of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files that take long begin first, so that at the end no worker waits for another."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish():
    """Each training looks for garbage: what was imported and collected for all tests is none."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def subspace_reference():
    """Name to tensor, float64 (docs/method.md, "Reference values")."""
    with np.load(DATA / "subspace_reference.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.fixture(scope="session")
def loss_reference():
    """Name to tensor or, for the losses, to number."""
    with np.load(DATA / "loss_reference.npz") as arrays:
        inputs = {name: torch.from_numpy(arrays[name]) for name in arrays}
    return inputs | json.loads((DATA / "loss_reference.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def datasets_cache(tmp_path_factory):
    """A folder of this session's own in place of the `datasets` cache."""
    import datasets

    folder, usual = tmp_path_factory.mktemp("datasets"), datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    yield folder
    datasets.config.HF_DATASETS_CACHE = usual


@pytest.fixture(scope="module")
def quick_reports():
    """The reports of this module's runs take less time, see `programs.make_reports_quick`."""
    from programs import make_reports_quick

    with pytest.MonkeyPatch.context() as patch:
        make_reports_quick(patch.setattr)
        yield


@pytest.fixture
def hub(tmp_path):
    """A Hub on loopback, empty."""
    from loopback_hub import LoopbackHub

    with LoopbackHub(tmp_path) as running:
        yield running
    assert not running.errors, "\n".join(running.errors)
