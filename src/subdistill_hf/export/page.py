"""A page on which anybody can try an exported student: static files, which run it in the browser."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from subdistill_hf.config.commands import ServeOptions
from subdistill_hf.config.output_folder import check_output_folder, refuse_other_files
from subdistill_hf.data.other_images import OTHER
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.page_examples import copy_examples
from subdistill_hf.formatting import file_size, format_percent, joined
from subdistill_hf.hub.files import (
    EXPORT_FILE,
    OF_OTHER_WEIGHTS,
    PAGE_FACTS_FILE,
    export_again,
    is_of_these_weights,
)
from subdistill_hf.models.heads import has_other, of_unknown
from subdistill_hf.reporting.decoding import decode
from subdistill_hf.reporting.exported import ExportedFile, ReportedExport
from subdistill_hf.reporting.report import REPORT_FILE, RunReport

PAGE_FILES: Final = ("index.html", "style.css", "app.js", "student.js")
RUNTIME_FILES: Final = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Of onnxruntime-web: what runs a model on the CPU of a browser."""
RUNTIME_FOLDER: Final = "runtime"
NPM_PLACE: Final = Path("node_modules", "onnxruntime-web", "dist")
TEMPLATES: Final = Path(__file__).parent / "templates" / "page"
LOOPBACK: Final = "127.0.0.1"
MOST_NAMED: Final = 8
NOT_IN_YAML: Final = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
"""Characters that JSON takes as they are; YAML refuses them, or reads them as line breaks, unless they are escaped."""


def serve(student: str | Path, options: ServeOptions) -> None:
    """Write the page of an exported student to a folder, or serve it on this machine until Ctrl-C, which ends it well.

    Args:
        student: folder of the student, with its export to ONNX.
        options: which of both, and where.

    Raises:
        ExportError: see `write_page` and `served`.
    """
    if options.space is not None:
        print(f"The page is in {write_page(student, options.space, options.runtime)}")
        return
    with tempfile.TemporaryDirectory() as place:
        write_page(student, place, options.runtime)
        with served(place, options.port) as server:
            print(f"http://{LOOPBACK}:{server.server_port}/ (Ctrl-C ends it)", flush=True)
            with suppress(KeyboardInterrupt):
                server.serve_forever()


def write_page(student: str | Path, target: str | Path, runtime: str | Path | None = None) -> Path:
    """Write the page of an exported student to a folder: a static site, and a static Space of the Hub.

    Where the student was explained, the page shows the heat maps of its examples.

    Args:
        student: folder of the student, with its export to ONNX.
        target: where the page goes: a new folder, an empty one, or one with an earlier page, whose files are
            replaced, and no others.
        runtime: folder with `RUNTIME_FILES`; by default that of npm's onnxruntime-web, in `node_modules` of the
            working directory or of one above it.

    Returns:
        The target.

    Raises:
        ExportError: for a folder of other files, or the student's own; for a student without a suitable export; or
            when onnxruntime-web is not found.
    """
    folder, place = Path(student), Path(target)
    earlier = _earlier_page(folder, place)
    exported = _exported(folder)
    programs = _runtime(runtime)
    smallest = min(exported.files, key=lambda file: file.size_bytes)
    report = RunReport.load(folder) if (folder / REPORT_FILE).is_file() else None
    facts = page_facts(folder, exported, smallest, report)
    facts["examples"] = copy_examples(folder, place, earlier.get("examples", []))
    place.mkdir(parents=True, exist_ok=True)  # by these facts, which come first, it is known as the folder of a page
    (place / PAGE_FACTS_FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (place / RUNTIME_FOLDER).mkdir(exist_ok=True)
    for name in PAGE_FILES:
        shutil.copyfile(TEMPLATES / name, place / name)
    for name in RUNTIME_FILES:
        shutil.copyfile(programs / name, place / RUNTIME_FOLDER / name)
    shutil.copyfile(folder / exported.format / smallest.name, place / smallest.name)
    (place / "README.md").write_text(_space_card(facts["title"]), encoding="utf-8")
    return place


def _earlier_page(student: Path, place: Path) -> dict[str, Any]:
    """What the page that a folder holds knows of its student; nothing for a folder that is new or empty.

    Raises:
        ExportError: for a folder of other files, or the student's own.
    """
    check_output_folder(place, "space")
    if place.resolve() == student.resolve():
        raise ExportError(
            f"{place} is the folder of the student, whose card the page would write over: give another --space"
        )
    try:
        facts = json.loads((place / PAGE_FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or it is somebody else's
        facts = None
    if isinstance(facts, dict) and {"title", "labels", "file"} <= facts.keys():
        return facts
    refuse_other_files(place, (), "space", error=ExportError)
    return {}


def page_facts(folder: Path, exported: ReportedExport, file: ExportedFile, report: RunReport | None) -> dict[str, Any]:
    """What the page knows of its student.

    Args:
        folder: of the student.
        exported: what was measured.
        file: the one that the page runs.
        report: of the run, where there is one.

    Returns:
        `title`, `warning`, `labels`, the name of the `file`, and `facts`, each with a heading; for a student with a
        threshold `unknown_threshold`, for one with an answer "none of these" `other_class`.
    """
    config = json.loads((folder / exported.format / "transformers_js" / "config.json").read_text(encoding="utf-8"))
    labels = [config["id2label"][str(output)] for output in range(len(config["id2label"]))]
    named = joined(labels) if len(labels) <= MOST_NAMED else f"{len(labels)} classes"
    name = folder.resolve().name if report is None else f"{report.dataset.name} expert"
    facts = {"Classes": named, "File": f"{file.precision}, {file_size(file.size_bytes)}"}
    if file.accuracy is not None:
        facts["Accuracy"] = f"{format_percent(file.accuracy)} on {exported.images}"
    else:
        facts["Same class as in torch"] = f"{format_percent(file.agreement)} of {exported.images}"
    if report is not None:
        facts["Teacher"] = report.teacher.hub_id or report.teacher.name
    return {
        "title": f"{name}: {named}",
        "warning": _warning(labels, has_other(config)),
        "labels": labels,
        "file": file.name,
        "facts": facts,
    } | of_unknown(config)


def _warning(labels: Sequence[str], other: bool) -> str:
    """What the student does with an image of none of its classes."""
    if other:
        return (
            f"It tells {len(labels) - 1} classes apart, and answers {OTHER!r} to other images. It may be wrong: a "
            "high score is no proof that an image shows a class."
        )
    return (
        f"It tells {len(labels)} classes apart and knows nothing else: any other image, whatever it shows, is put "
        "into one of them, and a high score is no sign that it belongs there."
    )


@contextmanager
def served(folder: str | Path, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server of a folder on this machine alone; inside the context `serve_forever` may be called.

    Args:
        folder: static files.
        port: 0 takes one that is free.

    Yields:
        The server; its address is `http://127.0.0.1:PORT/`, the port `server_port`.

    Raises:
        ExportError: when the port is taken.
    """
    try:
        server = _Server((LOOPBACK, port), partial(_StaticFiles, directory=str(folder)))
    except OSError as error:
        raise ExportError(f"port {port} cannot be used ({error.strerror or error}): give another --port") from error
    try:
        yield server
    finally:
        server.server_close()


class _Server(ThreadingHTTPServer):
    """A server that says nothing of browsers that leave in the middle of a file."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the error of a request, unless it is that nobody reads the answer any more."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _StaticFiles(SimpleHTTPRequestHandler):
    """Files with the types that browsers insist on, and without a line for each."""

    extensions_map = {  # noqa: RUF012 - as in the class of the standard library
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".json": "application/json",
    }

    def send_head(self) -> Any:
        """Begin the answer; a path that cannot be the name of a file, such as one with a null byte, is not there."""
        try:
            return super().send_head()
        except ValueError:
            self.send_error(HTTPStatus.NOT_FOUND, "File not found")
            return None

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _exported(folder: Path) -> ReportedExport:
    """The export that a page can run."""
    path = folder / "onnx" / EXPORT_FILE
    if not path.is_file():
        raise ExportError(f"{folder} holds no exported student: run subdistill export {folder} first")
    if not is_of_these_weights(path.parent):
        raise ExportError(f"{path.parent} {OF_OTHER_WEIGHTS}: {export_again(folder, path.parent.name)}")
    exported = decode(ReportedExport, json.loads(path.read_text(encoding="utf-8")))
    if exported.preprocessing != "inside":
        raise ExportError(
            f"the export of {folder} leaves the preprocessing to the device, which the page does not do: run "
            f"subdistill export {folder} --preprocessing inside"
        )
    return exported


def _runtime(given: str | Path | None) -> Path:
    """The folder of onnxruntime-web."""
    here = Path.cwd()
    places = [place / NPM_PLACE for place in (here, *here.parents)] if given is None else [Path(given)]
    for place in places:
        if all((place / name).is_file() for name in RUNTIME_FILES):
            return place
    where = f"in {NPM_PLACE} here or above" if given is None else f"in {given}"
    raise ExportError(
        f"the page needs onnxruntime-web, which is not found {where} (expected {', '.join(RUNTIME_FILES)}): run npm "
        "install onnxruntime-web here, or name its folder dist with --runtime"
    )


def _space_card(title: str) -> str:
    """The README of a static Space."""
    quoted = NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(title, ensure_ascii=False))
    return f"---\ntitle: {quoted}\nsdk: static\napp_file: index.html\n---\n"
