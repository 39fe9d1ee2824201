"""The page of a student: its files, its server, and the answers that a browser gives on it."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from browser import BROWSER, MISSING, browser
from command_line import run
from export.samples import small_network
from helpers import NAMES, processor, resnet
from reporting.page.samples import write_explanations
from reporting.samples import make_report, parsed
from subdistill_hf.errors import PushError
from subdistill_hf.export import page
from subdistill_hf.export.device_folder import write_browser_folder, write_json
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.onnx_files import OnnxFiles
from subdistill_hf.export.onnx_runtime import session
from subdistill_hf.export.page import PAGE_FILES, RUNTIME_FILES, served, write_page
from subdistill_hf.export.preprocessing import steps_of
from subdistill_hf.export.student import TorchStudent
from subdistill_hf.hub import publish
from subdistill_hf.models.loading import LoadedModel

EXPORTED = {
    "format": "onnx",
    "runtime": "onnxruntime 1.32.0",
    "machine": "a processor",
    "preprocessing": "inside",
    "network_difference": 1e-6,
    "images": "the 500 test images of glyphs-100",
    "image_count": 500,
    "torch_accuracy": 0.91,
    "files": [
        {
            "name": "model.onnx",
            "precision": "float32",
            "size_bytes": 400_000,
            "accuracy": 0.91,
            "agreement": 1.0,
            "largest_difference": 0.004,
            "latency_ms": {"median": 1.5, "low": 1.4, "high": 1.75, "runs": 50},
        }
    ],
}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student with an export."""
    folder = tmp_path_factory.mktemp("student")
    made = TorchStudent(LoadedModel(resnet(widths=(8, 12)), processor(), "student"))
    steps = steps_of(made.loaded.processor)
    files, network = OnnxFiles(made, steps), small_network()
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(files.content(network))
    write_browser_folder(folder / "onnx", made, steps, {"model.onnx": files.browser_content(network)})
    write_json(folder / "onnx" / "export.json", EXPORTED)
    return folder


@pytest.fixture
def runtime(tmp_path):
    """Files of the names that onnxruntime-web has."""
    place = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    place.mkdir(parents=True)
    for name in RUNTIME_FILES:
        (place / name).write_text(name)
    return place


def test_the_page_holds_all_that_it_needs(student, runtime, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = write_page(student, tmp_path / "page")
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    expected = {*PAGE_FILES, *(f"runtime/{name}" for name in RUNTIME_FILES), "model.onnx", "student.json", "README.md"}
    assert found == expected
    facts = json.loads((place / "student.json").read_text())
    assert facts["labels"] == list(NAMES)
    assert facts["file"] == "model.onnx"
    assert facts["facts"]["Accuracy"] == "91.0 % on the 500 test images of glyphs-100"
    assert "knows nothing else" in facts["warning"]
    said = {other: page._warning(["cat", "dog", "none of these"], other) for other in (True, False)}
    assert said[True].startswith("It tells 2 classes apart, and answers 'none of")
    assert said[False].startswith("It tells 3 classes apart and knows nothing else")
    assert "sdk: static" in (place / "README.md").read_text()
    for name in PAGE_FILES:
        assert "//" not in (place / name).read_text().replace("// ", "")


def test_explained_examples_are_on_the_page(student, runtime, tmp_path):
    folder = tmp_path / "explained"
    shutil.copytree(student, folder)
    write_explanations(folder)
    place = write_page(folder, tmp_path / "page", runtime)
    examples = json.loads((place / "student.json").read_text())["examples"]
    assert [one["name"] for one in examples] == ["test image 0", "test image 1"]
    assert (examples[0]["target"], examples[0]["answers"]) == ("club", {"teacher": "club", "student": "spade"})
    for kind, name in {"image": "000.png", "teacher": "000-teacher.png", "student": "000-student.png"}.items():
        assert examples[0][kind] == f"examples/{name}"
        assert (place / "examples" / name).read_bytes() == (folder / "explanations" / name).read_bytes()
    (folder / "explanations" / "000-student.png").unlink()
    write_page(folder, place, runtime)
    assert json.loads((place / "student.json").read_text())["examples"] == []
    assert not (place / "examples").exists()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "files",
    [
        {"README.md": "MY THESIS", "examples/notebook.ipynb": "my only copy"},
        {"student.json": '{"name": "Ada"}', "index.html": "of a school"},
        {"student.json": "no JSON"},
    ],
)
def test_a_folder_of_other_files_is_left_as_it_is(student, runtime, tmp_path, files):
    place = tmp_path / "project"
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    before = contents(place)
    with pytest.raises(ExportError, match="already holds other files: give another --space"):
        write_page(student, place, runtime)
    assert contents(place) == before


def test_the_folder_of_the_student_is_no_place_for_its_page(student, runtime, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(student, folder)
    (folder / "student.json").write_text('{"title": "an earlier one", "labels": [], "file": "model.onnx"}')
    before = contents(folder)
    with pytest.raises(ExportError, match="is the folder of the student, whose card the page would write over"):
        write_page(folder, folder / "onnx" / "..", runtime)
    assert contents(folder) == before


def test_a_page_is_replaced_and_files_beside_its_own_stay(student, runtime, tmp_path):
    folder = tmp_path / "explained"
    shutil.copytree(student, folder)
    write_explanations(folder)
    place = write_page(folder, tmp_path / "page", runtime)
    (place / "examples" / "mine.txt").write_text("kept")
    (place / "index.html").write_text("cut short")
    shutil.rmtree(folder / "explanations")
    write_page(folder, place, runtime)
    assert (place / "index.html").read_bytes() == (page.TEMPLATES / "index.html").read_bytes()
    assert [path.name for path in (place / "examples").iterdir()] == ["mine.txt"]


def test_a_page_that_was_cut_short_can_be_written_again(student, runtime, tmp_path, monkeypatch):
    copyfile = shutil.copyfile
    monkeypatch.setattr(page.shutil, "copyfile", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_page(student, tmp_path / "page", runtime)
    monkeypatch.setattr(page.shutil, "copyfile", copyfile)
    assert (write_page(student, tmp_path / "page", runtime) / "index.html").is_file()


def test_the_report_of_a_run_gives_the_page_its_title(student):
    exported = page._exported(student)
    facts = page.page_facts(student, exported, exported.files[0], parsed(make_report()))
    assert facts["title"].startswith("glyphs-100 expert: ")
    assert facts["facts"]["Teacher"] == "glyphs-resnet"


def test_the_server_gives_files_with_the_types_that_browsers_need(runtime):
    with served(runtime) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        types = [urllib.request.urlopen(address + name).headers["Content-Type"] for name in RUNTIME_FILES]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + "../../none")
        with (
            pytest.raises(ExportError, match=f"port {server.server_port} cannot be used"),
            served(runtime, server.server_port),
        ):
            pass
        server.shutdown()
    assert types == ["text/javascript", "text/javascript", "application/wasm"]
    assert server.server_address[0] == "127.0.0.1"


def test_a_browser_that_leaves_or_asks_for_nonsense_prints_nothing(tmp_path, capfd):
    (tmp_path / "large.wasm").write_bytes(b"0" * 30_000_000)
    with served(tmp_path) as server:
        left = threading.Event()
        usual = server.shutdown_request
        server.shutdown_request = lambda request: (usual(request), left.set())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with socket.create_connection(("127.0.0.1", server.server_port)) as browser:
            browser.sendall(b"GET /large.wasm HTTP/1.1\r\n\r\n")
            browser.recv(1000)
        assert left.wait(30)
        for path in ("%00", "large.wasm%00", "a" * 5000):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{path}")
        server.shutdown()
    assert capfd.readouterr().err == ""


def test_an_error_of_the_server_is_not_hidden(tmp_path, capfd):
    with served(tmp_path) as server:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            server.handle_error(None, None)
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize(
    "letter", ["\x00", "\t", "\x7f", "\x80", "\x85", "\u2028", "\ud83d", "\ufeff", "\ufffe", "\uffff", "😀"]
)
def test_the_card_of_a_space_takes_every_name_of_a_class(letter):
    for title in (f"a{letter}b", f'"{letter}\\', f"{letter} - a: #{letter}"):
        card = page._space_card(title)
        _, metadata, _ = card.split("---\n")
        assert yaml.safe_load(metadata)["title"] == title
        card.encode()


def test_without_the_runtime_the_page_says_how_to_get_it(student, tmp_path):
    with pytest.raises(ExportError, match=r"not found in .*none.*npm install onnxruntime-web"):
        write_page(student, tmp_path / "page", tmp_path / "none")
    assert not (tmp_path / "page").exists()


def test_a_student_without_an_export_is_refused(tmp_path):
    with pytest.raises(ExportError, match="run subdistill export"):
        write_page(tmp_path, tmp_path / "page")


def test_an_export_of_other_weights_is_refused(student, tmp_path):
    shutil.copytree(student, tmp_path / "student")
    write_json(tmp_path / "student" / "onnx" / "export.json", {**EXPORTED, "weights": "of an earlier student"})
    with pytest.raises(ExportError, match=r"other weights than the student has: run subdistill export .* again"):
        write_page(tmp_path / "student", tmp_path / "page")


def test_an_export_without_preprocessing_is_refused(student, tmp_path):
    (tmp_path / "onnx").mkdir()
    write_json(tmp_path / "onnx" / "export.json", EXPORTED | {"preprocessing": "outside"})
    with pytest.raises(ExportError, match="--preprocessing inside"):
        write_page(tmp_path, tmp_path / "page")


def test_the_command_writes_a_space(student, runtime, tmp_path):
    words = [str(student), "--space", str(tmp_path / "space"), "--runtime", str(runtime)]
    assert run("serve", words) == (0, f"The page is in {tmp_path / 'space'}\n", "")
    assert (tmp_path / "space" / "index.html").is_file()


PUSH = """
import json, sys
from subdistill_hf.cli import main

print(json.dumps([main(["push", *words, "--space"]) for words in json.loads(sys.argv[1])]))
"""


def test_the_page_is_pushed_as_a_static_space(hub, student, runtime):
    words = [str(student), "--runtime", str(runtime)]
    before = {path: path.read_bytes() for path in student.rglob("*") if path.is_file()}
    runs = [[*words, "--repo", "try-it"], [*words, "--private"], [str(student / "onnx"), "--runtime", str(runtime)]]
    assert hub.answer(PUSH, json.dumps(runs)) == [0, 0, 2]
    files = hub.files("user/try-it", "space")
    runtimes = {f"runtime/{name}" for name in RUNTIME_FILES}
    assert set(files) == {*PAGE_FILES, *runtimes, "model.onnx", "student.json", "README.md"}
    assert b"sdk: static" in files["README.md"]
    assert not hub.repos["space", "user/try-it"].private
    assert hub.repos["space", f"user/{student.name}-space"].private
    assert {path: path.read_bytes() for path in student.rglob("*") if path.is_file()} == before


def test_a_page_that_is_not_pushed_says_how_to_try_again(student, tmp_path, monkeypatch):
    def refused(*given):
        raise PushError("not signed in")

    monkeypatch.setattr(publish, "sign_in", refused)
    with pytest.raises(PushError, match=r"not signed in.* subdistill push \S+ --space --runtime dist --repo mine$"):
        publish.push_page(tmp_path, student, "mine", runtime="dist")


def test_a_runtime_is_refused_where_there_is_no_page(student, runtime):
    status, _, said = run("push", [str(student), "--runtime", str(runtime)])
    assert status == 2
    assert "expected --space too" in said


def test_a_port_out_of_range_is_refused(student):
    status, _, said = run("serve", [str(student), "--port", "70000"])
    assert (status, said) == (2, "error: port=70000: expected a number from 0 to 65535\n")


# In a browser

RUNTIME_WITHOUT_A_MODEL = """
export const env = { wasm: {} };
export const InferenceSession = { create: async () => ({}) };
"""
UNTIL_READY = """
new Promise((done) => {
  const images = () => [...document.querySelectorAll("#examples img")];
  const status = () => document.getElementById("status").textContent;
  const ready = () => status() === "Ready." && images().every((one) => one.complete);
  const look = () => ready() ? done(images().map((one) => one.naturalWidth)) : setTimeout(look, 20);
  look();
})
"""


@pytest.mark.skipif(BROWSER is None, reason=MISSING)
def test_a_browser_shows_explained_examples(student, runtime, tmp_path):
    folder = tmp_path / "explained"
    shutil.copytree(student, folder)
    write_explanations(folder)
    (runtime / RUNTIME_FILES[0]).write_text(RUNTIME_WITHOUT_A_MODEL)
    place = write_page(folder, tmp_path / "page", runtime)
    with served(place) as server, browser(tmp_path / "profile") as chromium:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for width in (1000, 375):
            chromium.view(width, 800)
            chromium.open(f"http://127.0.0.1:{server.server_port}/")
            assert chromium.run(UNTIL_READY) == [160] * 6
            shown = chromium.run("[...document.querySelectorAll('#examples h3')].map((one) => one.textContent)")
            assert shown == ["test image 0: club", "test image 1: club"]
            assert chromium.run("document.documentElement.scrollWidth") <= width
        server.shutdown()
    assert chromium.complaints == []


CHECK = """
import { classify, isKnown, loadStudent, pixelsOf } from "./student.js";
const student = await loadStudent();
const answers = {};
for (const name of await (await fetch("names.json")).json()) {
  const blob = await (await fetch(name)).blob();
  answers[name] = (await classify(student, await pixelsOf(blob))).probabilities;
}
const labels = ["cat", "none of these"];
const known = (threshold, ...probabilities) =>
  isKnown({ labels: ["cat", "dog"], unknown_threshold: threshold }, probabilities);
answers.known = [
  isKnown({ labels, other_class: true }, [0.1, 0.9]), isKnown({ labels, other_class: true }, [0.6, 0.4]),
  isKnown({ labels }, [0.1, 0.9]), known(0.7, 0.4, 0.6), known(0.6, 0.4, 0.6),
];
await fetch("answers", { method: "POST", body: JSON.stringify(answers) });
"""


def installed_runtime():
    """The folder of onnxruntime-web, where NODE_PATH names one."""
    places = [Path(place, "onnxruntime-web", "dist") for place in os.environ.get("NODE_PATH", "").split(os.pathsep)]
    return next((place for place in places if (place / RUNTIME_FILES[0]).is_file()), None)


@pytest.mark.skipif(
    shutil.which("chromium") is None or installed_runtime() is None,
    reason="needs chromium, and onnxruntime-web in NODE_PATH: npm install onnxruntime-web",
)
def test_a_browser_gives_the_answers_of_python(student, tmp_path):
    place = write_page(student, tmp_path / "page", installed_runtime())
    random = np.random.default_rng(0)
    images = {}
    for number in range(50):
        size = random.integers(20, 200, 2)
        images[f"{number}.png"] = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(images[f"{number}.png"]).save(place / f"{number}.png")
    (place / "names.json").write_text(json.dumps(list(images)))
    (place / "check.js").write_text(CHECK)
    check = (place / "index.html").read_text().replace("app.js", "check.js")
    (place / "check.html").write_text(check)
    answers, said = answers_of_chromium(place, "check.html", tmp_path)
    assert "CONSOLE" not in said
    assert answers["known"] == [False, True, True, False, True]
    running = session(student / "onnx" / "model.onnx")
    for name, image in images.items():
        expected = running.run(["probabilities"], {"images": image[None]})[0][0]
        np.testing.assert_allclose(answers[name], expected, atol=1e-5)


def answers_of_chromium(place, name, folder, seconds=120):
    """What a page posts, and what the browser writes meanwhile."""
    posted = []

    class Files(page._StaticFiles):
        def __init__(self, *given):
            super().__init__(*given, directory=str(place))

        def do_POST(self):  # noqa: N802
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    assert issubclass(Files, SimpleHTTPRequestHandler)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with (folder / "chromium.log").open("w") as log:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--disable-extensions"]
        options += [
            f"--user-data-dir={folder / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]
        # a debugging port keeps the page open until it has posted
        options += ["--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/{name}"]
        browser = subprocess.Popen(["chromium", *options], stdout=log, stderr=log)
        until = time.monotonic() + seconds
        while not posted and browser.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        browser.kill()
        browser.wait()
    server.shutdown()
    server.server_close()
    said = (folder / "chromium.log").read_text(errors="replace")
    assert posted, said[-3000:]
    return posted[0], said
