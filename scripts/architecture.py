"""Draw the packages and their imports, and list packages and modules in tables, in docs/_generated.

    python scripts/architecture.py

`make docs` does the same at each build, so nothing of it is committed. A package stands one floor above the highest
one that it imports from. An arrow that follows from others is not drawn: where A imports from B and C, and B from C,
the arrow from A to C is left out. The table has them all.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import mean

from import_graph import FLOOR, ROOT, SOURCES, arrows_between_packages, package_of

GENERATED = Path(__file__).parents[1] / "docs" / "_generated"
ROW, BOX_WIDTH, BOX_HEIGHT, MARGIN = 92, 128, 44, 16
STYLE = """\
  .paper { fill: #ffffff; }
  .box { fill: #eaf1fb; stroke: #3f6fb0; stroke-width: 1.2; }
  .name { font: 15px ui-sans-serif, system-ui, sans-serif; fill: #16263d; text-anchor: middle; }
  .arrow { fill: none; stroke: #8593a6; stroke-width: 1.3; }
  .head { fill: #8593a6; }
"""

Arrows = dict[str, set[str]]


@dataclass(frozen=True)
class Node:
    """A box of the drawing, or a bend of a long arrow where `name` is empty.

    Attributes:
        name: the package.
        floor: 0 at the ground.
        arrow: the two ends of the arrow that bends here.
    """

    name: str
    floor: int
    arrow: tuple[str, str] = ("", "")

    @property
    def width(self) -> float:
        """The room that it takes in its row."""
        return BOX_WIDTH + 22 if self.name else 34


def downward(arrows: Arrows) -> Arrows:
    """Those arrows that run down in the order of the packages; the others are faults, and the tests name them."""
    return {
        package: {other for other in others if FLOOR[other] < FLOOR[package]} for package, others in arrows.items()
    }


def floors(arrows: Arrows) -> dict[str, int]:
    """The floor of each package: one above the highest that it imports from."""
    found: dict[str, int] = {}
    for package in sorted(arrows, key=lambda name: FLOOR[name]):
        found[package] = 1 + max((found[other] for other in arrows[package]), default=-1)
    return found


def without_implied(arrows: Arrows) -> Arrows:
    """The arrows that do not follow from others."""
    below: Arrows = {}
    for package in sorted(arrows, key=lambda name: FLOOR[name]):
        below[package] = arrows[package].union(*(below[other] for other in arrows[package]))
    return {
        package: {other for other in others if not any(other in below[between] for between in others)}
        for package, others in arrows.items()
    }


def rows_of(arrows: Arrows, floor: dict[str, int]) -> tuple[list[list[Node]], list[list[Node]]]:
    """The nodes of each floor, from the ground, and the nodes that each arrow passes."""
    nodes = {package: Node(package, floor[package]) for package in arrows}
    rows: list[list[Node]] = [[] for _ in range(1 + max(floor.values()))]
    for package, node in nodes.items():
        rows[floor[package]].append(node)
    paths = []
    for package in sorted(arrows):
        for other in sorted(arrows[package]):
            bends = [Node("", level, (package, other)) for level in range(floor[package] - 1, floor[other], -1)]
            paths.append([nodes[package], *bends, nodes[other]])
            for bend in bends:
                rows[bend.floor].append(bend)
    return rows, paths


def places_of(rows: list[list[Node]], paths: list[list[Node]]) -> dict[Node, float]:
    """The centre of each node from left to right: near what it is joined to, with few arrows that cross."""
    joined: dict[Node, list[Node]] = {node: [] for row in rows for node in row}
    for path in paths:
        for upper, lower in pairwise(path):
            joined[upper].append(lower)
            joined[lower].append(upper)
    place = {node: float(index) for row in rows for index, node in enumerate(row)}
    for sweep in range(24):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = {node: mean([place[other] for other in joined[node]] or [place[node]]) for node in row}
            row.sort(key=lambda node: wanted[node])
            place |= _apart(row, wanted)
    leftmost = min(x - node.width / 2 for node, x in place.items())
    return {node: x - leftmost + MARGIN for node, x in place.items()}


def _apart(row: list[Node], wanted: dict[Node, float]) -> dict[Node, float]:
    """The places that are wanted, moved apart until no two nodes of the row overlap."""
    found: dict[Node, float] = {}
    edge = -math.inf
    for node in row:
        found[node] = max(wanted[node], edge + node.width / 2)
        edge = found[node] + node.width / 2
    shift = mean(wanted[node] - found[node] for node in row)
    return {node: x + shift for node, x in found.items()}


def drawing() -> str:
    """The SVG."""
    arrows = downward(arrows_between_packages())
    rows, paths = rows_of(without_implied(arrows), floors(arrows))
    place = places_of(rows, paths)
    height = ROW * len(rows) + MARGIN
    width = math.ceil(max(x + node.width / 2 for node, x in place.items()) + MARGIN)

    def middle(node: Node) -> float:
        return height - MARGIN / 2 - ROW * (node.floor + 0.5)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        "<title>The packages of subdistill_hf and their imports</title>",
        f"<style>\n{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        f'<rect class="paper" width="{width}" height="{height}" rx="10"/>',
    ]
    lines += [_arrow([(place[node], middle(node)) for node in path]) for path in paths]
    for node, x in place.items():
        if node.name:
            y = middle(node)
            left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
            lines.append(
                f'<rect class="box" x="{left:.0f}" y="{top:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7"/>'
                f'<text class="name" x="{x:.0f}" y="{y + 5:.0f}">{escape(node.name)}</text>'
            )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _arrow(points: list[tuple[float, float]]) -> str:
    """A curve from the bottom of the first box, through the bends, to the top of the last."""
    (x, y), *between, (end_x, end_y) = points
    stops = [(x, y + BOX_HEIGHT / 2), *between, (end_x, end_y - BOX_HEIGHT / 2 - 2)]
    steps = [f"M{stops[0][0]:.0f} {stops[0][1]:.0f}"]
    for (x, y), (to_x, to_y) in pairwise(stops):
        half = (y + to_y) / 2
        steps.append(f"C{x:.0f} {half:.0f} {to_x:.0f} {half:.0f} {to_x:.0f} {to_y:.0f}")
    return f'<path class="arrow" marker-end="url(#head)" d="{" ".join(steps)}"/>'


def table() -> str:
    """The packages from the top to the ground, each in one line, with what it imports from."""
    arrows = arrows_between_packages()
    order = sorted(arrows, key=lambda name: (-FLOOR[name], name))
    lines = ["| package | in one line | modules | imports from |", "|---|---|---|---|"]
    for package in order:
        modules = sum(package_of(module) == package and not module.endswith(".__init__") for module in SOURCES)
        others = ", ".join(f"`{other}`" for other in sorted(arrows[package], key=lambda name: (-FLOOR[name], name)))
        lines.append(f"| `{package}` | {_purpose(package)} | {modules} | {others} |")
    return "\n".join(lines) + "\n"


def modules() -> str:
    """The modules of each package, each in one line."""
    lines = []
    for package in sorted(arrows_between_packages(), key=lambda name: (-FLOOR[name], name)):
        names = [name for name in SOURCES if package_of(name) == package and not name.endswith("__init__")]
        if names != [package]:
            lines += [f"### {package}", "", "| module | in one line |", "|---|---|"]
            lines += [f"| `{name}` | {_first_sentence(SOURCES[name])} |" for name in names] + [""]
    return "\n".join(lines)


def _purpose(package: str) -> str:
    folder = ROOT / package
    return _first_sentence(folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py"))


def _first_sentence(source: Path) -> str:
    """The first paragraph of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).replace("|", "\\|")


def parts() -> dict[str, str]:
    """The text of each file, by name."""
    return {"architecture.svg": drawing(), "packages.md": table(), "modules.md": modules()}


if __name__ == "__main__":
    GENERATED.mkdir(exist_ok=True)
    for name, text in parts().items():
        (GENERATED / name).write_text(text, encoding="utf-8")
