"""The README as a package index shows it; everything else about the package is in pyproject.toml.

An index shows the README without the repository around it. Links to files of the repository are broken there. The
project has no address on the web that they could name instead. So the index gets the names of files in place of links.
"""

import re
from pathlib import Path

from setuptools import setup

PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https://)([^)]+)\)")
LINK = re.compile(r"\[([^\]]*)\]\((?!https://)([^)]+)\)")


def for_an_index(readme: str) -> str:
    """The README with the names of the repository's files in place of pictures of them and links to them."""
    readme = PICTURE.sub(r"*Picture: \1 (`\2` in the repository).*", readme)
    return LINK.sub(r"\1 (`\2`)", readme)


if __name__ == "__main__":
    setup(
        long_description=for_an_index(Path(__file__).with_name("README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
