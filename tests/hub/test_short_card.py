"""The short card of a student that the trainer alone has trained."""

from helpers import trainer
from trainings import BEST_IS_KEPT, Scripted


def test_the_short_card_tells_the_evaluation_of_the_student_that_is_kept(tmp_path):
    class Accuracies(Scripted):
        def __call__(self, predicted):
            return {"accuracy": super().__call__(predicted)["score"]}

    run = trainer(
        tmp_path,
        max_steps=6,
        **BEST_IS_KEPT,
        metric_for_best_model="accuracy",
        parts={"compute_metrics": Accuracies(0.1, 0.9, 0.2)},
    )
    run.train()
    run.create_model_card()
    assert "accuracy: 0.9000" in (tmp_path / "README.md").read_text(encoding="utf-8")
