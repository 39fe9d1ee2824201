"""Accuracies with a layer projected, against one image and one projection at a time."""

import contextlib

import pytest
import torch
from torch import nn

from helpers import CLASS_IDS, processor, teacher_resnet, teacher_vit, views
from subdistill_hf.analysis.projected_accuracy import projected_accuracies
from subdistill_hf.analysis.projection import projected
from subdistill_hf.core.activations import height_and_width, logits_of
from subdistill_hf.core.layers import describe_layers
from subdistill_hf.core.moments import collect_moments
from subdistill_hf.core.relevance import activations_and_contexts
from subdistill_hf.core.subspaces import Subspace
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.teacher.teacher import Teacher

COLLATE = ViewCollator(processor())


class Residual(nn.Module):
    """What `branch` gives is added to its own input, and `both` joins them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 8, 8)
        self.branch = nn.Conv2d(6, 6, 1)
        self.both = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 100)

    def forward(self, pixel_values):
        hidden = self.stem(pixel_values)
        return self.head(torch.tanh(self.both(hidden + self.branch(hidden))).mean(dim=(2, 3)))


def residual():
    torch.manual_seed(1)
    return Residual()


def with_varied_answers(model):
    """Random models take all images for one class, unless the logits are centred over the images."""
    with torch.no_grad():
        logits = logits_of(model.eval()(pixel_values=pixels_of(views(4, "test"))))
        [module for module in model.modules() if isinstance(module, nn.Linear)][-1].bias -= logits.mean(dim=0)
    return model


def pixels_of(images):
    return COLLATE([images[index] for index in range(len(images))])["pixel_values"]


def setting(model, names):
    """The restricted teacher, its layers, and the whole PCA basis of each."""
    teacher = Teacher(model, CLASS_IDS)
    pixels = pixels_of(views())
    layers = describe_layers(model, names, lambda: model(pixel_values=pixels), height_and_width(pixels))
    stream = activations_and_contexts(teacher.logits, model, names, [pixels], with_context=False)
    return teacher, layers, [Subspace.fit(moments, None, "pca") for moments in collect_moments(stream).values()]


@pytest.mark.parametrize(
    ("model", "names", "passes"),
    [
        # two batches: the teacher as it is, and one pass a layer; three passes a layer to see whether one will do
        (teacher_resnet(widths=(12, 20, 16, 12)), ["resnet.encoder.stages.0", "resnet.encoder.stages.2"], 2 * 3 + 6),
        (teacher_vit(hidden=16), ["vit.layers.1", "vit.layers.2"], 2 * 3 + 6),
        # the first layer takes a pass for each of three projections; of the three to see that, one fails
        (residual(), ["branch", "both"], 2 * 5 + 5),
    ],
    ids=["maps", "tokens", "a layer that is added to its input"],
)
def test_each_accuracy_is_that_of_one_projection_at_a_time(model, names, passes):
    teacher, layers, spaces = setting(with_varied_answers(model), names)
    images = views(4, "test")
    projections = [
        (layer, [space.truncated(k) for k in (1, 3, space.width)]) for layer, space in zip(layers, spaces, strict=True)
    ]
    seen = []
    counter = model.register_forward_hook(lambda module, inputs, output: seen.append(len(logits_of(output))))
    whole, accuracies = projected_accuracies(teacher, projections, images, COLLATE, batch_size=8)
    counter.remove()
    assert len(seen) == passes

    def accuracy(*projection):
        with torch.no_grad(), projected(model, *projection) if projection else contextlib.nullcontext():
            logits = logits_of(model(pixel_values=pixels_of(images)))
        answers = [max(range(3), key=lambda output: float(row[CLASS_IDS[output]])) for row in logits]
        return sum(answer == label for answer, label in zip(answers, images.labels, strict=True)) / len(images)

    assert whole == accuracy()
    assert accuracies == [[accuracy(layer.name, [space]) for space in spaces] for layer, spaces in projections]
    assert [values[-1] for values in accuracies] == [whole, whole]
    assert len({value for values in accuracies for value in values}) > 1
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0
