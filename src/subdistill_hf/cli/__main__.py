"""`python -m subdistill_hf.cli`."""

import sys

from subdistill_hf.cli import main

sys.exit(main())
