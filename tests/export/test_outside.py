"""The program beside files whose preprocessing is outside makes the pixels of the processor, or there is none."""

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessor

from export.samples import PROCESSORS
from export.test_parity import Inverting, student_with
from export.test_preprocessing import images
from subdistill_hf.config.export_formats import EXPORT_FORMATS
from subdistill_hf.data.preprocessing import process
from subdistill_hf.export.device_folder import processing_runner, write_script
from subdistill_hf.export.outside import steps_for_device
from subdistill_hf.export.preprocessing import Normalise, steps_of

ODD_SIZES = [(427, 640), (67, 100), (100, 67), (75, 100), (74, 66), (31, 90)]
"""Of which the margins of crops are odd."""


def noise():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ODD_SIZES]


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_program_makes_the_pixels_of_the_processor(name):
    steps = steps_of(PROCESSORS[name])
    run = processing_runner(steps)
    unit = np.prod([step.deviation for step in steps if isinstance(step, Normalise)], axis=0).reshape(3, 1, 1)
    for image in [*images(), *noise()]:
        expected = process(PROCESSORS[name], [torch.from_numpy(image).permute(2, 0, 1)])[0].numpy()
        found = run(image[None])[0]
        assert found.shape == expected.shape
        assert found.dtype == np.float32
        # Pillow against itself gives the same bytes; torchvision's weights of a filter have fewer bits
        assert (np.abs(found - expected) * unit).max() < (0.01 if name in ("pillow", "timm", "squash") else 2.01)
    assert steps_for_device(student_with(PROCESSORS[name]), [image]) == steps


@pytest.mark.parametrize("format", EXPORT_FORMATS)
@pytest.mark.parametrize(
    "processor", [Inverting(size={"height": 32, "width": 32}), ViTImageProcessor(size={"longest_edge": 32})]
)
def test_a_processor_whose_pixels_the_steps_do_not_make_gets_no_program(tmp_path, format, processor):
    steps = steps_for_device(student_with(processor), [])
    assert steps == ()
    write_script(tmp_path, EXPORT_FORMATS[format], inside=False, outside=steps)
    assert not list(tmp_path.iterdir())
