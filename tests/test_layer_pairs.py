"""The page of layer pairs says what the code does."""

from helpers import load_script


def test_the_committed_page_of_layer_pairs_is_up_to_date():
    module = load_script("scripts/layer_pairs.py")
    assert module.DOCUMENT.read_text(encoding="utf-8") == module.document()
