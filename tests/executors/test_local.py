"""Jobs in processes of this machine: spread, named in errors, ended with their parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from helpers import REPOSITORY, quiet_environment
from light_jobs import (
    PAGES,
    environment_of,
    fault,
    faults_of_a_second_step,
    job,
    killed,
    long_unless_0,
    note_process_and_wait,
    refused,
    refused_beside_others,
    refused_together,
)
from subdistill_hf.acceleration.freed_memory import USERS
from subdistill_hf.executors.base import ExecutionError
from subdistill_hf.executors.local import LocalPool, _device


def test_runs_are_spread_over_processes_and_gpus():
    before = os.environ.get("OMP_NUM_THREADS")
    found = list(LocalPool(2).run([job(number) for number in range(6)], environment_of))
    assert sorted(row["seed"] for _, row in found) == list(range(6))
    assert all(job.seed == row["seed"] for job, row in found)
    assert os.getpid() not in {row["process"] for _, row in found}
    assert {row["OMP_NUM_THREADS"] for _, row in found} == {"1"}
    assert os.environ.get("OMP_NUM_THREADS") == before
    found = list(LocalPool(1, gpus=3).run([job(number) for number in range(2)], environment_of))
    assert {row["CUDA_VISIBLE_DEVICES"] for _, row in found} == {"0"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has these settings")
def test_the_processes_keep_the_memory_that_they_free(monkeypatch):
    for name in [name for name in os.environ if name.startswith(USERS)]:
        monkeypatch.delenv(name)
    ((_, faults),) = LocalPool(1).run([job(0)], faults_of_a_second_step)
    assert faults < PAGES / 100


def test_a_process_that_is_killed_or_refuses_is_named():
    with pytest.raises(ExecutionError, match="a process of the runs was killed"):
        list(LocalPool(1).run([job(0)], killed))
    for workers in (0, 1):
        with pytest.raises(ExecutionError, match=r"kd, a, 10 images, small, seed 7: no such class"):
            list(LocalPool(workers).run([job(7)], refused))


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_job_that_is_refused_takes_no_result_of_the_others_along(tmp_path):
    """Those that run beside it end and are given; those that wait are not started."""
    results = LocalPool(2).run([job(number, str(tmp_path)) for number in range(4)], refused_beside_others)
    assert next(results)[1] == 1
    with pytest.raises(ExecutionError, match="seed 0: an image cannot be decoded"):
        next(results)
    assert files_of(tmp_path) == ["0.started", "1.ended", "1.started"]


def test_all_jobs_that_are_refused_are_named_and_a_fault_is_raised_as_it_is(tmp_path):
    with pytest.raises(ExecutionError) as told:
        list(LocalPool(2).run([job(number, str(tmp_path)) for number in (7, 8)], refused_together))
    assert all(f"seed {number}: no such class" in str(told.value) for number in (7, 8))
    with pytest.raises(ZeroDivisionError):
        list(LocalPool(1).run([job(0)], fault))


def test_processes_end_where_nobody_takes_the_results_any_more(tmp_path):
    before = set(multiprocessing.active_children())
    results = LocalPool(2).run([job(number, str(tmp_path)) for number in range(2)], long_unless_0)
    assert next(results)[1] == 0
    results.close()
    wait_until(lambda: not set(multiprocessing.active_children()) - before)


PARENT = """
import sys
sys.path.insert(0, "tests")
import light_jobs
if __name__ == "__main__":
    from subdistill_hf.executors.local import LocalPool
    jobs = [light_jobs.job(number, sys.argv[1]) for number in range(2)]
    list(LocalPool(2).run(jobs, light_jobs.note_process_and_wait))
"""


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], cwd=REPOSITORY, env=quiet_environment())
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2 or process.poll() is not None)
    finally:
        process.kill()
    process.wait()
    children = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(children) == 2
    wait_until(lambda: not any(is_running(child) for child in children))


@pytest.fixture
def ctrl_c():
    """Ctrl-C counts, in processes that the test starts too: shells let commands in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_processes_without_a_word(tmp_path, ctrl_c):
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        cwd=REPOSITORY,
        env=quiet_environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2 or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert err.count("Traceback") == 1, err  # that of the script itself
    children = [int(path.stem) for path in tmp_path.glob("*.pid")]
    wait_until(lambda: not any(is_running(child) for child in children))


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows sends Ctrl-C to processes in another way")
def test_a_ctrl_c_while_processes_start_is_not_lost(tmp_path, monkeypatch, ctrl_c):
    submit = ProcessPoolExecutor.submit

    def submit_and_interrupt(pool, *arguments):
        future = submit(pool, *arguments)
        os.kill(os.getpid(), signal.SIGINT)
        return future

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit_and_interrupt)
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        list(LocalPool(2).run([job(number, str(tmp_path)) for number in range(2)], note_process_and_wait))
    wait_until(lambda: not set(multiprocessing.active_children()) - before)


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "still waiting"
        time.sleep(0.02)


def test_workers_take_the_gpus_that_the_command_may_use(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [_device(index) for index in range(2)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert [_device(index) for index in range(2)] == ["2", "3"]
