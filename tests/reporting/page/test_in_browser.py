"""The page in a browser: from the disk, at two widths, light and dark, without a request, by keyboard alone."""

import pytest

from browser import BROWSER, MISSING, browser
from reporting.page.samples import write_explanations, write_run
from subdistill_hf.reporting.page.page import write_page
from subdistill_hf.reporting.page.sections import SECTIONS

pytestmark = pytest.mark.skipif(BROWSER is None, reason=MISSING)
VIEWS = {"wide": (1280, 900), "phone": (375, 800)}
ON_LIGHT, ON_DARK = "rgb(255, 255, 255)", "rgb(20, 24, 29)"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("run"))
    write_explanations(folder, images=3)
    return write_page(folder).as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


def test_the_page_fits_and_says_nothing_to_the_console_or_the_network(chromium, address):
    for width, height in VIEWS.values():
        for dark, paper in ((False, ON_LIGHT), (True, ON_DARK)):
            chromium.view(width, height, dark)
            chromium.open(address)
            sections = chromium.run("[...document.querySelectorAll('main > section')].map((one) => one.id)")
            assert sections == [section.name for section in SECTIONS]
            assert chromium.run("document.documentElement.scrollWidth") <= width
            assert chromium.run("getComputedStyle(document.body).backgroundColor") == paper
            assert chromium.run("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    assert chromium.complaints == []
    assert {one for one in chromium.requests if not one.startswith("data:")} == {address}


def test_a_script_that_is_not_the_page_s_own_is_not_run(chromium, address):
    chromium.view(*VIEWS["wide"])
    chromium.open(address)
    chromium.run("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    assert chromium.run("window.ran === undefined")
    assert any("Content Security Policy" in str(one) for one in chromium.complaints)


def test_landmarks_headings_and_pictures_are_told_to_screen_readers(chromium, address):
    chromium.view(*VIEWS["wide"])
    chromium.open(address)
    chromium("Accessibility.enable")
    nodes = [one for one in chromium("Accessibility.getFullAXTree")["nodes"] if not one.get("ignored")]
    found = [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if "role" in one]
    roles = [role for role, _ in found]
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert roles.count(landmark) == 1
    regions = [name for role, name in found if role == "region"]
    assert {section.title for section in SECTIONS} <= set(regions)
    assert all(name for role, name in found if role in ("image", "button", "link", "region"))
    assert roles.count("image") > 10


def test_everything_works_with_the_keyboard(chromium, address):
    chromium.view(*VIEWS["wide"])
    chromium.open(address)
    active = "document.activeElement"
    chromium.press("Tab")
    assert chromium.run(f"{active}.textContent") == "Skip to the content"
    assert chromium.run(f"getComputedStyle({active}).outlineStyle") == "solid"
    chromium.press("Enter")
    assert chromium.run("location.hash") == "#content"
    order = "[...document.querySelectorAll('#results tbody th')].map((one) => one.textContent)"
    before = chromium.run(order)
    chromium.press("Tab")  # the table's region, then the headings
    for _ in range(12):
        if chromium.run(f"{active}.textContent") == "Accuracy":
            break
        chromium.press("Tab")
    assert chromium.run(f"{active}.closest('th').getAttribute('aria-sort')") is None
    chromium.press("Enter")
    assert chromium.run(f"{active}.closest('th').getAttribute('aria-sort')") == "descending"
    assert chromium.run(order) == ["Teacher", "SubDistill", "Logit distillation (KD)", "From scratch (labels only)"]
    chromium.press(" ")
    assert chromium.run(f"{active}.closest('th').getAttribute('aria-sort')") == "ascending"
    assert chromium.run(order)[0] == "From scratch (labels only)"
    assert sorted(chromium.run(order)) == sorted(before)


def test_heat_maps_are_stepped_through(chromium, address):
    chromium.view(*VIEWS["phone"])
    chromium.open(address)
    shown = "[...document.querySelectorAll('.step')].map((one) => one.checkVisibility())"
    told = "document.querySelector('.control output').value"
    chromium.run("document.querySelector('[data-step=\"1\"]').focus()")
    assert (chromium.run(shown), chromium.run(told)) == ([True, False, False], "Image 1 of 3")
    chromium.press("Enter")
    assert (chromium.run(shown), chromium.run(told)) == ([False, True, False], "Image 2 of 3")
    chromium.press("ArrowRight")
    chromium.press("ArrowRight")
    assert chromium.run(told) == "Image 1 of 3"
    chromium.press("ArrowLeft")
    assert chromium.run(told) == "Image 3 of 3"
