"""SubDistillTrainer: what it trains and leaves alone, and that the parts of its parent keep working."""

import math

import pytest
import torch
from transformers import Trainer

from helpers import config, convnext, resnet, teacher_resnet, teacher_vit, trainer, views, vit, weights_of
from subdistill_hf.core.activations import LayerError
from subdistill_hf.losses import subspace as losses
from subdistill_hf.losses.aligned_error import aligned_errors
from subdistill_hf.training.trainer import SubDistillTrainer
from trainings import STAGES, logged, parts, recorded


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (resnet, teacher_vit, ["vit.layers.0", "vit.layers.1", "vit.layers.2"]),
        (vit, teacher_resnet, STAGES),
        (vit, teacher_vit, [f"vit.layers.{index}" for index in range(4)]),
        (convnext, teacher_resnet, STAGES[1:]),
    ],
    ids=["transformer to convolutional", "convolutional to transformer", "transformer to transformer", "convnext"],
)
def test_every_pair_of_architectures_trains_with_its_layers_named_in_the_log(tmp_path, student, teacher, expected):
    model, oracle = student(), teacher()
    before = weights_of(model)
    run = trainer(tmp_path, model, oracle, train=views(16), layer_weight=0.1, max_steps=12, learning_rate=3e-3)
    run.train()
    assert [pair.teacher.name for pair in run.pairs] == expected
    for entry in logged(run):
        assert set(parts(entry)) == {"kd", *(f"layer/{name}" for name in expected)}
        assert all(math.isfinite(value) for value in parts(entry).values())
    assert logged(run)[-1]["loss"] < logged(run)[0]["loss"]
    trained = {name for name, value in weights_of(model).items() if not torch.equal(value, before[name])}
    assert {name for name, _ in model.named_parameters()} - trained <= {"vit.embeddings.mask_token"}


def test_rotations_are_trained_and_stay_orthogonal(tmp_path):
    run = trainer(tmp_path, max_steps=10, learning_rate=1e-2)
    run.prepare_distillation()
    before = [alignment.rotation.matrix.detach().clone() for alignment in run.distillation.alignments]
    run.train()
    for alignment, matrix in zip(run.distillation.alignments, before, strict=True):
        assert float((alignment.rotation.matrix.detach() - matrix).abs().max()) > 1e-3
    assert run.distillation.orthogonality_error() < 1e-5


def test_callbacks_get_the_plain_student(tmp_path):
    run, recorder = recorded(
        tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=2
    )
    student = run.model
    run.train()
    expected = ["train_begin", "step_end", "evaluate", "step_end", "evaluate", "save", "train_end"]
    assert recorder.events == expected
    assert all(model is student for model in recorder.models)
    assert run.model is student
    assert len(student._forward_hooks) == 0
    assert not any(module._forward_hooks for module in student.modules())


def test_bf16_leaves_weights_and_rotations_in_float32(tmp_path, monkeypatch):
    runs = {flag: trainer(tmp_path, max_steps=3, bf16=flag, learning_rate=1e-4) for flag in (False, True)}
    run, dtypes = runs[True], {}
    run.model.resnet.embedder.embedder.convolution.register_forward_hook(
        lambda module, given, output: dtypes.update(student=output.dtype)
    )

    def compared(values, targets, matrices, *options):
        errors, means = aligned_errors(values, targets, matrices, *options)
        dtypes.update({each.dtype: "compared" for each in (*values, *targets, matrices, errors)})
        return errors, means

    runs[False].train()
    monkeypatch.setattr(losses, "aligned_errors", compared)
    run.train()
    assert dtypes == {"student": torch.bfloat16, torch.float32: "compared"}
    assert all(math.isfinite(value) for entry in logged(run) for value in parts(entry).values())
    assert {weight.dtype for weight in run.distillation.parameters()} == {torch.float32}
    assert run.distillation.orthogonality_error() < 1e-5
    assert logged(run)[-1]["loss"] != logged(runs[False])[-1]["loss"]
    assert logged(run)[-1]["loss"] == pytest.approx(logged(runs[False])[-1]["loss"], rel=0.1)


def test_several_gpus_are_left_to_launchers(tmp_path):
    """With more than one GPU in one process the Trainer would take DataParallel, which cannot split the targets."""
    args = config(tmp_path, per_device_train_batch_size=8)
    args._n_gpu = 2  # what TrainingArguments finds on a machine with two
    assert args.train_batch_size == 16
    run = trainer(tmp_path, parts={"args": args})
    assert run.args.n_gpu == 1
    assert next(iter(run.get_train_dataloader()))["pixel_values"].shape[0] == 8


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing")  # its newer name is not in every version we support
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_leaves_the_gradients_of_the_layer_losses(tmp_path, reentrant):
    def gradients(**options):
        run, recorder = recorded(tmp_path, vit(), teacher_vit(), max_steps=1, max_grad_norm=0, **options)
        run.train()
        return recorder.gradients[0]

    plain = gradients()
    saving = gradients(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert len(plain) > 60
    for name, gradient in plain.items():
        torch.testing.assert_close(saving[name], gradient, rtol=1e-4, atol=1e-3)  # of up to hundreds


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing")
def test_a_layer_inside_a_block_that_is_computed_again_keeps_its_gradient_or_is_refused(tmp_path):
    def train(reentrant):
        options = {"use_reentrant": reentrant}
        run, recorder = recorded(
            tmp_path,
            vit(),
            teacher_vit(),
            max_steps=1,
            kd_weight=0.0,
            layers=["vit.layers.2.mlp=vit.layers.2.mlp"],
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs=options,
        )
        run.train()
        return recorder.gradients[0]

    assert any("layers.1" in name and bool(gradient.any()) for name, gradient in train(False).items())
    with pytest.raises(LayerError, match=r"vit.layers.2.mlp gives values without a gradient.*use_reentrant=False"):
        train(True)


def test_arguments_of_another_class_are_refused(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="expected args of type SubDistillConfig, found TrainingArguments"):
        SubDistillTrainer(resnet(), TrainingArguments(output_dir=str(tmp_path)), teacher=teacher_resnet())


def test_it_is_a_direct_subclass_of_the_trainer_and_holds_collaborators_that_do_not_hold_it(tmp_path):
    assert SubDistillTrainer.__bases__ == (Trainer,)
    run = trainer(tmp_path, max_steps=1)
    run.train()
    for part in (run.plan, run.teacher, run.targets, run.loss_log, run.distillation):
        assert not any(value is run for value in vars(part).values())
