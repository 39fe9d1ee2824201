"""Jobs for processes that import nothing heavy."""

import os
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
