"""The public names: listed once, in the stub, and imported when they are used."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import subdistill_hf

STUB = ast.parse(Path(subdistill_hf.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
HOMES = {
    alias.name: f"subdistill_hf.{node.module}"
    for node in STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def test_the_public_names_are_those_of_the_stub():
    assert {"distill", "SubDistillTrainer", "load_subtask"} < set(HOMES)
    assert set(subdistill_hf.__all__) == {*HOMES, "__version__"}
    assert set(dir(subdistill_hf)) >= set(HOMES)


@pytest.mark.parametrize("name", sorted(HOMES))
def test_a_public_name_is_defined_where_the_stub_says(name):
    public = getattr(subdistill_hf, name)
    assert public is getattr(import_module(HOMES[name]), name)
    assert public.__module__ == HOMES[name]
    assert public.__doc__


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = subdistill_hf.no_such_name
