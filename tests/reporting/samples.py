"""A made-up run of three students, as the JSON of its report."""

import math

from subdistill_hf.reporting.report import RunReport

CLASSES = ["club", "diamond", "heart", "spade", "joker"]
CONFUSIONS = {
    "teacher": [[99, 0, 0, 1, 0], [0, 99, 1, 0, 0], [0, 1, 99, 0, 0], [2, 0, 0, 98, 0], [0, 0, 0, 0, 100]],
    "scratch": [[86, 1, 2, 9, 2], [1, 88, 8, 1, 2], [3, 9, 84, 2, 2], [12, 1, 2, 83, 2], [1, 2, 1, 2, 94]],
    "kd": [[91, 0, 1, 7, 1], [0, 92, 6, 1, 1], [1, 7, 90, 1, 1], [9, 0, 1, 89, 1], [0, 1, 1, 1, 97]],
    "subdistill": [[94, 0, 1, 5, 0], [0, 95, 4, 0, 1], [1, 4, 95, 0, 0], [6, 0, 0, 94, 0], [0, 0, 0, 0, 100]],
}


def make_result(method, confusion, **other):
    """A result whose accuracies follow from its confusion matrix."""
    per_class = {name: row[i] / sum(row) for i, (name, row) in enumerate(zip(CLASSES, confusion, strict=True))}
    correct = sum(row[i] for i, row in enumerate(confusion))
    return {
        "method": method,
        "accuracy": correct / sum(map(sum, confusion)),
        "balanced_accuracy": sum(per_class.values()) / len(per_class),
        "per_class_accuracy": per_class,
        "confusion": [list(row) for row in confusion],
        "parameters": 42_913,
        **other,
    }


def make_history(epochs=20, steps=8, start=0.55, end=0.9, layers=(), rate=6.0):
    """Entries as `transformers.Trainer` logs them."""
    history = []
    for step in range(1, epochs * steps + 1):
        epoch = step / steps
        decay = math.exp(-epoch / rate) * (1 + 0.15 * math.sin(2.3 * step))
        parts = {"loss_kd": 0.05 + 1.9 * decay}
        parts |= {f"loss_layer/{name}": 0.1 * (i + 1) + 0.8 * decay for i, name in enumerate(layers)}
        loss = sum(parts.values()) if layers else parts["loss_kd"]
        entry = {"step": step, "epoch": epoch, "loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3}
        history.append(entry | (parts if layers else {}))
        if step % steps == 0:
            accuracy = end - (end - start) * math.exp(-epoch / rate) + 0.006 * math.sin(1.7 * epoch)
            history.append({"step": step, "epoch": epoch, "eval_loss": 1.2 - accuracy, "eval_accuracy": accuracy})
    history.append({"step": epochs * steps, "epoch": epochs, "train_runtime": 12.0, "train_loss": 0.3})
    return history


def make_subspace(index, width, dimensions):
    """A subspace with a spectrum that falls off, and energies that do so less regularly."""
    spectrum = [2.0**-index * math.exp(-0.35 * k) * 12 for k in range(width)]
    energies = [value * (0.7 + 0.2 * math.cos(3.0 * k)) for k, value in enumerate(spectrum)]
    return {
        "teacher_layer": f"resnet.encoder.stages.{index}",
        "student_layer": f"resnet.encoder.stages.{index}",
        "width": width,
        "dimensions": dimensions,
        "energy_fraction": sum(energies[:dimensions]) / sum(energies),
        "kind": "prcaposdef",
        "energies": energies[:dimensions],
        "total_energy": sum(energies),
        "eigenvalues": spectrum[:dimensions],
    }


def parsed(report):
    """The report that a JSON object is."""
    return RunReport.from_dict(report)


def make_report():
    """The JSON of the report of a whole run: three students of one teacher."""
    subspaces = [
        make_subspace(i, width, k)
        for i, (width, k) in enumerate(zip([64, 128, 256, 512], [8, 12, 16, 24], strict=True))
    ]
    layers = [subspace["teacher_layer"] for subspace in subspaces]
    return {
        "created": "2026-11-21",
        "dataset": {
            "name": "glyphs-100",
            "hub_id": None,
            "revision": None,
            "train_images": 2000,
            "validation_images": 500,
            "test_images": 500,
            "test_split": "test",
            "train_images_per_class": dict.fromkeys(CLASSES, 400),
            "augmentation": "random crop with 4 pixels of padding",
        },
        "classes": list(CLASSES),
        "teacher": {
            "name": "glyphs-resnet",
            "hub_id": None,
            "revision": None,
            "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "model_class": "ResNetForImageClassification",
            "parameters": 11_223_140,
            "license": "apache-2.0",
            "teacher_classes": 100,
        },
        "student": {
            "recipe": "conv4-tiny",
            "hub_id": None,
            "revision": None,
            "license": None,
            "model_class": "ResNetForImageClassification",
            "parameters": 42_913,
            "size_bytes": 179_304,
            "image_size": [32, 32],
        },
        "results": [
            make_result(
                "teacher",
                CONFUSIONS["teacher"],
                parameters=11_223_140,
                teacher_agreement=None,
                operations=1_113_000_000,
                latency_ms={"median": 20.4, "low": 19.8, "high": 22.91, "runs": 100},
                training_seconds=None,
                training_kilowatt_hours=None,
            ),
            *(
                make_result(
                    method,
                    CONFUSIONS[method],
                    teacher_agreement=agreement,
                    operations=4_318_000,
                    latency_ms={"median": 1.52, "low": 1.481, "high": 1.75, "runs": 100},
                    training_seconds=seconds,
                    training_kilowatt_hours=energy,
                )
                for method, agreement, seconds, energy in [
                    ("scratch", 0.868, 48.2, 0.0009),
                    ("kd", 0.922, 190.0, 0.00354),
                    ("subdistill", 0.958, 203.7, 0.00379),
                ]
            ),
        ],
        "energy_source": "codecarbon 3.3.2",
        "latency_machine": "2 x AMD EPYC, 1 thread, batch 1, torch 2.15.0",
        "subspaces": subspaces,
        "hyperparameters": {"num_train_epochs": 20, "layer_weight": 100.0, "centring": "mean"},
        "histories": {
            "scratch": make_history(start=0.3, end=0.87),
            "kd": make_history(start=0.4, end=0.92),
            "subdistill": make_history(start=0.5, end=0.955, layers=layers),
        },
        "versions": {"subdistill_hf": "0.1.0", "torch": "2.15.0", "transformers": "5.23.0"},
        "usage": {
            "code": 'from transformers import pipeline\n\nclassify = pipeline("image-classification", "student")\n'
            'print(classify("heart.png")[0])',
            "output": "{'label': 'heart', 'score': 0.98}",
        },
        "command": "subdistill train --teacher glyphs-resnet --superclass suits --output student",
    }
