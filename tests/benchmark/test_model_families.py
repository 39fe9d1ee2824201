"""Two pairs of the benchmark of families, with random teachers and a few steps."""

import pytest
import torch

from helpers import NAMES, load_script, subtask_rows, write_image_folder
from subdistill_hf.reporting.report import Usage

pytestmark = pytest.mark.usefixtures("datasets_cache", "quick_reports")


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmarks/model_families.py")


def test_students_answer_in_a_fresh_process_as_at_the_end_of_their_runs(benchmark, tmp_path, monkeypatch):
    usage = Usage(code="", output="")  # the card's snippet is run elsewhere
    monkeypatch.setattr("subdistill_hf.pipeline.student_folder._run_usage", lambda *given: usage)
    names = ["deit-efficientnet", "fastvit-mobilenetv2"]
    images = write_image_folder(tmp_path / "images", train=30)
    noise = (torch.rand(16, 3, 32, 32) * 2 - 1, torch.arange(16) % 3)
    reports, folders = [], [tmp_path / name for name in names]
    for name, folder in zip(names, folders, strict=True):
        teacher = tmp_path / f"{name} teacher"
        benchmark.train_teacher(benchmark.TEACHERS[benchmark.teacher_of(name)], NAMES, noise, 2, teacher)
        reports.append(benchmark.run_pair(name, teacher, folder, 4, 30, str(images), NAMES))
    rows = subtask_rows(3, "test").rename_column("fine_label", "output")
    confusions = benchmark.confusions_in_a_fresh_process(folders, rows)
    results = {
        name: benchmark.result_of(name, report, confusion)
        for name, report, confusion in zip(names, reports, confusions, strict=True)
    }
    for result in results.values():
        assert result["same_in_a_fresh_process"]
        assert (result["test_images"], len(result["layers"])) == (9, 4)
    assert benchmark.document(results).count("| yes, 9 images |") == 2
