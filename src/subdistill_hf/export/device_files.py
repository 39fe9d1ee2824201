"""What each format does for the files of a student: make them, and run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Runner = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""Takes a batch of images or pixels, and gives the logits `(B, C)`."""


class DeviceFiles(Protocol):
    """The files of one student in one format. A network is what the format makes of the student's, of any type."""

    @property
    def runtime(self) -> str:
        """What runs the files, with its version."""

    def float_network(self) -> Any:
        """The network in float32.

        Raises:
            ExportError: for an operator that the format does not have, naming it and its layer.
        """

    def quantised(self, network: Any, scheme: str, pixels: Sequence[Array]) -> Any:
        """The network in 8 bits.

        Args:
            network: in float32.
            scheme: one of `ExportFormat.int8_ways`.
            pixels: of calibration images, `(1, 3, H, W)` each.
        """

    def runner(self, network: Any) -> Runner:
        """Runs a network in this process, from pixels to logits."""

    def preprocessing_runner(self) -> Runner:
        """Runs the preprocessing that is inside of the files alone, from images `(B, H, W, 3)` to pixels."""

    def content(self, network: Any) -> bytes:
        """The file of a network."""

    def write_beside(self, folder: Path, networks: Mapping[str, Any]) -> None:
        """Write what lies beside the files.

        Args:
            folder: of the files.
            networks: name of a file to its network.
        """
