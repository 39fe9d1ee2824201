"""The figures of the page about scaling are those that its scripts make."""

import json

import scaling
from helpers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_table_of_large_families_is_that_of_the_script():
    assert scaling.table() in PAGE


def test_the_figures_of_the_text_are_those_of_the_script():
    small, large = (scaling.speeds(name) for name in scaling.OPERATIONS)
    assert f"reads {small.fit:,.0f} images" in PAGE.replace("\n", " ")
    assert f"forward pass takes {round(small.forward, -1):,.0f}" in PAGE.replace("\n", " ")
    assert f"takes {1000 * small.step:.1f} ms" in PAGE.replace("\n", " ")
    assert f"has {small.forward / large.forward:.1f} times the operations" in PAGE.replace("\n", " ")
    assert f"{(scaling.VALUES + 5) * scaling.HALF / 1000:.0f} kB for a view" in PAGE.replace("\n", " ")


def test_the_measured_family_is_that_of_the_results():
    found = json.loads((REPOSITORY / "benchmarks" / "results" / "family.json").read_text(encoding="utf-8"))
    runs, family = (found["sides"][side] for side in ("runs", "family"))
    passes = [f"{side['passes_without_gradient']:,}" for side in (runs, family)]
    assert f"| {found['superclasses']} superclasses, {found['steps']} steps |" in PAGE
    assert f"| images in passes of the teacher without gradient | {passes[0]} | {passes[1]} |" in PAGE
