"""Who imports whom, read from the source: the core stays liftable, nothing imports in circles."""

import ast
import subprocess
import sys

import pytest

from import_graph import FLOOR, NO_PACKAGES, PACKAGE, SOURCES, imports, imports_of, own_modules, package_of

TORCH_ALONE = {"core", "losses"}
MAY_IMPORT = {"torch", "safetensors"}
NEED_TORCH = {f"{PACKAGE}.config.training"}  # of transformers' arguments


def find_cycle(graph):
    """A list of modules that import each other in a circle, or None."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        path.append(name)
        for other in sorted(graph[name]):
            if cycle := visit(other):
                return cycle
        path.pop()
        done.add(name)
        return None

    return next((cycle for name in graph if (cycle := visit(name))), None)


def test_the_reader_of_imports_sees_every_form():
    source = """
import os.path
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from subdistill_hf.cli import main
def late():
    try:
        import torch as t
    except ImportError:
        from subdistill_hf.losses import subspace as losses
        from subdistill_hf import Version
"""
    seen = imports_of(ast.parse(source))
    assert {"os.path", "typing.TYPE_CHECKING", "torch", "subdistill_hf.losses.subspace"} < set(seen)
    assert "subdistill_hf.cli.main" in seen
    assert "subdistill_hf.cli.main" not in imports_of(ast.parse(source), with_type_checking=False)
    assert own_modules(["subdistill_hf.errors.X", "subdistill_hf.Version", "torch.nn"]) == {
        "errors",
        "__init__",
    }


def test_the_search_for_cycles_finds_one():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"b", "c"}}) is None
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_every_module_stands_in_a_package_with_a_place_in_the_order():
    assert {package_of(name) for name in SOURCES} - {"evaluate_modules"} == set(FLOOR)
    top = {name for name in SOURCES if "." not in name}
    assert top <= {"__init__", "cli", "errors", "formatting", "metrics"}


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if package_of(name) not in NO_PACKAGES))
def test_a_package_imports_only_what_stands_below_it(name):
    own = package_of(name)
    upwards = {
        other
        for other in own_modules(imports(name))
        if package_of(other) != own and FLOOR[package_of(other)] >= FLOOR[own]
    }
    assert not upwards


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if package_of(name) in TORCH_ALONE))
def test_the_maths_import_torch_and_nothing_of_hugging_face(name):
    found = {other.split(".")[0] for other in imports(name)}
    assert found <= MAY_IMPORT | sys.stdlib_module_names | {PACKAGE}


def test_the_maths_load_nothing_of_hugging_face_in_a_fresh_interpreter():
    names = [f"{PACKAGE}.{name}" for name in sorted(SOURCES) if package_of(name) in TORCH_ALONE]
    script = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
heavy = {{"transformers", "accelerate", "datasets", "peft", "huggingface_hub", "evaluate", "timm"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_module_imports_in_a_circle():
    graph = {name: own_modules(imports(name, with_type_checking=False)) for name in SOURCES}
    assert graph["losses.subspace"] >= {"core.activations", "core.subspaces"}
    assert find_cycle(graph) is None


def test_images_are_loaded_without_the_metrics():
    """They bring `evaluate`, which imports transformers' pipelines: two seconds."""
    graph = {name: own_modules(imports(name)) for name in SOURCES}
    reached, new = set(), {"data.loading", "data.views"}
    while new:
        reached |= new
        new = set().union(*(graph[name] for name in new)) - reached
    assert "config.options" in reached
    assert "metrics" not in reached


def test_importing_the_package_does_not_import_torch():
    script = f"import sys, {PACKAGE}; print(sorted({{'torch', 'transformers', 'datasets'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_and_reports_load_no_torch_in_a_fresh_interpreter():
    names = [f"{PACKAGE}.{name}" for name in sorted(SOURCES) if package_of(name) in {"config", "reporting"}]
    names = [name for name in names if name not in NEED_TORCH]
    script = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
print(sorted({{"torch", "transformers", "datasets"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
