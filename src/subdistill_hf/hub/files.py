"""The files of a folder that go to the Hub: student, processor, card and images, and nothing of this machine."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from subdistill_hf.config.export_formats import EXPORT_FORMATS
from subdistill_hf.hub.snippet import EXAMPLE_FILE

CARD_FILE: Final = "README.md"
ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
CONFIG_FILE: Final = "config.json"
PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
NAMED: Final = (CONFIG_FILE, *PROCESSOR_FILES, ADAPTER_CONFIG_FILE, CARD_FILE)
WEIGHTS: Final = re.compile(r"(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
EXPORT_FOLDERS: Final = tuple(EXPORT_FORMATS)
"""The folders of a student for devices, each with an `EXPORT_FILE` by which it is known."""
EXPORT_FILE: Final = "export.json"
OF_OTHER_WEIGHTS: Final = "was exported from other weights than the student has"
SHEET_FILE: Final = "contact_sheet.png"
PLOT_FILES: Final = ("training_curves.png", "subspaces.png", "scores.png", "confusion.png")
CARD_PICTURES: Final = (
    EXAMPLE_FILE,
    SHEET_FILE,
    *PLOT_FILES,
    *(known.figure for known in EXPORT_FORMATS.values()),
)
"""The pictures that this package writes for a card; a card shows those that were made."""
PAGE_FACTS_FILE: Final = "student.json"
"""What the page of a student knows of it."""
PAGE_STUDENTS: Final = (EXPORT_FORMATS["onnx"].float_file, EXPORT_FORMATS["onnx"].int8_file)
"""The student of a page is one of these files."""
PAGE_PICTURES: Final = re.compile(r"examples/\d{3,}(-teacher|-student)?\.png")
"""The pictures of a page's explained examples."""
EXPORTED: Final = (".json", ".py", *(known.suffix for known in EXPORT_FORMATS.values()))
TRAINER_STATE: Final = "trainer_state.json"


def why_no_student(folder: str | Path) -> str | None:
    """Why a folder is none of a student, and which folder in it is one; `None` for one of a student."""
    folder = Path(folder)
    if _holds_weights(folder):
        return None
    inner = sorted(path for path in folder.iterdir() if _holds_weights(path)) if folder.is_dir() else []
    hint = f". Folders in it do: give one of them, such as {inner[0]}" if inner else ""
    return f"{folder} holds no student: expected a folder with model.safetensors, as distill leaves it{hint}"


def _holds_weights(folder: Path) -> bool:
    return folder.is_dir() and any(WEIGHTS.fullmatch(path.name) for path in folder.iterdir())


def student_files(folder: str | Path) -> dict[str, bytes]:
    """The files of a student, by name; read now, whatever comes later.

    These are its configuration and weights (or those of an adapter), its processor, its card, the images that the
    card shows, the example image of the card's code, the code of a model that brings its own, and its folders for
    devices. Checkpoints, alignments, subspaces, logs and reports are not among them.

    Args:
        folder: where a trainer or `distill` wrote the student.
    """
    folder = Path(folder)
    present = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    card = present[CARD_FILE].read_text(encoding="utf-8") if CARD_FILE in present else ""
    own_code = "config.json" in present and "auto_map" in json.loads(present["config.json"].read_bytes())
    own = {
        name: path.read_bytes()
        for name, path in present.items()
        if name in NAMED
        or WEIGHTS.fullmatch(name)
        or (path.suffix == ".png" and (name == EXAMPLE_FILE or f"]({name})" in card))
        or (path.suffix == ".py" and own_code)
    }
    return own | exported_files(folder)


def stale_files(there: Iterable[str], pushed: Collection[str], replaced: str | None = None) -> list[str]:
    """The files of an earlier push that do not belong to the student, or to the page, that is pushed now.

    A program that reads the repository would take an old adapter, or an old file for devices, for the new student.
    Only files that this package writes are among them, so files of the user stay.

    Args:
        there: names of the files in the repository.
        pushed: names of the files that are pushed.
        replaced: a folder in the repository that is to hold what is pushed, and nothing else.

    Returns:
        The names, sorted.
    """
    left = sorted(set(there) - set(pushed))
    whole = [] if replaced is None else [name for name in left if name.startswith(f"{replaced}/")]
    if PAGE_FACTS_FILE in pushed:
        return whole + [name for name in left if name in PAGE_STUDENTS or PAGE_PICTURES.fullmatch(name)]
    if not any(WEIGHTS.fullmatch(name) for name in pushed):
        return whole
    kinds = {CONFIG_FILE, ADAPTER_CONFIG_FILE}
    if any(name in PROCESSOR_FILES for name in pushed):  # a student without one may be used with that which is there
        kinds |= set(PROCESSOR_FILES)
    if CARD_FILE in pushed:  # a checkpoint has no card: the one that is there stays, with what it shows
        kinds |= set(CARD_PICTURES)
    exported = tuple(f"{folder}/" for folder in EXPORT_FOLDERS)
    return whole + [name for name in left if name in kinds or WEIGHTS.fullmatch(name) or name.startswith(exported)]


def exported_files(folder: str | Path) -> dict[str, bytes]:
    """The files of a student's folders for devices, by their paths below the student's.

    A folder that was made of other weights than the student now has is left out, with a warning.

    Args:
        folder: of the student.
    """
    places = []
    for name in EXPORT_FOLDERS:
        place = Path(folder, name)
        if not (place / EXPORT_FILE).is_file():
            continue
        if is_of_these_weights(place):
            places.append(place)
        else:
            warnings.warn(f"{place} {OF_OTHER_WEIGHTS}, and is left out: {export_again(folder, name)}", stacklevel=2)
    paths = sorted(path for place in places for path in place.rglob("*") if path.suffix in EXPORTED and path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def weights_identity(folder: str | Path) -> str:
    """A digest of the weights that a student's folder holds."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).iterdir() if WEIGHTS.fullmatch(path.name)):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


def is_of_these_weights(place: Path) -> bool:
    """Whether a folder for devices was made of the weights beside it; one that does not say so is taken to be."""
    recorded = json.loads((place / EXPORT_FILE).read_text(encoding="utf-8")).get("weights")
    return recorded in (None, weights_identity(place.parent))


def export_again(folder: str | Path, name: str) -> str:
    """What to do about files for devices that are of other weights.

    Args:
        folder: of the student.
        name: of the format.
    """
    return f"run subdistill export {folder} --format {name} again, or remove the folder"


def checkpoint_files(folder: str | Path) -> dict[str, bytes | Path]:
    """All files of a trainer's checkpoint, by name; its state names the best checkpoint without a local path.

    Args:
        folder: the checkpoint's folder.
    """
    folder = Path(folder)
    files: dict[str, bytes | Path] = {
        str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()
    }
    if (state := folder / TRAINER_STATE).is_file():
        content = json.loads(state.read_text(encoding="utf-8"))
        if best := content.get("best_model_checkpoint"):
            content["best_model_checkpoint"] = Path(best).name
            files[TRAINER_STATE] = json.dumps(content, indent=2).encode()
    return files
