"""Each epoch has its views, whoever loads them; the bar says what is trained and how well."""

import pytest
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers import PrinterCallback, ProgressCallback

from helpers import trainer, views
from subdistill_hf.data.collate import with_epochs
from subdistill_hf.training.callbacks import MethodProgress, show_progress
from subdistill_hf.training.trainer import SubDistillTrainer


def views_seen(folder, train, checkpoint=None, **options):
    """The view of each step of three epochs, or of those that are left after a checkpoint."""
    seen = []

    class Noting(SubDistillTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(set(inputs["view"].tolist()))
            return super().compute_loss(model, inputs, *args, **kwargs)

    run = trainer(folder, trainer_class=Noting, train=train, method="kd", max_steps=9, **options)
    run.train(resume_from_checkpoint=checkpoint)
    return seen


@pytest.mark.parametrize("wrap", [lambda images: images, lambda images: Subset(images, range(24))], ids=["", "subset"])
@pytest.mark.parametrize("workers", [{}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}])
def test_each_epoch_has_its_views_whoever_loads_them(tmp_path, wrap, workers):
    seen = views_seen(tmp_path, wrap(views(augmentation="pad_crop")), **workers)
    assert seen == [{0}] * 3 + [{1}] * 3 + [{2}] * 3


def test_a_concatenation_has_the_epochs_of_its_parts():
    first, second = views(augmentation="pad_crop"), views(augmentation="pad_crop")
    assert with_epochs(ConcatDataset([first, Subset(second, [0])])) == [first, second]
    assert with_epochs([1, 2]) == []


def test_a_resumed_run_starts_with_the_views_of_its_epoch(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4}
    views_seen(tmp_path, views(augmentation="pad_crop"), **options)
    seen = views_seen(tmp_path, views(augmentation="pad_crop"), checkpoint=str(tmp_path / "checkpoint-4"), **options)
    assert seen == [{1}] * 2 + [{2}] * 3


def bars(run):
    return [
        type(each) for each in run.callback_handler.callbacks if isinstance(each, ProgressCallback | PrinterCallback)
    ]


def test_a_label_gives_our_bar_and_none_gives_none(tmp_path):
    for label, quiet, expected in (("kd", False, [MethodProgress]), ("kd", True, []), (None, False, [])):
        run = trainer(tmp_path, disable_tqdm=quiet)
        show_progress(run, label)
        assert bars(run) == expected


def test_the_bar_shows_the_latest_loss_and_validation_accuracy(tmp_path, capsys):
    run = trainer(tmp_path, disable_tqdm=False, max_steps=2, eval_strategy="steps", eval_steps=2)
    show_progress(run, "subdistill")
    run.train()
    (bar,) = [each for each in run.callback_handler.callbacks if isinstance(each, MethodProgress)]
    evaluated = next(entry for entry in run.state.log_history if "eval_accuracy" in entry)
    trained = [entry["loss"] for entry in run.state.log_history if "loss" in entry][-1]
    assert bar.shown == {"loss": f"{trained:.3f}", "validation accuracy": f"{evaluated['eval_accuracy']:.3f}"}
    written = capsys.readouterr().err
    assert "subdistill" in written
    assert "validation accuracy" in written


class Holder(Dataset):
    """A dataset of the user, with attributes of its own under the names by which others hold datasets."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


def test_attributes_of_a_dataset_that_are_no_datasets_have_no_epochs():
    images = views(augmentation="pad_crop")
    circle = Holder()
    circle.dataset, circle.datasets = circle, [circle, images]
    for other in (None, 3, "images", ["a", "b"], {"a": None}):
        assert with_epochs(Holder(datasets=other, dataset=other)) == []
    assert with_epochs(circle) == [images]
    assert with_epochs(Holder(datasets={"train": images}, dataset=images)) == [images]
    assert with_epochs(Holder(set_epoch=None, dataset=images)) == [images]
