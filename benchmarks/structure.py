"""The structure of the package in numbers: modules, imports, the way of a run through them, the trainer.

    python benchmarks/structure.py --label after                                # of this checkout
    python benchmarks/structure.py --label before --source OTHER_CHECKOUT/src   # of another version
    python benchmarks/structure.py --table                                      # what was measured, as Markdown

Figures go into `results/structure.json` under their label. The script knows nothing about the layout that it measures.

Modules are the Python files of the package, without empty ones and those that only `evaluate` loads. An arrow goes
from a module to another that it imports, at its top or in a function. The parts are the packages and modules directly
in the package; `arrows_up` counts arrows between parts against the order that `scripts/import_graph.py` states
(missing where a part is not in it).

A run is `subdistill distill` on embedded data, for six steps, in this process. A module is entered when one of its
functions is called (its body, which runs when it is imported, is no function). A change is a call or a return that
hands control from one of our modules to another; other packages' code in between does not count. `changes_a_step` are
those within one `Trainer.training_step` with cached targets, `changes_between_steps` those from one such call to the
next, with the batch that is read in between; both are the median over the steps. The main thread alone is watched.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import importlib
import inspect
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = "subdistill_hf"
REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "structure.json"
NO_MODULES = "evaluate_modules"
RUN = (
    "distill --classes superclass:zodiac_signs --train_images_per_class 25 --max_steps 6 --teacher_cache 1 --seed 0 "
    "--use_cpu --report_to none --disable_tqdm true --output_dir"
)


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted names, without the package's, and files of the modules; a package's own is that of its `__init__`."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] == NO_MODULES or (path.name == "__init__.py" and not _has_code(path)):
            continue
        modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


def _has_code(path: Path) -> bool:
    """Whether a file holds more than a docstring."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(not isinstance(node, ast.Expr) for node in body)


def arrows_of(modules: dict[str, Path]) -> set[tuple[str, str]]:
    """Pairs of modules of which the first imports the second."""
    arrows = set()
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found: list[str] = []
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found = [f"{node.module}.{alias.name}" for alias in node.names]
            for full in found:
                if full.startswith(f"{PACKAGE}.") and (target := _module_in(full, modules)) and target != name:
                    arrows.add((name, target))
    return arrows


def _module_in(full: str, modules: dict[str, Path]) -> str | None:
    """The longest module at the beginning of a dotted name."""
    parts = full.split(".")[1:]
    candidates = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((name for name in candidates if name in modules), None)


def floors_of(arrows: set[tuple[str, str]]) -> int:
    """Modules in the longest chain of imports, circles (of type checking) left at their second meeting."""
    below: dict[str, list[str]] = {}
    for name, other in arrows:
        below.setdefault(name, []).append(other)
    heights: dict[str, int] = {}

    def height(name: str, path: tuple[str, ...]) -> int:
        if name not in heights:
            others = [other for other in below.get(name, []) if other not in path]
            heights[name] = 1 + max((height(other, (*path, name)) for other in others), default=0)
        return heights[name]

    return max(height(name, ()) for name in sorted(below))


def stated_order() -> dict[str, int]:
    """Part to floor, as `scripts/import_graph.py` states it."""
    tree = ast.parse((REPOSITORY / "scripts" / "import_graph.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "ORDER":
            order = ast.literal_eval(node.value)
            return {part: floor for floor, parts in enumerate(order) for part in parts}
    raise SystemExit("expected ORDER in scripts/import_graph.py")


def imports_in_numbers(root: Path) -> dict[str, Any]:
    """Modules, packages and arrows."""
    modules = modules_of(root)
    arrows = arrows_of(modules)
    between = {(a.partition(".")[0], b.partition(".")[0]) for a, b in arrows}
    between = {(a, b) for a, b in between if a != b}
    parts = {name.partition(".")[0] for name in modules}
    order = stated_order()
    known = parts - {"__init__"} <= set(order)
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in modules.values()]
    return {
        "modules": len(modules),
        "modules_beside_packages": sum(1 for name, path in modules.items() if path.parent == root),
        "packages": sum(1 for path in root.iterdir() if path.is_dir() and any(path.glob("*.py"))),
        "lines": sum(lengths),
        "longest_module": max(lengths),
        "median_module": statistics.median(lengths),
        "arrows_between_modules": len(arrows),
        "floors": floors_of(arrows),
        "parts": len(parts),
        "arrows_between_parts": len(between),
        "arrows_up": sum(1 for a, b in between if order[b] >= order[a]) if known else None,
    }


def trainer_in_numbers(root: Path) -> dict[str, Any]:
    """Files, lines, methods and overrides of `SubDistillTrainer`, with all its bases of ours."""
    from transformers import Trainer

    trainer = importlib.import_module(PACKAGE).SubDistillTrainer
    classes = [one for one in trainer.__mro__ if one.__module__.split(".")[0] == PACKAGE]
    files = {Path(inspect.getsourcefile(one) or "") for one in classes}
    methods = {
        (one.__name__, name)
        for one in classes
        for name, value in vars(one).items()
        if inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
    }
    overrides = sorted({name for _, name in methods if name != "__init__" and hasattr(Trainer, name)})
    return {
        "classes": len(classes),
        "files": len(files),
        "lines": sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files),
        "methods": len(methods),
        "overrides_of_trainer": len(overrides),
        "of_which_private": sum(1 for name in overrides if name.startswith("_")),
        "overridden": overrides,
    }


class Watch:
    """Counts changes of module while it watches.

    Args:
        root: folder of the package.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.prefix = root, f"{root}{os.sep}"
        self.names: dict[str, str | None] = {}
        self.entered: set[str] = set()
        self.changes = 0
        self.stack: list[str] = []
        self.current: str | None = None

    def module(self, code: CodeType) -> str | None:
        """The module of ours that a function is in."""
        if code.co_name == "<module>":
            return None
        name = code.co_filename
        if name not in self.names:
            ours = name.startswith(self.prefix)
            self.names[name] = Path(name).relative_to(self.root).with_suffix("").as_posix() if ours else None
        return self.names[name]

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """A profiler as `sys.setprofile` takes it."""
        if event not in ("call", "return") or (module := self.module(frame.f_code)) is None:
            return
        if event == "call":
            self.entered.add(module)
            self.stack.append(module)
        elif self.stack:
            self.stack.pop()
        here = self.stack[-1] if self.stack else None
        if here is not None and here != self.current:
            self.changes += 1
            self.current = here


def run_in_numbers(root: Path) -> dict[str, Any]:
    """Modules entered and changes of module in a run and in its steps."""
    from transformers import Trainer

    watch = Watch(root)
    steps: list[tuple[int, int]] = []
    training_step = Trainer.training_step

    def watched_step(self: Any, *arguments: Any, **options: Any) -> Any:
        before = watch.changes
        loss = training_step(self, *arguments, **options)
        steps.append((before, watch.changes))
        return loss

    cli = importlib.import_module(f"{PACKAGE}.cli")
    Trainer.training_step = watched_step
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = [*RUN.split(), f"{folder}/student", "--teacher_cache_dir", f"{folder}/targets"]
            sys.setprofile(watch)
            try:
                status = cli.main(arguments)
            finally:
                sys.setprofile(None)
    finally:
        Trainer.training_step = training_step
    if status:
        raise SystemExit(f"the run failed with status {status}")
    return {
        "modules_entered": len(watch.entered),
        "changes": watch.changes,
        "steps": len(steps),
        "changes_a_step": statistics.median(after - before for before, after in steps),
        "changes_between_steps": statistics.median(b[0] - a[0] for a, b in itertools.pairwise(steps)),
        "command": f"subdistill {RUN}",
    }


def measure(source: Path) -> dict[str, Any]:
    """All numbers of the package that is imported, which must be that of `source`."""
    package = importlib.import_module(PACKAGE)
    root = Path(package.__file__ or "").resolve().parent
    if root.parent != source:
        raise SystemExit(f"expected {PACKAGE} of --source, found another: is PYTHONPATH set?")
    describe = ["git", "-C", str(source), "log", "-1", "--format=%h of %cs"]
    return {
        "version": subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip() or None,
        "date": datetime.date.today().isoformat(),
        "imports": imports_in_numbers(root),
        "trainer": trainer_in_numbers(root),
        "run": run_in_numbers(root),
    }


def table_of(results: dict[str, Any]) -> Iterator[str]:
    """The lines of a table, a column for each label."""
    labels = list(results)
    yield f"| | {' | '.join(labels)} |"
    yield f"|---|{'---:|' * len(labels)}"
    for group in ("imports", "run", "trainer"):
        for name, value in results[labels[-1]][group].items():
            if isinstance(value, str | list):
                continue
            cells = [results[label][group].get(name) for label in labels]
            texts = ["" if cell is None else f"{cell:,g}" for cell in cells]
            yield f"| {group}: {name.replace('_', ' ')} | {' | '.join(texts)} |"


def main() -> None:
    """Measure in a process whose package is that of `--source`, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=REPOSITORY / "src", help="folder that holds the package")
    parser.add_argument("--label", help="name of these figures in the results, such as before and after")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # PYTHONPATH is set
    options = parser.parse_args()
    source = options.source.resolve()
    if options.inside:
        sys.stdout.write("\n" + json.dumps(measure(source)))
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    if options.label:
        command = [sys.executable, __file__, "--inside", "--source", str(source)]
        environment = {**os.environ, "PYTHONPATH": str(source)}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        results[options.label] = json.loads(done.stdout.splitlines()[-1])
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.table or options.label:
        print("\n".join(table_of(results)))
    else:
        parser.error("give --label to measure, or --table")


if __name__ == "__main__":
    main()
