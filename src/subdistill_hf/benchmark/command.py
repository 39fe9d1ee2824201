"""The `benchmark` command: tune, train what is missing, tell."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from subdistill_hf.benchmark.config import Benchmark, BenchmarkError, Options, read_benchmark
from subdistill_hf.benchmark.jobs import Row, Setting, final_jobs, tune, untuned_jobs
from subdistill_hf.benchmark.runs import Runs
from subdistill_hf.benchmark.statistics import compare
from subdistill_hf.benchmark.store import Results
from subdistill_hf.benchmark.tables import markdown, write_table
from subdistill_hf.benchmark.training import check
from subdistill_hf.config.commands import BenchmarkOptions
from subdistill_hf.config.output_folder import check_output_folder, held_for_this_run, refuse_other_files
from subdistill_hf.executors.base import ExecutionError, Executor
from subdistill_hf.executors.choice import executor_of
from subdistill_hf.reporting.local_paths import file_name
from subdistill_hf.reporting.optional import plot_is_optional

RUNS_FILE = "runs.jsonl"
TABLE_FILE = "results.csv"
CHOSEN_FILE = "chosen.yaml"
REPORT_FILE = "README.md"


def benchmark(config: str | Path, options: BenchmarkOptions, command: str = "subdistill benchmark") -> Path:
    """Run what is missing of a grid, and write the results; a run that is finished is never repeated.

    The folder gets `runs.jsonl` (every run, as it ends), `results.csv` (the final runs), `chosen.yaml` (the tuned
    hyper-parameters), `README.md` (the tables) and plots.

    Args:
        config: the YAML file, see `Benchmark`.
        options: the folder, and how many processes.
        command: how to make it again, for the report.

    Returns:
        The folder.

    Raises:
        SubDistillError: for a file, options or a folder that do not fit, before anything is trained or written.
    """
    grid = read_benchmark(config)
    folder = Path(options.output_dir or f"benchmark-{Path(config).stem}")
    gpus = torch.cuda.device_count()
    executor = executor_of(options, options.workers, gpus or torch.multiprocessing.cpu_count(), gpus)
    if options.report_only:  # beside a run that is not finished, which holds the folder
        check_output_folder(folder)
    with held_for_this_run(None if options.report_only else folder):
        _check_folder(folder, options.report_only)
        if not options.report_only:  # which reads no images and no models
            check(untuned_jobs(grid))
        try:
            _run(grid, options, executor, folder, command)
        except ExecutionError as error:
            raise BenchmarkError(str(error)) from error
    return folder


def _check_folder(folder: Path, report_only: bool) -> None:
    """Refuse a folder of somebody else's files, and one without runs where these are to be reported."""
    refuse_other_files(folder, (RUNS_FILE,), error=BenchmarkError)
    if report_only and not (folder / RUNS_FILE).is_file():
        raise BenchmarkError(f"report_only: {folder} holds no runs: start the command without it")


def _run(grid: Benchmark, options: BenchmarkOptions, executor: Executor, folder: Path, command: str) -> None:
    """Tune, train what is missing, and write the report."""
    results = Results(folder / RUNS_FILE)
    if not options.report_only:
        results.path.touch()  # by which the folder is known as a benchmark's
    runs = Runs(results, None if options.report_only else executor)
    chosen = tune(grid, runs.run_all)
    final = final_jobs(grid, chosen)
    if options.report_only and grid.tuning is None and not any(job.key in results.rows for job in final):
        raise BenchmarkError(f"report_only: {folder} holds no run of this file: start the command without it")
    finished = runs.rows(final)  # before anything is written: runs of other weights are not reported
    _write_chosen(chosen, folder / CHOSEN_FILE)
    _report(grid, finished if options.report_only else runs.run_all(final), chosen, folder, command)


def _write_chosen(chosen: Mapping[Setting, Options], path: Path) -> None:
    entries = [
        {**asdict(setting), "student": file_name(setting.student), "options": options}
        for setting, options in chosen.items()
    ]
    path.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")


def _report(grid: Benchmark, rows: list[Row], chosen: Mapping[Setting, Options], folder: Path, command: str) -> None:
    write_table([row for row in rows if "validation" in row], folder / TABLE_FILE)
    comparisons = compare(rows, list(grid.methods))
    machines = sorted({row["machine"] for row in rows if "machine" in row})
    today = datetime.date.today().isoformat()
    text = markdown(grid, comparisons, chosen, machines, command, today)
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")  # whatever happens to the plots, the tables are there
    with plot_is_optional("the plots"):
        from subdistill_hf.benchmark.plots import plot_benchmark  # only who plots needs matplotlib

        drawn = [path.name for path in plot_benchmark(grid, comparisons, folder)]
        text = markdown(grid, comparisons, chosen, machines, command, today, drawn)
        (folder / REPORT_FILE).write_text(text, encoding="utf-8")
    print(f"\n{text}\nThe results are in {folder}")
