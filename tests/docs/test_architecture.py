"""The drawing of the packages: it has every package, and its arrows run down."""

import re
import xml.etree.ElementTree as ET

import architecture
from import_graph import FLOOR, NO_PACKAGES, SOURCES, arrows_between_packages, package_of

SVG = "{http://www.w3.org/2000/svg}"
PACKAGES = set(FLOOR) - NO_PACKAGES


def test_arrows_that_follow_from_others_are_left_out():
    arrows = {"cli": {"data", "config", "errors"}, "data": {"config"}, "config": {"errors"}, "errors": set()}
    kept = architecture.without_implied(arrows)
    assert kept == {"cli": {"data"}, "data": {"config"}, "config": {"errors"}, "errors": set()}


def test_a_package_stands_above_what_it_imports_from():
    arrows = {"cli": {"data"}, "data": {"config", "errors"}, "config": {"errors"}, "errors": set(), "metrics": set()}
    assert architecture.floors(arrows) == {"errors": 0, "metrics": 0, "config": 1, "data": 2, "cli": 3}


def test_the_drawing_has_every_package_once_and_its_arrows_run_down():
    root = ET.fromstring(architecture.drawing())
    assert sorted(text.text for text in root.iter(f"{SVG}text")) == sorted(PACKAGES)
    curves = [path.get("d") for path in root.iter(f"{SVG}path") if path.get("class") == "arrow"]
    kept = architecture.without_implied(architecture.downward(arrows_between_packages()))
    assert len(curves) == sum(map(len, kept.values()))
    for curve in curves:
        heights = [float(y) for y in re.findall(r"\d+ (\d+)(?=C|$| C)", curve)]
        assert heights == sorted(heights)
        assert len(heights) >= 2


def test_no_two_boxes_of_the_drawing_overlap():
    root = ET.fromstring(architecture.drawing())
    width = float(root.get("viewBox").split()[2])
    boxes = [
        (float(box.get("x")), float(box.get("y"))) for box in root.iter(f"{SVG}rect") if box.get("class") == "box"
    ]
    assert len(boxes) == len(PACKAGES)
    for index, (x, y) in enumerate(boxes):
        assert 0 <= x <= width - architecture.BOX_WIDTH
        for other_x, other_y in boxes[:index]:
            assert abs(x - other_x) >= architecture.BOX_WIDTH or abs(y - other_y) >= architecture.BOX_HEIGHT


def test_the_table_says_of_each_package_what_it_is():
    rows = [line.split(" | ") for line in architecture.table().splitlines()[2:]]
    assert {row[0].strip("| `") for row in rows} == PACKAGES
    assert all(len(row[1]) > 20 for row in rows)
    imports = {row[0].strip("| `"): set(re.findall(r"`(\w+)`", row[3])) for row in rows}
    assert imports == arrows_between_packages()


def test_each_module_has_a_line():
    lines = architecture.modules().splitlines()
    listed = {line.split("`")[1] for line in lines if line.startswith("| `")}
    in_packages = {name for name in SOURCES if "." in name and package_of(name) not in NO_PACKAGES}
    assert listed == {name for name in in_packages if not name.endswith("__init__")}
    assert all(len(line) > 30 for line in lines if line.startswith("| `"))
