"""Recorded steps: what a GPU does for inputs of one shape, recorded as a CUDA graph and ordered again as a whole.

A step of a model is some hundreds of kernels, and to order them one by one takes a host longer than a GPU needs for them,
the more so beside threads that decode images. A recorded step is one order.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Step = Callable[..., tuple[torch.Tensor, ...]]


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: "torch.cuda.CUDAGraph"
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]


class RecordedSteps:
    """Runs steps, and records those that come again.

    A step that is new is run as it is, which sets up what cannot be recorded; the second time it is recorded. All share one pool
    of memory, so steps must not overlap, and what a step gave is valid until it runs again.
    """

    def __init__(self) -> None:
        self._recorded: dict[Hashable, _Recorded] = {}
        self._num_seen: Counter[Hashable] = Counter()
        self._num_recorded: Counter[str] = Counter()
        self._pool: Any = None

    def run(self, name: str, step: Step, inputs: Sequence[torch.Tensor], max_shapes: int) -> tuple[torch.Tensor, ...]:
        """What `step` gives for these inputs.

        Args:
            name: of the step; the same name stands for the same work.
            step: to be run on inputs; it may read and write what else there is on the GPU, always in the same places.
            inputs: tensors on the GPU.
            max_shapes: for how many shapes of inputs it is recorded at most, since each keeps inputs and outputs of its own.
        """
        key = (name, *(tuple(tensor.shape) for tensor in inputs))
        recorded = self._recorded.get(key)
        if recorded is None:
            self._num_seen[key] += 1
            if self._num_seen[key] == 1 or self._num_recorded[name] == max_shapes:
                return step(*inputs)
            self._num_recorded[name] += 1
            recorded = self._recorded[key] = self._record(step, inputs)
        for static, given in zip(recorded.inputs, inputs, strict=True):
            static.copy_(given, non_blocking=True)
        recorded.graph.replay()
        return recorded.outputs

    def _record(self, step: Step, inputs: Sequence[torch.Tensor]) -> _Recorded:
        static = tuple(tensor.clone() for tensor in inputs)
        torch.cuda.synchronize(inputs[0].device)
        torch.cuda.empty_cache()  # what the first run has left behind is needed in the pool
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = step(*static)
        self._pool = graph.pool()
        return _Recorded(graph, static, outputs)
