"""Jobs for processes that import nothing heavy."""

import ctypes
import os
import resource
import signal
import time
from pathlib import Path

from subdistill_hf.benchmark.jobs import Job
from subdistill_hf.errors import SubDistillError


def job(number, subtask="a"):
    return Job("kd", subtask, "small", 10, number, {}, {}, {})


def environment_of(job):
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    return {"seed": job.seed, "process": os.getpid()} | {name: os.environ.get(name) for name in names}


def faults_of_a_second_step(job=None):
    """Page faults when 192 MiB are taken and freed, right after this was done before."""
    libc, size = ctypes.CDLL(None), 16 << 20
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]

    def step():
        blocks = [libc.malloc(size) for _ in range(12)]
        for block in blocks:
            ctypes.memset(block, 1, size)
        for block in reversed(blocks):
            libc.free(ctypes.c_void_p(block))

    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


PAGES = 12 * (16 << 20) // os.sysconf("SC_PAGESIZE")
"""Of memory in a step of `faults_of_a_second_step`."""


def killed(job):
    os.kill(os.getpid(), signal.SIGKILL)


def refused(job):
    raise SubDistillError("no such class")


def refused_beside_others(job):
    """Seed 0 is refused while the others run; each leaves a file when it starts, and the others one when they end."""
    Path(job.subtask, f"{job.seed}.started").touch()
    if job.seed == 0:
        wait_for(lambda: Path(job.subtask, "1.started").exists())
        raise SubDistillError("an image cannot be decoded")
    time.sleep(1.0)
    Path(job.subtask, f"{job.seed}.ended").touch()
    return job.seed


def refused_together(job):
    """Refused once two jobs run."""
    Path(job.subtask, f"{job.seed}.started").touch()
    wait_for(lambda: len(list(Path(job.subtask).glob("*.started"))) == 2)
    refused(job)


def long_unless_0(job):
    """Seed 0 ends once another job runs, which does not end for minutes."""
    if job.seed == 0:
        wait_for(lambda: any(Path(job.subtask).glob("*.started")))
    else:
        Path(job.subtask, f"{job.seed}.started").touch()
        time.sleep(300)
    return job.seed


def fault(job):
    raise ZeroDivisionError(job.seed)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def note_process_and_wait(job):
    Path(job.subtask, f"{os.getpid()}.pid").touch()
    time.sleep(300)


def killed_the_first_time(job):
    """Kills its process, and leaves a file by which it does not the next time."""
    place = Path(job.subtask, f"{job.seed}.txt")
    if job.seed == 1 and not place.exists():
        place.touch()
        killed(job)
    return job.seed


def killed_if_odd(job):
    if job.seed % 2:
        killed(job)
    return job.seed
