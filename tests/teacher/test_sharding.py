"""What a teacher is cut into, and what is refused; two processes with a sharded one are in training/test_processes."""

import pytest
import torch
from torch import nn

from helpers import resnet, teacher_vit, trainer, vit
from subdistill_hf.errors import DistillationError
from subdistill_hf.models.loading import freeze
from subdistill_hf.teacher import sharding
from subdistill_hf.teacher.teacher import Teacher


def names_of_parts(model):
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(part)] for part in sharding._parts_of(model)]


def test_a_network_is_cut_into_its_blocks_and_what_lies_around_them():
    model = vit(layers=12)
    blocks = [f"vit.layers.{block}" for block in range(12)]
    assert names_of_parts(model) == ["vit.embeddings", *blocks, "classifier"]


def test_blocks_that_are_large_are_cut_into_what_they_are_made_of():
    names = names_of_parts(vit(layers=2, hidden=48))
    assert "vit.layers.0" not in names
    assert {"vit.layers.0.attention.q_proj", "vit.layers.0.mlp.fc1"} <= set(names)


def test_a_module_that_reads_weights_of_the_modules_in_it_stays_whole():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 8))
    assert names_of_parts(model) == ["0", "1", "2"]


@pytest.mark.parametrize("own", [1, 3])
def test_a_process_with_fewer_batches_takes_the_last_again_and_leaves_it_out(own):
    taken = []

    def passes():
        for batch in sharding.repeating_last(iter(range(own)), 3):
            taken.append(batch)
            yield batch * 10

    assert list(sharding.first_of(passes(), own)) == [number * 10 for number in range(own)]
    assert taken == [*range(own), *[own - 1] * (3 - own)]


def test_an_output_that_is_a_view_is_copied_where_a_backward_pass_may_follow():
    base = torch.zeros(2, 3, requires_grad=True)
    given = (base[:, 1:], base, 3)
    found = sharding._without_views(nn.Identity(), (), given)
    assert found[0]._base is None
    assert found[1:] == (base, 3)
    view = torch.zeros(2, 3)[:, 1:]
    assert sharding._without_views(nn.Identity(), (), view) is view


def test_quantised_weights_are_not_spread():
    model = freeze(resnet())
    model.classifier[1].weight = nn.Parameter(torch.zeros(3, 20, dtype=torch.int8), requires_grad=False)
    with pytest.raises(DistillationError, match=r"'classifier.1.weight' is a Parameter of torch.int8, and quantised"):
        sharding.sharded(model, torch.device("cpu"))


def test_a_teacher_with_an_adapter_is_not_spread():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(teacher_vit(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(DistillationError, match="has a PEFT adapter, which may be switched: merge it"):
        sharding.sharded(model, torch.device("cpu"))


def test_a_teacher_of_several_trainings_must_be_sharded_already(tmp_path, monkeypatch):
    monkeypatch.setattr("subdistill_hf.config.training.SubDistillConfig.world_size", 2)
    teacher = Teacher(teacher_vit(), [10, 11, 12])
    assert not teacher.is_sharded
    with pytest.raises(DistillationError, match=r"Teacher.for_training"):
        trainer(tmp_path, teacher=teacher, parts={"teacher_class_ids": None}, shard_teacher=True)
