"""The README: short, and whole on a package index too. Its code is tested with that of the pages."""

import re
import shutil

from helpers import REPOSITORY, run_python
from pages import PAGES, blocks

README = PAGES["README.md"]
BUILD = """
import os, sys
from setuptools import build_meta
os.chdir(sys.argv[1])
os.mkdir("metadata")
print(build_meta.prepare_metadata_for_build_wheel("metadata"))
"""


def test_the_readme_fits_in_150_lines():
    assert len(README.splitlines()) <= 150


def test_the_readme_has_the_commands_that_everything_begins_with():
    commands = "".join(block.code for block in blocks("bash", "README.md")).splitlines()
    assert [line.partition(" #")[0].strip() for line in commands[:2]] == ["make demo", "make test"]
    assert "accelerate launch examples/run_subdistill.py --teacher google/vit-base-patch16-224" in commands


def test_the_ten_lines_are_those_of_the_first_page():
    (ten_lines,) = (block.code for block in blocks("python", "README.md"))
    assert ten_lines in [block.code for block in blocks("python", "docs/start.md")]


def test_photographs_come_before_symbols():
    """Whoever reads how good it is on drawn symbols has read before how good it is on photographs."""
    report = (REPOSITORY / "benchmarks/results/cifar100_lite0/README.md").read_text(encoding="utf-8")
    found = re.search(r"other layer methods, FitNet: \+([\d.]+) \(\+([\d.]+) to \+([\d.]+)\)", report)
    ahead, interval = re.escape(found[1]), re.escape(f"{found[2]} to {found[3]}")
    for page in ("README.md", "docs/index.md", "docs/results.md"):
        before_the_first_command = PAGES[page].partition("```bash")[0].replace("\n", " ")
        assert before_the_first_command.index("CIFAR-100") < before_the_first_command.index("glyphs-100")
        assert re.search(rf"[Oo]n photographs.*{ahead}.*FitNet.*{interval}", before_the_first_command)


def test_the_points_ahead_never_stand_without_what_they_are_of():
    found = 0
    for page, text in PAGES.items():
        for paragraph in re.split(r"\n\n|\n(?=[-#|] ?)", text):
            if re.search(r"\b(58|6[45])(\.\d)? points", paragraph.replace("\n", " ")):
                assert "glyphs-100" in paragraph, f"{page}: {paragraph}"
                found += 1
    assert found


def test_a_package_index_shows_no_link_that_leads_nowhere(tmp_path):
    """The metadata of a built package has the README without links to files of the repository."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    package = tmp_path / "src" / "subdistill_hf"
    package.mkdir(parents=True)
    shutil.copy(REPOSITORY / "src" / "subdistill_hf" / "__init__.py", package)
    folder = run_python(BUILD, tmp_path).stdout.splitlines()[-1]
    metadata = (tmp_path / "metadata" / folder / "METADATA").read_text(encoding="utf-8")
    assert "Description-Content-Type: text/markdown" in metadata

    shown = metadata.partition("\n\n")[2]
    targets = re.findall(r"\]\(([^)]*)\)", shown)
    assert targets
    assert all(target.startswith("https://") for target in targets)
    assert "Your own images (`docs/how_to/own_images.md`)" in shown
    assert "`benchmarks/results/glyphs_unit/paired_differences.png` in the repository" in shown
    assert len(shown.splitlines()) == len(README.splitlines())
