"""What the pages name exists: files, headings of links, modules and classes of the package."""

import re
from importlib import import_module

import pytest

import subdistill_hf
from helpers import NAMES, REPOSITORY, processor
from pages import PAGES, inline_code, without_blocks
from subdistill_hf.config.methods import METHODS
from subdistill_hf.models.students import build_student
from subdistill_hf.pipeline.auto import DATASET_OF_HUB_TEACHERS, STUDENT_OF_HUB_TEACHERS

GENERATED = {f"docs/reference/{name}.md" for name in ("options", "core", "losses")}
GENERATED |= {"docs/_generated/architecture.svg"}
TOP = {path.name for path in REPOSITORY.iterdir() if not path.name.startswith(".")}
BUILT = "docs/_build/"
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def links_of(page):
    return re.findall(r"\]\(([^)\s]+)\)", without_blocks(PAGES[page]))


def slug(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_exists(page):
    for link in links_of(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        name = target.resolve().relative_to(REPOSITORY).as_posix()
        assert target.is_file() or name in GENERATED, link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_text_names_exist(page):
    for code in inline_code(PAGES[page]):
        if re.fullmatch(r"[\w./-]+", code) and "/" in code and code.split("/")[0] in TOP:
            # a make target writes it, in a clone that may not have called it
            built = code.startswith(BUILT) and code in MAKEFILE
            assert built or (REPOSITORY / code).exists(), code


@pytest.mark.parametrize("page", PAGES)
def test_the_names_of_the_package_that_a_page_uses_exist(page):
    text = re.sub(r"^```diff$.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)  # which adds names
    for name in re.findall(r"\bsubdistill_hf(?:\.[A-Za-z]\w*)+", text):
        parts, found = name.split("."), None
        for end in range(len(parts), 0, -1):
            try:
                found = import_module(".".join(parts[:end]))
            except ModuleNotFoundError:
                continue
            for part in parts[end:]:
                found = getattr(found, part)
            break
        assert found is not None, name


def test_the_reference_has_every_public_name():
    page = (REPOSITORY / "docs" / "reference" / "public.md").read_text(encoding="utf-8")
    assert set(re.findall(r"auto\w+:: (\w+)", page)) == set(subdistill_hf.__all__) - {"__version__"}


def test_the_recipes_of_students_can_be_built():
    lines = PAGES["docs/how_to/students.md"].splitlines()
    new = [recipe for line in lines if "| a new" in line for recipe in re.findall(r"`([^`]+)`", line)]
    recipes = [recipe for recipe in new if ":" in recipe or recipe.startswith("timm/")]
    assert len(recipes) == 6
    for recipe in recipes:
        assert build_student(recipe, NAMES, processor()).labels == dict(enumerate(NAMES))


def test_the_choices_for_a_teacher_of_the_hub_are_those_of_the_page():
    lines = PAGES["docs/how_to/hub_teacher.md"].splitlines()
    for name, (value, reason) in (DATASET_OF_HUB_TEACHERS | STUDENT_OF_HUB_TEACHERS).items():
        value = " ".join(value) if isinstance(value, tuple) else value
        row = next(line for line in lines if line.startswith(f"| `--{name}` |"))
        assert row.split("|")[2].strip().strip("`") == str(value)
        assert reason in row


def test_the_table_of_methods_has_them_all():
    lines = PAGES["docs/how_to/method_options.md"].partition("## Compared methods")[2].splitlines()
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == list(METHODS)
