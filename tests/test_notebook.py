"""The notebook runs from its first cell to its last, in a process of its own."""

import json
import re

import pytest

from helpers import REPOSITORY, quiet_environment
from programs import run_program

NOTEBOOK = json.loads((REPOSITORY / "examples" / "five_classes.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
RUN = """
import os, sys
os.chdir(sys.argv[1])
for cell in sys.argv[2:]:
    exec(compile(cell, "cell", "exec"), globals())
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory, datasets_cache):
    folder = tmp_path_factory.mktemp("notebook")
    shorter = [re.sub(r"^STEPS = \d+", "STEPS = 4", cell, flags=re.MULTILINE) for cell in CODE]
    assert shorter != CODE
    environment = quiet_environment(MPLBACKEND="Agg", HF_DATASETS_CACHE=str(datasets_cache))
    done = run_program(RUN, folder, *shorter, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_notebook_runs_and_prints_what_its_text_announces(output):
    lines = output.splitlines()
    assert "160 images to train, 40 to validate, 500 to test" in lines
    assert any(line.startswith("teacher layer") for line in lines)
    rows = {
        line.split()[0]: line.split() for line in lines if line.startswith(("teacher  ", "scratch ", "subdistill "))
    }
    assert rows["teacher"][1] == "1,896,620"
    assert rows["scratch"][1] == rows["subdistill"][1] == "69,941"
    assert rows["teacher"][3] == "100.0%"
    assert sum(float(line.split()[-1]) for line in lines[-5:]) == pytest.approx(1, abs=0.01)  # five probabilities


def test_the_notebook_is_committed_without_outputs():
    for cell in NOTEBOOK["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
