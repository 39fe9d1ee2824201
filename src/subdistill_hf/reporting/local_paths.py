"""Paths of this machine, of which only the name stays, and passwords in addresses: no card may hold them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from subdistill_hf.config.addresses import without_passwords

CLASS_OPTIONS: Final = ("classes", "mark_classes")
"""Options of the command line whose values are names of classes, which may look like paths."""

_ROOT: Final = r"(?:file:/*(?=[/\\A-Za-z~]))?(?:~[\w.-]*[\\/]|\.\.[\\/]|[A-Za-z]:[\\/]|\\\\|/)"
_USER: Final = r"[^\s\\/\"'`]+(?:\ [^\s\\/\"'`]+){0,2}"  # a home folder's name, which may have blanks
_HOMES: Final = r"(?:/(?:home|Users)/|[A-Za-z]:[\\/]+Users[\\/]+)"
_HOME: Final = re.compile(
    r"(?:file:/*)?(?:~[\w.-]*|/root|/(?:home|Users)/[^/]+|[A-Za-z]:[\\/]+Users[\\/]+[^\\/]+)[\\/]*"
)
_QUOTED: Final = re.compile(rf"""(?P<quote>["'])(?P<path>{_ROOT}[^\n]*?)(?P=quote)""")
_PART: Final = r"""[^\s"'`,;:()\[\]{}<>|\\/]+"""
_BEFORE: Final = r"(?<![\w:/.~\\-])(?:file:/*(?=[/~A-Za-z\\]))?"  # not inside a word, a relative path or an address
_IN_HOME: Final = re.compile(rf"{_BEFORE}{_HOMES}{_USER}[\\/]+(?:{_PART}[\\/]+)*(?={_PART})", re.VERBOSE)
_HOME_ALONE: Final = re.compile(rf"{_BEFORE}{_HOMES}{_PART}[\\/]*")
_BARE: Final = re.compile(
    rf"""{_BEFORE}
    (?:(?:~[\w.-]*[\\/]+|(?:\.\.[\\/]+)+|[A-Za-z]:[\\/]+|\\\\+)(?:{_PART}[\\/]+)*  # ~/..., ../..., C:\... or \\...
      |/{{1,2}}(?:{_PART}/)+)             # /folder/... or //server/...
    (?={_PART})                           # then a name, which stays
    """,
    re.VERBOSE,
)


def is_local(text: str) -> bool:
    """Whether a text is an absolute path: of Unix or Windows, a home folder's, or of a share in a network."""
    return re.match(_ROOT, text) is not None or _HOME.fullmatch(text) is not None


def file_name(path: str) -> str:
    """The last part of an absolute path, `~` for a home folder; anything else as it is."""
    if _HOME.fullmatch(path):
        return "~"
    parts = [part for part in re.split(r"[\\/]+", path) if part]
    return parts[-1] if is_local(path) and parts else path


def without_folders(value: Any) -> Any:
    """Shorten the absolute paths in a value: texts that are one, and those in a text, quoted or without blanks.

    Passwords in addresses are taken out.
    """
    if isinstance(value, str):
        value = without_passwords(value)
        if is_local(value):
            return file_name(value)
        text = re.sub(rf"{re.escape(str(Path.home()))}(?![\w.-])", "~", value) if Path.home() != Path("/") else value
        text = _QUOTED.sub(lambda found: f"{found['quote']}{file_name(found['path'])}{found['quote']}", text)
        return _BARE.sub("", _HOME_ALONE.sub("~", _IN_HOME.sub("", text)))
    if isinstance(value, Mapping):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(entry) for entry in value]
    return value


def command_without_folders(command: str) -> str:
    """Shorten the absolute paths in a command, but not the names of classes, and take passwords out.

    Args:
        command: as `shlex.join` writes it.
    """
    try:
        given = shlex.split(command)
    except ValueError:  # a quote that does not close: no command of a shell
        return str(without_folders(command))
    words, option = [], ""
    for word in given:
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            name, equals, value = "", "", word
        else:
            option = name.removeprefix("--").replace("-", "_")
        words.append(name + equals + (value if option in CLASS_OPTIONS else without_folders(value)))
    return shlex.join(words)
