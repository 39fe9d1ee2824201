"""The command line: parse, call, exit."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from subdistill_hf.config.commands import AnalyseOptions, BenchmarkOptions, InspectOptions, PushOptions
from subdistill_hf.config.defaults import RUN_DEFAULTS
from subdistill_hf.config.options import DistillationOptions, TaskOptions

if TYPE_CHECKING:
    from transformers import HfArgumentParser

USAGE = """\
usage: subdistill COMMAND [OPTIONS]

Distil a tiny image classifier for just the classes you need.

commands:
  distill   train a student: subdistill distill --help
  inspect   show the subspaces of a teacher on a subtask: subdistill inspect --help
  analyse   measure how few dimensions of its layers a teacher needs: subdistill analyse --help
  benchmark compare methods over a grid of runs: subdistill benchmark --help
  push      push the folder of a student to the Hub: subdistill push --help
  demo      the whole way on embedded data, in a few minutes: subdistill demo --help
"""

DEMO = (
    "--classes superclass:zodiac_signs --train_images_per_class 50 --compare scratch kd --max_steps 800 "
    "--teacher_cache 32 --output_dir demo-student --overwrite --report_to none"
)

DEMO_USAGE = f"""\
usage: subdistill demo [OPTIONS]

The whole way on embedded data, in a few minutes: the same as

  subdistill distill {DEMO}

Further options of distill (subdistill distill --help) are added to these, and count where both are given.
"""


def make_parser(command: str = "distill", all_arguments: bool = True) -> HfArgumentParser:
    """The parser of a command; without `all_arguments` it lists only this package's options, and imports no torch.

    Args:
        command: `distill`, `inspect`, `analyse`, `push` or `benchmark`.
        all_arguments: include every argument of transformers' `TrainingArguments`.
    """
    from transformers import HfArgumentParser

    if command == "inspect":
        return HfArgumentParser(InspectOptions, prog="subdistill inspect", allow_abbrev=False)
    if command == "analyse":
        return HfArgumentParser(AnalyseOptions, prog="subdistill analyse", allow_abbrev=False)
    if command == "push":
        parser = HfArgumentParser(PushOptions, prog="subdistill push", allow_abbrev=False)
        parser.add_argument("folder", help="Folder of a student, as distill leaves it.")
        return parser
    if command == "benchmark":
        parser = HfArgumentParser(BenchmarkOptions, prog="subdistill benchmark", allow_abbrev=False)
        parser.add_argument(
            "config", help="YAML file of the grid: methods, subtasks, training images, seeds, students."
        )
        return parser
    training: Any = DistillationOptions
    if all_arguments:
        from subdistill_hf.config.training import SubDistillConfig as training  # noqa: N813
    parser = HfArgumentParser(
        (TaskOptions, training),
        prog="subdistill distill",
        allow_abbrev=False,
        epilog="--help-all lists more options: every argument of transformers.TrainingArguments (--learning_rate, "
        "--num_train_epochs, --output_dir, --report_to ...).",
    )
    known = {field.name for field in fields(training)}
    parser.set_defaults(**{name: value for name, value in RUN_DEFAULTS.items() if name in known})
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0; 1 for a student that did not get to the Hub; 2 for options that do not fit. The last two
        come with a message, and no traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command not in ("distill", "demo", "inspect", "analyse", "push", "benchmark"):
        print(f"unknown command {command!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    rest = arguments[1:]
    if "-h" in rest or "--help" in rest or "--help-all" in rest:
        if command == "demo":
            print(DEMO_USAGE)
        else:
            make_parser(command, "--help-all" in rest).print_help()
        return 0
    if command == "demo":
        command, rest = "distill", [*DEMO.split(), *rest]

    from subdistill_hf.core.distributed import close_process_group, has_process_group
    from subdistill_hf.errors import PushError, SubDistillError

    callers = has_process_group()
    try:
        _run(command, rest)
    except SubDistillError as error:
        from tqdm import tqdm

        tqdm.write(f"error: {error}", file=sys.stderr)  # not on the line of a bar
        return 1 if isinstance(error, PushError) else 2
    finally:
        if not callers:  # here, where nothing refers to a trainer any more but the traceback of a crash
            close_process_group()
    return 0


def _run(command: str, arguments: list[str]) -> None:
    from subdistill_hf.config.defaults import together_with
    from subdistill_hf.errors import SubDistillError

    parser = make_parser(command)
    parser.error = partial(_refuse, command)
    if command == "distill":
        parser.set_defaults(**together_with(arguments))
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            arguments, look_for_args_file=False, return_remaining_strings=True
        )
    except (ValueError, ImportError) as error:  # training arguments that contradict each other
        raise SubDistillError(str(error)) from error
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        _refuse(command, f"there is no option {unknown[0]}{hint}")
    if command == "inspect":
        from subdistill_hf.analysis.inspect import inspect

        inspect(parsed[0])
    elif command == "analyse":
        from subdistill_hf.analysis.analyse import analyse

        analyse(parsed[0])
    elif command == "push":
        from subdistill_hf.hub.publish import push_folder

        options, given = parsed
        print(push_folder(given.folder, options.repo, options.private or None, options.revision))
    elif command == "benchmark":
        from subdistill_hf.benchmark.command import benchmark

        options, given = parsed
        benchmark(given.config, options, command=shlex.join(["subdistill", "benchmark", *arguments]))
    else:
        from subdistill_hf.config.defaults import choose_defaults, given_options
        from subdistill_hf.pipeline.run import distill

        chosen = choose_defaults(parsed[0], given_options(arguments))
        if chosen and parsed[1].process_index == 0:
            print("chosen for this teacher, as nothing else was asked for:", *chosen, sep="\n  ", end="\n\n")
        distill(parsed[0], parsed[1], command=shlex.join(["subdistill", "distill", *_without_token(arguments)]))


def _refuse(command: str, message: str) -> NoReturn:
    """What does not fit in a command line, without the usage of over a hundred options before it."""
    from subdistill_hf.errors import SubDistillError

    raise SubDistillError(f"{message} (subdistill {command} --help lists the options)")


def _without_token(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--hub_token` and its value, for the card."""
    kept: list[str] = []
    for previous, word in zip(["", *arguments], arguments, strict=False):
        names = [text.partition("=")[0].replace("-", "_") for text in (previous, word)]
        if "__hub_token" not in (names[1], names[0] if "=" not in previous else ""):
            kept.append(word)
    return kept


if __name__ == "__main__":
    sys.exit(main())
