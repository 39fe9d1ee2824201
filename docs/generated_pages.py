"""Pages, and parts of pages, that are made from the code and from measured results at each build of the site."""

from __future__ import annotations

import pkgutil
from argparse import SUPPRESS, Action
from importlib import import_module
from pathlib import Path

import architecture
from subdistill_hf.cli.commands import COMMANDS

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
WITH_OPTIONS = (
    "distill",
    "family",
    "adapt",
    "inspect",
    "analyse",
    "benchmark",
    "explain",
    "export",
    "serve",
    "report",
    "push",
)
DOCUMENTED_PACKAGES = ("core", "losses")
"""Packages that need torch alone, so that they can be used without the rest."""

OPTIONS_HEAD = """\
# Options of the commands

`subdistill COMMAND --help` shows the same. `distill` also takes every argument of transformers' `TrainingArguments`,
such as `--learning_rate` or `--bf16`; `subdistill distill --help-all` lists them."""


def generated_pages() -> dict[str, str]:
    """The text of each file, by its path below `docs/`."""
    pages = {"reference/options.md": options_page()}
    pages |= {f"reference/{package}.md": package_page(package) for package in DOCUMENTED_PACKAGES}
    pages |= {f"_generated/{name}": text for name, text in architecture.parts().items()}
    pages |= {f"reports/{report.parent.name}.md": report_page(report) for report in RESULTS.glob("*/README.md")}
    return pages


def write_generated_pages() -> None:
    """Write the pages that have changed; Sphinx reads anew only those. Pages of reports that are gone go too."""
    pages = generated_pages()
    for page in (DOCS / "reports").glob("*.md"):
        if page.relative_to(DOCS).as_posix() not in pages:
            page.unlink()
    for name, text in pages.items():
        path = DOCS / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def report_page(report: Path) -> str:
    """A page that includes a benchmark's report."""
    return f"```{{include}} ../../{report.relative_to(DOCS.parent).as_posix()}\n:relative-images:\n```\n"


def package_page(package: str) -> str:
    """The API of each module of a package."""
    module = import_module(f"subdistill_hf.{package}")
    lines = [f"# subdistill_hf.{package}", "", str(module.__doc__).strip()]
    for name in sorted(module.name for module in pkgutil.iter_modules(module.__path__)):
        path = f"subdistill_hf.{package}.{name}"
        lines += ["", f"## {path}", "", "```{eval-rst}", f".. automodule:: {path}", "```"]
    return "\n".join(lines) + "\n"


def options_page() -> str:
    """The options of each command, as its parser knows them."""
    lines = [OPTIONS_HEAD]
    for command in WITH_OPTIONS:
        parser = COMMANDS[command].make_parser()
        lines += ["", f"## subdistill {command}", "", "| option | meaning |", "|---|---|"]
        lines += [_row(action) for action in parser._actions if action.dest != "help" and action.help != SUPPRESS]
    return "\n".join(lines) + "\n"


def _row(action: Action) -> str:
    name = action.option_strings[0] if action.option_strings else action.dest.upper()
    meaning = (action.help or "").replace("|", "\\|").replace("*", "\\*").replace("%%", "%")
    if action.default not in (None, [], SUPPRESS) and action.default is not False:
        meaning += f" Default: `{_text(action.default)}`."
    return f"| `{name}` | {meaning} |"


def _text(default: object) -> str:
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)
