"""Digests of students that seeded runs on a CPU leave, to see whether a change of the code changes a single bit.

    python benchmarks/reproducibility.py --check                                 # of this checkout, against the record
    python benchmarks/reproducibility.py --record                                # write the record anew
    python benchmarks/reproducibility.py --record --source OTHER_CHECKOUT/src    # from another version of the code

Each run goes through the command line, in processes of its own with one thread each, on embedded data. The digest is
the SHA-256 over the names, types, shapes and bytes of the student's tensors, sorted by name. Other versions of torch
and other processors round differently, so the record in `results/reproducibility.json` names both; it holds there
alone.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "reproducibility.json"
COMMON = (
    "distill --classes superclass:zodiac_signs --train_images_per_class 20 --max_steps 8 --seed 3 "
    "--per_device_train_batch_size 16 --use_cpu --report_to none --disable_tqdm true --load_best_model_at_end true "
    "--mix 0"
)
RUNS: dict[str, tuple[int, str]] = {
    "cached targets, closed form": (1, "--teacher_cache 2 --rotation procrustes"),
    "no cache, learned rotation": (1, "--teacher_cache off --rotation orthogonal"),
    "KD": (1, "--method kd --teacher_cache off"),
    "two processes, no cache, learned rotation": (2, "--teacher_cache off --rotation orthogonal"),
    "two processes, cached targets, closed form": (2, "--teacher_cache 2 --rotation procrustes"),
}
"""Name to the number of processes and the options of its own."""


def digest(path: Path) -> str:
    """The SHA-256 over the tensors of a safetensors file, whatever the order in which they are stored."""
    from safetensors.torch import load_file

    state = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


def run(source: Path, processes: int, options: str) -> str:
    """Train with the package of `source`; the student's digest."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        output, cache = f"{folder}/student", f"{folder}/targets"
        arguments = [*COMMON.split(), *options.split(), "--output_dir", output, "--teacher_cache_dir", cache]
        command = [*launcher, __file__, "--command_line", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"the run failed with status {done.returncode}:\n{done.stderr[-4000:]}")
        return digest(Path(output) / "model.safetensors")


def machine() -> dict[str, str]:
    """What the digests depend on beside the code."""
    import torch
    import transformers

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def main() -> None:
    """Run all and record or compare."""
    if sys.argv[1:2] == ["--command_line"]:
        from subdistill_hf.cli import main as command_line

        sys.exit(command_line(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--record", action="store_true", help="write the digests")
    mode.add_argument("--check", action="store_true", help="compare with those written")
    parser.add_argument("--source", type=Path, default=REPOSITORY / "src", help="folder that holds the package")
    options = parser.parse_args()
    source, here = options.source.resolve(), machine()
    record: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if options.check and here != record.get("machine"):
        raise SystemExit(f"digests hold on their own machine alone: expected {record.get('machine')}, found {here}")
    digests, different = {}, []
    for name, (processes, own) in RUNS.items():
        digests[name] = run(source, processes, own)
        verdict = ""
        if options.check:
            same = digests[name] == record["digests"][name]
            verdict = "  same" if same else f"  DIFFERENT, expected {record['digests'][name]}"
            different += [] if same else [name]
        print(f"{digests[name]}  {name}{verdict}", flush=True)
    if options.record:
        describe = ["git", "-C", str(source), "log", "-1", "--format=%h of %cs"]
        version = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
        commands = {name: f"subdistill {COMMON} {own}" for name, (_, own) in RUNS.items()}
        today = datetime.date.today().isoformat()
        record = {"version": version, "date": today, "machine": here, "digests": digests, "commands": commands}
        RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if different:
        raise SystemExit(f"other weights than recorded: {', '.join(different)}")


if __name__ == "__main__":
    main()
