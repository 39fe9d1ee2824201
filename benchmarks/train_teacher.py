"""Train a teacher of all classes of a dataset, for benchmarks whose teacher is on no hub.

    python benchmarks/train_teacher.py --dataset digits --model resnet:widths=24-48-72-96 --output_dir digits-teacher

The folder holds the model and its processor, as `--teacher` takes them; the test accuracy is printed.
"""

from __future__ import annotations

import argparse

from subdistill_hf.config.options import TaskOptions
from subdistill_hf.config.training import SubDistillConfig
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.data.loading import load_subtask
from subdistill_hf.data.views import ViewDataset
from subdistill_hf.models.loading import load_teacher
from subdistill_hf.models.students import build_student
from subdistill_hf.pipeline.evaluation import Classifier, predict, score
from subdistill_hf.training.trainer import SubDistillTrainer


def main() -> None:
    """Parse, train, test, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", required=True, help="a recipe, as --student takes it")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--label_column")
    parser.add_argument("--augmentation", default="pad_crop")
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--epochs", type=float, default=60)
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    task = TaskOptions(dataset=options.dataset, classes=["all"], label_column=options.label_column)
    data = load_subtask(task, options.seed)
    template = load_teacher("glyphs-resnet").processor  # for the normalisation, and the size where none is given
    teacher = build_student(options.model, data.subtask.names, template)
    config = SubDistillConfig(
        output_dir=options.output_dir,
        method="scratch",
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        weight_decay=0.05,
        per_device_train_batch_size=options.batch_size,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        seed=options.seed,
    )
    trainer = SubDistillTrainer(
        teacher.model,
        config,
        train_dataset=ViewDataset(data.train, data.columns, options.augmentation, options.flip, seed=options.seed),
        eval_dataset=ViewDataset(data.validation, data.columns),
        data_collator=ViewCollator(teacher.processor, teacher.processor),
        processing_class=teacher.processor,
    )
    trainer.train()
    trainer.save_model(options.output_dir)
    test = ViewDataset(data.test, data.columns)
    scores = score(predict(Classifier(trainer.model, teacher.processor), test), test, data.subtask.names, None)
    print(f"test accuracy {100 * scores.accuracy:.1f} % on {len(test)} images")


if __name__ == "__main__":
    main()
