"""All that needs neither images nor weights is refused before any are read."""

import copy

import pytest

from helpers import config
from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.errors import SubDistillError
from subdistill_hf.pipeline import task
from subdistill_hf.pipeline.run import distill
from subdistill_hf.pipeline.validation import validate_options


def changed(options, values):
    """As a caller may change them after they were made, which is when they refuse themselves."""
    for name, value in values.items():
        setattr(options, name, value)
    return options


@pytest.fixture
def untouched(monkeypatch):
    """Nothing is read."""

    def fail(*given, **options):
        pytest.fail("images or weights are read")

    monkeypatch.setattr(task, "load_subtask", fail)
    monkeypatch.setattr(task, "load_teacher", fail)


@pytest.mark.parametrize(
    ("options", "training", "message"),
    [
        ({}, {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no meaning for method 'subdistill'"),
        ({"compare": ["kd"]}, {"method": "vid", "label_smoothing_factor": 0.1}, "has no meaning for method 'vid'"),
        ({"train_images_per_class": "ten"}, {}, "train_images_per_class='ten': expected a whole number"),
        ({"validation_fraction": 1}, {}, "validation_fraction=1: expected a share of 0 or more, and below 1"),
        (
            {"validation_fraction": 0},
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 10, "save_steps": 10},
            "validation_fraction=0 leaves no images for load_best_model_at_end, which chooses by them",
        ),
        (
            {"validation_fraction": 0, "adapt_teacher": "lora"},
            {},
            "validation_fraction=0 leaves no images for adapt_teacher=lora, which chooses by them",
        ),
        ({"validation_fraction": 0, "other_class": True}, {}, "no images for the threshold of other_class"),
        ({"train_images_per_class": 1}, {}, "train_images_per_class=1: expected at least 2"),
        ({"train_images_per_class": 5, "train_fraction": 0.5}, {}, "contradict each other: give one of them"),
        ({"test_split": "test", "test_fraction": 0.5}, {}, "contradict each other: give one of them"),
        ({"mark": "cross"}, {}, "mark='cross': expected one of plus, "),
        ({"mark_share": 0.5}, {}, "mark_share=0.5 has no meaning without --mark"),
        ({"mark": "plus", "mark_share": 2}, {}, "mark_share=2: expected a share from 0 to 1"),
        ({"classes": ["cat", "subtask:insect"]}, {}, "unknown subtask 'insect': expected one of "),
        ({"adapt_teacher": "yes"}, {}, "adapt_teacher='yes': expected one of no, lora, head"),
        ({"adapt_classes": "some"}, {}, "adapt_classes='some': expected one of subtask, all"),
        ({"adapt_rank": 0}, {}, "adapt_rank=0: expected at least 1"),
        ({"adapt_epochs": -1}, {}, "adapt_epochs=-1, .*: expected positive numbers"),
        ({"adapt_learning_rate": 0}, {}, "adapt_learning_rate=0: expected positive numbers"),
        ({"adapt_teacher": "head", "adapt_target_modules": ["fc"]}, {}, "no meaning with adapt_teacher=head"),
        ({"adapt_rank": 4}, {}, "adapt_rank=4 has no meaning with adapt_teacher=no: leave it out, or use .*=lora"),
        ({"adapt_views": 4}, {}, "adapt_views=4 has no meaning with adapt_teacher=no: .*adapt_teacher=head"),
        ({"adapt_epochs": 2.0}, {}, "adapt_epochs=2.0 has no meaning with adapt_teacher=no"),
        ({"adapt_learning_rate": 0.1}, {}, "adapt_learning_rate=0.1 has no meaning with adapt_teacher=no"),
        ({"adapt_target_modules": ["fc1"]}, {}, "adapt_target_modules=.'fc1'. has no meaning with adapt_teacher=no"),
        ({"adapt_classes": "all"}, {}, "adapt_classes='all' has no meaning with adapt_teacher=no"),
        ({"student": "resnet:widths=8-no"}, {}, "student recipe 'resnet:widths=8-no': expected whole numbers"),
        ({"student": "vit:hidden=50,heads=3"}, {}, "student recipe 'vit.*': hidden=50 is not divisible by heads=3"),
        ({"student": "timm/resnet1"}, {}, "student recipe 'timm/resnet1': timm .* has no architecture 'resnet1'"),
        ({"student_lora": True}, {}, "'resnet:.*' is new, and low-rank changes of random weights cannot"),
        ({"student_lora_rank": 0}, {}, "student_lora_rank=0: expected at least 1"),
        ({"student_lora_save": "both"}, {}, "student_lora_save='both': expected one of merged, adapter"),
        ({"student_lora_save": "adapter"}, {}, "need --student_lora"),
        ({"augmentation": "cutout"}, {}, "augmentation='cutout': expected one of none, pad_crop, resized_crop, auto"),
        ({"mix": -1}, {}, "mix=-1: expected a share of the views, from 0 to 1"),
        ({"compare": ["kd", "fitnets"]}, {}, "compare='fitnets': expected one of scratch, kd, .*'fitnet'"),
        ({}, {"method": "fitnets"}, "method='fitnets': expected one of scratch, kd, "),
        ({}, {"basis": "lda"}, "basis='lda': expected one of prca, "),
        ({}, {"centring": "median"}, "centring='median': expected one of mean, batch_norm, none"),
        ({}, {"rotation": "cayley"}, "rotation='cayley': expected one of orthogonal, linear, procrustes, full_width"),
        ({}, {"cuda_graphs": "some"}, "cuda_graphs='some': expected one of all, losses, off"),
        ({}, {"teacher_cache": "some"}, "teacher_cache='some': expected auto, off, or a number of views"),
        ({}, {"teacher_cache_limit": 0}, "teacher_cache_limit=0: expected GiB above 0"),
        ({}, {"teacher_cache_precision": "int8"}, "teacher_cache_precision='int8': expected one of float16, float32"),
        ({}, {"teacher_cache_dir": "nope://targets"}, "teacher_cache_dir='nope://targets' cannot be reached"),
        ({}, {"layer_weight": -1}, "layer_weight=-1: expected at least 0"),
        ({}, {"layer_weight": 0, "kd_weight": 0}, "are all 0: there is nothing to train"),
        ({}, {"temperature": 0}, "temperature=0: expected a positive number"),
        ({}, {"positions": 0}, "positions=0: expected at least 1"),
        ({}, {"layers": ["encoder"]}, "layer entry 'encoder' is not of the form 'teacher_layer=student_layer'"),
        ({}, {"layers": ["auto", "a=b"]}, "layer entry 'auto' is not of the form"),
        ({}, {"learning_rate": -1}, "learning_rate=-1: expected at least 0"),
        ({}, {"seed": 2**32}, "seed=4294967296: expected a number from 0 to 4294967295"),
        ({}, {"remove_unused_columns": True}, "remove_unused_columns=True: expected False, since the images are made"),
        ({}, {"prediction_loss_only": True}, "prediction_loss_only"),
        ({}, {"batch_eval_metrics": True}, "batch_eval_metrics: accuracies need all images of an evaluation"),
        ({}, {"eval_do_concat_batches": False}, "eval_do_concat_batches=False: expected True, since the validation"),
        ({}, {"train_sampling_strategy": "group_by_length"}, "groups texts by their length"),
        ({}, {"neftune_noise_alpha": 1.0}, "neftune_noise_alpha adds noise to the embeddings of a text"),
        ({}, {"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type='cosine_with_min_lr', "),
        ({}, {"gradient_checkpointing": True}, "gradient_checkpointing: .* cannot compute its activations again"),
        ({}, {"report_to": ["paper"]}, "report_to='paper': expected one of none, all, "),
        ({}, {"optim_args": "beta"}, "optim_args='beta': expected name=value,name=value"),
        ({}, {"label_names": ["kinds"]}, "the labels of a batch are named 'labels' here"),
        ({}, {"metric_for_best_model": "f1"}, "metric_for_best_model='f1': expected one of loss, accuracy, "),
        ({}, {"resume_from_checkpoint": "elsewhere"}, "resume_from_checkpoint='elsewhere': expected true, for the "),
    ],
)
def test_bad_options_are_refused_before_any_image_is_read(untouched, tmp_path, options, training, message):
    given = changed(TaskOptions(), options), changed(config(tmp_path / "out"), training)
    before = copy.deepcopy(given)
    with pytest.raises(SubDistillError, match=message):
        distill(*given)
    assert given == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "message"),
    [("out", "is a file: expected a folder"), ("out/a.txt", "other files"), ("out/report.json", "another run")],
)
def test_a_folder_that_may_not_be_used_is_refused_before_any_image_is_read(untouched, tmp_path, file, message):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine", encoding="utf-8")
    with pytest.raises(SubDistillError, match=message):
        distill(TaskOptions(), config(tmp_path / "out"))
    assert (tmp_path / file).read_text(encoding="utf-8") == "mine"


def test_options_that_fit_are_taken(untouched, tmp_path):
    with pytest.raises(pytest.fail.Exception, match="images or weights are read"):
        distill(TaskOptions(student="convnext:width=0.5", classes=["subtask:box"]), config(tmp_path / "out"))


@pytest.mark.parametrize(
    "options",
    [{"adapt_teacher": "head"}, {"unlabelled": "glyphs-100"}, {"label_column": "none", "classes": ["bishop", "king"]}],
)
def test_a_sharded_teacher_takes_no_passes_as_a_whole(tmp_path, monkeypatch, options):
    monkeypatch.setattr(SubDistillConfig, "world_size", 2)
    training = config(tmp_path, shard_teacher=True)
    validate_options(TaskOptions(), training)
    with pytest.raises(SubDistillError, match=r"shard_teacher and .*: the latter takes passes of the whole teacher"):
        validate_options(TaskOptions(**options), training)
