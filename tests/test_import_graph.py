"""Who imports whom, read from the source: the core stays liftable, nothing imports in circles."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import subdistill_hf

PACKAGE = "subdistill_hf"
ROOT = Path(subdistill_hf.__file__).parent
ORDER = (
    ("errors", "formatting", "metrics"),
    ("config",),
    ("core",),
    ("losses",),
    ("acceleration",),
    ("hub",),
    ("data",),
    ("models",),
    ("reporting",),
    ("teacher",),
    ("training",),
    ("analysis",),
    ("pipeline",),
    ("benchmark",),
    ("cli", "__init__"),
)
"""The packages from the ground up: each imports only from those before it, and from itself."""
FLOOR = {package: floor for floor, packages in enumerate(ORDER) for package in packages}
STILL_UPWARDS = {
    ("pipeline.report", "__init__"),
    ("teacher.cache_building", "training.module"),
    ("teacher.teacher", "training.module"),
}
"""Arrows that still run up; to be empty."""
TORCH_ALONE = {"core", "losses"}
NO_PACKAGES = {"__init__", "evaluate_modules"}  # the public names; scripts that `evaluate` loads
MAY_IMPORT = {"torch", "safetensors"}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(tree, with_type_checking=True):
    """Absolute names of what a module imports, at its top or in a function; `from a import b` gives `a.b`."""
    nodes, found = [tree], []
    while nodes:
        node = nodes.pop()
        if is_type_checking(node) and not with_type_checking:
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def imports(name, **options):
    return imports_of(ast.parse(SOURCES[name].read_text(encoding="utf-8")), **options)


def own_modules(names):
    """Those of the imported names that are modules of the package (the package itself is `__init__`)."""
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] != PACKAGE:
            continue
        inner = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
        modules = [name for module in inner for name in (module, f"{module}.__init__") if name in SOURCES]
        found.add(modules[0] if modules else "__init__")
    return found


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


def package_of(name):
    return name.partition(".")[0]


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
        if package_of(other) != own and FLOOR[package_of(other)] >= FLOOR[own] and (name, other) not in STILL_UPWARDS
    }
    assert not upwards


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if package_of(name) in TORCH_ALONE))
def test_the_maths_import_torch_and_nothing_of_hugging_face(name):
    found = {other.split(".")[0] for other in imports(name)}
    assert found <= MAY_IMPORT | sys.stdlib_module_names | {PACKAGE}


def test_no_module_imports_in_a_circle():
    graph = {name: own_modules(imports(name, with_type_checking=False)) for name in SOURCES}
    assert graph["losses.subspace"] >= {"core.activations", "core.subspaces"}
    assert find_cycle(graph) is None


def test_importing_the_package_does_not_import_torch():
    script = f"import sys, {PACKAGE}; print(sorted({{'torch', 'transformers', 'datasets'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
