"""Every command of the pages is understood by the program that it calls, with all of its options."""

import ast
import re
import shlex
import tomllib

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser as torchrun_parser

from helpers import REPOSITORY
from pages import NOT_RUN, PAGES, blocks, inline_code
from subdistill_hf.cli import distill, main
from subdistill_hf.cli.commands import COMMANDS

WORK = {
    "distill": "subdistill_hf.pipeline.run.distill",
    "family": "subdistill_hf.family.run.distill_family",
    "adapt": "subdistill_hf.pipeline.adapted_teacher.adapt_teacher",
    "inspect": "subdistill_hf.analysis.inspect.inspect",
    "analyse": "subdistill_hf.analysis.analyse.analyse",
    "benchmark": "subdistill_hf.benchmark.command.benchmark",
    "explain": "subdistill_hf.explain.run.explain",
    "export": "subdistill_hf.export.run.export",
    "serve": "subdistill_hf.export.page.serve",
    "report": "subdistill_hf.reporting.page.page.write_page",
    "push": "subdistill_hf.hub.publish.push_folder",
}
"""What each command of ours calls when its options fit."""
NOT_PARSED = {
    "hf auth login": "the Hub's own command; it asks for a token",
    "pip install pre-commit && pre-commit install": "it needs a package registry",
    "OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests/losses": "pytest is what runs here",
    "npm install onnxruntime-web": "it needs a package registry",
    "python dice-expert/onnx/run_onnx.py dice-expert/example.png": "tests/export/test_run.py runs it",
}
LAUNCHED = "examples/run_subdistill.py"


def commands_of(block):
    """The commands of a block, with their continuation lines."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


ON_PAGES = [
    pytest.param(words, id=f"{block}-{words[0]}")
    for block in blocks("bash")
    if not block.note.startswith(NOT_RUN)
    for words in commands_of(block)
]


@pytest.fixture
def run_ours(monkeypatch):
    """Run a command of ours up to its work, which is left out."""

    def run(subcommand, options):
        calls = []
        with monkeypatch.context() as patched:
            patched.setattr(WORK[subcommand], lambda *given, **named: calls.append(given))
            assert main([subcommand, *options]) == 0
        assert len(calls) == 1

    return run


def check(words, run_ours):
    """Raise where a command would be refused before it starts."""
    program, *options = words
    if program == "subdistill":
        run_ours(options[0], options[1:])
    elif words[:2] == ["accelerate", "launch"] or program == "torchrun":
        parser = torchrun_parser() if program == "torchrun" else launch_command_parser()
        parsed = parser.parse_args(options if program == "torchrun" else options[1:])
        assert parsed.training_script == LAUNCHED
        run_ours("distill", parsed.training_script_args)
    elif program == "make":
        makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
        assert set(options) <= set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split())
    elif words[:3] == ["pip", "install", "-e"]:
        known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        place, _, extras = options[2].rstrip("]").partition("[")
        assert place == "."
        assert set(filter(None, extras.split(","))) <= set(known["optional-dependencies"])
    else:
        assert " ".join(words) in NOT_PARSED, f"no test knows the program {program}"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no tries to reach it, which take time


@pytest.mark.parametrize("words", ON_PAGES)
def test_a_command_of_the_pages_is_understood(words, run_ours):
    check(words, run_ours)


def test_each_command_of_ours_stands_on_a_page():
    used = {words.values[0][1] for words in ON_PAGES if words.values[0][0] == "subdistill"}
    assert used == set(WORK)
    assert set(COMMANDS) == {*WORK, "demo"}


@pytest.mark.parametrize(
    "command",
    [
        "subdistill distill --no_such_option 1",
        "subdistill distill --method no_such_method",
        "accelerate launch --no_such_option examples/run_subdistill.py",
        "accelerate launch examples/run_subdistill.py --no_such_option 1",
        "torchrun --nproc_per_node 2 examples/other.py",
        "make nothing",
        "pip install -e .[nothing]",
        "rm -r everything",
    ],
)
def test_the_check_finds_a_command_that_is_not_understood(command, run_ours, capsys):
    with pytest.raises((SystemExit, AssertionError)):
        check(shlex.split(command), run_ours)
    capsys.readouterr()


def options_of(parser):
    return {name for action in parser._actions for name in action.option_strings}


@pytest.fixture(scope="module")
def known_options():
    parsers = [COMMANDS[command].make_parser() for command in WORK] + [distill.make_parser(all_arguments=True)]
    return set().union(*map(options_of, [*parsers, launch_command_parser(), torchrun_parser()]))


def options_in(text):
    return set(re.findall(r"(?<!\S)--[a-z][\w-]*", text))


def options_of_script(path):
    """The options that a script of the repository declares; its source is read, for starting it takes seconds."""
    nodes = list(ast.walk(ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))))
    calls = (node for node in nodes if isinstance(node, ast.Call))
    given = [call.args for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    found = {name.value for names in given for name in names if isinstance(name, ast.Constant)}
    imported = {f"benchmarks/{node.module}.py" for node in nodes if isinstance(node, ast.ImportFrom)}
    beside = [script for script in imported if (REPOSITORY / script).is_file()]  # two scripts share their parser
    return found.union(*map(options_of_script, beside))


def misnamed(text, known):
    """Options in the inline code of a text that its programs do not know."""
    wrong = set()
    for code in inline_code(text):
        script = re.match(r"python (benchmarks/\w+\.py)\b", code)
        wrong |= options_in(code) - (options_of_script(script[1]) if script else known)
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_the_options_that_a_text_names_exist(page, known_options):
    assert misnamed(PAGES[page], known_options) == set()


@pytest.mark.parametrize("code", ["--no_such", "python benchmarks/speed.py --only step --teacher T", "hf --only step"])
def test_the_check_finds_an_option_that_does_not_exist(code, known_options):
    assert len(misnamed(f"Say `{code}`.", known_options)) == 1
