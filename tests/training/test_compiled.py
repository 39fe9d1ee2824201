"""`torch_compile` changes how fast a run is, and nothing else: recorded layers and their losses survive it."""

import pytest
import torch
from torch._dynamo.utils import counters

from helpers import resnet, teacher_resnet, teacher_vit, trainer, vit


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


# of two stages or layers, since each is compiled many times


def students_resnet():
    return resnet(widths=(8, 12))


def teachers_resnet():
    return teacher_resnet(widths=(12, 20))


def students_vit():
    return vit(layers=2)


def teachers_vit():
    return teacher_vit(layers=2)


def trained(folder, steps, student=students_resnet, teacher=teachers_resnet, **options):
    defaults = {"max_steps": steps, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    run = trainer(folder, student(), teacher(), **defaults | options)
    run.train()
    return run


@pytest.mark.parametrize(
    ("student", "teacher"), [(students_resnet, teachers_resnet), (students_vit, teachers_vit)], ids=["maps", "tokens"]
)
def test_a_compiled_run_is_the_run(tmp_path, student, teacher):
    plain = trained(tmp_path / "plain", 4, student, teacher)
    assert counters["stats"]["unique_graphs"] == 0
    compiled = trained(tmp_path / "compiled", 4, student, teacher, torch_compile_backend="aot_eager")
    assert counters["stats"]["unique_graphs"] > 0
    assert type(compiled.model) is type(plain.model)
    timings = ("runtime", "per_second")
    for expected, found in zip(plain.state.log_history, compiled.state.log_history, strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            if not name.endswith(timings):
                assert found[name] == pytest.approx(value, rel=1e-4), name
    for (name, expected), found in zip(
        plain.distillation.state_dict().items(), compiled.distillation.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=name)
    assert not any(module._forward_hooks for module in compiled.model.modules())


def test_hooks_of_each_step_do_not_make_it_compile_anew(tmp_path):
    graphs = []
    for steps in (2, 6):
        torch._dynamo.reset()
        counters.clear()
        trained(tmp_path / str(steps), steps, torch_compile_backend="aot_eager")
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1]
    assert not counters["graph_break"]


def test_what_was_compiled_before_leaves_out_no_layers(tmp_path, monkeypatch):
    """Compiled code is found again by structure, whatever hooks there are; accelerate's settings compile too."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    losses = []
    for index, method in enumerate(("kd", "subdistill", "scratch", "subdistill")):
        run = trained(tmp_path / str(index), 2, method=method, eval_strategy="no")
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert counters["stats"]["unique_graphs"] > 0
    assert losses[3] == pytest.approx(losses[1], rel=1e-4)
