"""Why a dataset cannot be had: faults of this machine. What the Hub says is in test_hub_datasets."""

import datasets
import pytest

from subdistill_hf.data.errors import explained
from subdistill_hf.errors import DataError, SubDistillError


def fail(error, dataset, revision=None, cause=None):
    with explained(str(dataset), revision):
        raise error from cause


def test_the_cause_is_told_where_the_library_says_only_that_it_failed(tmp_path):
    failed = datasets.exceptions.DatasetGenerationError("An error occurred")
    with pytest.raises(DataError, match=r"^dataset '.*' cannot be loaded at revision 'v1': the disk is on fire\.$"):
        fail(failed, tmp_path, "v1", cause=OSError("the disk is on fire"))


def test_what_is_expected_is_told_where_nothing_was_found(tmp_path):
    with pytest.raises(DataError, match=r"cannot be loaded: no file\. Expected glyphs-100 or digits, a folder of im"):
        fail(FileNotFoundError("no file"), tmp_path)


def test_own_messages_and_mistakes_pass():
    with pytest.raises(SubDistillError, match=r"^own words$"):
        fail(SubDistillError("own words"), "user/some")
    with pytest.raises(KeyError):
        fail(KeyError("a mistake"), "user/some")
