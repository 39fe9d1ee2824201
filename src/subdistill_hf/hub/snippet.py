"""The card's code: how to use a student from its folder, and from the Hub."""

from __future__ import annotations

from typing import Final

EXAMPLE_FILE: Final = "example.png"

_ANSWERS: Final = """\
for answer in classify({image}):
    print(f"{{answer['label']}}: {{answer['score']:.3f}}")"""

_ANSWERS_OR_NONE: Final = """\
answers = classify({image})
for answer in answers:
    print(f"{{answer['label']}}: {{answer['score']:.3f}}")
if answers[0]["score"] < classify.model.config.unknown_threshold:
    print("none of these")"""

ANSWERS: Final = {False: _ANSWERS, True: _ANSWERS_OR_NONE}
"""Code that classifies an image, without and with the threshold for unknown images of config.json."""

_ADAPTED: Final = """\
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

settings = PeftConfig.from_pretrained({place})
base = AutoModelForImageClassification.from_pretrained(
    settings.base_model_name_or_path,
    revision=settings.revision,
    config=AutoConfig.from_pretrained({place}),
    ignore_mismatched_sizes=True,  # the adapter brings the head
)
model = PeftModel.from_pretrained(base, {place}).merge_and_unload()
classify = pipeline("image-classification", model=model, image_processor=AutoImageProcessor.from_pretrained({place}))
"""


def local_code(adapter: bool = False, threshold: bool = False) -> str:
    """Code that classifies the example image, to be run in the student's folder.

    Args:
        adapter: whether the folder holds a PEFT adapter of the student's base.
        threshold: whether the student has one for unknown images.
    """
    answers = ANSWERS[threshold].format(image=f'"{EXAMPLE_FILE}"')
    if adapter:
        return _ADAPTED.format(place='"."') + answers
    return 'from transformers import pipeline\n\nclassify = pipeline("image-classification", model=".")\n' + answers


def hub_code(repo: str, revision: str | None = None, adapter: bool = False, threshold: bool = False) -> str:
    """The same with the student of a repository.

    Args:
        repo: its id on the Hub.
        revision: its branch, if it is not the main one.
        adapter: whether it holds a PEFT adapter.
        threshold: as for `local_code`.
    """
    branch = f', revision="{revision}"' if revision else ""
    load = (
        _ADAPTED.format(place=f'"{repo}"{branch}')
        if adapter
        else (
            "from transformers import pipeline\n"
            "\n"
            f'classify = pipeline("image-classification", model="{repo}"{branch})\n'
        )
    )
    return (
        "from huggingface_hub import hf_hub_download\n"
        + load
        + ANSWERS[threshold].format(image=f'hf_hub_download("{repo}", "{EXAMPLE_FILE}"{branch})')
    )
