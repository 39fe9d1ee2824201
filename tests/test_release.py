"""What a release says of itself is the same everywhere."""

import re

import yaml

import subdistill_hf
from helpers import REPOSITORY

CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
CHANGELOG = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_package_citation_and_changelog_have_the_same_version_and_date():
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, flags=re.MULTILINE)
    assert released[0] == (CITATION["version"], CITATION["date-released"])
    assert CITATION["version"] == subdistill_hf.__version__
    assert released == sorted(released, reverse=True)


def test_the_paper_that_is_cited_is_that_of_the_method():
    paper = CITATION["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Chormai", "Hashemi", "Müller", "Montavon"]
    assert "2601.05913" in paper["url"]
    assert "2601.05913" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_hooks_before_a_push_run_what_the_ci_runs():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert {hook["entry"] for hook in hooks} == set(re.findall(r"^make \w+$", ci, flags=re.MULTILINE))
