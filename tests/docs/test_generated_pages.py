"""Pages that are made at each build of the site."""

from importlib import import_module

from helpers import REPOSITORY


def test_the_page_of_a_report_that_is_gone_goes_at_the_next_build(tmp_path, monkeypatch):
    for folder in ("docs", "scripts"):
        monkeypatch.syspath_prepend(REPOSITORY / folder)
    module = import_module("generated_pages")
    monkeypatch.setattr(module, "DOCS", tmp_path)
    for pages in ({"reports/a.md": "a", "reports/b.md": "b", "reference/c.md": "c"}, {"reports/b.md": "other"}):
        monkeypatch.setattr(module, "generated_pages", lambda pages=pages: pages)
        module.write_generated_pages()
    found = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.md")}
    assert found == {"reports/b.md": "other", "reference/c.md": "c"}
