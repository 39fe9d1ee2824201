"""What is replayed as a CUDA graph gives what it gave without: values, gradients, buffers and random numbers.

Without a GPU, a recording is the work itself, done again, whose results go to the memory of the first time.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from families import FAMILIES, build, with_batch_statistics
from helpers import (
    LAYER_BASELINES,
    assert_equal_weights,
    config,
    processor,
    resnet,
    teacher_resnet,
    teacher_vit,
    trainer,
    views,
    vit,
    with_confident_head,
)
from subdistill_hf.acceleration import cuda_graphs
from subdistill_hf.acceleration.cuda_graphs import MOST_RECORDINGS, USUAL_CALLS, Replayed
from subdistill_hf.data.collate import ViewCollator
from subdistill_hf.losses import procrustes
from subdistill_hf.losses.subspace import SubspaceAlignment
from subdistill_hf.training.trainer import SubDistillTrainer

GPU = torch.cuda.is_available()
ON_GPU = [name for name in FAMILIES if name != "timm regnet"]  # whose layers are wider than the images have positions
DEVICE = "cuda" if GPU else "cpu"
# a replay of the same kernels is exact; on a GPU some kernels of the models are not the same from call to call
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6} if GPU else {"rtol": 0, "atol": 0}


class Again:
    """Does the work again, instead of its kernels, and puts what it gives on the memory of the first time."""

    made, failures = 0, 0

    def __init__(self):
        Again.made += 1

    def warm_up(self, work):
        for _ in range(3):
            work()

    def record(self, work):
        recording, gradients = work.__self__, torch.is_grad_enabled()
        autocast = torch.is_autocast_enabled(DEVICE), torch.get_autocast_dtype(DEVICE)
        work()
        if work.__func__.__name__ == "_run":
            static = [output.detach() for output in recording.outputs]
        else:
            static = [*filter(lambda each: each is not None, recording.by_inputs)]
            static += recording.by_parameters._stretches.values()
            by_inputs, by_parameters = recording.by_inputs, recording.by_parameters
        recording.live = recording.outputs

        def replay():
            with torch.set_grad_enabled(gradients), torch.autocast(DEVICE, enabled=autocast[0], dtype=autocast[1]):
                if work.__func__.__name__ == "_run":
                    work()
                    recording.live, new = recording.outputs, recording.outputs
                    recording.outputs = tuple(static)
                else:
                    kept, recording.outputs = recording.outputs, recording.live
                    work()
                    recording.outputs = kept
                    new = [*filter(lambda each: each is not None, recording.by_inputs)]
                    new += recording.by_parameters._stretches.values()
                    recording.by_inputs, recording.by_parameters = by_inputs, by_parameters
            with torch.no_grad():
                for own, values in zip(static, new, strict=True):
                    own.copy_(values)

        return replay


@pytest.fixture(autouse=True)
def recorder(monkeypatch):
    Again.made = 0
    if not GPU:
        monkeypatch.setattr(cuda_graphs, "CudaRecorder", Again)


class Net(nn.Module):
    """Batch norm, dropout, a channels-last convolution, and a weight that is not used."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm, self.drop, self.last = nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Linear(4, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, pixels):
        maps = self.drop(torch.relu(self.norm(self.first(pixels))))
        return self.last(maps.mean(dim=(2, 3))), maps.detach().sum()


def net():
    torch.manual_seed(0)
    return Net().to(DEVICE)


def replayed(module, name="the net"):
    return Replayed(lambda tensors, arguments: module(*tensors), module, name)


def batches(count, size=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 6, 6, generator=generator).to(DEVICE) for _ in range(count)]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, **TOLERANCE)


def test_values_gradients_buffers_and_random_numbers_are_those_of_the_function():
    plain, recorded = net(), net()
    function = replayed(recorded)
    for step, pixels in enumerate(batches(6)):
        found = []
        for call, module in ((plain, plain), (lambda pixels: function([pixels]), recorded)):
            torch.manual_seed(step)
            inputs = pixels.clone().requires_grad_()
            logits, total = call(inputs)
            assert not total.requires_grad
            (logits.square().sum() * (step + 1)).backward()
            gradients = {name: weight.grad for name, weight in module.named_parameters()}
            found.append((logits, total, inputs.grad, gradients, torch.rand(1, device=DEVICE)))
        assert function.recordings == (step >= USUAL_CALLS)
        for expected, ours in zip(found[0][:3], found[1][:3], strict=True):
            assert_close(ours, expected)
        assert torch.equal(found[0][4], found[1][4])
        for name, gradient in found[0][3].items():
            if name.startswith("unused"):
                assert gradient is None
                assert found[1][3][name] is None
            else:  # they add up over the steps
                assert_close(found[1][3][name], gradient)
                assert found[1][3][name].stride() == gradient.stride()
        for expected, ours in zip(plain.buffers(), recorded.buffers(), strict=True):
            assert_close(ours, expected)


def test_values_and_gradients_are_the_steps_own():
    """The next replay must not write into what the step has given."""
    module = net()
    function = replayed(module)
    kept = []
    for pixels in batches(5):
        module.zero_grad()
        logits, _ = function([pixels])
        logits.sum().backward()
        gradient = module.last.weight.grad
        kept.append((gradient, gradient.clone(), logits, logits.clone()))
    for gradient, then, logits, then_logits in kept:
        assert torch.equal(gradient, then)
        assert torch.equal(logits, then_logits)
    assert not torch.equal(kept[3][0], kept[4][0])


def test_a_function_without_gradients_is_replayed_too():
    module = net().eval()
    function = replayed(module)
    with torch.no_grad():
        for pixels in batches(5):
            assert_close(function([pixels])[0], module(pixels)[0])
    assert function.recordings == 1


def test_another_kind_of_input_is_not_that_of_the_recording():
    module = net()
    function = replayed(module)
    (pixels,) = batches(1)
    changes = [
        lambda: function([pixels]),
        lambda: function([pixels[:3]]),
        lambda: function([pixels.to(memory_format=torch.channels_last)]),
        lambda: function([pixels.clone().requires_grad_()]),
    ]
    for place, call in enumerate(changes):
        for _ in range(USUAL_CALLS):
            call()
        assert function.recordings == place
        call()
        assert function.recordings == place + 1
    # that is as many as are kept: what else comes is not recorded
    assert function.recordings == MOST_RECORDINGS
    module.eval()
    for _ in range(USUAL_CALLS + 2):
        logits, _ = function([pixels])
    assert function.recordings == MOST_RECORDINGS
    assert_close(logits, module(pixels)[0])


@pytest.mark.parametrize("change", ["mode", "frozen", "memory", "autocast", "given", "no_grad"])
def test_what_a_recording_depends_on(change):
    module = net()
    seen = []

    def function(tensors, given):
        seen.append(given)
        return module(*tensors)

    (pixels,) = batches(1)
    made = Replayed(function, module, "the net")
    for _ in range(USUAL_CALLS + 1):
        made([pixels])
    calls = len(seen)
    if not GPU:
        calls += 1  # a replay is the work again
    made([pixels])
    assert len(seen) == calls
    context = torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=change == "autocast")
    if change == "mode":
        module.norm.eval()
    if change == "frozen":
        module.first.weight.requires_grad_(False)
    if change == "memory":
        module.first.weight.data = module.first.weight.data.clone()
    with context, torch.set_grad_enabled(change != "no_grad"):
        made([pixels], "other" if change == "given" else None)
    assert made.recordings == 1
    assert len(seen) == calls + 1


def test_a_call_between_a_call_and_its_backward_pass_is_refused():
    function = replayed(net())
    first, second = batches(2)
    for _ in range(USUAL_CALLS):
        function([first])
    loss = function([first])[0].sum()
    function([second])
    with pytest.raises(RuntimeError, match=r"another call or backward pass before this one.*cuda_graphs='off'"):
        loss.backward()
    loss = function([first])[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"another call or backward pass before this one"):
        loss.backward()


def test_what_cannot_be_recorded_goes_on_without_and_says_so(monkeypatch):
    class Failing(cuda_graphs.CudaRecorder):
        def record(self, work):
            def worse():
                work()
                torch.zeros(1, device=DEVICE).item()  # waits for the device

            if not GPU:
                raise RuntimeError("waits for the device\nat some place")
            return super().record(worse)

    plain, module = net(), net()
    function = replayed(module)
    pixels = batches(6)
    monkeypatch.setattr(cuda_graphs, "CudaRecorder", Failing)
    for step, each in enumerate(pixels):
        torch.manual_seed(step)
        expected = plain(each)[0]
        torch.manual_seed(step)
        if step == USUAL_CALLS:
            with pytest.warns(UserWarning, match="the net cannot be recorded as a CUDA graph, and runs without one"):
                found = function([each])[0]
        else:
            found = function([each])[0]
        assert_close(found, expected)
    assert function.recordings == 0
    assert_close(module.norm.running_mean, plain.norm.running_mean)


def test_the_backward_pass_is_outside_autocast_as_in_a_training():
    seen = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append(torch.is_autocast_enabled(DEVICE))
            return gradient

    module = nn.Linear(3, 3).to(DEVICE)
    function = Replayed(lambda tensors, arguments: (Look.apply(module(tensors[0])),), module, "the net")
    for _ in range(4):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            (found,) = function([torch.ones(2, 3, device=DEVICE)])
        assert found.dtype == torch.bfloat16
        found.sum().backward()
    assert function.recordings == 1
    assert len(seen) > USUAL_CALLS
    assert not any(seen)


def test_what_the_loss_does_not_depend_on_has_no_gradient():
    torch.manual_seed(0)
    module = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)]).to(DEVICE)

    def both(tensors, given):
        shared = module[0](tensors[0])
        return module[1](shared), module[2](shared)

    function = Replayed(both, module, "the net")
    ones = torch.ones(2, 3, device=DEVICE)
    for first, second in [(1, 1)] * 3 + [(0, 1), (1, 0), (1, 1), (0, 1)]:
        found = []
        for outputs in (both([ones], None), function([ones])):
            module.zero_grad()
            used = [output for output, chosen in zip(outputs, (first, second), strict=True) if chosen]
            torch.cat(used).square().sum().backward()
            found.append([layer.weight.grad for layer in module])
        assert [gradient is None for gradient in found[1]] == [False, not first, not second]
        for expected, ours in zip(*found, strict=True):
            if expected is not None:
                assert_close(ours, expected)
    assert function.recordings == 1


@pytest.mark.parametrize("where", ["module", "weight"])
def test_what_has_hooks_is_not_replayed(where):
    module = nn.Linear(3, 3).to(DEVICE)
    function = Replayed(lambda tensors, arguments: (module(tensors[0]),), module, "the net")
    ones = torch.ones(2, 3, device=DEVICE)
    for _ in range(USUAL_CALLS + 1):
        function([ones])
    seen = []
    if where == "module":
        hook = module.register_forward_hook(lambda *given: seen.append(1))
    else:
        hook = module.weight.register_hook(lambda gradient: seen.append(1) or 10 * gradient)
    for call in range(3):
        module.zero_grad()
        with pytest.warns(UserWarning, match="the net has hooks") if call == 0 else nullcontext():
            (found,) = function([ones])
        found.sum().backward()
        assert module.weight.grad[0, 0] == (2 if where == "module" else 20)
    assert len(seen) == 3
    hook.remove()
    function([ones])
    assert len(seen) == 3
    assert function.recordings == 1


def test_a_kind_that_cannot_be_recorded_stops_no_other(monkeypatch):
    module = net()
    function = replayed(module)
    whole, short = batches(1)[0], batches(1, size=3)[0]
    for _ in range(USUAL_CALLS + 1):
        function([whole])
    recorder = cuda_graphs.CudaRecorder

    class Full(recorder):
        def warm_up(self, work):
            raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(cuda_graphs, "CudaRecorder", Full)
    for _ in range(USUAL_CALLS):
        function([short])
    with pytest.warns(UserWarning, match="no memory"):
        function([short])
    function([short])  # says so once
    monkeypatch.setattr(cuda_graphs, "CudaRecorder", recorder)
    function([whole])
    assert function.recordings == 1
    # another function could not be recorded: random numbers are of another state now
    monkeypatch.setattr(recorder, "failures", recorder.failures + 1)
    function([short])
    assert function.recordings == 0
    function([whole])
    assert function.recordings == 1


def trained(folder, graphs, monkeypatch, student=resnet, teacher=teacher_resnet, **options):
    options = {"use_cpu": not GPU, "max_steps": 7, "cuda_graphs": graphs, "logging_steps": 1, **options}
    run = trainer(folder, student(), teacher() if teacher else None, **options)
    if not GPU:
        monkeypatch.setattr(type(run), "graphs", property(lambda self: self.args.cuda_graphs))
    run.train()
    losses = [entry for entry in run.state.log_history if "loss" in entry]
    return run, losses


def assert_same_training(folder, recordings, monkeypatch, **options):
    """A training with graphs is the one without; `recordings` has how many each kind of graphs takes."""
    plain = trained(folder / "plain", "off", monkeypatch, **options)
    assert Again.made == 0
    for graphs, count in recordings.items():
        Again.made = 0
        replayed = trained(folder / graphs, graphs, monkeypatch, **options)
        if not GPU:
            assert Again.made == count
        assert_equal_trainings(replayed, plain, options)


def assert_equal_trainings(one, other, options):
    (replayed, found), (plain, expected) = one, other
    assert len(found) == len(expected) == 7
    rounding = 1e-6 if not GPU else 2e-2 if options.get("bf16") else 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in theirs.items():
            if name != "grad_norm" or not options.get("bf16"):  # rounding to 8 bits moves that by a tenth
                assert ours[name] == pytest.approx(value, rel=rounding), name
    tolerance = rounding if GPU else None
    assert_equal_weights(replayed.distillation.state_dict(), plain.distillation.state_dict(), tolerance)


@pytest.mark.parametrize(("graphs", "recordings"), [("all", 2), ("losses", 1)])
@pytest.mark.parametrize(
    ("student", "teacher"), [(resnet, teacher_resnet), (vit, teacher_vit)], ids=["maps", "tokens"]
)
def test_a_training_is_the_training(tmp_path, monkeypatch, student, teacher, graphs, recordings):
    assert_same_training(tmp_path, {graphs: recordings}, monkeypatch, student=student, teacher=teacher)


@pytest.mark.parametrize("method", ["scratch", "kd", *LAYER_BASELINES])
def test_every_method_is_replayed(tmp_path, monkeypatch, method):
    recordings = {"losses": int(method in LAYER_BASELINES), "all": 1 if method == "scratch" else 2}
    assert_same_training(tmp_path, recordings, monkeypatch, method=method)


def wide_teacher():
    return teacher_resnet(widths=(16, 20, 28, 36))


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"bf16": True},
        {"channels_last": True, "student": lambda: resnet(widths=(16, 20, 24, 20)), "teacher": wide_teacher},
        {"rotation": "linear"},
        {"rotation": "full_width", "layers": ["resnet.encoder.stages.0=resnet.encoder.stages.0"]},
        {"centring": "mean"},
        {"centring": "none", "layers": [f"resnet.encoder.stages.{stage}=resnet.encoder.stages.3" for stage in (2, 3)]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_a_training_are_replayed(tmp_path, monkeypatch, options):
    assert_same_training(tmp_path, {"all": 2}, monkeypatch, **options)


@pytest.mark.parametrize("what", ["losses", "all"])
def test_a_rotation_in_closed_form_is_replayed(tmp_path, monkeypatch, what):
    monkeypatch.setattr(procrustes, "is_by_products", lambda device: True)  # as on a GPU
    assert_same_training(tmp_path, {what: 2 if what == "all" else 1}, monkeypatch, rotation="procrustes")


def test_the_memory_of_recordings_is_given_back(tmp_path, monkeypatch):
    run, _ = trained(tmp_path, "all", monkeypatch)
    assert run.distillation._replayed is None
    assert run.targets._replayed is None


def test_a_cached_training_is_replayed(tmp_path, monkeypatch):
    options = {"teacher_cache": "2", "teacher_cache_dir": str(tmp_path / "targets")}
    losses = []
    for graphs in ("off", "all", "losses"):
        _, found = trained(
            tmp_path / graphs, graphs, monkeypatch, train=views(views=2, augmentation="pad_crop"), **options
        )
        losses.append([entry["loss"] for entry in found])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if GPU else 1e-6)
    assert losses[0] == pytest.approx(losses[2], rel=1e-3 if GPU else 1e-6)
    if not GPU:
        assert Again.made == 2  # with the targets in the batch there is no teacher


@pytest.mark.parametrize("name", ["swin", "mobilenetv2", "timm mobilenetv4", *(ON_GPU if GPU else [])])
def test_families_are_replayed_as_teachers_and_students(tmp_path, monkeypatch, name):
    size = FAMILIES[name].size
    coarse = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 4 - 2
    pixels = nn.functional.interpolate(coarse, size, mode="bilinear")
    rows = [{"pixel_values": image, "labels": number % 3} for number, image in enumerate(pixels)]
    found = []
    for graphs in ("off", "all"):
        run = SubDistillTrainer(
            with_batch_statistics(build(name), pixels),
            config(tmp_path / graphs, max_steps=5, cuda_graphs=graphs, use_cpu=not GPU, logging_steps=1),
            teacher=with_batch_statistics(with_confident_head(build(name, {"num_labels": 6}, seed=1)), pixels),
            teacher_class_ids=[4, 0, 3],
            train_dataset=rows,
        )
        if not GPU:
            monkeypatch.setattr(type(run), "graphs", property(lambda self: self.args.cuda_graphs))
        run.train()
        found.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert found[0] == pytest.approx(found[1], rel=1e-2 if GPU else 1e-6)
    if not GPU:
        assert Again.made == 2


def test_graphs_are_for_one_process_on_a_gpu(tmp_path):
    run = trainer(tmp_path, use_cpu=not GPU, cuda_graphs="all")
    assert run.graphs == ("all" if GPU else "off")
    run.args.gradient_checkpointing = True
    assert run.graphs == "off"


def test_inputs_that_are_no_tensors_are_the_students(tmp_path, monkeypatch):
    class WithMore(ViewCollator):
        def __call__(self, examples):
            return {**super().__call__(examples), "interpolate_pos_encoding": True}

    _, losses = trained(
        tmp_path,
        "all",
        monkeypatch,
        student=vit,
        teacher=teacher_vit,
        parts={"data_collator": WithMore(processor(), processor())},
    )
    assert len(losses) == 7
    if not GPU:
        assert Again.made == 1  # the teacher


def test_a_training_with_model_init_replays_teacher_and_student(tmp_path, monkeypatch):
    trained(tmp_path, "all", monkeypatch, parts={"model_init": lambda: resnet()})
    if not GPU:
        assert Again.made == 2


@pytest.mark.parametrize("graphs", ["losses", "all"])
@pytest.mark.parametrize("change", ["subclass", "loss", "target"])
def test_a_loss_that_the_user_changed_is_not_replayed(tmp_path, monkeypatch, change, graphs):
    class Own(SubspaceAlignment):
        pass

    run = trainer(tmp_path, use_cpu=not GPU, max_steps=5, cuda_graphs=graphs)
    alignment = run.prepare_distillation().alignments[0]
    if not GPU:
        monkeypatch.setattr(type(run), "graphs", property(lambda self: self.args.cuda_graphs))
    if change == "subclass":
        alignment.__class__ = Own
    elif change == "loss":
        alignment.loss = lambda *given: SubspaceAlignment.loss(alignment, *given)
    else:
        alignment.target = lambda *given: SubspaceAlignment.target(alignment, *given)
    run.train()
    assert Again.made == 0


def test_hooks_of_transformers_own_are_idle(tmp_path, monkeypatch):
    teacher = teacher_vit()
    teacher(torch.zeros(1, 3, 32, 32), output_hidden_states=True)
    trained(tmp_path, "all", monkeypatch, student=vit, teacher=lambda: teacher)
    if not GPU:
        assert Again.made == 2
