"""Programs in processes of their own that begin with all libraries imported, which takes a fresh interpreter seconds.

A server process imports them once for a session of tests, and makes a copy of itself for each program.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import torch
from huggingface_hub import constants, hf_api

from helpers import REPOSITORY, quiet_environment

HERE = Path(__file__).parent
STARTS = [way for way in ("forkserver", "spawn") if way in multiprocessing.get_all_start_methods()]
CONTEXT = multiprocessing.get_context(STARTS[0])  # Windows copies no processes: each imports all, and is as slow
IMPORTED = [
    "subdistill_hf.cli.commands",
    "subdistill_hf.hub.publish",
    "subdistill_hf.pipeline.run",
    "transformers.models.resnet.modeling_resnet",
    "transformers.models.vit.modeling_vit",
    "transformers.pipelines.image_classification",
    "helpers",  # the last: it freezes what was imported, so that the copies share it
]
AT_IMPORT = ("huggingface_hub.constants", "datasets.config", "evaluate.config")
"""Modules that read the environment when they are imported, and that all others ask."""


def run_program(code, *arguments, folder=REPOSITORY, environment=None, timeout=600):
    """Run code as `python -c` does, in a folder and with an environment (of `quiet_environment`, if none is given).

    It differs from a fresh interpreter in what is imported. For tests of that, and of the command line's own start,
    there is `helpers.run_python`.

    Raises:
        subprocess.TimeoutExpired: when it hangs.
    """
    with tempfile.TemporaryDirectory() as printed:
        process = start_program(code, *arguments, folder=folder, environment=environment, printed=printed)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(code, timeout)
        out, err = (Path(printed, name).read_text(encoding="utf-8") for name in ("out", "err"))
    return subprocess.CompletedProcess([code, *arguments], process.exitcode, out, err)


def start_program(code, *arguments, printed, folder=REPOSITORY, environment=None):
    """The process of a program that runs; `out` and `err` in the folder `printed` are what it prints."""
    _start_server()
    given = (code, list(map(str, arguments)), str(folder), environment or quiet_environment(), str(printed))
    process = CONTEXT.Process(target=_run, args=given)
    process.start()
    return process


def kill_when(reached, code, *arguments, printed):
    """Start a program, and kill it (SIGKILL) as soon as `reached()` is true; it must not end before.

    `out` and `err` in the folder `printed` are what it prints.
    """
    process = start_program(code, *arguments, printed=printed)
    try:
        while not reached():
            assert process.exitcode is None, Path(printed, "err").read_text(encoding="utf-8")
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL


def run_side_by_side(work, *arguments):
    """Call `work(rank, *arguments)` in two processes at once."""
    _start_server()
    torch.multiprocessing.start_processes(work, arguments, nprocs=2, start_method=CONTEXT.get_start_method())


def _start_server():
    """Its environment is nobody's: each program has its own."""
    if CONTEXT.get_start_method() != "forkserver":
        return
    forkserver.set_forkserver_preload(IMPORTED)
    usual = dict(os.environ)
    search = os.pathsep.join([str(HERE), str(REPOSITORY / "src")])
    os.environ.update(quiet_environment(PYTHONPATH=search))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(usual)


def _run(code, arguments, folder, environment, printed):
    """What the process of a program does."""
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        with Path(printed, name).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for name in AT_IMPORT:
        importlib.reload(importlib.import_module(name))
    hf_api.api.endpoint = constants.ENDPOINT
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})


WITHOUT_THIS_PACKAGE = """
import sys
for name in [name for name in sys.modules if name.split(".")[0] == "subdistill_hf"]:
    del sys.modules[name]
"""
"""Begins a program that finds all libraries imported, but not this package; what imports it can be seen."""
QUICK_REPORTS = """
from programs import make_reports_quick
make_reports_quick(setattr)
"""
"""Begins a program with runs."""


def make_reports_quick(set_attribute):
    """Let the snippets of cards run in the process of the run, and measure each latency a few times only.

    Runs of users start a fresh process, which takes seconds, and measure fifty times.
    """
    from subdistill_hf.pipeline import report, student_folder

    set_attribute(student_folder, "_output_in_a_fresh_process", output_here)
    set_attribute(report, "measure_latency", partial(report.measure_latency, runs=5))


def output_here(code, folder):
    """What a card's snippet prints, run in this process."""
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(code, {})
    return printed.getvalue().strip()
