"""Every family, loaded from a folder as users do, teaches another and is taught by a third."""

import math

import pytest
import torch
from transformers import AutoModelForImageClassification, TrainerCallback

from families import FAMILIES, build, with_batch_statistics
from helpers import config, with_confident_head
from subdistill_hf.models.loading import weights_digest
from subdistill_hf.training.trainer import SubDistillTrainer

CLASS_IDS = [4, 0, 3]
IMAGES = 40
# each teaches the one seven places on, so that most pairs are of different kinds
NAMES = list(FAMILIES)
RING = [(name, NAMES[(place + 7) % len(NAMES)]) for place, name in enumerate(NAMES)]
UNUSED = ("mask_token",)


def smooth_images(size):
    """Random images, of the same content at each size."""
    coarse = torch.rand(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 4 - 2
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear")


def saved_and_loaded(folder, name, classes):
    """A model of a family that has seen the images, as users load it."""
    made = with_confident_head(build(name, {"num_labels": classes}))
    with_batch_statistics(made, smooth_images(FAMILIES[name].size)).save_pretrained(folder)
    loaded = AutoModelForImageClassification.from_pretrained(folder)
    assert type(loaded) is type(made)
    return loaded


class Gradients(TrainerCallback):
    """Keeps the gradients of the last step, of the student and of its alignments."""

    module = None

    def on_pre_optimizer_step(self, args, state, control, **given):
        self.gradients = {
            name: None if parameter.grad is None else parameter.grad.clone()
            for name, parameter in self.module.named_parameters()
        }


@pytest.mark.parametrize(("teacher", "student"), RING)
def test_a_family_teaches_the_layers_of_another(teacher, student, tmp_path):
    rows = {
        "pixel_values": smooth_images(FAMILIES[student].size),
        "teacher_pixel_values": smooth_images(FAMILIES[teacher].size),
        "labels": torch.arange(IMAGES) % len(CLASS_IDS),
    }
    gradients = Gradients()
    trainer = SubDistillTrainer(
        saved_and_loaded(tmp_path / "student", student, len(CLASS_IDS)),
        config(tmp_path / "run", max_steps=1, seed=0),
        teacher=saved_and_loaded(tmp_path / "teacher", teacher, 6),
        teacher_class_ids=CLASS_IDS,
        train_dataset=[{name: value[index] for name, value in rows.items()} for index in range(IMAGES)],
        callbacks=[gradients],
    )
    gradients.module = trainer.prepare_distillation()
    taught = weights_digest(trainer.teacher.model)
    trainer.train()

    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    layers = [value for name, value in logged.items() if name.startswith("loss_layer/")]
    assert len(layers) == len(trainer.pairs) >= 1
    assert all(math.isfinite(value) and value > 0 for value in layers)
    for pair in trainer.pairs:
        assert trainer.subspaces[pair.teacher.name].dimensions == pair.dimensions
    present = {name: gradient for name, gradient in gradients.gradients.items() if gradient is not None}
    assert all(torch.isfinite(gradient).all() for gradient in present.values())
    reached = {name for name, gradient in present.items() if gradient.any()}
    matrices = {name for name, parameter in gradients.module.named_parameters() if parameter.dim() > 1}
    assert matrices - reached <= {name for name in matrices if name.endswith(UNUSED)}
    assert sum(name.startswith("alignments.") for name in reached) == len(trainer.pairs)
    assert weights_digest(trainer.teacher.model) == taught
