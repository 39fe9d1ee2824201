"""The committed cards: whole, listed, and without a path of the machine that wrote them."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from helpers import REPOSITORY
from subdistill_hf.reporting.local_paths import without_folders

CARDS = sorted(REPOSITORY.glob("model_cards/*/README.md"))


def test_every_card_is_listed():
    listed = set(re.findall(r"\]\(([^)]+)\)", (REPOSITORY / "model_cards" / "README.md").read_text(encoding="utf-8")))
    assert listed == {f"{card.parent.name}/README.md" for card in CARDS}
    assert len(CARDS) >= 2


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_a_card_has_its_metadata_and_its_images(path: Path):
    card = ModelCard.load(path)
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-classification")
    assert card.data.license == "apache-2.0"
    assert card.data.eval_results[0].dataset_split == "test"
    shown = set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card.text))
    assert shown == {image.name for image in path.parent.glob("*.png")}
    assert sum(image.stat().st_size for image in path.parent.glob("*.png")) < 600_000
    assert without_folders(card.text) == card.text
    assert "**It knows nothing else.**" in card.text
