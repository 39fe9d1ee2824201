"""The page of layer pairs says what the code does."""

import importlib.util

from helpers import REPOSITORY


def script():
    specification = importlib.util.spec_from_file_location("layer_pairs", REPOSITORY / "scripts" / "layer_pairs.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_committed_page_of_layer_pairs_is_up_to_date():
    module = script()
    assert module.DOCUMENT.read_text(encoding="utf-8") == module.document()
