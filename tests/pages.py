"""The pages of the documentation and those beside the README: their text, and the blocks of code in them."""

import re
from dataclasses import dataclass

from helpers import REPOSITORY

BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
NOT_RUN = "not run: "
FRAGMENT = "fragment: "


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path of its page in the repository.
        line: number of its first line of code.
        language: what the fence says.
        code: its text.
        note: the comment on the line before it, which says why the block is not run, or what it is a part of.
    """

    page: str
    line: int
    language: str
    code: str
    note: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def read_pages():
    paths = [REPOSITORY / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    paths += sorted((REPOSITORY / "docs").glob("*.md"))
    paths += sorted((REPOSITORY / "docs" / "how_to").glob("*.md"))
    return {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in paths}


PAGES = read_pages()


def blocks(language=None, page=None):
    found = []
    for path, text in PAGES.items():
        for match in BLOCK.finditer(text) if page in (None, path) else ():
            line = text[: match.start("code")].count("\n") + 1
            found.append(Block(path, line, match["language"], match["code"], match["note"] or ""))
    return [block for block in found if language in (None, block.language)]


def without_blocks(text):
    """The text between the blocks."""
    return BLOCK.sub("", text)


def inline_code(text):
    """What stands between backticks of a paragraph, each as one line."""
    found = re.findall(r"`((?:[^`\n]|\n(?!\n))+)`", without_blocks(text))
    return [code.replace("\n", " ") for code in found]
