"""What only some uses need is installed by extras, imported only by these uses, and missed with one clear message."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import subdistill_hf
from helpers import quiet_environment
from programs import QUICK_REPORTS
from subdistill_hf.config import extras
from subdistill_hf.config.extras import EXTRAS, has_extra, has_extra_or_note, require_extra
from subdistill_hf.errors import MissingExtraError, SubDistillError

PACKAGE = Path(subdistill_hf.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = {module for modules in EXTRAS.values() for module in modules}
NEED_PLOTS = {"reporting/drawing.py", "reporting/plots.py", "reporting/fonts.py", "benchmark/plots.py"}
NEED_PLOTS |= {"benchmark/statistics.py", "reporting/export_plot.py"}
NEED_ONNX = {f"export/{name}.py" for name in ("graph", "onnx_files", "onnx_quantisation", "onnx_runtime")}
"""Modules that only a command of that extra imports."""
LARGE = {"ray", "executorch"}
"""Extras that `all` leaves out."""
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({sorted(OPTIONAL)}))\n"
"""Begins a script for which nothing of the extras is installed."""


def package_names(requirements):
    return {requirement.split(">")[0].split("[")[0] for requirement in requirements}


def test_extras_are_those_of_the_project():
    groups = PROJECT["optional-dependencies"]
    assert set(EXTRAS) == set(groups) - {"all", "dev", "docs"}
    assert groups["all"] == [f"subdistill-hf[{','.join(extra for extra in EXTRAS if extra not in LARGE)}]"]
    names = packages_distributions()
    for extra, modules in EXTRAS.items():
        expected = {names[module][0] if module in names else module for module in modules}
        always = package_names(PROJECT["dependencies"])  # an extra may need a newer version of these
        assert package_names(groups[extra]) - always == expected
        assert not expected & always


def test_only_what_draws_imports_optional_packages_at_its_top():
    importers = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} & OPTIONAL:
                importers.setdefault(path.relative_to(PACKAGE).as_posix(), set()).add(name)
    assert set(importers) == NEED_PLOTS | NEED_ONNX
    for extra, modules in (("plots", NEED_PLOTS), ("onnx", NEED_ONNX)):
        assert set().union(*(importers[module] for module in modules)) <= set(EXTRAS[extra])


def test_what_is_missing_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert not has_extra("digits")
    with pytest.raises(MissingExtraError) as refused:
        require_extra("digits", "digits")
    expected = "digits needs packages that are not installed: pip install 'subdistill-hf[digits]'"
    assert str(refused.value) == expected
    assert issubclass(MissingExtraError, SubDistillError)


def test_what_is_left_out_is_noted(monkeypatch, capsys):
    monkeypatch.setattr(extras, "has_extra", lambda extra: False)
    assert not has_extra_or_note("plots", "the card has no plots")
    expected = "note: without matplotlib, scipy, the card has no plots: pip install 'subdistill-hf[plots]'\n"
    assert capsys.readouterr().err == expected
    monkeypatch.undo()
    assert has_extra_or_note("plots", "nothing")
    assert capsys.readouterr().err == ""


REFUSED = {
    "benchmark grid.yaml": "subdistill benchmark needs packages .*plots",
    "distill --dataset digits --classes all --output_dir student": "the dataset digits needs packages .*digits",
    "distill --report_to tensorboard --output_dir student": (
        r"report_to='tensorboard': its package is not installed.*pip install 'subdistill-hf\[tensorboard\]'"
    ),
}
"""Command to what it says."""


RUN = (
    "distill --classes superclass:zodiac_signs --train_images_per_class 4 --max_steps 1 --teacher_cache off "
    "--method kd --use_cpu --disable_tqdm true --report_to none --output_dir student"
)


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory):
    """What one process without extras printed that was given commands to refuse, and then a run; and its folder."""
    folder = tmp_path_factory.mktemp("without")
    commands = [words.split() for words in (*REFUSED, RUN)]
    script = f"from subdistill_hf.cli import main\nprint([main(words) for words in {commands}])"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + QUICK_REPORTS + script],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=quiet_environment(PYTHONPATH=os.pathsep.join(map(str, (PACKAGE.parent, Path(__file__).parents[1])))),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[2, 2, 2, 0]"
    return done, folder


def test_a_run_without_extras_leaves_a_student_and_says_once_that_its_card_has_no_plots(without_extras):
    done, folder = without_extras
    assert done.stderr.count("note: without matplotlib, scipy, the card has no plots") == 1
    names = {path.name for path in (folder / "student").iterdir()}
    assert {"model.safetensors", "README.md", "report.json", "contact_sheet.png"} <= names
    card = (folder / "student" / "README.md").read_text(encoding="utf-8")
    assert "contact_sheet.png" in card
    assert "training.png" not in card


def test_commands_that_need_an_extra_refuse_before_any_work(without_extras):
    done, _ = without_extras
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == len(REFUSED)
    for line, message in zip(said, REFUSED.values(), strict=True):
        assert re.search(message, line)
