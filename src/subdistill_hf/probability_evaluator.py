"""An evaluator of `evaluate` that hands a metric the probabilities of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from evaluate.evaluator import ImageClassificationEvaluator


class ProbabilityEvaluator(ImageClassificationEvaluator):
    """`evaluate.evaluator("image-classification")` that hands the metric the probability of every class.

    Its `compute` needs `label_mapping`: the model's labels to the dataset's indices, `model.config.label2id`.
    """

    PIPELINE_KWARGS: ClassVar = {"top_k": None}

    def predictions_processor(
        self, predictions: Sequence[Sequence[dict[str, Any]]], label_mapping: Mapping[str, int] | None
    ) -> dict[str, list[list[float]]]:
        """The pipeline's answers as rows of probabilities, in the order of the mapping's indices.

        Raises:
            ValueError: without a mapping.
        """
        if label_mapping is None:
            raise ValueError("expected label_mapping=model.config.label2id, to know the order of the classes")
        labels = sorted(label_mapping, key=lambda label: label_mapping[label])
        scores = [{answer["label"]: answer["score"] for answer in answers} for answers in predictions]
        return {"predictions": [[row[label] for label in labels] for row in scores]}
