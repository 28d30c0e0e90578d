"""Recorded steps: what a GPU does for inputs of one shape, recorded as a CUDA graph and ordered again as a whole.

A step of a model is some hundreds of kernels, and to order them one by one takes a host longer than a GPU needs for them,
the more so beside threads that decode images. A recorded step is one order.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Step = Callable[..., tuple[torch.Tensor, ...]]
_Places = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: "torch.cuda.CUDAGraph"
    inputs: _Places
    outputs: _Places


class RecordedSteps:
    """Runs steps, and records those that come again.

    A step that is new is run as it is, which sets up what cannot be recorded; the second time it is recorded. All work in one
    pool of memory, recorded or not, and none of it is kept between steps, so the pool is as large as the largest step if that one
    comes first. Steps must not overlap, and what a step gave is valid until the next one of its name runs.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recorded: dict[Hashable, _Recorded] = {}
        self._run_once: dict[Hashable, tuple[_Places, _Places]] = {}  # with where inputs and outputs will stand
        self._num_recorded: Counter[str] = Counter()
        self._kept: dict[tuple[str, int], torch.Tensor] = {}  # flat inputs and outputs, by whose they are and their place
        self._pool: Any = torch.cuda.MemPool()
        # Memory that was freed is taken again by work of the same stream alone.
        self._stream = torch.cuda.Stream(device)

    def run(self, name: str, step: Step, inputs: Sequence[torch.Tensor], max_shapes: int) -> tuple[torch.Tensor, ...]:
        """What `step` gives for these inputs.

        Args:
            name: of the step; the same name stands for the same work.
            step: to be run on inputs; it may read and write what else there is on the GPU, always in the same places.
            inputs: tensors on the GPU.
            max_shapes: for how many shapes of inputs it is recorded at most, since each takes some memory of its own.
        """
        key = (name, *(tuple(tensor.shape) for tensor in inputs))
        if key not in self._recorded:
            if key not in self._run_once or self._num_recorded[name] >= max_shapes:
                with self._apart():
                    outputs = step(*inputs)
                places = self._places(f"{name} inputs", inputs), self._places(f"{name} outputs", outputs)
                self._run_once[key] = places
                return _copied(outputs, places[1])
            self._recorded[key] = self._record(step, *self._run_once[key])
            self._num_recorded[name] += 1
        recorded = self._recorded[key]
        _copied(inputs, recorded.inputs)
        recorded.graph.replay()
        return recorded.outputs

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Runs a block on the stream and in the memory of recorded steps; what is ordered before and after waits as usual."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._pool, self._device):
            yield
        current.wait_stream(self._stream)

    def _places(self, name: str, tensors: Sequence[torch.Tensor]) -> _Places:
        """Memory that is kept for tensors like these: the same for all shapes of a step, unless a larger one comes late."""
        places = []
        for number, tensor in enumerate(tensors):
            flat = self._kept.get((name, number))
            if flat is None or flat.numel() < tensor.numel():
                flat = self._kept[name, number] = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
            places.append(flat[: tensor.numel()].view(tensor.shape))
        return tuple(places)

    def _record(self, step: Step, inputs: _Places, outputs: _Places) -> _Recorded:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool.id, stream=self._stream):
            _copied(step(*inputs), outputs)
        return _Recorded(graph, inputs, outputs)


def _copied(tensors: Sequence[torch.Tensor], places: _Places) -> _Places:
    """The places, with copies of the tensors in them."""
    for tensor, place in zip(tensors, places, strict=True):
        place.copy_(tensor, non_blocking=True)
    return places
