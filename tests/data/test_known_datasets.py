"""What is kept of a Hub dataset for when the Hub cannot be reached."""

import pytest

from helpers import glyph_rows
from subdistill_hf.config.options import DataOptions
from subdistill_hf.data.known_datasets import KnownDataset, recall, remember

pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_what_was_learnt_is_known_again_for_the_same_dataset_configuration_and_revision():
    known = KnownDataset("default", "0123abc", ("train", "test"), glyph_rows().features)
    remember(DataOptions("user/known", dataset_revision="v2"), known)
    assert recall(DataOptions("user/known", ["other", "classes"], dataset_revision="v2")) == known
    for other in (
        DataOptions("user/known"),
        DataOptions("user/unknown", dataset_revision="v2"),
        DataOptions("user/known", dataset_revision="v2", dataset_config="large"),
    ):
        assert recall(other) is None
    newer = KnownDataset("default", "4567def", ("train",), glyph_rows().features)
    remember(DataOptions("user/known", dataset_revision="v2"), newer)
    assert recall(DataOptions("user/known", dataset_revision="v2")) == newer
