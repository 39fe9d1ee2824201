"""Evaluations and predictions are those of the plain student."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import NAMES, processor, resnet, subtask_rows, trainer, views
from programs import WITHOUT_THIS_PACKAGE, run_program


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
    loss = F.cross_entropy(logits, torch.tensor(images.labels))
    assert predicted.metrics["test_loss"] == pytest.approx(float(loss), rel=0.3)  # a mean over batches, 5, 5 and 2


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
