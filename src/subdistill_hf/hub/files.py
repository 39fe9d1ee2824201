"""The files of a folder that go to the Hub: student, processor, card and images, and nothing of this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from huggingface_hub import get_token

from subdistill_hf.errors import SubDistillError
from subdistill_hf.hub.snippet import EXAMPLE_FILE

CARD_FILE: Final = "README.md"
ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
NAMED: Final = ("config.json", "preprocessor_config.json", "processor_config.json", ADAPTER_CONFIG_FILE, CARD_FILE)
WEIGHTS: Final = re.compile(r"(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
TEXT: Final = (".json", ".md", ".py")
TRAINER_STATE: Final = "trainer_state.json"
TOKEN: Final = re.compile(r"\bhf_[A-Za-z0-9]{20,}")


class UncleanError(SubDistillError):
    """A file with something that must not be published."""


def student_files(folder: str | Path) -> dict[str, bytes]:
    """The files of a student, by name; read now, whatever comes later.

    These are its configuration and weights (or those of an adapter), its processor, its card, the images that the
    card shows, the example image of the card's code, and the code of a model that brings its own. Checkpoints,
    alignments, subspaces, logs and reports are not among them.

    Args:
        folder: where a trainer or `distill` wrote the student.
    """
    folder = Path(folder)
    present = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    card = present[CARD_FILE].read_text(encoding="utf-8") if CARD_FILE in present else ""
    own_code = "config.json" in present and "auto_map" in json.loads(present["config.json"].read_bytes())
    return {
        name: path.read_bytes()
        for name, path in present.items()
        if name in NAMED
        or WEIGHTS.fullmatch(name)
        or (path.suffix == ".png" and (name == EXAMPLE_FILE or f"]({name})" in card))
        or (path.suffix == ".py" and own_code)
    }


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


def check_clean(files: dict[str, bytes], folder: str | Path) -> None:
    """Refuse texts that hold a token or a path of this machine, and adapters of a model that only this machine has.

    Args:
        files: name to content.
        folder: where they come from.

    Raises:
        UncleanError: naming the file and what it holds.
    """
    if ADAPTER_CONFIG_FILE in files:
        base = json.loads(files[ADAPTER_CONFIG_FILE]).get("base_model_name_or_path") or ""
        if Path(base).is_dir():
            raise UncleanError(
                f"{Path(folder) / ADAPTER_CONFIG_FILE} is for a model in a folder of this machine, {base}, which "
                "nobody else has: save the student merged (--student_lora_save merged)"
            )
    own = {str(path) for path in (Path.home(), Path.cwd(), Path(folder).resolve()) if len(path.parts) > 1}
    token = get_token()
    for name, content in files.items():
        if not name.endswith(TEXT):
            continue
        text = content.decode("utf-8", errors="replace")
        if TOKEN.search(text) or (token and token in text):
            raise UncleanError(f"{Path(folder) / name} holds an access token: take it out")
        for path in own:
            if re.search(rf"{re.escape(path)}(?![\w-])", text):
                raise UncleanError(f"{Path(folder) / name} holds a path of this machine, {path}: take it out")
