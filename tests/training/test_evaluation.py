"""Evaluations and predictions are those of the plain student."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

from helpers import NAMES, processor, resnet, subtask_rows, trainer, views
from programs import WITHOUT_THIS_PACKAGE, run_program
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.metrics import compute_metrics


def test_predictions_are_those_of_a_plain_forward_pass(tmp_path):
    run = trainer(tmp_path, max_steps=3, eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=5)
    run.train()
    images = views(4, "test")
    predicted = run.predict(images)
    pixels = run.data_collator([images[index] for index in range(12)])["pixel_values"]
    with torch.no_grad():
        logits = run.model.eval()(pixel_values=pixels).logits
    np.testing.assert_allclose(predicted.predictions, logits.numpy(), rtol=0, atol=1e-5)
    assert predicted.label_ids.tolist() == images.labels
    accuracy = float((logits.argmax(1) == torch.tensor(images.labels)).float().mean())
    evaluated = run.state.log_history[-2]
    assert evaluated["eval_accuracy"] == predicted.metrics["test_accuracy"] == pytest.approx(accuracy)
    loss = float(F.cross_entropy(logits, torch.tensor(images.labels)))
    assert predicted.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)  # though the batches have 5, 5 and 2 images


def test_images_without_labels_are_predicted_even_one_by_one(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))

        def forward(self, pixel_values):
            return self.net(pixel_values)

    for student in (Plain(), resnet()):
        run = trainer(tmp_path, student, method="scratch", per_device_eval_batch_size=6)
        images = [{"pixel_values": torch.rand(3, 32, 32)} for _ in range(7)]  # the last batch has one image
        run.data_collator = lambda items: {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
        predicted = run.predict(images).predictions
        assert predicted.shape == (7, 3)
        with torch.no_grad():
            alone = student.eval()(pixel_values=images[6]["pixel_values"][None])
        alone = getattr(alone, "logits", alone)
        np.testing.assert_allclose(predicted[6:], alone.numpy(), rtol=0, atol=1e-6)


RELOAD = """
import json, sys
from pathlib import Path
from transformers import pipeline

folder = Path(sys.argv[1])
classify = pipeline("image-classification", model=str(folder / "student"))
answers = [classify(str(path)) for path in sorted(folder.glob("*.png"))]
assert not [name for name in sys.modules if name.startswith("subdistill")]
print(json.dumps([{answer["label"]: answer["score"] for answer in one} for one in answers]))
"""


def test_a_process_with_transformers_alone_gives_the_answers_of_the_last_evaluation(tmp_path):
    run = trainer(
        tmp_path / "run",
        max_steps=60,
        task_weight=2.0,
        layer_weight=0.01,
        learning_rate=3e-3,
        logging_steps=60,
        parts={"processing_class": processor()},
    )
    run.train()
    run.save_model(str(tmp_path / "student"))
    images = views(2, "test")
    for index, image in enumerate(subtask_rows(2, "test")["img"]):
        image.save(tmp_path / f"{index}.png")
    logits = torch.from_numpy(run.predict(images).predictions)

    done = run_program(WITHOUT_THIS_PACKAGE + RELOAD, tmp_path)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])

    assert len(answers) == 6
    assert len({max(answer, key=answer.get) for answer in answers}) > 1  # the student says more than one class
    for answer, probabilities in zip(answers, logits.softmax(1), strict=True):
        assert set(answer) == set(NAMES)
        for name, probability in zip(NAMES, probabilities, strict=True):
            assert answer[name] == pytest.approx(float(probability), abs=1e-5)


def test_batches_that_are_not_concatenated_give_the_same_accuracy(tmp_path):
    options = {"per_device_eval_batch_size": 4}  # three batches of twelve images
    whole = trainer(tmp_path, **options).evaluate()
    apart = trainer(tmp_path, eval_do_concat_batches=False, **options).evaluate()
    for name in ("eval_accuracy", "eval_balanced_accuracy", "eval_loss"):
        assert apart[name] == whole[name]


# Precision


class Noting(nn.Module):
    """Says in which precision it is run in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = resnet(), set()

    def forward(self, pixel_values):
        logits = self.net(pixel_values).logits
        if not self.training:
            self.seen.add(logits.dtype)
        return logits


@pytest.mark.parametrize("half", [True, False])
def test_evaluations_have_the_precision_of_the_training_whatever_was_called_before(tmp_path, half):
    student = Noting()
    options = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "bf16": half, "method": "kd"}
    run = trainer(tmp_path, student, **options)
    student.seen.clear()  # of the pairing
    run.train()
    trained = run.evaluate()["eval_loss"]
    again = Noting()
    again.load_state_dict(student.state_dict())
    fresh = trainer(tmp_path, again, **options)
    again.seen.clear()
    assert fresh.evaluate()["eval_loss"] == trained == run.evaluate()["eval_loss"]
    assert student.seen == again.seen == {torch.bfloat16 if half else torch.float32}
    for one in (run, fresh):
        assert one.predict(views(2, "test")).predictions.dtype == np.float32
    fresh.train()  # whose student was evaluated before


# Further outputs


class Telling(nn.Module):
    """Says more of its images than their classes."""

    def __init__(self, form):
        super().__init__()
        self.net, self.form = resnet(), form

    def forward(self, pixel_values):
        output = self.net(pixel_values, output_hidden_states=True)
        means = [values.mean(dim=(2, 3)) for values in output.hidden_states[-2:]]
        return self.form(output.logits, means)


@pytest.mark.parametrize(
    "form",
    [
        lambda logits, means: {
            "means": tuple(means),
            "logits": logits,
            "loss": logits.sum(),
            "none": None,
            "name": "a",
        },
        lambda logits, means: (logits, means, None, torch.tensor(1.0)),
        lambda logits, means: ModelOutput(logits=logits, means=tuple(means)),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_predictions_hold_the_further_outputs_of_each_image(tmp_path, form, labelled):
    found = []

    def measure(prediction):
        found.append(prediction.predictions)
        return compute_metrics(prediction)

    student = Telling(form)
    run = trainer(tmp_path, student, method="kd", per_device_eval_batch_size=5, parts={"compute_metrics": measure})
    if not labelled:
        collate = run.data_collator
        run.data_collator = lambda items: {"pixel_values": collate(items)["pixel_values"]}
    images = views(4, "test")
    logits, means = run.predict(images).predictions
    pixels = ViewCollator(processor())([images[index] for index in range(12)])["pixel_values"]
    with torch.no_grad():
        expected = student.eval().net(pixels, output_hidden_states=True)
    np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=0, atol=1e-5)
    for mean, values in zip(means, expected.hidden_states[-2:], strict=True):
        np.testing.assert_allclose(mean, values.mean(dim=(2, 3)).numpy(), rtol=0, atol=1e-5)
    if labelled:
        (seen,) = found
        assert np.array_equal(seen[0], logits)
    assert len(run.predict(images, ignore_keys=["means", "output_1"]).predictions) == 12


def test_what_a_model_leaves_out_of_predictions_is_left_out(tmp_path):
    student = Telling(lambda logits, means: {"logits": logits, "means": means[0]})
    student.config = SimpleNamespace(keys_to_ignore_at_inference=["means"])
    run = trainer(tmp_path, student, method="kd")
    assert run.predict(views(2, "test")).predictions.shape == (6, 3)
