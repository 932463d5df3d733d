"""Decoding on a GPU as CUDA graphs: a step of a small network is hundreds of launches, and a replay is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from training.decode import Decoder

COLUMNS = 64  # attention reads so many more columns at a time; the mask hides those that are not yet written


class Replay(Protocol):
    """What a captured graph can do."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]


def capture(work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
    """Record `work`, whose inputs are read from the same memory at each replay; its answer lies in the tensor."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose their kernels and workspaces before the recording
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = work()
    return graph, answer


class GraphedSteps:
    """Decoder.step on fixed memory: `tokens` and `places` (S,) are the engine's columns, read in place.

    A graph has one shape. Rows are rounded up to a power of two and columns to a multiple of 64, so that few graphs
    serve all batches; rows that run no request compute what nobody reads, at places that their next prompt overwrites.
    """

    def __init__(self, decoder: Decoder, tokens: Tensor, places: Tensor, capture: Capture = capture) -> None:
        self.decoder, self.tokens, self.places, self._capture = decoder, tokens, places, capture
        self.graphs: dict[tuple[int, int], tuple[Replay, Tensor]] = {}

    def __call__(self, rows: int, upto: int) -> Tensor:
        """Logits (rows, V) of the newest tokens of rows 0 .. rows - 1, all at places below `upto`."""
        wide = min(1 << (rows - 1).bit_length(), len(self.tokens))
        far = min(-(-upto // COLUMNS) * COLUMNS, self.decoder.cache.length)
        if (wide, far) not in self.graphs:
            self.graphs[wide, far] = self._capture(
                lambda: self.decoder.step(self.tokens[:wide], self.places[:wide], far)
            )
        graph, logits = self.graphs[wide, far]
        graph.replay()
        return logits[:rows]
