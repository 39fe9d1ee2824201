"""Nothing of this machine goes to the Hub: no access token, no local path, no adapter of a model that only it has."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from huggingface_hub import constants, get_token

from subdistill_hf.config.addresses import has_password
from subdistill_hf.errors import SubDistillError
from subdistill_hf.hub.files import ADAPTER_CONFIG_FILE, CARD_FILE, PAGE_FACTS_FILE

TENSORS: Final = (".safetensors", ".bin", ".pt", ".pth", ".npy", ".npz", ".png", ".jpg", ".jpeg", ".webp", ".gif")
"""Ends of the names of files that hold no text."""
LARGEST_TEXT: Final = 2**28
LONGEST_SHOWN: Final = 60

_TOKENS: Final = re.compile(
    r"""(?<![A-Za-z0-9_])(?:
      (?:hf|api_org)_[A-Za-z0-9]{20,}                            # Hugging Face
      |gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}
      |sk-[A-Za-z0-9_-]{20,}                                     # OpenAI, Anthropic
      |AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|xox[abprs]-[A-Za-z0-9-]{10,}|wandb_v1_\w{20,}
      |eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}                  # JSON web tokens
      )|-----BEGIN\ [A-Z ]*PRIVATE\ KEY-----
    """,
    re.VERBOSE,
)
_SECRET_NAME: Final = re.compile(r"TOKEN(?!IZ)|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY", re.IGNORECASE)
_SHORTEST_SECRET: Final = 16
_MODEL: Final = re.compile(r"(?=[^/]+/[^/]+$)[A-Za-z0-9]{1,15}([-_./][A-Za-z0-9]{1,15})+")
"""An id of the Hub, `owner/name`, of words: a secret has longer runs of letters and digits."""

_FOREIGN: Final = re.compile(
    r"""file:/+[^\s"'`<>)\]]+
    |(?<![\w.~:/-])/(?:home|Users)/[^/\s"'`<>)\]][^/\n"'`<>)\]]*        # of a home folder, whose name may have blanks
    |(?<![\w.~:/-])/root/[\w.-]+
    |(?<![A-Za-z0-9])[A-Za-z]:[\\/]+(?:Users|Documents\ and\ Settings)[\\/]+[^\\/\n"'`<>)\]]+
    |(?<![A-Za-z0-9])[A-Z]:\\+[\w .-]+\\+[\w.-]+                        # C:\folder\name
    |(?<![A-Za-z0-9])[A-Z]:/[\w .-]+/[\w.-]+
    |(?<=["'`])[A-Za-z]:[\\/]+(?!/)[^"'`\n]+(?=["'`])
    |(?<![\\\w}])\\\\[A-Za-z0-9][\w.-]+\\[A-Za-z0-9$][\w$-]+            # \\server\share
    |(?<![\\\w}])\\{4}[A-Za-z0-9][\w.-]+\\\\[A-Za-z0-9$][\w$-]+         # the same in JSON
    """,
    re.VERBOSE,
)
"""Paths of any machine by their shape: addresses of files, home folders, drives, shares in a network."""
_BEFORE: Final = r"(?<![\w.~:/-])"
"""What an absolute path begins after: not inside a word, a relative path or an address."""
_ABSOLUTE: Final = re.compile(_BEFORE + r"/[\w.+-]+/[^\n\"'`<>|)\]]+")
_OF_EVERY_MACHINE: Final = ("bin", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "sys", "usr", "var")


class UncleanError(SubDistillError):
    """A file with something that must not be published."""


def check_clean(files: Mapping[str, bytes | Path], folder: str | Path) -> None:
    """Refuse files that hold a token or a path of this machine, and adapters of a model that only this machine has.

    Names of the student's classes may look like paths.

    Args:
        files: name to content, or to the file that holds it; what is no text is searched for tokens alone.
        folder: where they come from.

    Raises:
        UncleanError: naming the file and what it holds.
    """
    folder = Path(folder)
    _check_base(files, folder)
    token, secrets, own = get_token(), _secrets(), _own_paths(folder)
    classes = [name for name in _class_names(files) if _path_in(name, own, is_text=True)]
    names = _as_written(classes) if classes else None
    for name, content in files.items():
        if name.lower().endswith(TENSORS):
            continue
        data = _read(content)
        text = data.decode("utf-8", errors="replace")
        if _TOKENS.search(text) or has_password(text) or (token and token in text):
            raise UncleanError(f"{folder / name} holds an access token: take it out")
        if (variable := next((one for one, value in secrets.items() if value in text), None)) is not None:
            raise UncleanError(
                f"{folder / name} holds an access token, the value of the environment variable {variable}: take it "
                f"out, or unset {variable} if its value is no secret"
            )
        if names:
            text = names.sub("", text)
        if path := _path_in(text, own, is_text=b"\0" not in data):
            raise UncleanError(f"{folder / name} holds a path of this machine, {path}: take it out")


def check_kept_card(folder: str | Path) -> None:
    """As `check_clean`, for a card that a push will keep; does nothing where there is none.

    Args:
        folder: what will be pushed.
    """
    if (card := Path(folder, CARD_FILE)).is_file():
        check_clean({CARD_FILE: card}, folder)


def _check_base(files: Mapping[str, bytes | Path], folder: Path) -> None:
    for name, content in files.items():
        if Path(name).name != ADAPTER_CONFIG_FILE:
            continue
        base = json.loads(_read(content)).get("base_model_name_or_path") or ""
        if Path(base).is_dir():
            raise UncleanError(
                f"{folder / name} is for a model in a folder of this machine, {base}, which nobody else has: save the "
                "student merged (--student_lora_save merged)"
            )


def _read(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content
    with content.open("rb") as file:
        return file.read(LARGEST_TEXT)


def _class_names(files: Mapping[str, bytes | Path]) -> list[str]:
    """The classes that a student's configuration names, or the facts of its page."""
    try:
        if PAGE_FACTS_FILE in files:
            return [str(name) for name in json.loads(_read(files[PAGE_FACTS_FILE]))["labels"]]
        config = json.loads(_read(files["config.json"]))
        return [str(name) for name in config.get("id2label", {}).values()]
    except (KeyError, ValueError, AttributeError):  # none, or no configuration of transformers
        return []


def _as_written(names: list[str]) -> re.Pattern[str]:
    """Finds names in a text or in JSON, but not a folder of that name in a longer path."""
    spellings = {spelling for name in names for spelling in (name, json.dumps(name)[1:-1])}
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile(rf"{_BEFORE}(?:{'|'.join(map(re.escape, longest_first))})(?![\w/\\-]|\.\w)")


def _secrets() -> dict[str, str]:
    """The secrets that the environment of this process knows, by the names of their variables."""
    return {
        name: value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name)
        and len(value) >= _SHORTEST_SECRET
        and re.search(r"\d", value)
        and not _MODEL.fullmatch(value)
        and not Path(value).exists()
    }


def _own_paths(folder: Path) -> list[str]:
    places = [Path.home(), Path.cwd(), folder.resolve(), Path(constants.HF_HOME)]
    return [str(place) for place in places if len(place.parts) > 1]


def _path_in(text: str, own: list[str], is_text: bool) -> str | None:
    """The first path of this machine in a text; in what is no text, only the paths that it knows."""
    before = r"(?<![\w.~/-])" if is_text else r"(?<![\w.~/-]{2})"  # one sign there may be the length of the path
    for path in own:
        if re.search(rf"{before}{re.escape(path)}(?![\w-])", text):
            return path
    if not is_text:
        return None
    if found := _FOREIGN.search(text):
        return found[0].strip()[:LONGEST_SHOWN]
    return next(_existing(text), None)


def _existing(text: str) -> Iterator[str]:
    """Absolute paths in a text that are there on this machine, but not on every one; their names may have blanks."""
    for found in _ABSOLUTE.finditer(text):
        if found[0].split("/")[1] in _OF_EVERY_MACHINE:
            continue
        words = found[0].split(" ")
        for count in range(1, min(len(words), 8) + 1):
            path = " ".join(words[:count]).rstrip(".,;:*_")
            if os.path.exists(path):  # noqa: PTH110 - which takes texts of any length
                yield path
