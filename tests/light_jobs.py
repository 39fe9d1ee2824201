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
