"""Addresses that say who may read them, such as `s3://key:password@bucket`."""

from __future__ import annotations

import re
from typing import Final

_PASSWORD: Final = re.compile(r"""(?<=://)[^\s/:@]*:(?!\d{1,5}/)[^\s"'`<>]*@""")
"""A name and a password, which may hold slashes; a number before a slash is a port."""


def has_password(text: str) -> bool:
    """Whether a text holds an address with a password."""
    return _PASSWORD.search(text) is not None


def without_passwords(text: str) -> str:
    """The text, where addresses with a password have neither it nor the name before it."""
    return _PASSWORD.sub("", text)
