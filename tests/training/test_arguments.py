"""What transformers would refuse late, or take and ignore, is refused before any work."""

import re
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from transformers import TrainingArguments
from transformers.integrations import integration_utils
from transformers.training_args import ParallelMode

from helpers import REPOSITORY
from subdistill_hf.config.training import CHECKPOINTING, SubDistillConfig
from subdistill_hf.errors import SubDistillError
from subdistill_hf.training import arguments

WITH_START_METHODS = pytest.mark.skipif(
    not hasattr(TrainingArguments, "dataloader_multiprocessing_context"),
    reason="this version of transformers has no argument for it",
)


@pytest.fixture
def environment(monkeypatch):
    """Is as before after a test: transformers writes the arguments of torch.compile to it."""
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(name, "no")


@pytest.fixture
def installed(monkeypatch):
    """The services whose packages are there."""
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["tensorboard"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"report_to": "wandb"},
            "'wandb': its package is not installed, or not set up; do so, or give tensorboard or none",
        ),
        ({"report_to": ["tensorboard", "paper"]}, "report_to='paper': expected one of none, all, "),
        ({"report_to": "none", "optim": "galore_adamw"}, "optim='galore_adamw': You need to install `galore_torch`"),
    ],
)
def test_what_is_not_installed_is_named(environment, installed, tmp_path, options, message):
    with pytest.raises(SubDistillError, match=re.escape(message)):
        arguments.check_training_arguments(SubDistillConfig(output_dir=str(tmp_path), **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim_args": "beta"}, "optim_args='beta': expected name=value,name=value"),
        ({"optim_args": "a=1,b=2=3"}, "optim_args='a=1,b=2=3': expected"),
        ({"fsdp": "full_shard"}, "this is a single one: start it with accelerate launch"),
        ({"shard_teacher": True}, "this is a single one: start it with torchrun or accelerate launch"),
        ({"torch_compile_backend": "nope"}, "torch_compile_backend='nope': expected one of eager, "),
        ({"torch_compile_mode": "nope"}, "torch_compile_mode='nope': expected one of default, "),
        ({"lr_scheduler_kwargs": {"power": 2}}, "lr_scheduler_type='cosine', lr_scheduler_kwargs={'power': 2}: "),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type='cosine_with_min_lr', "),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}}, "lr_scheduler_type='polynomial'"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "two"}},
            "lr_scheduler_type='polynomial'",
        ),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"train_sampling_strategy": "group_by_length"}, "groups texts by their length: expected one of random, "),
        ({"train_sampling_strategy": "batch_rebalance"}, "groups texts by their length: expected one of random, "),
        ({"neftune_noise_alpha": 5}, "neftune_noise_alpha adds noise to the embeddings of a text"),
        ({"use_liger_kernel": True}, "use_liger_kernel replaces parts of language models"),
        ({"fp16": True, "use_cpu": True}, "fp16 needs an accelerator, and this runs on the CPU"),
        pytest.param(
            {"dataloader_multiprocessing_context": "nope"},
            "dataloader_multiprocessing_context='nope': expected one of",
            marks=WITH_START_METHODS,
        ),
        ({"dataloader_persistent_workers": True}, "are of workers: give dataloader_num_workers, too"),
        ({"include_for_metrics": ["nope"]}, "include_for_metrics='nope': expected one of inputs, loss"),
        ({CHECKPOINTING: {"nope": 1}}, f"{CHECKPOINTING}={{'nope': 1}}: "),
        ({CHECKPOINTING: {"every_n_layers": 0}}, "every_n_layers=0, expected a whole number"),
        (
            {"prediction_loss_only": True, "metric_for_best_model": "accuracy"},
            "prediction_loss_only leaves nothing to measure metric_for_best_model='accuracy' by",
        ),
        ({"label_names": ["a"]}, "label_names=['a']: the labels of a batch are named 'labels' here"),
        ({"label_names": ["a", "labels"]}, "label_names=['a', 'labels']: give 'labels' first, by which accuracy"),
        ({"metric_for_best_model": "f1"}, "metric_for_best_model='f1': expected one of loss, accuracy, "),
    ],
)
def test_what_would_stop_the_training_is_named(environment, tmp_path, options, message):
    with pytest.raises(SubDistillError, match=re.escape(message)):
        arguments.check_training_arguments(SubDistillConfig(output_dir=str(tmp_path), report_to="none", **options))


@pytest.mark.parametrize(
    "options",
    [
        {"report_to": "none"},
        {"report_to": "tensorboard"},
        {"report_to": "none", "optim": "sgd"},
        {"report_to": "none", "optim": "adafactor"},
        {"report_to": "none", "optim_args": "a=1, b=2"},
        {"report_to": "none", "torch_compile_backend": "aot_eager", "torch_compile_mode": "of its own"},
        {"report_to": "none", "torch_compile_mode": "reduce-overhead"},
        {"report_to": "none", "metric_for_best_model": "eval_loss"},
        {"report_to": "none", "metric_for_best_model": "eval_loss", "prediction_loss_only": True},
        {"report_to": "none", "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
        {"report_to": "none", "lr_scheduler_type": "polynomial", "warmup_steps": 500},
        {"report_to": "none", "lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
        {"report_to": "none", "lr_scheduler_type": "greedy", "eval_strategy": "epoch"},
        {"report_to": "none", "learning_rate": 0.0, "lr_scheduler_type": "inverse_sqrt"},
        {"report_to": "none", CHECKPOINTING: {"use_reentrant": True, "every_n_layers": 2}},
        pytest.param(
            {"report_to": "none", "dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"},
            marks=WITH_START_METHODS,
        ),
    ],
)
def test_what_is_there_is_taken(environment, installed, tmp_path, options):
    arguments.check_training_arguments(SubDistillConfig(output_dir=str(tmp_path), **options))


def test_every_service_that_transformers_finds_is_one_it_can_report_to():
    services = set(integration_utils.INTEGRATION_TO_CALLBACK)
    assert set(integration_utils.get_available_reporting_integrations()) <= services
    assert services.issuperset(arguments.UNLISTED)


@pytest.mark.parametrize("asked", ["fsdp", "ACCELERATE_USE_FSDP", "zero"])
def test_a_student_whose_weights_would_be_spread_is_refused(tmp_path, monkeypatch, asked):
    """In a trial, training steps were those of one process; evaluations and checkpoints failed."""
    args = SubDistillConfig(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setattr(SubDistillConfig, "parallel_mode", ParallelMode.DISTRIBUTED)
    arguments.check_training_arguments(args)
    if asked == "fsdp":
        args.fsdp = True
    elif asked == "zero":
        args.deepspeed_plugin = SimpleNamespace(zero_stage=3)
    else:
        monkeypatch.setenv(asked, "true")
    with pytest.raises(SubDistillError, match="spreads the student's weights over the processes"):
        arguments.check_training_arguments(args)


def test_processes_that_torch_does_not_count_on_a_cpu_are_told_of(tmp_path, monkeypatch):
    args = SubDistillConfig(output_dir=str(tmp_path), use_cpu=True, shard_teacher=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SubDistillError, match="a single one, though several were started: on CPUs add --use_cpu"):
        arguments.check_training_arguments(args)


def test_a_sharded_teacher_beside_deepspeed_is_refused(tmp_path, monkeypatch):
    args = SubDistillConfig(output_dir=str(tmp_path), use_cpu=True, shard_teacher=True)
    monkeypatch.setattr(SubDistillConfig, "world_size", 2)
    arguments.check_training_arguments(args)
    args.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    with pytest.raises(SubDistillError, match="never tried beside DeepSpeed"):
        arguments.check_training_arguments(args)


def test_zero_that_keeps_the_weights_whole_is_taken(tmp_path):
    args = SubDistillConfig(output_dir=str(tmp_path), use_cpu=True)
    args.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    arguments.check_training_arguments(args)
    args.channels_last = True
    with pytest.raises(SubDistillError, match="channels_last: DeepSpeed takes contiguous weights alone"):
        arguments.check_training_arguments(args)


def test_the_examples_of_accelerate_train_whole_students():
    spread = load_config_from_file(str(REPOSITORY / "examples" / "accelerate_configs" / "zero2.yaml"))
    assert (spread.distributed_type, spread.num_processes, spread.mixed_precision) == ("DEEPSPEED", 2, "no")
    assert spread.deepspeed_config["zero_stage"] < arguments.ZERO_OF_WEIGHTS
    found = load_config_from_file(str(REPOSITORY / "examples" / "accelerate_configs" / "ddp.yaml"))
    assert (found.distributed_type, found.num_processes, found.mixed_precision) == ("MULTI_GPU", 2, "no")
    assert found.dynamo_config == {"dynamo_backend": "NO"}
