"""Models and data that do not fit together are refused when the trainer is made; others are taken in any form."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers import CLASS_IDS, NAMES, processor, resnet, teacher_resnet, trainer, views
from subdistill_hf.core.activations import LayerError
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.errors import DistillationError
from trainings import STAGES, InOrder, Plain, logged, parts


class Labelling(ViewCollator):
    """Gives labels in a form of its own."""

    def __init__(self, form):
        super().__init__(processor(), processor())
        self.form = form

    def __call__(self, examples):
        batch = super().__call__(examples)
        return batch | {"labels": self.form(batch["labels"].tolist())}


@pytest.mark.parametrize("form", [list, np.array])
def test_labels_of_a_later_batch_are_tensors_too(tmp_path, form):
    run = trainer(tmp_path, method="ce_kd")
    run.data_collator = Labelling(form)
    message = rf"the labels of a batch are of type {form([0]).__class__.__name__}: expected a tensor"
    with pytest.raises(DistillationError, match=message):
        run.evaluate()
    with pytest.raises(DistillationError, match=message):
        run.compute_loss(run.model, {"pixel_values": torch.zeros(1, 3, 32, 32), "labels": form([0])})


def test_plain_modules_with_logits_in_any_form_are_distilled(tmp_path):
    for form in (lambda logits: logits, lambda logits: (logits, None), lambda logits: {"logits": logits}):
        student, teacher = Plain(3, 6, form), Plain(100, 9, form)
        run = trainer(tmp_path, student, teacher, layers=["blocks.0=blocks.0", "blocks.1=blocks.1"], max_steps=3)
        before = run.evaluate()
        run.train()
        assert set(parts(logged(run)[0])) == {"kd", "layer/blocks.0", "layer/blocks.1"}
        assert run.evaluate()["eval_loss"] != before["eval_loss"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": ["resnet.encoder.stage.0=resnet.encoder.stages.0"]}, LayerError, "nearest names: resnet.encoder"),
        ({"layers": [f"{STAGES[0]}=resnet.encoder.stages.9"]}, LayerError, "nearest names: resnet.encoder.stages."),
        ({"layers": [STAGES[0]]}, LayerError, "not of the form 'teacher_layer=student_layer'"),
        (
            {"layers": [f"classifier.1={STAGES[0]}"]},
            LayerError,
            r"'classifier.1' gives a torch.float32 tensor of shape",
        ),
        ({"layers": [f"{STAGES[0]}=classifier"]}, LayerError, r"expected a map \(B, d, H, W\) or tokens"),
        ({"layers": [f"{STAGES[0]}={STAGES[0]}", f"{STAGES[0]}={STAGES[1]}"]}, LayerError, "is in two pairs"),
    ],
)
def test_layers_that_cannot_be_used_are_refused_when_the_trainer_is_made(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        trainer(tmp_path, **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": None}, "method 'subdistill' needs a teacher"),
        ({"teacher_class_ids": None}, "the student has 3 outputs and the teacher 100: pass teacher_class_ids"),
        ({"teacher_class_ids": [1, 2]}, "teacher_class_ids has 2 entries, but the student has 3 outputs"),
        ({"teacher_class_ids": [1, 2, 100]}, "must lie between 0 and 99"),
        ({"teacher_class_ids": [1, 2, 1]}, "names one output of the teacher twice"),
        ({"train_dataset": []}, "the training dataset is empty"),
        ({"train_dataset": InOrder([], [])}, "the training dataset is empty"),
        ({"data_collator": lambda items: {"pixels": 1}}, "expected batches with `pixel_values`, found pixels"),
        (
            {"data_collator": lambda items: (1, 2)},
            "data_collator: expected .*`pixel_values`, found tuple, which has no",
        ),
        (
            {"data_collator": lambda items: {"pixel_values": [1]}},
            "data_collator gives `pixel_values` as list: expected",
        ),
        ({"data_collator": Labelling(list)}, "data_collator gives `labels` as list: expected a tensor"),
        ({"data_collator": Labelling(np.array)}, "data_collator gives `labels` as ndarray: expected a tensor"),
        ({"compute_loss_func": lambda *given: 0}, "override loss_terms"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_models_and_data_that_do_not_fit_are_refused_when_the_trainer_is_made(tmp_path, given, message):
    with pytest.raises(DistillationError, match=message):
        trainer(tmp_path, parts=given)


def test_a_student_of_one_class_is_refused(tmp_path):
    with pytest.raises(DistillationError, match="at least two classes, the student has 1"):
        trainer(tmp_path, resnet(NAMES[:1]), teacher_resnet(NAMES[:1]), parts={"teacher_class_ids": None})


def test_models_take_images_by_name(tmp_path):
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    with pytest.raises(
        DistillationError, match=r"the student's forward takes \(input\): expected `pixel_values`; wrap"
    ):
        trainer(tmp_path, student, method="kd")
    with pytest.raises(DistillationError, match=r"the teacher's forward takes \(input\): expected `pixel_values`"):
        trainer(tmp_path, teacher=student, method="kd")


def test_a_model_does_not_teach_itself(tmp_path):
    model = resnet()
    with pytest.raises(DistillationError, match="teacher and student are the same model"):
        trainer(tmp_path, model, model)


class TakesAll(nn.Module):
    """Names no argument."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))

    def forward(self, **inputs):
        assert set(inputs) == {"pixel_values"}
        return self.net(inputs["pixel_values"])


class Scaled(nn.Module):
    """Names a field of the batch beside the images."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = TakesAll(), []

    def forward(self, pixel_values, weights):
        self.seen.append(weights.tolist())
        return self.net(pixel_values=pixel_values * weights[:, None, None, None])


@pytest.mark.parametrize("student", [TakesAll, Scaled, resnet])
def test_the_student_gets_the_fields_that_its_forward_names(tmp_path, student):
    class WithWeights(ViewCollator):
        def __call__(self, examples):
            return {**super().__call__(examples), "weights": torch.ones(len(examples)), "names": ["a"] * len(examples)}

    model = student()
    run = trainer(tmp_path, model, method="kd", max_steps=2, parts={"data_collator": WithWeights(processor())})
    run.train()
    assert run.evaluate()["eval_loss"] > 0
    assert run.predict(views(2, "test")).predictions.shape == (6, 3)
    if student is Scaled:
        assert [1.0] * 8 in model.seen


# Names of classes


def test_classes_that_are_given_to_each_others_outputs_are_refused(tmp_path):
    swapped = [CLASS_IDS[1], CLASS_IDS[0], CLASS_IDS[2]]
    message = f"output 0 is '{NAMES[0]}', .* output {swapped[0]}, '{NAMES[1]}'.* is its output"
    with pytest.raises(DistillationError, match=message):
        trainer(tmp_path, parts={"teacher_class_ids": swapped})
    with pytest.raises(DistillationError, match=rf"output 0 is '{NAMES[2]}', .*Pass teacher_class_ids=\[\.\.\.\]"):
        trainer(tmp_path, resnet(NAMES[::-1]), teacher_resnet(NAMES), parts={"teacher_class_ids": None})


def test_a_class_of_another_name_than_the_teachers_is_told_where_the_teacher_has_it(tmp_path, caplog):
    for names, ids in ((("a", "b", "c"), CLASS_IDS), (("LABEL_11", "LABEL_12", "LABEL_10"), CLASS_IDS)):
        trainer(tmp_path, resnet(names), parts={"teacher_class_ids": ids})
    assert "is taught by" not in caplog.text
    trainer(tmp_path, parts={"teacher_class_ids": [*CLASS_IDS[:2], 40]})
    assert f"output 2 is '{NAMES[2]}', and is taught by the teacher's output 40" in caplog.text
