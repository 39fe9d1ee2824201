"""Functions of tensors as CUDA graphs: what was launched kernel by kernel is launched at once.

A small student keeps a GPU busy for a small part of its step; for the rest the GPU waits for the host, which launches
hundreds of kernels. They are the same in every step, so they are recorded once and replayed, with the same results.

What `torch.cuda.make_graphed_callables` cannot do that a training needs:

- more than one kind of input. It copies every input into that of the recording, whatever its layout or precision.
  The last batch of an epoch, another autocast, frozen weights and moved weights are noticed here.
- leave the model as it was. Its warm-up runs the function, which moves running means and random numbers.
- return gradients that stay. Parameters get those of the recording's own memory, and the next replay writes there.
- notice misuse. A second call before the backward pass overwrites the activations of the first; here it is an error.
- run what cannot be recorded, or has hooks, as it is.

`torch.compile(mode="reduce-overhead")` makes kernels of its own, so results change in their last digits. It needs a
compiler on the machine, and compiles before the first step. Code that it cannot trace splits the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from subdistill_hf.acceleration.graph_recording import CudaRecorder, Function, Recording
from subdistill_hf.core.hooks import has_hooks

GraphsOf = Literal["all", "losses", "off"]
GRAPHS: tuple[GraphsOf, ...] = ("all", "losses", "off")
USUAL_CALLS = 2  # of a kind of input, before it is recorded
MOST_RECORDINGS = 4
MOST_KINDS = 100  # whose calls are counted


class Replayed:
    """A function of tensors that is recorded for each kind of input, and replayed when that kind comes again.

    The function must do the same for all inputs of a kind, whatever is in them; it may change buffers in place. What
    it returns without gradient is good until the next call. A function that cannot be recorded, because it looks at
    values on the host, say, is called as it is, with a warning, and so it is while its modules or parameters have
    hooks. An output that is not used takes part in the backward pass with a gradient of 0, so its derivatives must be
    finite.

    Args:
        function: of tensors and of what else their kind has; returns a tuple of tensors.
        module: whose parameters and buffers the function uses.
        name: of the function, for the warning.
    """

    def __init__(self, function: Function, module: nn.Module, name: str) -> None:
        self.function, self.name = function, name
        self._modules = list(module.modules())
        self._parameters = list(module.parameters())
        self._buffers = list(module.buffers())
        self._recordings: dict[Hashable, Recording] = {}
        self._calls: dict[Hashable, int] = {}
        self._impossible: set[Hashable] = set()
        self._failures = CudaRecorder.failures
        self._warned = False

    def __call__(self, inputs: Sequence[Tensor], arguments: Hashable = None) -> tuple[Tensor, ...]:
        """The function's outputs: replayed, recorded, or computed as usual.

        Args:
            inputs: tensors on the device.
            arguments: what else the function takes; belongs to the kind of the inputs.

        Raises:
            RuntimeError: in the backward pass, when there was another call or backward pass after the call that is
                differentiated.
        """
        if self._hooked:
            if not self._warned:
                self._warned = True
                warnings.warn(f"{self.name} has hooks, and is not replayed as a CUDA graph", stacklevel=2)
            return self.function(inputs, arguments)
        if self._failures != CudaRecorder.failures:  # in whatever function; recordings are made again
            self._failures = CudaRecorder.failures
            self._recordings.clear()
        kind = self._kind(inputs, arguments)
        recording = self._recordings.get(kind)
        if recording is None and self._is_due(kind):
            recording = self._record(inputs, arguments)
            if recording is None:
                self._impossible.add(kind)
            else:
                self._recordings[kind] = recording
        return self.function(inputs, arguments) if recording is None else recording(inputs)

    @property
    def recordings(self) -> int:
        """How many kinds of input are recorded."""
        return len(self._recordings)

    @property
    def _hooked(self) -> bool:
        """Whether Python of the user's runs with the modules, which a recording would leave out."""
        return any(map(has_hooks, self._modules)) or any(weight._backward_hooks for weight in self._parameters)

    def _is_due(self, kind: Hashable) -> bool:
        """Whether a kind of input has come often enough to be recorded."""
        if kind in self._impossible or len(self._recordings) == MOST_RECORDINGS:
            return False
        if len(self._calls) == MOST_KINDS and kind not in self._calls:
            self._calls.clear()
        self._calls[kind] = self._calls.get(kind, 0) + 1
        return self._calls[kind] > USUAL_CALLS

    def _kind(self, inputs: Sequence[Tensor], arguments: Hashable) -> Hashable:
        """Everything that a recording depends on beside the values of its inputs, parameters and buffers."""
        device = inputs[0].device.type
        enabled = torch.is_autocast_enabled(device)
        return (
            arguments,
            tuple((each.shape, each.stride(), each.dtype, each.device, each.requires_grad) for each in inputs),
            torch.is_grad_enabled(),
            torch.get_autocast_dtype(device) if enabled else None,
            tuple(module.training for module in self._modules),
            tuple((weight.data_ptr(), weight.requires_grad) for weight in self._parameters),
            tuple(buffer.data_ptr() for buffer in self._buffers),
        )

    def _record(self, inputs: Sequence[Tensor], arguments: Any) -> Recording | None:
        """A recording; buffers and random numbers are left as they were."""
        kept = [buffer.clone() for buffer in self._buffers]
        device = inputs[0].device
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                return Recording(self.function, inputs, arguments, self._parameters, CudaRecorder())
        except RuntimeError as error:  # out of memory, and whatever must not be recorded
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"{self.name} cannot be recorded as a CUDA graph, and runs without one ({reason}). "
                "cuda_graphs='off' saves the attempt",
                stacklevel=2,
            )
            return None
        finally:
            with torch.no_grad():
                for buffer, values in zip(self._buffers, kept, strict=True):
                    buffer.copy_(values)
