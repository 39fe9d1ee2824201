"""Memory that a step of the training frees is kept for the next step, instead of given back to the system.

glibc gives back what lies free at the end of its heap. Then each step takes it again, page by page: the system clears
these pages, which took a fifth of a step of a student of 128 pixels on a CPU (`benchmarks/freed_memory.py`).
"""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""The names of glibc's settings in its `malloc.h`."""
SETTINGS = {TRIM_THRESHOLD: 1 << 30, TOP_PAD: 64 << 20, MMAP_THRESHOLD: 32 << 20}
"""In bytes: at most 1 GiB stays; the heap grows by 64 MiB; blocks up to 32 MiB, glibc's limit, come from the heap."""
USERS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Beginnings of variables of the environment with which a user decides how memory is allocated."""


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, up to 1 GiB, where it uses glibc and the user did not decide.

    It changes no result. The peak of the memory stays; less is given back between steps.

    Returns:
        Whether it does so now.
    """
    if not sys.platform.startswith("linux") or any(name.startswith(USERS) for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # musl has no such settings
        return False
    return all(library.mallopt(name, size) == 1 for name, size in SETTINGS.items())
