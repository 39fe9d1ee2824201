"""What several test modules share: one thread, and the arrays computed with the released research code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

DATA = Path(__file__).parent / "reference"

torch.set_num_threads(1)


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
def snippets_here():
    """Cards' snippets run in this process, where all is imported; a fresh one, as users' runs have, takes seconds."""
    from programs import output_here
    from subdistill_hf.pipeline import student_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student_folder, "_output_in_a_fresh_process", output_here)
        yield


@pytest.fixture
def hub(tmp_path):
    """A Hub on loopback, empty."""
    from loopback_hub import LoopbackHub

    with LoopbackHub(tmp_path) as running:
        yield running
    assert not running.errors, "\n".join(running.errors)
