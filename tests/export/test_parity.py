"""What a processor does beyond its settings is found by comparing pixels."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from transformers import ViTImageProcessor

from export.samples import PROCESSORS, timm_processor
from helpers import processor, resnet
from subdistill_hf.export.device_folder import processing_runner
from subdistill_hf.export.errors import ExportError
from subdistill_hf.export.onnx_files import OnnxFiles
from subdistill_hf.export.parity import agreement, check_preprocessing, logit_difference
from subdistill_hf.export.preprocessing import steps_of
from subdistill_hf.export.student import TorchStudent
from subdistill_hf.models.loading import LoadedModel


class Inverting(ViTImageProcessor):
    """A processor that turns the sign of what it gives."""

    def normalize(self, *given, **options):
        return -super().normalize(*given, **options)


def check(student, steps=None):
    steps = steps or steps_of(student.loaded.processor)
    return check_preprocessing(student, steps, OnnxFiles(student, steps).preprocessing_runner(), [])


def student_with(of):
    return TorchStudent(LoadedModel(resnet(widths=(8, 12)), of, "student"))


def test_the_pixels_of_a_usual_processor_are_within_two_levels():
    student = student_with(processor())
    difference = check(student)
    assert 0 < difference.largest < 2.01
    assert difference.mean < 0.1


def test_a_processor_that_does_more_is_refused():
    student = student_with(Inverting(size={"height": 32, "width": 32}))
    with pytest.raises(ExportError, match=r"Inverting does more than its settings say \(pixels differ by up to"):
        check(student)


SCALED_BY_PILLOW = {
    f"{interpolation} {size}": timm_processor(input_size=(3, size, size), interpolation=interpolation, crop_pct=1.0)
    for interpolation in ("bilinear", "bicubic")
    for size in (28, 32, 64, 224)
} | {name: PROCESSORS[name] for name in ("pillow", "squash")}


@pytest.mark.parametrize("name", SCALED_BY_PILLOW)
def test_of_a_processor_of_pillow_the_true_order_is_taken_and_the_other_refused(name):
    student = student_with(SCALED_BY_PILLOW[name])
    check(student)
    resize, *others = steps_of(student.loaded.processor)
    other = replace(resize, order="horizontal" if resize.order == "pillow13" else "pillow13")
    with pytest.raises(ExportError, match="pixels differ"):
        check(student, (other, *others))


@pytest.mark.parametrize("size", [61, 64, 224])
@pytest.mark.parametrize("share", [0.875, 0.9, 0.95, 1.0])
def test_margins_that_are_halved_in_another_way_are_refused(size, share):
    student = student_with(timm_processor(input_size=(3, size, size), crop_pct=share))
    resize, crop, *others = steps_of(student.loaded.processor)
    for run_of in (processing_runner, lambda steps: OnnxFiles(student, steps).preprocessing_runner()):
        for half_even, refused in ((True, nullcontext()), (False, pytest.raises(ExportError, match="pixels differ"))):
            steps = (resize, replace(crop, half_even=half_even), *others)
            with refused:
                check_preprocessing(student, steps, run_of(steps), [])


def test_differences_of_logits():
    logits = np.array([[0.0, 1.0], [2.0, 0.0]])
    assert logit_difference(logits, logits + np.array([[0, 0.5], [0, 0]])) == 0.5
    assert agreement(logits, logits[:, ::-1]) == 0
    assert agreement(logits, logits[[0, 0]]) == 0.5
