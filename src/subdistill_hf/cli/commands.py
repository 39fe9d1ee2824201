"""The commands: parse the words of one, run it, and say what came of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from types import ModuleType
from typing import Any

from subdistill_hf.acceleration.freed_memory import keep_freed_memory
from subdistill_hf.acceleration.threads import wait_passively
from subdistill_hf.cli import (
    adapt,
    analyse,
    benchmark,
    demo,
    distill,
    explain,
    export,
    family,
    inspect,
    push,
    report,
    serve,
)
from subdistill_hf.config.output_folder import disk_fault
from subdistill_hf.errors import (
    INTERRUPTED,
    PushError,
    SubDistillError,
    comes_of_an_interruption,
)

COMMANDS: dict[str, ModuleType] = {
    "distill": distill,
    "family": family,
    "adapt": adapt,
    "inspect": inspect,
    "analyse": analyse,
    "benchmark": benchmark,
    "explain": explain,
    "export": export,
    "report": report,
    "push": push,
    "serve": serve,
    "demo": demo,
}
"""Name to the module of a command, which has `HELP`, a line; `parse`, which takes words to the options that they give;
`run`, which takes these options and the words; and `after_interruption`, which says how to go on with the words."""


class _CommandParser(argparse.ArgumentParser):
    """A command among the others; its own parser is made when it is used, since it takes a second to import.

    Args:
        command: its module.
        options: of the parser.
    """

    def __init__(self, command: ModuleType, **options: Any) -> None:
        super().__init__(add_help=False, **options)
        self.command = command

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The options that were given, and nothing that is left."""
        return argparse.Namespace(**self.command.parse(args)), []


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the namespace of its results holds `command` and the options that were given."""
    parser = argparse.ArgumentParser(
        prog="subdistill",
        usage="subdistill COMMAND [OPTIONS]",
        description="Distil a tiny image classifier for just the classes you need.",
        epilog="subdistill COMMAND --help lists the options of a command.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(
        title="commands",
        prog="subdistill",
        dest="command",
        metavar="COMMAND [OPTIONS]",
        required=True,
        parser_class=_CommandParser,
    )
    for name, module in COMMANDS.items():
        commands.add_parser(name, help=module.HELP, command=module)
    return parser


def run_command(words: Sequence[str]) -> int:
    """Run a command.

    Args:
        words: of the command line, at least one.

    Returns:
        The exit status: 0; 1 for a student that did not get to the Hub; 2 for options that do not fit, or a disk that
        is full; 130 after Ctrl-C, or a training that a signal stopped. All but the first come with a message, and no
        traceback.
    """
    try:
        return _status_of(words)
    except KeyboardInterrupt:
        return _interrupted(words)
    except Exception as error:
        if comes_of_an_interruption(error):
            return _interrupted(words)
        if (fault := disk_fault(error)) is None:
            raise
        return _failed(SubDistillError(f"the disk cannot be written to: {fault}"))


def _status_of(words: Sequence[str]) -> int:
    """Run a command, whatever comes of it but for errors of its own."""
    wait_passively()
    keep_freed_memory()
    if isinstance(sys.stdout, TextIOWrapper):  # names of classes may be in any script, whatever the terminal's is
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = make_parser()
    if words[0] not in (*COMMANDS, "-h", "--help"):
        print(f"unknown command {words[0]!r}\n\n{parser.format_help()}", file=sys.stderr)
        return 2
    try:
        given = vars(parser.parse_args(words))
    except SystemExit as stopped:  # the help was printed
        return int(stopped.code or 0)
    except SubDistillError as error:
        return _failed(error)

    from subdistill_hf.core.distributed import close_process_group, several_processes

    callers = several_processes()
    try:
        _run(given.pop("command"), given, words[1:])
    except SubDistillError as error:
        return _failed(error)
    finally:
        if not callers:  # here, where nothing refers to a trainer any more but the traceback of a crash
            close_process_group()
    return 0


def _run(command: str, given: dict[str, Any], words: Sequence[str]) -> None:
    COMMANDS[command].run(given, words)


def _failed(error: SubDistillError) -> int:
    _say(f"error: {error}")
    if comes_of_an_interruption(error):
        return INTERRUPTED
    return 1 if isinstance(error, PushError) else 2


def _interrupted(words: Sequence[str]) -> int:
    """Say how to go on, in one line."""
    command = COMMANDS.get(words[0])
    advice = "nothing was done" if command is None else command.after_interruption(words[1:])
    _say(f"interrupted: {advice}")
    return INTERRUPTED


def _say(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)  # not on the line of a bar
