"""`subdistill report`: it writes one file, whole or not at all, and refuses what is no run."""

import errno

import pytest

from command_line import run
from reporting.samples import make_report, parsed
from subdistill_hf.reporting.page import page
from subdistill_hf.reporting.page.page import PAGE_FILE, write_page


@pytest.fixture
def folder(tmp_path):
    parsed(make_report()).save(tmp_path)
    return tmp_path


def test_the_command_writes_the_page_and_nothing_else(folder):
    before = {path.name for path in folder.iterdir()}
    assert run("report", [str(folder)]) == (0, f"The report is {folder / PAGE_FILE}\n", "")
    assert {path.name for path in folder.iterdir()} == {*before, PAGE_FILE}
    first = (folder / PAGE_FILE).read_bytes()
    assert run("report", [str(folder)])[0] == 0
    assert (folder / PAGE_FILE).read_bytes() == first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a report that subdistill distill wrote, found no file"),
        ("{", "expected JSON, found something else"),
        ("{}", "expected an entry 'created', found none"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    status, out, said = run("report", [str(tmp_path)])
    assert (status, out) == (2, "")
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / PAGE_FILE).exists()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    status, _, said = run("report", [str(tmp_path / "none")])
    assert status == 2
    assert said == f"error: {tmp_path / 'none'}: expected a report that subdistill distill wrote, found no file\n"


def test_a_page_stays_whole_when_the_disk_fills(folder, monkeypatch):
    write_page(folder)
    before = (folder / PAGE_FILE).read_bytes()
    real = page.written_whole

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(page, "written_whole", full)
    status, _, said = run("report", [str(folder)])
    assert (status, said.count("\n")) == (2, 1)
    assert "No space left on device" in said
    monkeypatch.setattr(page, "written_whole", real)
    assert (folder / PAGE_FILE).read_bytes() == before
    assert not list(folder.glob("*.part"))
