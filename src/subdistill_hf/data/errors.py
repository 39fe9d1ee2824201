"""Why a dataset cannot be had, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from subdistill_hf.errors import DataError, SubDistillError
from subdistill_hf.hub.client import limit_waiting
from subdistill_hf.hub.errors import HTTPError, explain

WHAT_IS_EXPECTED = (
    "Expected glyphs-100 or digits, a folder of images (train/CLASS/NAME.png, test/CLASS/NAME.png), parquet files, or "
    "the id of an image dataset on the Hub"
)


@contextmanager
def explained(dataset: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the client libraries raise inside the block into one message that says what to do.

    Args:
        dataset: the folder, file or id that was asked for.
        revision: the branch, tag or commit that was asked for.

    Raises:
        DataError: for whatever kept the dataset from being read.
    """
    try:
        yield
    except SubDistillError:
        raise
    except (OSError, ValueError, RuntimeError, HTTPError, datasets.exceptions.DatasetsError) as error:
        text = None if Path(dataset).exists() else _remote_reason(dataset, revision)
        raise DataError(text or _local_reason(dataset, revision, error)) from error


def _local_reason(dataset: str, revision: str | None, error: Exception) -> str:
    """The message of the client libraries, and what may help."""
    generated = isinstance(error, datasets.exceptions.DatasetGenerationError)
    reason = explain(error.__cause__ if generated and error.__cause__ else error).rstrip(".")
    at = f" at revision {revision!r}" if revision else ""
    text = f"dataset {dataset!r} cannot be loaded{at}: {reason}."
    if reason.startswith("Not enough disk space"):
        return f"{text} --streaming reads it without a copy on disk of what is not kept"
    return f"{text} {WHAT_IS_EXPECTED}" if isinstance(error, FileNotFoundError) else text


def _remote_reason(dataset: str, revision: str | None) -> str | None:
    """Ask the Hub what stands in the way; `None` when it is neither the access nor the revision."""
    page = f"{HfApi().endpoint}/datasets/{dataset}"
    try:
        limit_waiting()
        HfApi().auth_check(dataset, repo_type="dataset")
        if revision is not None:
            HfApi().dataset_info(dataset, revision=revision)
    except GatedRepoError:
        return (
            f"dataset {dataset!r} is gated: accept its terms at {page}, log in with `hf auth login` and try again, or "
            "choose another --dataset"
        )
    except RepositoryNotFoundError:
        return (
            f"dataset {dataset!r} cannot be loaded: it is not on the Hub, or is private. Check its name; if it is "
            f"private, log in with `hf auth login`. {WHAT_IS_EXPECTED}"
        )
    except RevisionNotFoundError:
        return (
            f"dataset {dataset!r} cannot be loaded at revision {revision!r}: it has no such branch, tag or commit. "
            f"{page} shows its branches and tags"
        )
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            return f"dataset {dataset!r} cannot be loaded: the Hub refuses your token. Log in with `hf auth login`"
        return None
    except (OfflineModeIsEnabled, HTTPError, OSError) as error:
        return (
            f"dataset {dataset!r} cannot be loaded: the Hub cannot be reached ({error}). Check the network and "
            f"HF_HUB_OFFLINE, or choose a dataset of this machine. {WHAT_IS_EXPECTED}"
        )
    except ValueError:  # not a name that the Hub knows
        return None
    return None
