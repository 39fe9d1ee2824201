"""How Sphinx builds the site: `make docs`. Nothing is read from the network."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import subdistill_hf

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from generated_pages import write_generated_pages

project = "subdistill_hf"
author = "The subdistill_hf developers"
project_copyright = author
release = version = subdistill_hf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "mathml"]
exclude_patterns = ["_build", "_generated"]

html_theme = "furo"
html_title = f"subdistill_hf {release}"
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
suppress_warnings = ["myst.header"]  # a report of a benchmark may pass over a level of headings

default_role = "py:obj"  # the docstrings write names in single backticks
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def link_to_included_pages(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Links to a file of the repository that the site includes lead to its page on the site."""
    source[0] = source[0].replace("](../CONTRIBUTING.md", "](/contributing.md")
    source[0] = re.sub(r"\]\((?:\.\./)+benchmarks/results/(\w+)/README\.md", r"](/reports/\1.md", source[0])


def end_roles(_app: Sphinx, _kind: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    """Let a letter follow a name in backticks ("two `LayerPair`s"), as it may in Markdown."""
    lines[:] = [re.sub(r"(?<!`)(`[^`]+`)(?=\w)", r"\1\\ ", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Called by Sphinx before it reads the pages."""
    write_generated_pages()
    app.connect("source-read", link_to_included_pages)
    app.connect("autodoc-process-docstring", end_roles)
