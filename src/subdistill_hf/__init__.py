"""SubDistill for the Hugging Face ecosystem: distil a tiny expert for just the classes you need.

The public names are listed in `__init__.pyi`, with the modules that they live in. Each is imported when it is first
used, so that `import subdistill_hf` and `subdistill --help` load no torch.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
