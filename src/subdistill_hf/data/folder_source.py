"""A folder of images, here or on the Hub: every file in it is a row, or is said to be left out."""

from __future__ import annotations

import mimetypes
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

import datasets
from PIL import Image

from subdistill_hf.data.columns import ImageColumns, Label
from subdistill_hf.data.folder_layout import Layout, composed, read_layout, split_paths
from subdistill_hf.data.tables import draw_rows, drawn_places
from subdistill_hf.errors import DataError

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
OF_OTHER_TOOLS = ("__MACOSX", "__pycache__")
READ_AS_JPEG = {"MPO"}
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS"}  # formats that Pillow knows and cannot read alone


@dataclass
class FolderFiles:
    """The files of a folder, by what they are; paths are relative, with slashes.

    Attributes:
        images: what Pillow reads, by their names.
        parquet: parquet files.
        metadata: the files that describe images, as `datasets` names them.
        archives: packed files.
        others: other files.
        folders: all folders, but for hidden ones; only where they are told beside their files.
        left_out: why images are not read, and which.
    """

    images: list[str] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, path: str, looks_like_image: Callable[[], bool] = lambda: False) -> None:
        """Sort in a file.

        Args:
            path: of the file.
            looks_like_image: asked for a file whose name has no ending.
        """
        name = path.rpartition("/")[2]
        ending = PurePosixPath(name).suffix.lower()
        if ending in image_endings() or (not ending and looks_like_image()):
            (self.left_out["in hidden files or folders"] if _is_hidden(path) else self.images).append(path)
        elif _is_hidden(path):
            return
        elif name in METADATA_FILES:
            self.metadata.append(path)
        elif ending == ".parquet":
            self.parquet.append(path)
        elif ending in ARCHIVES:
            self.archives.append(path)
        else:
            self.others.append(path)
            kind = mimetypes.guess_type(name)[0]
            if kind is None or kind.startswith(("image/", "video/")):
                self.left_out[f"of no image format that is read here ({ending or 'no ending'})"].append(path)

    def all_folders(self) -> set[str]:
        """The folders of all files, and those without one."""
        paths = [self.images, self.archives, self.others, *self.left_out.values()]
        return {path.rpartition("/")[0] for inside in paths for path in inside} | set(self.folders)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part in OF_OTHER_TOOLS for part in path.split("/"))


@lru_cache
def image_endings() -> frozenset[str]:
    """The endings of names of the image formats that Pillow reads here."""
    Image.init()
    read = (set(Image.OPEN) | READ_AS_JPEG) - STUBS
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if ending and kind in read)


def is_image_file(path: Path) -> bool:
    """Whether a path is a file whose name says that it is an image; whether it holds one is not looked at."""
    return path.suffix.lower() in image_endings() and path.is_file()


def scan_folder(folder: Path) -> FolderFiles:
    """List the files of a folder and those below it; links are followed, but not in circles.

    Raises:
        DataError: for a folder that cannot be read.
    """
    files = FolderFiles()
    _scan(folder, "", files, frozenset())
    return files


def _scan(folder: Path, begin: str, files: FolderFiles, above: frozenset[tuple[int, int]]) -> None:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from error
    own = status.st_dev, status.st_ino
    if own in above:
        return  # a link to a folder that this one is in
    for entry in entries:
        path = f"{begin}{entry.name}"
        if not _is_text(entry.name):
            files.left_out["with names that are not UTF-8"].append(path.encode(errors="backslashreplace").decode())
        elif entry.is_dir():
            if not _is_hidden(path):
                files.folders.append(path)
            _scan(folder / entry.name, f"{path}/", files, above | {own})
        elif entry.is_file():
            files.add(path, lambda entry=entry: _can_be_opened(entry.path))  # type: ignore[misc]
        elif entry.is_symlink() and not _is_hidden(path):
            files.left_out["whose links lead nowhere"].append(path)
        elif PurePosixPath(entry.name).suffix.lower() in image_endings():
            files.left_out["that are no plain files"].append(path)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _can_be_opened(path: str) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # it is something else
        return False


class FolderSource:
    """Images in folders of their classes; nothing is read before it is wanted.

    Args:
        files: what is in the folder.
        place: what the folder is called in messages.
        locate: gives the places on this machine of files, by their relative paths.
        revision: the commit, for a dataset of the Hub.

    Raises:
        DataError: when the layout of the folder tells no classes, or one alone.
    """

    def __init__(
        self,
        files: FolderFiles,
        place: str,
        locate: Callable[[Sequence[str]], Sequence[str]],
        revision: str | None = None,
    ) -> None:
        layout = read_layout(files.images, place)
        self.images_of, self.locate = layout.images, locate
        self.revision: str | None = revision
        self.unusable: Mapping[str, Mapping[str, str]] = {}  # each image has a place and a class
        self.splits: tuple[str, ...] = tuple(layout.images)
        self.classes = layout.classes
        self.features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=self.classes)}
        )
        left_out = {**files.left_out, **layout.left_out}
        if files.archives:
            left_out["packed, and not unpacked"] = files.archives
        empty = _empty_classes(files, layout)
        self.notices: Sequence[str] = [*layout.notices, *left_out_notices(left_out), *empty]
        if len(self.classes) < 2:
            also = "".join(f"; {notice}" for notice in self.notices)
            raise DataError(
                f"{place} has one folder of a class alone, {self.classes[0]!r}: expected at least two{also}"
            )

    def column(self, split: str, name: str) -> list[Label | None]:
        """The labels of all images of a split."""
        places = {name: place for place, name in enumerate(self.classes)}
        return [places[name] for _, name in self.images_of[split]]

    def count(self, split: str) -> int:
        """The number of images of a split."""
        return len(self.images_of[split])

    def without_class(self, split: str, name: str) -> int:
        """No image: each is in the folder of its class."""
        return 0

    def some_rows(
        self, split: str, columns: ImageColumns, labels: Sequence[Label], each: int, seed: int
    ) -> datasets.Dataset:
        """Some rows with these labels; on the Hub no other image is downloaded."""
        own = [label for label in self.column(split, columns.label) if label in labels]
        return self._rows_of(split, labels, drawn_places(own, labels, each, seed))

    def images(self, split: str, column: str, most: int, seed: int) -> datasets.Dataset:
        """Some images, whatever their class."""
        return images_at(self.locate, [path for path, _ in self.images_of[split]], most, seed)

    def rows(self, split: str, columns: ImageColumns, labels: Sequence[Label]) -> datasets.Dataset:
        """The images of these classes, in the order of their paths."""
        return self._rows_of(split, labels)

    def _rows_of(self, split: str, labels: Sequence[Label], some: Sequence[int] | None = None) -> datasets.Dataset:
        """The images of these classes, or those at some places among them."""
        wanted = {self.classes[int(label)]: int(label) for label in labels}
        chosen = [(path, wanted[name]) for path, name in self.images_of[split] if name in wanted]
        chosen = chosen if some is None else [chosen[place] for place in some]
        places = self.locate([path for path, _ in chosen])
        return datasets.Dataset.from_dict(
            {"image": list(places), "label": [label for _, label in chosen]}, features=self.features
        )


class UnlabelledFolder:
    """Images in a folder, whatever folders they lie in; the first folders tell splits where their names are splits'.

    Args:
        files: what is in the folder.
        place: what the folder is called in messages.
        locate: gives the places on this machine of files, by their relative paths.
        revision: the commit, for a dataset of the Hub.

    Raises:
        DataError: when there are no images.
    """

    features = datasets.Features({"image": datasets.Image()})

    def __init__(
        self,
        files: FolderFiles,
        place: str,
        locate: Callable[[Sequence[str]], Sequence[str]],
        revision: str | None = None,
    ) -> None:
        self.locate, self.revision = locate, revision
        self.unusable: Mapping[str, Mapping[str, str]] = {}
        self.notices: Sequence[str] = left_out_notices(files.left_out)
        self.images_of = split_paths(files.images)
        self.splits: tuple[str, ...] = tuple(self.images_of)
        if not files.images:
            also = "".join(f"; {notice}" for notice in self.notices)
            raise DataError(f"{place} holds no images that are read{also}")

    def count(self, split: str) -> int:
        """The number of images of a split."""
        return len(self.images_of[split])

    def images(self, split: str, column: str, most: int, seed: int) -> datasets.Dataset:
        """Some images."""
        return images_at(self.locate, self.images_of[split], most, seed)


def images_at(
    locate: Callable[[Sequence[str]], Sequence[str]], paths: Sequence[str], most: int, seed: int
) -> datasets.Dataset:
    """Some of the images at these paths, as a table of one column."""
    places = locate([paths[place] for place in draw_rows(len(paths), most, seed)])
    return datasets.Dataset.from_dict({"image": list(places)}, features=UnlabelledFolder.features)


def left_out_notices(left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Notes on images that are on the disk and not used."""
    return [
        f"left out: {len(paths)} files {why}, such as {', '.join(map(printable, paths[:3]))}"
        for why, paths in left_out.items()
        if paths
    ]


def printable(text: str) -> str:
    """A name with line breaks and the like written out."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _empty_classes(files: FolderFiles, layout: Layout) -> list[str]:
    """A notice of the folders without an image that is read, beside the folders of the classes."""
    found = {
        folder.removeprefix(begin).partition("/")[0]
        for folder in files.all_folders()
        for begin in layout.roots
        if folder.startswith(begin)
    }
    known = {*layout.classes, ""}
    missing = sorted(name for name in found if composed(name) not in known and not _is_hidden(name))
    return [f"no class: {', '.join(map(printable, missing[:10]))}, none of whose files is read"] if missing else []
