"""The command line's entry point. What it needs is imported inside it, so that Ctrl-C finds it while that goes on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from subdistill_hf.errors import INTERRUPTED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, see `commands.run_command`.

    Args:
        arguments: the words of the command line; those of this process with `None`.

    Returns:
        The exit status.
    """
    try:
        from subdistill_hf.cli.commands import run_command

        return run_command(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
    except KeyboardInterrupt:  # before a command could begin, or when it had ended
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
