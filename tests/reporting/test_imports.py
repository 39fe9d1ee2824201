"""What makes cards and plots needs no torch."""

import pkgutil
import subprocess
import sys

from subdistill_hf import reporting

MODULES = [module.name for module in pkgutil.walk_packages(reporting.__path__, f"{reporting.__name__}.")]


def test_no_module_of_reporting_imports_torch():
    assert {"subdistill_hf.reporting.model_card", "subdistill_hf.reporting.page.page"} <= set(MODULES)
    script = (
        f"import importlib, sys; [importlib.import_module(name) for name in {MODULES}]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
