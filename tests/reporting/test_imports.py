"""What makes cards and plots needs no torch."""

import pkgutil
import subprocess
import sys

from subdistill_hf import reporting

MODULES = [f"subdistill_hf.reporting.{module.name}" for module in pkgutil.iter_modules(reporting.__path__)]


def test_no_module_of_reporting_imports_torch():
    assert "subdistill_hf.reporting.model_card" in MODULES
    script = (
        f"import importlib, sys; [importlib.import_module(name) for name in {MODULES}]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
