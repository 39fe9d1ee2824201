"""Models and labels with which a training would go wrong are refused by name, before anything is computed."""

import copy
import math

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import ViTModel
from transformers.trainer_utils import HPSearchBackend

from helpers import CLASS_IDS, resnet, teacher_resnet, trainer, views, vit
from subdistill_hf.errors import DistillationError, SubDistillError
from subdistill_hf.metrics import compute_metrics
from subdistill_hf.models.loading import LoadedModel
from subdistill_hf.training.checks import check_apart, check_labels
from trainings import Plain

# Student and teacher


class Borrows(nn.Module):
    """A student with a part of its own and some of the teacher's."""

    def __init__(self, part):
        super().__init__()
        self.part, self.head = part, nn.Linear(3, 3)

    def forward(self, pixel_values):
        return self.head(pixel_values.mean(dim=(2, 3)))


def with_the_teachers_block(teacher):
    return Borrows(teacher.blocks[0])


def with_the_teacher(teacher):
    return Borrows(teacher)


def with_the_teachers_weight(teacher):
    student = Plain(3, 9)
    student.blocks[0].weight = teacher.blocks[0].weight
    return student


def with_the_teachers_memory(teacher):
    student = Plain(3, 9)
    student.blocks[0].weight.data = teacher.blocks[0].weight.data
    return student


@pytest.mark.parametrize(
    ("student_of", "message"),
    [
        (with_the_teachers_block, r"share 'part' \(the teacher's 'blocks.0'\)"),
        (with_the_teacher, "the student holds the teacher, as 'part'"),
        (with_the_teachers_weight, r"share 'blocks.0.weight' \(the teacher's 'blocks.0.weight'\)"),
        (with_the_teachers_memory, r"share 'blocks.0.weight' \(the teacher's 'blocks.0.weight'\)"),
    ],
)
def test_a_student_that_shares_modules_or_weights_with_the_teacher_is_refused(tmp_path, student_of, message):
    teacher = Plain(100, 9)
    student = student_of(teacher)
    with pytest.raises(DistillationError, match=message):
        trainer(tmp_path, student, teacher, method="kd")
    assert all(weight.requires_grad for weight in student.parameters())  # nothing was frozen
    with pytest.raises(DistillationError, match=message):
        trainer(tmp_path, teacher=teacher, method="kd", parts={"model_init": lambda: student})


def test_a_student_set_later_that_shares_weights_is_refused(tmp_path):
    teacher = Plain(100, 9)
    run = trainer(tmp_path, Plain(3, 9), teacher, method="kd", max_steps=1)
    run.model = with_the_teachers_weight(teacher)
    with pytest.raises(DistillationError, match=r"share 'blocks.0.weight'"):
        run.train()


def test_copies_and_activations_may_be_in_both():
    teacher = teacher_resnet()
    check_apart(copy.deepcopy(teacher), teacher)
    activation = nn.ReLU()
    check_apart(nn.Sequential(nn.Linear(2, 2), activation), nn.Sequential(nn.Linear(2, 2), activation))
    with pytest.raises(DistillationError, match="the teacher holds the student, as '0'"):
        check_apart(activation, nn.Sequential(activation))


def test_a_compiled_student_or_teacher_is_refused_with_advice_that_helps(tmp_path):
    compiled = torch.compile(resnet(), backend="eager")
    with pytest.raises(DistillationError, match=r"student was compiled.*pass the plain model.*torch_compile=True"):
        trainer(tmp_path, compiled)
    trainer(tmp_path, compiled._orig_mod)
    in_place = resnet()
    in_place.compile(backend="eager")
    with pytest.raises(DistillationError, match=r"student was compiled.*compile\(\) was not called"):
        trainer(tmp_path, in_place)
    with pytest.raises(DistillationError, match="teacher was compiled"):
        trainer(tmp_path, teacher=torch.compile(teacher_resnet(), backend="eager"))


@pytest.mark.parametrize("given", ["google/vit-base-patch16-224", 7, None], ids=str)
def test_a_teacher_or_student_that_is_no_model_is_refused(tmp_path, given):
    parts = {"teacher": given}
    message = (
        "method 'subdistill' needs a teacher" if given is None else "expected the teacher as a torch module, found"
    )
    with pytest.raises(DistillationError, match=message):
        trainer(tmp_path, parts=parts)
    if isinstance(given, str):
        with pytest.raises(DistillationError, match=r"found str; load it first, as AutoModelForImageClassification"):
            trainer(tmp_path, parts=parts)
        with pytest.raises(DistillationError, match="model=: expected the student as a torch module, found str"):
            trainer(tmp_path, given)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize("kind", ["dict", "dtype", "quantised tensor"])
def test_a_student_that_could_not_be_saved_is_refused(tmp_path, kind):
    class Versioned(Plain):
        def get_extra_state(self):
            return {"version": 1}

    student = Versioned(3, 9) if kind == "dict" else Plain(3, 9)
    if kind == "dtype":
        student = torch.ao.quantization.quantize_dynamic(vit(), {nn.Linear}, dtype=torch.qint8)
    elif kind == "quantised tensor":
        student.register_buffer("table", torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8))
    with pytest.raises(DistillationError, match=rf"the student's state_dict\(\) holds a {kind}, "):
        trainer(tmp_path, student, method="kd")


def test_a_student_whose_adapter_nobody_would_find_is_not_pushed(tmp_path):
    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"])
    message = "the student's adapter 'expert' cannot be pushed"
    student = get_peft_model(vit(), settings, "expert")
    run = trainer(tmp_path, student, method="kd")
    with pytest.raises(DistillationError, match=message):
        run.push_to_hub()
    with pytest.raises(DistillationError, match=message):
        trainer(tmp_path, student, method="kd", push_to_hub=True, hub_model_id="me/mine")


def test_a_teacher_with_its_processor_is_refused_with_the_advice_to_pass_its_model(tmp_path):
    with pytest.raises(DistillationError, match=r"found LoadedModel; pass its \.model as teacher="):
        trainer(tmp_path, teacher=LoadedModel(teacher_resnet(), None, "mine"))


def test_a_timm_teacher_without_a_head_is_refused(tmp_path):
    timm = pytest.importorskip("timm")

    class Takes(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.net = timm.create_model("resnet10t", num_classes=classes)
            self.num_classes = self.net.num_classes

        def forward(self, pixel_values):
            return self.net(pixel_values)

    with pytest.raises(DistillationError, match=r"has no classification head \(num_classes=0\)"):
        trainer(tmp_path, teacher=Takes(0), method="kd")
    trainer(tmp_path, teacher=Takes(20), method="kd")


def test_a_teacher_that_returns_tokens_is_refused(tmp_path):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = ViTModel(vit().config)

        def forward(self, pixel_values):
            return self.net(pixel_values=pixel_values).last_hidden_state

    with pytest.raises(
        DistillationError, match=r"the teacher returns logits of shape \(2, 17, 24\): expected \(B, C\)"
    ):
        trainer(tmp_path, teacher=Tokens(), method="kd")


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing")  # its newer name is not in every version we support
def test_checkpointing_of_a_model_that_has_none_is_refused(tmp_path):
    with pytest.raises(DistillationError, match="gradient_checkpointing: Plain cannot compute its activations again"):
        trainer(tmp_path, Plain(3, 9), method="kd", gradient_checkpointing=True)
    trainer(tmp_path, vit(), method="kd", gradient_checkpointing=True)


# Labels


class Labelled(torch.utils.data.Dataset):
    """Images of which the label is what it is said to be."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": torch.full((3, 32, 32), 0.1 * index), "labels": self.labels[index]}


def collate(examples):
    return {name: torch.stack([torch.as_tensor(each[name]) for each in examples]) for name in examples[0]}


def labelled(folder, labels, evaluated=None, method="kd", **options):
    parts = {"data_collator": collate, "eval_dataset": None if evaluated is None else Labelled(evaluated)}
    return trainer(folder, train=Labelled(labels), method=method, parts=parts, **options)


@pytest.mark.parametrize("last", [3, 11, -1])
def test_labels_that_are_no_classes_of_the_student_are_refused_at_the_start(tmp_path, last):
    with pytest.raises(
        DistillationError, match=rf"the training images have the labels {last}: expected 0 to 2, the ou"
    ):
        labelled(tmp_path, [0, 1, 2, last])
    with pytest.raises(DistillationError, match=rf"the evaluation images have the labels {last}: expected 0 to 2"):
        labelled(tmp_path, [0, 1, 2], [0, 1, 2, 0, 1, last])
    with pytest.raises(DistillationError, match=rf"the evaluation images 'b' have the labels {last}"):
        trainer(
            tmp_path,
            train=Labelled([0, 1, 2]),
            method="kd",
            parts={"data_collator": collate, "eval_dataset": {"a": Labelled([0, 1]), "b": Labelled([0, last])}},
        )


def test_labels_numbered_as_the_teachers_are_refused_at_the_start(tmp_path):
    with pytest.raises(DistillationError, match=r"have the labels 10, 11: expected 0 to 2.*not those of the teach"):
        labelled(tmp_path, list(CLASS_IDS))


def test_all_labels_that_a_dataset_lists_are_looked_at(tmp_path):
    images = views()
    images.labels[13] = 5
    with pytest.raises(DistillationError, match="the training images have the labels 5"):
        trainer(tmp_path, train=images)


def test_labels_of_any_whole_numbers_train_alike(tmp_path):
    losses = []
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        labels = [torch.tensor(index % 3, dtype=dtype) for index in range(12)]
        run = labelled(tmp_path / str(dtype), labels, labels, "ce_kd", max_steps=2)
        run.train()
        losses.append((run.state.log_history[0]["loss"], run.evaluate()["eval_loss"]))
    assert losses == losses[:1] * 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.rand(4), r"are torch.float32 of shape \(4,\): expected whole numbers \(B,\)"),
        (torch.rand(4, 2), r"of shape \(4, 2\): expected .* shares of the classes \(B, 3\)"),
        (torch.zeros(4, 1, dtype=torch.long), r"of shape \(4, 1\)"),
        (torch.tensor([True, False]), "are torch.bool"),
    ],
)
def test_labels_of_another_form_are_refused(labels, message):
    with pytest.raises(DistillationError, match=message):
        check_labels(labels, 3, "the images")


def test_an_image_without_a_class_is_left_out_of_the_cross_entropy_and_refused_where_each_needs_one(tmp_path):
    check_labels([0, -100, 2], 3, "the images")
    check_labels(torch.rand(4, 3).softmax(dim=1), 3, "the images")
    check_labels(torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.0, 0.0], [0.0, 0.6, 0.0]]), 3, "the images")
    check_labels(torch.full((4, 3), 1 / 3, dtype=torch.bfloat16), 3, "the images")


@pytest.mark.parametrize(
    ("shares", "found"),
    [
        ([1.0, 1.0, 0.0], "from 0, and sums up to 2"),
        ([1.5, -0.5, 0.0], "from -0.5, and sums up to 1"),
        ([math.nan, 0.5, 0.5], "from nan, and sums up to nan"),
        ([math.inf, 0.0, 0.0], "from 0, and sums up to inf"),
        ([0.5, 0.51, 0.0], "from 0, and sums up to 1.01"),
    ],
)
def test_labels_that_are_no_shares_of_the_classes_are_refused(tmp_path, shares, found):
    whole = [torch.tensor([0.0, 1.0, 0.0])] * 12
    message = f"images are no shares of the classes: .* found numbers {found}. Several labels of one image are not"
    for train, evaluated in (([torch.tensor(shares)], whole), (whole, [torch.tensor(shares)])):
        with pytest.raises(DistillationError, match=message):
            labelled(tmp_path, train, evaluated)
    late = [*whole[:5], torch.tensor(shares), *whole[6:]]  # none of those that are looked at before
    with pytest.raises(DistillationError, match=message):
        labelled(tmp_path, late, max_steps=2).train()


def test_a_teacher_of_several_labels_an_image_is_told_of(tmp_path, caplog):
    teacher = teacher_resnet()
    for problem, told in ((None, 0), ("single_label_classification", 0), ("multi_label_classification", 1)):
        teacher.config.problem_type = problem
        trainer(tmp_path, teacher=teacher)
        assert caplog.text.count("the teacher was not trained for one class an image") == told


def test_a_student_of_several_labels_an_image_is_refused(tmp_path):
    student = resnet()
    student.config.problem_type = "multi_label_classification"
    with pytest.raises(DistillationError, match=r"problem_type is 'multi_label_.*Set it to 'single_label_class"):
        trainer(tmp_path, student)
    student.config.problem_type = "single_label_classification"
    trainer(tmp_path, student)
    run = labelled(tmp_path, [0, -100, 2] * 4, method="ce_kd", max_steps=1)
    run.train()
    with pytest.raises(DistillationError, match=r"the labels -100: expected 0 to 2.*needs a class for each image"):
        labelled(tmp_path, [0, 1, 2, -100], method="dkd")


def test_missing_labels_are_refused_when_the_trainer_is_made(tmp_path):
    images = [{"pixel_values": torch.rand(3, 32, 32)} for _ in range(8)]
    for method, message in (("scratch", "the cross entropy needs"), ("dkd", "needs `labels`")):
        with pytest.raises(DistillationError, match=f"{message}.*in the batch"):
            trainer(tmp_path, train=images, method=method, parts={"data_collator": collate, "eval_dataset": None})
    trainer(tmp_path, train=images, method="kd", parts={"data_collator": collate, "eval_dataset": None})


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "groups texts by their length"),
        ({"prediction_loss_only": True, "metric_for_best_model": "accuracy"}, "leaves nothing to measure"),
        ({"batch_eval_metrics": True}, "batch_eval_metrics: accuracies need all images"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha adds noise to the embeddings of a text"),
        ({"use_liger_kernel": True}, "use_liger_kernel replaces parts of language models"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr or min_lr_rate should be set"),
        ({"lr_scheduler_kwargs": {"unknown": 1}}, "unexpected keyword argument 'unknown'"),
        ({"metric_for_best_model": "f1"}, "metric_for_best_model='f1': expected one of loss, accuracy"),
        ({"label_names": ["target"]}, "the labels of a batch are named 'labels' here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_would_be_refused_late_are_refused_when_the_trainer_is_made(tmp_path, options, message):
    with pytest.raises(SubDistillError, match=message):
        trainer(tmp_path, method="kd", **options)


def test_metrics_of_the_user_have_their_own_names(tmp_path):
    def f1(prediction):
        return {"f1": 0.5}

    run = trainer(
        tmp_path,
        method="kd",
        metric_for_best_model="f1",
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        max_steps=2,
        parts={"compute_metrics": f1},
    )
    run.train()
    assert run.state.best_metric == 0.5


BEST = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 2}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("b_accuracy", {"load_best_model_at_end": True}),
        ("eval_a_loss", {"save_strategy": "best"}),
        ("a_balanced_accuracy", {"lr_scheduler_type": "reduce_lr_on_plateau"}),
    ],
)
def test_the_best_of_several_evaluations_is_named_by_its_dataset(tmp_path, name, options):
    parts = {"eval_dataset": {"a": views(2, "test"), "b": views(3, "test")}}
    options = BEST | options | {"metric_for_best_model": name}
    run = trainer(tmp_path, method="kd", parts=parts, **options)
    run.train()
    logged = {figure: value for entry in run.state.log_history for figure, value in entry.items()}
    if "lr_scheduler_type" not in options:
        assert run.state.best_metric == logged[f"eval_{name.removeprefix('eval_')}"]


@pytest.mark.parametrize(
    ("name", "metrics", "message"),
    [
        (
            "accuracy",
            compute_metrics,
            "'accuracy': expected one of a_loss, b_loss, a_accuracy, a_balanced_accuracy, b_",
        ),
        (None, compute_metrics, "'loss': expected one of a_loss, b_loss, a_accuracy"),
        ("a_accuracy", None, "'a_accuracy': expected one of a_loss, b_loss$"),
        ("f1", lambda prediction: {"f1": 0.5}, "'f1': the figures of several .* begin with their names, a_, b_$"),
    ],
)
def test_a_metric_that_no_evaluation_dataset_has_is_refused(tmp_path, name, metrics, message):
    several = {"a": views(2, "test"), "b": views(3, "test")}
    options = BEST | {"metric_for_best_model": name, "load_best_model_at_end": True, "method": "kd"}
    with pytest.raises(SubDistillError, match=message):
        trainer(tmp_path, parts={"eval_dataset": several, "compute_metrics": metrics}, **options)
    run = trainer(tmp_path, **options | {"metric_for_best_model": "loss"}, parts={"compute_metrics": metrics})
    run.eval_dataset, run.args.metric_for_best_model = several, name or "loss"
    with pytest.raises(SubDistillError, match=message):
        run.train()


def test_unused_columns_are_removed_but_the_images(tmp_path):
    losses = []
    for remove in (False, True):
        run = trainer(tmp_path / str(remove), method="kd", max_steps=2, remove_unused_columns=remove)
        run.train()
        losses.append((run.state.log_history[0]["loss"], run.evaluate()["eval_loss"]))
    assert losses[0] == losses[1]


def test_columns_of_which_a_transform_makes_the_pixels_are_not_removed(tmp_path):
    rows = datasets.Dataset.from_dict({"value": [0.1, 0.2, 0.3], "label": [0, 1, 2]})
    rows = rows.with_transform(lambda batch: {"pixel_values": [torch.rand(3, 32, 32)] * len(batch["value"])})
    parts = {"data_collator": collate, "eval_dataset": None}
    with pytest.raises(DistillationError, match="remove_unused_columns would remove columns before the dataset's tra"):
        trainer(tmp_path, train=rows, method="kd", remove_unused_columns=True, parts=parts)


def test_smoothed_labels_are_refused_where_nothing_learns_from_labels(tmp_path):
    for method in ("kd", "subdistill"):
        with pytest.raises(
            DistillationError, match=f"label_smoothing_factor=0.1 has no meaning for method '{method}'"
        ):
            trainer(tmp_path, method=method, label_smoothing_factor=0.1)
        trainer(tmp_path, method=method, label_smoothing_factor=0.1, task_weight=0.5)
    for method in ("scratch", "ce_kd"):
        trainer(tmp_path, method=method, label_smoothing_factor=0.1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("method", "nonsense", "method='nonsense': expected one of "),
        ("layer_weight", -5.0, "layer_weight=-5.0: expected at least 0"),
        ("temperature", 0.0, "temperature=0.0: expected a positive number"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size=0: expected at least 1"),
        ("lr_scheduler_type", "cosine_with_min_lr", "min_lr or min_lr_rate should be set"),
        ("label_smoothing_factor", 0.1, "has no meaning for method 'subdistill'"),
    ],
)
def test_values_of_a_trial_are_refused_as_others_are(tmp_path, name, value, message):
    run = trainer(tmp_path)
    run.hp_search_backend, run.hp_space = HPSearchBackend.RAY, None
    with pytest.raises(SubDistillError, match=message):
        run._hp_search_setup({name: value})


def test_arguments_that_were_changed_after_the_trainer_was_made_are_refused(tmp_path):
    run = trainer(tmp_path, method="scratch")
    run.args.method = "kd"
    with pytest.raises(DistillationError, match="method 'kd' needs a teacher: make the trainer with teacher="):
        run.train()
    run.args.method, run.args.task_weight = "scratch", -1.0
    with pytest.raises(SubDistillError, match=r"task_weight=-1\.0: expected at least 0"):
        run.train()


def test_checks_and_the_identity_of_a_run_draw_no_random_numbers(tmp_path):
    run = trainer(tmp_path, method="kd")
    before = torch.random.get_rng_state()
    run._hp_search_setup(None)
    run.plan.identity(run.model)
    assert torch.equal(torch.random.get_rng_state(), before)
