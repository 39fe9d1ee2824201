"""What a processor does beyond its settings is found by comparing pixels."""

import numpy as np
import pytest
from transformers import ViTImageProcessor

from helpers import processor, resnet
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


def check(student):
    steps = steps_of(student.loaded.processor)
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


def test_differences_of_logits():
    logits = np.array([[0.0, 1.0], [2.0, 0.0]])
    assert logit_difference(logits, logits + np.array([[0, 0.5], [0, 0]])) == 0.5
    assert agreement(logits, logits[:, ::-1]) == 0
    assert agreement(logits, logits[[0, 0]]) == 0.5
