"""What the tests of the commands share: their inputs, and how they are run."""

import contextlib
import io
import shutil

from helpers import NAMES, damaged_png, save_teacher, write_image_folder
from subdistill_hf.cli import main
from subdistill_hf.data.embedded.glyph_classes import CLASS_NAMES

DAMAGED_TRAINING, DAMAGED_TEST, UNTRAINED = CLASS_NAMES[20], CLASS_NAMES[21], CLASS_NAMES[22]
STRANGER = "zzz_unknown_to_the_teacher"


def write_inputs(folder):
    """A teacher of 100 classes, and images: three good classes and four with something wrong."""
    save_teacher(folder / "teacher")
    images = write_image_folder(folder / "images", train=10, test=4)
    for split in ("train", "test"):
        for name in (DAMAGED_TRAINING, DAMAGED_TEST, STRANGER):
            shutil.copytree(images / split / NAMES[0], images / split / name)
            for path in (images / split / name).iterdir():  # the same pictures in files of their own
                path.write_bytes(path.read_bytes() + name.encode())
    (images / "train" / DAMAGED_TRAINING / "3.png").write_bytes(damaged_png())
    (images / "test" / DAMAGED_TEST / "1.png").write_bytes(damaged_png())
    shutil.copytree(images / "test" / NAMES[0], images / "test" / UNTRAINED)
    (folder / "empty").mkdir()
    return folder


def arguments(inputs, output, **changed):
    options = {
        "teacher": inputs / "teacher",
        "dataset": inputs / "images",
        "classes": " ".join(NAMES),
        "student": "resnet:widths=8-8-12,image=32",
        "output_dir": output,
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "report_to": "none",
        "disable_tqdm": "true",
        "use_cpu": "true",
        "save_total_limit": 9,
    }
    options |= changed
    return [word for name, value in options.items() for word in [f"--{name}", *str(value).split()]]


def run(command, given):
    """The exit status, and what was printed to standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([command, *given])
    return status, out.getvalue(), err.getvalue()


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def inspection(inputs, command="inspect", **changed):
    options = {"teacher": inputs / "teacher", "dataset": inputs / "images", "classes": " ".join(NAMES)} | changed
    return run(command, [word for name, value in options.items() for word in [f"--{name}", *str(value).split()]])
