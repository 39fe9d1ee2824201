"""The pictures of a run, as they stand in its page: inside of it, so that it needs no other file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

MOST_BYTES: Final = 1_300_000
"""Of all pictures of a page, as they are written into it."""
QUALITY: Final = 82
LARGEST_FILE: Final = 2_000_000
"""Bytes; a larger file is no picture of ours, and is not read."""


class Pictures:
    """The pictures in the folder of a run, as addresses that hold them, as far as a page has room for them.

    A picture is decoded and written again, so that nothing gets into the page but its pixels.

    Args:
        folder: of the run; without one there are no pictures.
        most_bytes: of all pictures together.
    """

    def __init__(self, folder: Path | None, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._left = folder, most_bytes
        self._found: dict[tuple[str, int], str | None] = {}
        self.left_out = 0
        """Number of pictures that the page has no room for."""

    def address(self, folder: str, name: str | None, most_pixels: int) -> str | None:
        """A picture; `None` where there is none, or no room for it.

        Args:
            folder: below that of the run.
            name: of the file there.
            most_pixels: of the longer side; larger ones are made smaller.
        """
        if name is None or self._folder is None or Path(name).name != name:
            return None
        key = (f"{folder}/{name}", most_pixels)
        if key not in self._found:
            self._found[key] = self._with_room(self._folder / folder / name, most_pixels)
        return self._found[key]

    def _with_room(self, path: Path, most_pixels: int) -> str | None:
        content = _as_webp(path, most_pixels)
        if content is None:
            return None
        address = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
        if len(address) > self._left:
            self.left_out += 1
            return None
        self._left -= len(address)
        return address


def _as_webp(path: Path, most_pixels: int) -> bytes | None:
    """A picture of at most so many pixels a side; small ones keep their pixels as they are."""
    if not path.is_file() or path.stat().st_size > LARGEST_FILE:
        return None
    try:
        with Image.open(path, formats=("PNG", "WEBP", "JPEG")) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None
    small = max(picture.size) <= 64
    if max(picture.size) > most_pixels:
        picture = ImageOps.contain(picture, (most_pixels, most_pixels), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    picture.save(written, "WEBP", lossless=small, quality=QUALITY)
    return written.getvalue()
