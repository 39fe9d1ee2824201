"""What is left when the Hub fails: each failure injected into a push or a download, and then the same again.

The unmodified client libraries talk to a Hub on loopback (`tests/loopback_hub.py`) that fails on demand.

    python benchmarks/hub_failures.py [--output benchmarks/results/hub_failures.md]
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import io
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from helpers import NAMES, glyph_rows, processor, resnet, save_teacher  # noqa: E402
from loopback_hub import ALWAYS, LoopbackHub, Repo  # noqa: E402
from subdistill_hf.hub.snippet import local_code  # noqa: E402

RESULT = Path(__file__).parent / "results" / "hub_failures.md"
VERSIONS = ("huggingface_hub", "transformers", "datasets")
PROGRAM = "import sys; from subdistill_hf.cli import main; sys.exit(main(sys.argv[1:]))"
FULL_DISK = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
{PROGRAM}
"""
Inject = Callable[[LoopbackHub], None]


@dataclass
class Case:
    """One failure.

    Attributes:
        what: in words.
        inject: tells the Hub to fail.
        environment: of the program that fails.
        program: what is run.
    """

    what: str
    inject: Inject = lambda hub: None
    environment: dict[str, str | None] = field(default_factory=dict)
    program: str = PROGRAM


def _fail(match: str, status: int, times: float = ALWAYS) -> Inject:
    return lambda hub: hub.fail(match, status, times)


def _cut(match: str, times: float = ALWAYS) -> Inject:
    return lambda hub: hub.cut(match, times)


def _somebody_elses(hub: LoopbackHub) -> None:
    hub.user = "owner"
    hub.repos["model", "user/expert"] = Repo("model", "user/expert")


def _deleted(hub: LoopbackHub) -> None:
    hub.fail("preupload", 404)


PUSHES = [
    Case("no token", environment={"HF_TOKEN": None}),
    Case("401: a token that the Hub does not know", environment={"HF_TOKEN": "hf_unknown"}),
    Case("no Hub at the address", environment={"HF_ENDPOINT": "http://127.0.0.1:9"}),
    Case("HF_HUB_OFFLINE=1", environment={"HF_HUB_OFFLINE": "1"}),
    Case("403 when the repository is made", _fail("POST /api/repos/create", 403)),
    Case("403: the repository is somebody else's", _somebody_elses),
    Case("404: the repository is deleted meanwhile", _deleted),
    Case("429 before the upload, once", _fail("preupload", 429, times=1)),
    Case("429 at the commit", _fail("commit", 429)),
    Case("500 before the upload, always", _fail("preupload", 500)),
    Case("500 at the commit", _fail("commit", 500)),
    Case("403 from the storage of large files", _fail("PUT /storage/", 403)),
    Case("the connection is cut in the middle of the weights, once", _cut("PUT /storage/", times=1)),
    Case("the connection is cut in the middle of the weights, always", _cut("PUT /storage/")),
    Case("the connection is cut in the middle of the commit", _cut("commit")),
    Case("the answer takes 5 s", lambda hub: hub.slow("commit", 5)),
]
DOWNLOADS = [
    Case("teacher: 404", _fail("user/teacher", 404)),
    Case("teacher: 401", _fail("user/teacher", 401)),
    Case("teacher: 403, gated", _fail("user/teacher/resolve", 403)),
    Case("teacher: 429, twice", _fail("HEAD /user/teacher/.*config", 429, times=2)),
    Case("teacher: 500 for the weights, always", _fail("GET /storage/{weights}", 500)),
    Case("teacher: the connection is cut in the middle of the weights, once", _cut("GET /storage/{weights}", times=1)),
    Case("teacher: the connection is cut in the middle of the weights, always", _cut("GET /storage/{weights}")),
    Case(
        "teacher: 3 s of silence where 1 s is allowed, once",
        lambda hub: hub.slow("GET /storage/{weights}", 3),
        environment={"HF_HUB_DOWNLOAD_TIMEOUT": "1"},
    ),
    Case("teacher: the disk is full after 150 kB", program=FULL_DISK),
    Case("dataset: 404", _fail("datasets/user/images", 404)),
    Case("dataset: 403, gated", _fail("datasets/user/images", 403)),
    Case("dataset: 500 for the images, always", _fail("GET /datasets/user/images/resolve/.*parquet", 500)),
    Case("dataset: the connection is cut, always", _cut("GET /storage/{parquet}")),
]


# What is pushed and fetched


def _write_student(folder: Path) -> None:
    resnet().save_pretrained(folder)
    processor().save_pretrained(folder)
    (folder / "README.md").write_text(
        f"---\ntags:\n- subdistill\n---\n# Card\n\n```python\n{local_code()}\n```\n", encoding="utf-8"
    )


def _parquet(split: str) -> bytes:
    content = io.BytesIO()
    glyph_rows(per_class=8, split=split).to_parquet(content)
    return content.getvalue()


def _state_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


# The two tables


def _pushed(case: Case, student: Path) -> list[str]:
    """A row of the table of pushes."""
    with LoopbackHub(Path(tempfile.mkdtemp())) as hub:
        shutil.copytree(student, hub.folder / "expert")
        before = _state_of(hub.folder / "expert")
        case.inject(hub)
        given = ["push", "expert", "--repo", "user/expert"]
        done = hub.run(case.program, *given, timeout=300, **case.environment)
        folder = "whole" if _state_of(hub.folder / "expert") == before else "CHANGED"
        there = _on_hub(hub)
        again = "not needed"
        if done.returncode:
            command = shlex.split(done.stderr.partition("to try again: ")[2])[1:]
            assert command == given, done.stderr
            hub.faults.clear()
            hub.user = "user"
            repeated = hub.run(PROGRAM, *command, timeout=300)
            again = f"{repeated.returncode}; {_on_hub(hub)}"
        message = done.stderr.partition(": ")[2].partition(" The folder is")[0].partition("expert: ")[2]
        return [case.what, str(done.returncode), _said(message, hub), folder, there, again]


def _on_hub(hub: LoopbackHub) -> str:
    if ("model", "user/expert") not in hub.repos:
        return "nothing"
    return "whole" if len(hub.files("user/expert")) == 4 else "an empty repository"


def _downloaded(case: Case, teacher: Path, images: dict[str, bytes]) -> list[str]:
    """A row of the table of downloads."""
    with LoopbackHub(Path(tempfile.mkdtemp())) as hub:
        hub.put("user/teacher", teacher)
        hub.put("user/images", images, kind="dataset")
        case.inject(hub)
        for fault in hub.faults:
            train = next(data for path, data in images.items() if "train" in path)
            weights = (teacher / "model.safetensors").read_bytes()
            hashes = {"parquet": sha256(train).hexdigest(), "weights": sha256(weights).hexdigest()}
            fault.match = fault.match.format(**hashes)
        given = ["--teacher", "user/teacher", "--dataset", "user/images", "--classes", *NAMES, "--layers"]
        given += ["resnet.encoder.stages.0", "--output_dir", "out"]
        done = hub.run(case.program, "inspect", *given, timeout=300, **case.environment)
        output = "written" if (hub.folder / "out").exists() else "nothing"
        cache = _cached(hub)
        again = "not needed"
        if done.returncode:
            hub.faults.clear()
            again = str(hub.run(PROGRAM, "inspect", *given, timeout=300).returncode)
        error = next((line for line in done.stderr.splitlines() if line.startswith("error: ")), "error: ")
        return [case.what, str(done.returncode), _said(error.removeprefix("error: "), hub), output, cache, again]


def _cached(hub: LoopbackHub) -> str:
    """Whether the cache holds whole files only: each is named by its hash."""
    home = hub.folder / "hf_home" / "hub"
    blobs = [path for path in home.rglob("blobs/*") if path.is_file()]
    parts = [path for path in blobs if path.suffix == ".incomplete"]
    whole = [path for path in blobs if path not in parts]
    known = {blob.etag: blob.data for repo in hub.repos.values() for blob in repo.at("main").files.values()}
    assert all(path.read_bytes() == known[path.name] for path in whole), whole
    text = f"{len(whole)} whole file{'' if len(whole) == 1 else 's'}"
    return text + (f", {len(parts)} part{'' if len(parts) == 1 else 's'} to go on with" if parts else "")


def _said(message: str, hub: LoopbackHub) -> str:
    """A message for the table: one line, without what differs from run to run."""
    text = " ".join(message.split()).partition(" Expected ")[0].rstrip(". ")
    for address, name in ((hub.url, "HUB"), (hub.storage_url, "STORAGE"), (str(hub.folder), "FOLDER")):
        text = text.replace(address, name)
    return re.sub(r"\b[0-9a-f]{40,64}\b", "HASH", text).replace("|", "\\|")


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def main() -> None:
    """Make all failures happen, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        student, teacher = Path(place) / "student", save_teacher(Path(place) / "teacher")
        _write_student(student)
        images = {f"data/{split}-00000-of-00001.parquet": _parquet(split) for split in ("train", "test")}
        pushes = []
        for case in PUSHES:
            pushes.append(_pushed(case, student))
            print(*pushes[-1], sep=" | ", flush=True)
        downloads = []
        for case in DOWNLOADS:
            downloads.append(_downloaded(case, teacher, images))
            print(*downloads[-1], sep=" | ", flush=True)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    options.output.write_text(
        f"""# What is left when the Hub fails

Made by `benchmarks/hub_failures.py` on {datetime.date.today().isoformat()} with {versions},
against a Hub on loopback that fails as each row says; the clients are unmodified. "Again" is the same command once the
failure is over.

## Push

`subdistill push expert --repo user/expert`. A commit is whole or not at all.

{_table(["Failure", "Exit status", "Message", "Local folder", "On the Hub", "Again: exit status; on the Hub"], pushes)}

## Download

`subdistill inspect --teacher user/teacher --dataset user/images --output_dir out ...`; `distill` reads teacher and
dataset by the same functions. The cache is that of the clients; its whole files were compared with the Hub's, byte by
byte.

{_table(["Failure", "Exit status", "Message", "`--output_dir`", "Cache", "Again: exit status"], downloads)}
""",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
