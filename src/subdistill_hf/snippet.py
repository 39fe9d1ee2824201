"""The card's code: how to use a student from its folder, and from the Hub."""

from __future__ import annotations

from typing import Final

EXAMPLE_FILE: Final = "example.png"

_ANSWERS: Final = """\
for answer in classify({image}):
    print(f"{{answer['label']}}: {{answer['score']:.3f}}")"""


def local_code() -> str:
    """Code that classifies the example image, to be run in the student's folder."""
    return (
        "from transformers import pipeline\n"
        "\n"
        'classify = pipeline("image-classification", model=".")\n' + _ANSWERS.format(image=f'"{EXAMPLE_FILE}"')
    )


def hub_code(repo: str, revision: str | None = None) -> str:
    """The same with the student of a repository.

    Args:
        repo: its id on the Hub.
        revision: its branch, if it is not the main one.
    """
    branch = f', revision="{revision}"' if revision else ""
    return (
        "from huggingface_hub import hf_hub_download\n"
        "from transformers import pipeline\n"
        "\n"
        f'classify = pipeline("image-classification", model="{repo}"{branch})\n'
        + _ANSWERS.format(image=f'hf_hub_download("{repo}", "{EXAMPLE_FILE}"{branch})')
    )
