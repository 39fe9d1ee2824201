"""One function of tensors, recorded as CUDA graphs: its values, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subdistill_hf.core.activations import without_autocast

Function = Callable[[Sequence[Tensor], Any], tuple[Tensor, ...]]


class CudaRecorder:
    """Records what some work does on a GPU.

    Attributes:
        failures: how often work could not be recorded; what was recorded before draws other random numbers since.
    """

    failures = 0

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work a few times, so that nothing of it happens for the first time while it is recorded."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work as one graph; returns the function that replays it, on the same memory."""
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads, such as one that pins memory, may continue
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError:
            # the state of random numbers would still count as recorded; a copy of it does not
            random = torch.cuda.default_generators[torch.cuda.current_device()]
            random.graphsafe_set_state(random.clone_state())
            CudaRecorder.failures += 1
            raise
        replay: Callable[[], None] = graph.replay
        return replay


class Recording:
    """A function and its gradients, recorded for one kind of input.

    Args:
        function: of tensors and of `arguments`; returns a tuple of tensors.
        inputs: tensors of the kind.
        arguments: what else the function takes.
        parameters: of the function; gradients are recorded for those that require one.
        recorder: records it.
    """

    def __init__(
        self,
        function: Function,
        inputs: Sequence[Tensor],
        arguments: Any,
        parameters: Sequence[Tensor],
        recorder: CudaRecorder,
    ) -> None:
        self._function, self._arguments = function, arguments
        self._precision = _autocast_without_memory(inputs[0].device.type)
        with_gradients = torch.is_grad_enabled()
        self.inputs = [_own(each) for each in inputs]
        self.parameters = [weight for weight in parameters if weight.requires_grad] if with_gradients else []
        self.outputs: tuple[Tensor, ...] = ()
        self.grad_outputs: list[Tensor | None] = []  # at each output, if it has a gradient
        self.reached: list[list[bool]] = []  # by each output: which of the inputs and parameters
        self.by_inputs: list[Tensor | None] = []
        self.by_parameters = _SideBySide([])
        self.serial = 0
        recorder.warm_up(self._warm_up)
        self.forward = recorder.record(self._run)
        self.backward = recorder.record(self._differentiate) if self._differentiable else None
        # autograd's graph would keep the nodes where weights are accumulated, which belong to the recorder's stream
        outputs: Sequence[Tensor] = self.outputs
        self.outputs = tuple([output.detach() for output in outputs])

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The function's outputs for inputs of the kind."""
        if self.backward is not None:
            outputs: tuple[Tensor, ...] = _Replay.apply(self, *inputs, *self.parameters)
            return outputs
        self.feed(inputs)
        self.forward()
        return self.outputs

    @torch.no_grad()
    def feed(self, inputs: Sequence[Tensor]) -> None:
        """Put values where the recording reads them."""
        for own, values in zip(self.inputs, inputs, strict=True):
            own.copy_(values, non_blocking=True)

    @torch.no_grad()
    def gradients(self, grad_outputs: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients at the inputs and parameters; those of the latter are copies, since they are accumulated.

        Args:
            grad_outputs: the loss's gradient at each output, `None` where it does not depend on it.
        """
        used = [
            grad_output is not None and own is not None
            for grad_output, own in zip(grad_outputs, self.grad_outputs, strict=True)
        ]
        if not any(used) or self.backward is None:
            return [None] * (len(self.inputs) + len(self.parameters))
        for own, values in zip(self.grad_outputs, grad_outputs, strict=True):
            if own is not None:
                own.zero_() if values is None else own.copy_(values, non_blocking=True)
        self.backward()
        found = [*self.by_inputs, *self.by_parameters.copies()]
        by_output = [reached for reached, chosen in zip(self.reached, used, strict=True) if chosen]
        return [each if any(which) else None for each, which in zip(found, zip(*by_output, strict=True), strict=True)]

    @property
    def _differentiable(self) -> bool:
        return any(grad_output is not None for grad_output in self.grad_outputs)

    def _run(self) -> None:
        with self._precision():
            self.outputs = self._function(self.inputs, self._arguments)

    def _differentiate(self) -> None:
        pairs = [pair for pair in zip(self.outputs, self.grad_outputs, strict=True) if pair[1] is not None]
        gradients = self._gradients([output for output, _ in pairs], [grad_output for _, grad_output in pairs])
        self.by_inputs = gradients[: len(self.inputs)]
        self.by_parameters = _SideBySide(gradients[len(self.inputs) :])

    def _gradients(
        self, outputs: Sequence[Tensor], grad_outputs: Any, retain_graph: bool = False
    ) -> list[Tensor | None]:
        """Gradients at each input and parameter; as in a training, autocast is for the forward pass alone."""
        wanted = [each for each in (*self.inputs, *self.parameters) if each.requires_grad]
        with without_autocast(self.inputs[0].device):
            found = iter(
                torch.autograd.grad(outputs, wanted, grad_outputs, retain_graph=retain_graph, allow_unused=True)
            )
        return [next(found) if each.requires_grad else None for each in (*self.inputs, *self.parameters)]

    def _warm_up(self) -> None:
        self._run()
        if not self.grad_outputs:
            self.grad_outputs = [torch.zeros_like(output) if output.requires_grad else None for output in self.outputs]
            count = len(self.inputs) + len(self.parameters)
            self.reached = [
                [False] * count
                if grad_output is None
                else [each is not None for each in self._gradients([output], [grad_output], retain_graph=True)]
                for output, grad_output in zip(self.outputs, self.grad_outputs, strict=True)
            ]
        if self._differentiable:
            self._differentiate()


class _Replay(torch.autograd.Function):
    """A recording as an operation of autograd."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Inputs and parameters to copies of the outputs."""
        recording.serial += 1
        ctx.recording, ctx.serial = recording, recording.serial
        recording.feed(tensors[: len(recording.inputs)])
        recording.forward()
        outputs: tuple[Tensor, ...] = tuple(output.detach().clone() for output in recording.outputs)
        fixed = [
            each for each, grad_output in zip(outputs, recording.grad_outputs, strict=True) if grad_output is None
        ]
        ctx.mark_non_differentiable(*fixed)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients at inputs and parameters."""
        recording: Recording = ctx.recording
        if ctx.serial != recording.serial:
            raise RuntimeError(
                "a CUDA graph keeps the activations of its last call alone, for one backward pass, and there was "
                "another call or backward pass before this one: differentiate each call once and before the next, or "
                "use cuda_graphs='off'"
            )
        recording.serial += 1  # the backward pass writes where the activations were
        return None, *recording.gradients(grad_outputs)


class _SideBySide:
    """Tensors in one stretch of memory for each precision, so that they are copied at once.

    Args:
        tensors: `None` stays `None`.
    """

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        stretches: dict[torch.dtype, list[Tensor]] = {}
        sizes: dict[torch.dtype, int] = {}
        self._places: list[tuple[torch.dtype, torch.Size, tuple[int, ...], int] | None] = []
        for tensor in tensors:
            if tensor is None:
                self._places.append(None)
                continue
            whole = tensor if _is_dense(tensor) else tensor.contiguous()
            start = sizes.get(whole.dtype, 0)
            self._places.append((whole.dtype, whole.shape, whole.stride(), start))
            stretches.setdefault(whole.dtype, []).append(whole.as_strided((whole.numel(),), (1,)))
            sizes[whole.dtype] = start + whole.numel()
        self._stretches = {kind: torch.cat(parts) for kind, parts in stretches.items()}

    def copies(self) -> list[Tensor | None]:
        """New tensors of the same values, shapes and strides."""
        new = {kind: stretch.clone() for kind, stretch in self._stretches.items()}
        return [
            None if place is None else new[place[0]].as_strided(place[1], place[2], place[3]) for place in self._places
        ]


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _own(values: Tensor) -> Tensor:
    """A leaf like `values`, in the same memory layout."""
    return values.detach().clone().requires_grad_(values.requires_grad)


def _autocast_without_memory(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts of the autocast of the moment that keep no converted weights: those would be of a recording."""
    if not torch.is_autocast_enabled(device):
        return nullcontext
    kind = torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=kind, cache_enabled=False)
