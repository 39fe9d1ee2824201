"""Jobs on Ray: the results are those of the local pool, and a process that is killed takes its own job alone along."""

import os

import pytest

from helpers import REPOSITORY
from light_jobs import environment_of, job, killed_if_odd, killed_the_first_time, refused, refused_beside_others
from subdistill_hf.config.extras import has_extra
from subdistill_hf.executors.base import ExecutionError
from subdistill_hf.executors.on_ray import RayExecutor

pytestmark = pytest.mark.skipif(not has_extra("ray"), reason="Ray is not installed (the extra ray)")


@pytest.fixture(scope="module", autouse=True)
def _local_ray():
    """One Ray for all tests, since it takes seconds to start; its processes find the jobs of the tests."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY / "tests")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def test_each_job_is_run_in_a_process_of_one_thread():
    found = list(RayExecutor(2).run([job(number) for number in range(5)], environment_of))
    assert sorted(row["seed"] for _, row in found) == list(range(5))
    assert all(job.seed == row["seed"] for job, row in found)
    assert os.getpid() not in {row["process"] for _, row in found}
    assert {row["OMP_NUM_THREADS"] for _, row in found} == {"1"}


def test_a_job_whose_process_is_killed_is_run_again(tmp_path):
    found = list(RayExecutor().run([job(number, str(tmp_path)) for number in range(3)], killed_the_first_time))
    assert sorted(result for _, result in found) == [0, 1, 2]
    assert (tmp_path / "1.txt").exists()


def test_a_job_that_is_killed_again_is_told_when_the_others_are_done():
    results = RayExecutor(1).run([job(number) for number in (1, 0, 2)], killed_if_odd)
    assert [next(results)[1] for _ in range(2)] == [0, 2]
    with pytest.raises(ExecutionError, match=r"killed 2 times \(out of memory\?\): kd, a, 10 images, small, seed 1"):
        next(results)


def test_a_job_that_is_refused_takes_no_result_of_the_others_along(tmp_path):
    results = RayExecutor(2).run([job(number, str(tmp_path)) for number in range(4)], refused_beside_others)
    assert next(results)[1] == 1
    with pytest.raises(ExecutionError, match="seed 0: an image cannot be decoded"):
        next(results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.started", "1.ended", "1.started"]


def test_a_job_that_is_refused_is_named():
    with pytest.raises(ExecutionError, match="kd, a, 10 images, small, seed 7: no such class"):
        list(RayExecutor(1).run([job(7)], refused))
