"""Who imports whom inside the package, read from the source, and the order in which its packages stand."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = "subdistill_hf"
ROOT = Path(__file__).parents[1] / "src" / PACKAGE
ORDER = (
    ("errors", "formatting"),
    ("config",),
    ("metrics",),
    ("core",),
    ("losses",),
    ("acceleration",),
    ("hub",),
    ("data",),
    ("models",),
    ("reporting",),
    ("executors",),
    ("teacher",),
    ("training",),
    ("analysis",),
    ("pipeline",),
    ("explain",),
    ("family",),
    ("export",),
    ("benchmark",),
    ("cli", "__init__"),
)
"""The packages from the ground up: each imports only from those before it, and from itself."""
FLOOR = {package: floor for floor, packages in enumerate(ORDER) for package in packages}
NO_PACKAGES = frozenset({"__init__", "evaluate_modules"})
"""The public names, and scripts that `evaluate` loads: not part of the order."""


def module_name(path: Path) -> str:
    """`training.trainer` of `src/subdistill_hf/training/trainer.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def package_of(module: str) -> str:
    """The package that a module belongs to; of a module directly under the root, the module itself."""
    return module.partition(".")[0]


def is_type_checking(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(tree: ast.AST, with_type_checking: bool = True) -> list[str]:
    """Absolute names of what a module imports, at its top or in a function; `from a import b` gives `a.b`."""
    nodes, found = [tree], []
    while nodes:
        node = nodes.pop()
        if is_type_checking(node) and not with_type_checking:
            nodes += node.orelse  # type: ignore[attr-defined]
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@cache
def imports(module: str, with_type_checking: bool = True) -> tuple[str, ...]:
    """Absolute names of what a module of the package imports."""
    return tuple(imports_of(ast.parse(SOURCES[module].read_text(encoding="utf-8")), with_type_checking))


def own_modules(names: Iterable[str]) -> set[str]:
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


def arrows_between_packages() -> dict[str, set[str]]:
    """For each package of the order, the other packages that its modules import from."""
    arrows: dict[str, set[str]] = {package: set() for package in FLOOR if package not in NO_PACKAGES}
    for module in SOURCES:
        if (package := package_of(module)) not in NO_PACKAGES:
            others = {package_of(other) for other in own_modules(imports(module))}
            arrows[package] |= others - NO_PACKAGES - {package}
    return arrows
