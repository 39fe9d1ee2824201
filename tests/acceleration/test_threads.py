"""How many threads share the work, who decides it, and how idle ones wait."""

import os
import re
import sys

import pytest
import torch

from helpers import REPOSITORY, run_python
from subdistill_hf.acceleration import threads
from subdistill_hf.acceleration.threads import COUNTS, SHARE, Threads, available_cores, suited_threads

WATCHED = """
import importlib.abc, os, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch is imported with", os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"))
            sys.exit(0)
sys.meta_path.insert(0, Watch())
"""


@pytest.fixture
def machine(monkeypatch):
    """A machine of 16 cores on which nobody has decided anything."""
    for name in COUNTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(threads, "QUOTA", REPOSITORY / "no such file")
    return monkeypatch


@pytest.mark.parametrize(("share", "expected"), [(0.1, 1), (0.99, 1), (1.9, 1), (2, 2), (7.5, 7), (1000, 16)])
def test_each_share_of_the_work_gets_a_thread_and_no_more_than_there_are_cores(machine, share, expected):
    assert suited_threads(share * SHARE).count == expected


def test_processes_share_the_cores(machine):
    assert [suited_threads(100 * SHARE, processes).count for processes in (1, 2, 5, 32)] == [16, 8, 3, 1]


@pytest.mark.parametrize(("quota", "expected"), [("200000 100000", 2), ("150000 100000", 2), ("max 100000", 16)])
def test_a_containers_share_of_time_bounds_them(machine, tmp_path, quota, expected):
    path = tmp_path / "cpu.max"
    path.write_text(quota)
    machine.setattr(threads, "QUOTA", path)
    assert available_cores() == expected
    assert suited_threads(100 * SHARE).count == expected


@pytest.mark.parametrize("name", COUNTS)
def test_the_users_environment_decides(machine, name):
    machine.setenv(name, "16")
    assert suited_threads(1.0) == Threads(16, f"{name} is set")


@pytest.mark.parametrize("count", [3, 12])
def test_the_users_call_decides(machine, count):
    machine.setattr(torch, "get_num_threads", lambda: count)
    for operations in (1.0, 100 * SHARE):
        assert suited_threads(operations) == Threads(count, "torch.set_num_threads was called")


@pytest.mark.parametrize("count", [1, 8])
def test_no_more_are_used_than_torch_has(machine, count):
    machine.setattr(os, "cpu_count", lambda: 2 * count)
    machine.setattr(os, "sched_getaffinity", lambda process: set(range(2 * count)), raising=False)
    machine.setattr(torch, "get_num_threads", lambda: count)
    assert suited_threads(100 * SHARE).count == count


def test_the_choice_is_a_line_with_its_reason(machine):
    line = str(suited_threads(2.5 * SHARE))
    assert re.fullmatch(r"threads  2 in each process: of at most 16; a layer has 750 million operations .*", line)


# How they wait


@pytest.mark.parametrize("start", ["from subdistill_hf.cli import main; main(sys.argv[1:])", "example"])
def test_the_command_line_lets_idle_threads_sleep_before_torch_is_imported(start):
    path = REPOSITORY / "examples" / "run_subdistill.py"
    code = f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')" if start == "example" else start
    arguments = ["--output_dir", "never"] if start == "example" else ["distill", "--output_dir", "never"]
    done = run_python(WATCHED + code, *arguments)
    assert done.stdout.strip() == "torch is imported with PASSIVE None"


@pytest.mark.parametrize(
    ("given", "expected"), [({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"), ({"GOMP_SPINCOUNT": "7"}, "None 7")]
)
def test_the_users_way_of_waiting_stays(given, expected):
    code = WATCHED + "from subdistill_hf.cli import main; main(sys.argv[1:])"
    done = run_python(code, "distill", "--output_dir", "never", **given)
    assert done.stdout.strip() == f"torch is imported with {expected}"


def test_it_is_left_alone_where_torch_has_decided_already(monkeypatch):
    assert "torch" in sys.modules
    for name in threads.WAITING:
        monkeypatch.delenv(name, raising=False)
    threads.wait_passively()
    assert "OMP_WAIT_POLICY" not in os.environ
