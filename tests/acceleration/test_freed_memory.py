"""Freed memory stays with the process, in a fresh interpreter: a setting of glibc cannot be read, only felt."""

import os
import subprocess
import sys

import pytest

from helpers import REPOSITORY
from light_jobs import PAGES
from subdistill_hf.acceleration import freed_memory

FAULTS = """
from light_jobs import faults_of_a_second_step
from subdistill_hf.acceleration.freed_memory import keep_freed_memory

print(keep_freed_memory(), faults_of_a_second_step())
"""


def kept_and_faults(**environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(freed_memory.USERS)}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=kept | environment,
        cwd=REPOSITORY / "tests",
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has these settings")
def test_a_second_step_takes_no_memory_from_the_system():
    kept, faults = kept_and_faults()
    assert kept == "True"
    assert faults < PAGES / 100
    kept, faults = kept_and_faults(MALLOC_TRIM_THRESHOLD_="0")
    assert kept == "False"  # the user has decided
    assert faults > PAGES / 10  # the system may clear several pages at once


def test_nothing_is_done_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not freed_memory.keep_freed_memory()
