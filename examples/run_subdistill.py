"""Distil a student for a few classes: the reference script, for `python`, `accelerate launch` and `torchrun`.

It takes the options of `subdistill distill` (see `--help`) and calls the same function.
"""

import sys

from subdistill_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
