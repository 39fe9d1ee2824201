"""The energy that a training takes, as codecarbon estimates it where it is installed."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from subdistill_hf.config.extras import has_extra


@dataclass
class Energy:
    """The measured energy; `None` without codecarbon, or where it could not measure.

    Attributes:
        kilowatt_hours: of the whole machine, or what codecarbon is set up to track.
        source: codecarbon and its version.
    """

    kilowatt_hours: float | None = None
    source: str | None = None


@contextmanager
def measured_energy(wanted: bool = True) -> Iterator[Energy]:
    """Measure the energy of a block, without a network: nothing is looked up, sent, or written to files.

    codecarbon comes with the extra `energy`: `pip install 'subdistill-hf[energy]'`.

    Args:
        wanted: whether to measure at all; one of several processes measures for the machine.

    Yields:
        What is filled in when the block ends.
    """
    energy = Energy()
    if not wanted or not has_extra("energy"):
        yield energy
        return
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(save_to_file=False, log_level="critical", allow_multiple_runs=True)
    tracker.start()
    try:
        yield energy
    finally:
        tracker.stop()
    data = getattr(tracker, "final_emissions_data", None)
    if data is None:  # it keeps its own errors to itself
        print("note: codecarbon measured nothing on this machine; the card will not name the energy", file=sys.stderr)
        return
    energy.kilowatt_hours = float(data.energy_consumed)
    energy.source = f"codecarbon {importlib.metadata.version('codecarbon')}"
