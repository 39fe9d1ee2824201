"""The sections of docs/method.md that docstrings cite exist."""

import re

import pytest

from helpers import REPOSITORY
from pages import PAGES

PAGE = "docs/method.md"
TITLES = set(re.findall(r"^#+ (.*)$", PAGES[PAGE], flags=re.MULTILINE))
SOURCES = sorted(
    path for folder in ("src", "tests", "benchmarks", "scripts") for path in (REPOSITORY / folder).rglob("*.py")
)
CITING = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in SOURCES}
CITING = {path: text for path, text in CITING.items() if PAGE in text and path != "tests/docs/test_method.py"}


def cited(text):
    """Titles that a text cites, as in `docs/method.md, "Title"`, and how often it names the page."""
    flat = re.sub(r"\s*\n\s*(# )?", " ", text)
    return re.findall(rf'{re.escape(PAGE)}, "([^"]*)"', flat), flat.count(PAGE)


@pytest.mark.parametrize("path", CITING)
def test_a_cited_section_exists(path):
    titles, mentions = cited(CITING[path])
    assert len(titles) == mentions, 'expected each mention as: docs/method.md, "Title"'
    assert set(titles) <= TITLES


def test_citations_are_found():
    assert {"src/subdistill_hf/losses/subspace.py", "src/subdistill_hf/core/bases.py"} <= CITING.keys()
    assert cited('as in docs/method.md,\n    "The total loss"') == (["The total loss"], 1)
