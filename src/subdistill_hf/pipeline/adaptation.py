"""Fit a teacher to the dataset of the subtask: a new head, or that of its words, and low-rank changes of its body."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import set_seed

from subdistill_hf.config.options import EMBEDDED_TEACHERS, DataOptions, TaskOptions
from subdistill_hf.core.activations import logits_of
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.loading import SubtaskData, load_subtask
from subdistill_hf.data.stored_images import digest_of_rows
from subdistill_hf.errors import SubDistillError
from subdistill_hf.formatting import memory
from subdistill_hf.models.adapter_loading import RECORD_FILE
from subdistill_hf.models.adapters import (
    ADAPTER_FILE,
    head_modules,
    load_adapter,
    lora_targets,
    merged,
    replace_head,
    save_adapter,
    with_adapter,
)
from subdistill_hf.models.heads import names_of
from subdistill_hf.models.loading import LoadedModel, freeze, input_size_of, weights_digest
from subdistill_hf.models.zero_shot import ZeroShotClassifier, add_outputs, of_first_outputs
from subdistill_hf.pipeline.adaptation_training import (
    ADAPTER_FOLDER,
    Adaptation,
    fitted_head,
    heads_of,
    trained,
    trainer_of,
)
from subdistill_hf.pipeline.auto import images_of_a_step, resolve_adaptation
from subdistill_hf.pipeline.evaluation import Classifier, predict, score
from subdistill_hf.pipeline.kept_adapter import (
    TRAINING,
    AdaptationError,
    seen_by,
    sha256_of,
    training_arguments,
    usable_record,
)
from subdistill_hf.pipeline.task import Task
from subdistill_hf.teacher.head_inputs import bytes_of_inputs
from subdistill_hf.training.checkpoints import last_complete_checkpoint

OF_THE_FOLDER = ("id2label", "identity", "sha256", "words")
"""What the record of an adapter holds for whoever reads its folder, and no report."""
BATCH = 32
"""Images of a forward pass in which a teacher is measured."""
CHOICE_OF_IMAGES = tuple(
    field.name for field in fields(DataOptions) if field.name not in ("dataset", "classes", "streaming")
)


def plan_adaptation(task: Task, runs: Path, resume: bool) -> Adaptation:
    """Settle how the teacher of a run is adapted, and look for an adapter that is there already.

    Args:
        task: the run's; its teacher lacks the classes, or takes words.
        runs: the folder of the run's checkpoints.
        resume: whether an interrupted run goes on, which needs the adapter that it began with.

    Raises:
        SubDistillError: for a teacher that cannot get a head or an adapter, options out of range, or an adapter of
            another run.
    """
    options, config = task.options, task.config
    _refuse_adapter(task.teacher)
    data = task.data
    if data.marking is not None:  # of all classes, the first may be another
        marked = [data.class_names[data.subtask.dataset_ids[output]] for output in data.marking.outputs]
        options = replace(options, mark_classes=marked)
    to_all = options.adapt_classes == "all"
    if to_all or data.others is not None:  # images of none of the classes have no output here
        with config.main_process_first(desc="loading the images of the teacher"):
            data = load_subtask(replace(options, classes=["all"]) if to_all else options, config.seed)
    names = data.subtask.names
    model: Any = copy.deepcopy(task.teacher.model).float()
    set_seed(config.seed)
    whole: ZeroShotClassifier | None = None
    if task.teacher.words is None:
        replace_head(model, names)
    else:
        whole = model
        model = of_first_outputs(model, len(names))
    lora = options.adapt_teacher == "lora"
    targets = _targets(model, task) if lora else ()
    head_bytes = None if lora else bytes_of_inputs(model, heads_of(model), input_size_of(task.teacher.processor))
    if head_bytes is None and options.adapt_views:
        raise AdaptationError(
            f"adapt_views={options.adapt_views}: the head of {type(model).__name__} is trained inside it, which "
            "sees new views in each epoch: leave it out"
        )
    resolved, choices = resolve_adaptation(
        task.options, len(data.train), images_of_a_step(config), head_alone=head_bytes is not None
    )
    identity = _identity(task, data, options, model, targets, head_bytes is not None)
    identity["learning_rate"] = resolved.adapt_learning_rate  # as given, of a head alone
    chosen = task.data.subtask.dataset_ids if to_all else range(len(names))
    subtask = task.data.subtask.with_teacher(list(chosen), "its new head" if whole is None else "name")
    teacher = replace(task.teacher, model=freeze(model), without_head=whole is None, digest=None)
    task = replace(task, teacher=teacher, data=replace(task.data, subtask=subtask))
    record = usable_record(task.folder / ADAPTER_FOLDER, identity, runs, resume)
    checkpoint = last_complete_checkpoint(runs / "teacher") if resume and record is None else None
    adaptation = Adaptation(task, data, targets, resolved, choices, head_bytes, identity, record, checkpoint, whole)
    if record is None:
        _check_trainable(adaptation, runs / "teacher")
    return adaptation


def _check_trainable(adaptation: Adaptation, folder: Path) -> None:
    """Refuse what the teacher's training would refuse, while an earlier run is still there.

    Raises:
        AdaptationError: naming the teacher.
    """
    task, name = adaptation.task, adaptation.task.teacher.name
    images = ViewCollator(task.teacher.processor)(adaptation.data.views("train").__getitems__([0]))
    with torch.no_grad():
        pixels = images["pixel_values"].to(next(task.teacher.model.parameters()).device)
        logits = logits_of(task.teacher.model(pixel_values=pixels))
    if not bool(logits.isfinite().all()):
        raise AdaptationError(
            f"the teacher {name!r} cannot be fitted: its answer to the first training image is not finite. Expected a "
            "teacher that works in float32"
        )
    if adaptation.head_bytes is not None:
        return
    try:
        model = with_adapter(copy.deepcopy(task.teacher.model), adaptation.targets, task.options.adapt_rank)
        trainer_of(adaptation, model, folder)
        model.cpu()  # the trainer's cycles of references would keep the device's memory
    except SubDistillError as error:
        raise AdaptationError(
            f"the teacher {name!r} cannot be fitted with these options. It is the student of that training: {error}"
        ) from error


def _identity(
    task: Task, data: SubtaskData, options: TaskOptions, model: nn.Module, targets: Sequence[str], head_alone: bool
) -> dict[str, Any]:
    """What another run must share to use the adapter again, but for its learning rate.

    Args:
        task: the run's, with the teacher as it is loaded.
        data: the images that it learns from.
        options: the task's, with the mark of these images.
        model: the teacher with its new head.
        targets: the modules that get a low-rank change.
        head_alone: whether the head is trained on what it reads, in which of all training arguments the seed alone has
            a part.
    """
    teacher = task.teacher
    identity = {
        "teacher": weights_digest(teacher.model, _body_names(teacher.model)),
        "classes": list(data.subtask.names),
        "method": options.adapt_teacher,
        "rank": options.adapt_rank if targets else None,
        "target_modules": list(targets),
        "epochs": options.adapt_epochs,
        "seed": task.config.seed,
        "dataset": [data.name, data.revision, len(data.train), len(data.validation)],
        "content": [digest_of_rows(rows, data.columns) for rows in (data.train, data.validation)],
        "images": {name: getattr(options, name) for name in CHOICE_OF_IMAGES},
        "augmentation": [task.augmentation, task.flip],
        **seen_by(model, teacher.processor),
    }
    if teacher.words is not None:
        identity["words"] = asdict(teacher.words)
    return identity | ({"views": options.adapt_views} if head_alone else {TRAINING: training_arguments(task.config)})


def announce_adaptation(adaptation: Adaptation) -> str:
    """How the teacher will be changed, as a line."""
    options, classes, images = adaptation.options, len(adaptation.data.subtask.names), len(adaptation.data.train)
    words = adaptation.whole is not None
    head = f"the head of the words of {classes} classes" if words else f"a new head for {classes} classes"
    if adaptation.record is not None:
        return f"\nadapter  {adaptation.folder} is used again\n"
    if adaptation.head_bytes is None:
        changes = f"changes of rank {options.adapt_rank} in {len(adaptation.targets)} modules and "
        body = changes if adaptation.targets else ""
        how = f"{body}{head}, from {images} images in {options.adapt_epochs:g} epochs"
        if options.adapt_teacher == "head":
            how += ". It is trained inside the teacher, whose answers its head alone does not give"
    else:
        views = f" and {options.adapt_views} augmented views of each" if options.adapt_views else ""
        needed = memory(adaptation.recorded_inputs * adaptation.head_bytes)
        how = (
            f"{head}, from what the teacher's body gives for {images} images{views}, which "
            f"is computed once and takes {needed} of memory"
        )
    choices = "".join(f"  {choice}\n" for choice in adaptation.choices)
    why = "the teacher takes words, and is fitted from these on" if words else "the teacher lacks the classes"
    return f"\nadapter  {why}: {how}\n{choices}"


def announce_fitted(task: Task) -> str:
    """How well an adapted teacher does, as a line."""
    assert task.adaptation is not None
    images, accuracy = task.adaptation["validation_images"], task.adaptation["validation_accuracy"]
    before = task.adaptation.get("validation_accuracy_before")
    unfitted = "" if before is None else f" ({100 * before:.1f} % before it was fitted)"
    told = f"teacher  {task.teacher.name}, fitted: {100 * accuracy:.1f} % of {images} validation images{unfitted}"
    if before is not None and accuracy < before:
        told += "\nnote: by its words alone the teacher is better on these images: leave --adapt_teacher out"
    return told


def _refuse_adapter(teacher: LoadedModel) -> None:
    """An adapter has a base that can be adapted instead."""
    if teacher.base is not None:
        raise AdaptationError(
            f"teacher {teacher.name!r} is an adapter already: adapt its base model {teacher.base.name!r} instead"
        )


def _body_names(model: Any) -> list[str]:
    heads = head_modules(model)
    return [name for name in model.state_dict() if name.rpartition(".")[0] not in heads]


def _targets(model: Any, task: Task) -> tuple[str, ...]:
    pixels = torch.zeros(1, 3, *input_size_of(task.teacher.processor))
    wanted = task.options.adapt_target_modules
    return tuple(lora_targets(model, lambda: model(pixel_values=pixels), wanted))


def adapt(adaptation: Adaptation, runs: Path) -> Task:
    """Fit the teacher, or take the adapter that is there, and merge it into the teacher.

    Args:
        adaptation: see `plan_adaptation`.
        runs: the folder of the run's checkpoints; the adapter's are in its `teacher`.

    Returns:
        The task with the adapted, frozen teacher and what is known of its adaptation.
    """
    task = adaptation.task
    record = adaptation.record
    before = _accuracy_of_words(adaptation) if record is None else {}
    measured = fitted_head(adaptation) if record is None and adaptation.head_bytes is not None else None
    set_seed(task.config.seed)
    adapted = with_adapter(
        task.teacher.model, adaptation.targets, task.options.adapt_rank, _base_name(task), task.teacher.revision
    )
    if record is None:
        if measured is None:
            measured, adapted = trained(adaptation, adapted, runs / "teacher")
        if task.config.process_index == 0:
            record = _record(adaptation, adapted, {**measured, **before})
            _save(adaptation, adapted, record)
        PartialState().wait_for_everyone()
        record = json.loads((adaptation.folder / RECORD_FILE).read_text(encoding="utf-8"))
    load_adapter(adapted, adaptation.folder)  # what is saved is what teaches
    fitted: Any = merged(adapted)
    if adaptation.whole is not None:
        add_outputs(fitted, adaptation.whole.word_head, names_of(adaptation.whole.config))
    teacher = replace(task.teacher, model=freeze(fitted), without_head=False, digest=None)
    described = {name: value for name, value in record.items() if name not in OF_THE_FOLDER}
    return replace(task, teacher=teacher, adaptation=described)


def _accuracy_of_words(adaptation: Adaptation) -> dict[str, float]:
    """The accuracy of a teacher that takes words before it is fitted, on the validation images; empty for others."""
    task, data = adaptation.task, adaptation.data
    if adaptation.whole is None:
        return {}
    classifier = Classifier(task.teacher.model.to(task.config.device), task.teacher.processor)
    images = data.views("validation")
    logits = predict(classifier, images, BATCH, task.config.dataloader_num_workers)
    task.teacher.model.cpu()
    return {"validation_accuracy_before": score(logits, images, data.subtask.names, None).accuracy}


def _base_name(task: Task) -> str:
    """The name of the adapter's base: a Hub id, an embedded teacher, or a folder."""
    name = task.options.teacher
    return name if task.teacher.hub_id or name in EMBEDDED_TEACHERS else str(Path(name).resolve())


def _record(adaptation: Adaptation, model: Any, measured: Mapping[str, Any]) -> dict[str, Any]:
    """The description of an adapter, for its folder, the report and the card."""
    options, data = adaptation.options, adaptation.data
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "id2label": {str(output): name for output, name in enumerate(data.subtask.names)},
        "method": options.adapt_teacher,
        "rank": adaptation.identity["rank"],
        "changed_modules": len(adaptation.targets),
        "trained_parameters": trained,
        "classes": len(data.subtask.names),
        "train_images": len(data.train),
        "validation_images": len(data.validation),
        **measured,
        **({} if (words := adaptation.task.teacher.words) is None else {"words": asdict(words)}),
        "identity": dict(adaptation.identity),
    }


def _save(adaptation: Adaptation, model: Any, record: dict[str, Any]) -> None:
    """Write the folder whole or not at all."""
    folder = adaptation.folder
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_adapter(model, unfinished)
    processor = adaptation.task.teacher.processor
    if not hasattr(processor, "data_config"):  # timm's is in its model's configuration
        processor.save_pretrained(unfinished)
    record = {**record, "sha256": sha256_of(unfinished / ADAPTER_FILE)}
    (unfinished / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
