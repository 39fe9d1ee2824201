"""The recipes of CONTRIBUTING.md: each diff is applied to a copy of the package, and what it adds is used there."""

import ast
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

from helpers import NAMES, REPOSITORY, trainer, weights_of, write_task
from pages import PAGES, blocks
from programs import QUICK_REPORTS, WITHOUT_THIS_PACKAGE, run_program
from subdistill_hf.config.bases import BASES
from subdistill_hf.config.methods import METHODS

PAGE = "CONTRIBUTING.md"
FILE = re.compile(r"^--- (\S+)\n\+\+\+ b/(\S+)\n", re.MULTILINE)
NEW = "/dev/null"
BLOCKS = """
import torch
from torch import nn
from subdistill_hf.core.layers import stage_outputs

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell1 = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.cell2 = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
    def forward(self, pixels):
        return self.cell2(self.cell1(pixels)).mean(dim=(2, 3))

model = Model()
assert stage_outputs(model, lambda: model(torch.zeros(1, 3, 32, 32)), (32, 32)) == ["cell1", "cell2"]
"""


def lines_that_start(with_signs, hunk):
    return "".join(line[1:] + "\n" for line in hunk.splitlines() if line[:1] in with_signs)


def apply(diff, root):
    """Apply a diff without line numbers: the lines of a hunk that are there stand in the file once."""
    _, *parts = FILE.split(diff)
    for source, name, changes in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        path = root / name
        if source == NEW:
            assert not path.exists(), f"{name} exists already"
            path.write_text(lines_that_start("+", changes), encoding="utf-8")
            continue
        assert source == f"a/{name}"
        text = path.read_text(encoding="utf-8")
        for hunk in re.split(r"^@@.*\n", changes, flags=re.MULTILINE)[1:]:
            before = lines_that_start(" -", hunk)
            assert f"\n{text}".count(f"\n{before}") == 1, f"{name} does not hold this once:\n{before}"
            text = f"\n{text}".replace(f"\n{before}", "\n" + lines_that_start(" +", hunk))[1:]
        path.write_text(text, encoding="utf-8")


OF_THE_COPY = f"""{WITHOUT_THIS_PACKAGE}
sys.path.insert(0, "src")
"""
"""Begins a program that imports the package from the copy in its folder."""
COMMANDS = f"""{OF_THE_COPY}{QUICK_REPORTS}
import json
import subdistill_hf
assert "contributed" in subdistill_hf.__file__
from subdistill_hf.cli import main
for command in json.loads(sys.argv[1]):
    print("$", *command)
    assert main(command) == 0
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the package in which every recipe was followed."""
    root = tmp_path_factory.mktemp("contributed")
    shutil.copytree(REPOSITORY / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    for block in blocks("diff", PAGE):
        apply(block.code, root)
    return root


def run_in(root, code, *arguments):
    """What a program prints that uses the copy of the package."""
    done = run_program(code, *arguments, folder=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_row_of_the_table_has_its_recipe():
    rows = re.findall(r"^\| \[.*?\]\(#([\w-]+)\)", PAGES[PAGE], flags=re.MULTILINE)
    sections = {
        re.sub(r"\W+", "-", section.partition("\n")[0].lower()): section for section in PAGES[PAGE].split("\n### ")[1:]
    }
    assert len(rows) == 8
    assert all("```diff" in sections[row] for row in rows)


def test_the_recipes_are_in_the_style_of_the_project(changed):
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "src"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=changed)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_method_a_basis_an_option_a_section_and_a_file_of_checkpoints_are_used_by_a_run(changed, tmp_path):
    write_task(tmp_path)
    distill = [
        *("distill", "--teacher", tmp_path / "teacher", "--dataset", tmp_path / "images"),
        *("--classes", *NAMES, "--student", "resnet:widths=8-8-8,image=32", "--output_dir", tmp_path / "expert"),
        *("--method", "subdistill", "--compare", "cosine", "correlation", "--basis", "channels"),
        *("--layer_power", 0.5, "--max_steps", 2, "--save_steps", 1, "--eval_steps", 1, "--use_cpu", "true"),
    ]
    commands = [[*map(str, distill)], ["show", str(tmp_path / "expert")], ["--help"]]
    _, _, shown, help_text = run_in(changed, COMMANDS, json.dumps(commands)).split("$ ")
    report = json.loads((tmp_path / "expert" / "report.json").read_text(encoding="utf-8"))
    assert [result["method"] for result in report["results"]] == ["teacher", "cosine", "correlation", "subdistill"]
    assert {subspace["kind"] for subspace in report["subspaces"]} == {"channels"}
    assert report["hyperparameters"]["layer_power"] == 0.5
    first = {method: history[0] for method, history in report["histories"].items()}
    layers = [value for name, value in first["subdistill"].items() if name.startswith("loss_layer/")]
    assert all(value > 30 for value in layers)  # the square root of about 1, times 100
    assert any(name.startswith("loss_layer/") for name in first["cosine"])
    card = (tmp_path / "expert" / "README.md").read_text(encoding="utf-8")
    assert "## Device\n\n- Device: `cpu`\n" in card
    assert "Correlation (DIST)" in card
    sizes = list((tmp_path / "expert").rglob("subdistill/checkpoint-2/sizes.json"))
    assert [list(json.loads(path.read_text(encoding="utf-8"))) for path in sizes] == [
        ["parameters of the layer losses"]
    ]

    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["teacher", "cosine", "correlation", "subdistill"]
    assert "show the accuracies of a run" in help_text


def test_a_family_of_models_is_found(changed):
    run_in(changed, OF_THE_COPY + BLOCKS)


@pytest.mark.parametrize(
    "options", [{"method": "means"}, {"method": "regression"}, {"basis": "sum"}], ids=["layers", "logits", "basis"]
)
def test_a_script_of_ones_own_adds_a_method_or_a_basis(options, tmp_path, monkeypatch):
    for registry in (METHODS, BASES):
        for name in ("means", "regression", "sum"):
            monkeypatch.setitem(registry, name, None)  # so that what the block enters is taken away again
            monkeypatch.delitem(registry, name)
    (block,) = blocks("python", PAGE)
    exec(compile("\n" * (block.line - 1) + block.code, PAGE, "exec"), {})
    run = trainer(tmp_path, **options)
    before = weights_of(run.model)
    run.train()
    assert not torch.equal(before["classifier.1.weight"], run.model.state_dict()["classifier.1.weight"])
    assert {subspace.kind for subspace in run.subspaces.values()} == ({"sum"} if "basis" in options else set())


def test_modules_and_functions_are_as_short_as_the_page_says():
    found = re.search(
        r"It has at most (\d+) lines, better \d+\. A function has at most (\d+)\.", (REPOSITORY / PAGE).read_text()
    )
    longest_module, longest_function = map(int, found.groups())
    too_long = []
    package = REPOSITORY / "src" / "subdistill_hf"
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > longest_module:
            too_long.append(f"{path.relative_to(package)}: {lines}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (lines := node.end_lineno - node.lineno + 1) > longest_function:
                too_long.append(f"{path.relative_to(package)}, {node.name}: {lines}")
    assert too_long == []
