"""A batch of one image and batch norms at a map of 1x1: dropped, or refused, before torch stops."""

import pytest
import torch
from torch import nn

from families import build
from helpers import convnext, resnet, trainer, views, vit
from subdistill_hf.errors import DistillationError
from subdistill_hf.training.batch_norm import single_value_norm


@pytest.mark.parametrize("image_size", [16, 32, 64])
@pytest.mark.parametrize("make", [resnet, convnext, lambda: build("mobilenetv2"), lambda: build("timm resnet")])
def test_a_norm_is_named_exactly_where_torch_refuses_to_train(make, image_size):
    student = make()
    inputs = {"pixel_values": torch.randn(1, 3, image_size, image_size)}
    statistics = {name: buffer.clone() for name, buffer in student.named_buffers()}
    found = single_value_norm(student, inputs)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in student.named_buffers())
    assert not any(module._forward_pre_hooks for module in student.modules())
    student.train()
    if found is None:
        student(**inputs)
    else:
        assert isinstance(student.get_submodule(found), nn.modules.batchnorm._BatchNorm)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            student(**inputs)


def steps_of(training):
    training.train()
    return training.state.global_step


@pytest.mark.parametrize(
    ("per_class", "batch_size", "student", "expected"),
    [
        (3, 8, resnet, 1),  # 8 and 1 images: the one is left out
        (3, 7, resnet, 2),  # 7 and 2
        (3, 8, convnext, 2),  # no batch norm
        (3, 8, vit, 2),
    ],
)
def test_a_last_batch_of_one_image_is_dropped_where_batch_norm_cannot_be_trained_on_it(
    per_class, batch_size, student, expected, tmp_path
):
    training = trainer(
        tmp_path,
        student=student(),
        train=views(per_class),
        method="kd",
        max_steps=-1,
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
    )
    assert steps_of(training) == expected
    assert training.args.dataloader_drop_last is False


def test_with_larger_images_a_batch_of_one_image_is_trained_on(tmp_path):
    rows = [{"pixel_values": torch.randn(3, 64, 64), "labels": torch.tensor(index % 3)} for index in range(9)]
    options = {"method": "scratch", "max_steps": -1, "num_train_epochs": 1}
    training = trainer(tmp_path, train=rows, parts={"data_collator": None}, **options)
    assert steps_of(training) == 2


@pytest.mark.parametrize("method", ["scratch", "kd", "subdistill"])
def test_batches_of_one_image_are_refused_before_training(method, tmp_path):
    message = r"one image, and the student's batch norm 'resnet\.encoder\.stages\.3.*' sees one position of it.*larger"
    with pytest.raises(DistillationError, match=message):
        trainer(tmp_path, method=method, per_device_train_batch_size=1)
    with pytest.raises(DistillationError, match=message):
        trainer(tmp_path, method=method, train=torch.utils.data.Subset(views(), [4]))


def test_a_batch_of_one_image_at_the_end_of_a_stream_is_refused(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([views(3)[index] for index in range(9)])

    training = trainer(tmp_path, train=Stream(), method="kd", max_steps=2)
    with pytest.raises(DistillationError, match="a training batch has one image"):
        training.train()
