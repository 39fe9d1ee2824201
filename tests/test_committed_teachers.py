"""The teachers of the benchmarks that are here load, and know the classes that their cards name."""

from pathlib import Path

import pytest
import torch

from subdistill_hf.hub.files import CARD_FILE
from subdistill_hf.models.loading import load_teacher

TEACHERS = Path(__file__).parents[1] / "benchmarks" / "teachers"


@pytest.mark.parametrize(("name", "classes", "size"), [("cifar100-resnet", 100, 128)])
def test_a_committed_teacher_answers_and_has_a_card(name, classes, size):
    teacher = load_teacher(str(TEACHERS / name))
    assert len(teacher.model.config.id2label) == classes
    assert all(weight.dtype == torch.float32 for weight in teacher.model.parameters())
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = teacher.model.eval()(pixel_values=pixels).logits
    assert logits.shape == (2, classes)
    assert torch.isfinite(logits).all()
    assert f"# {name}" in (TEACHERS / name / CARD_FILE).read_text(encoding="utf-8")
    assert sum(path.stat().st_size for path in (TEACHERS / name).iterdir()) < 10_000_000
