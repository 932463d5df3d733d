"""Keys and values of the tokens that a batch has read, and where its next tokens go.

Shapes: B rows, T tokens, H heads, D = n_embd // n_head, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from training.config import ModelConfig


class Cache:
    """Keys and values of S slots, one tensor (S, H, T, D) per layer; at(slots) is a view on some of the slots."""

    def __init__(
        self, config: ModelConfig, slots: int, length: int, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        # One place more than `length`: right padding that reaches past the end is written there and never read.
        shape = (slots, config.n_head, length + 1, config.n_embd // config.n_head)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.slots: Tensor | None = None
        self.length = length

    def at(self, slots: Tensor) -> Cache:
        """The same memory for a batch whose row b lives in slot slots[b]."""
        view = object.__new__(Cache)
        view.keys, view.values, view.length, view.slots = self.keys, self.values, self.length, slots
        return view

    def extend(self, layer: int, k: Tensor, v: Tensor, index: Tensor, upto: int) -> tuple[Tensor, Tensor]:
        """Write k, v (B, H, T, D) at index (B, T) of their slots; return what the slots hold, (B, H, upto, D)."""
        keys, values = self.keys[layer], self.values[layer]
        rows = torch.arange(len(index), device=index.device) if self.slots is None else self.slots
        keys[rows[:, None], :, index] = k.transpose(1, 2).to(keys.dtype)  # indexed dimensions come first: (B, T, H, D)
        values[rows[:, None], :, index] = v.transpose(1, 2).to(values.dtype)
        if self.slots is None:
            return keys[: len(index), :, :upto], values[: len(index), :, :upto]
        return keys[rows, :, :upto], values[rows, :, :upto]


class Past:
    """Where new tokens go in the cache and what they may see; the same for every layer."""

    def __init__(self, cache: Cache, lengths: Tensor, time: int) -> None:
        self.cache = cache
        index = lengths[:, None] + torch.arange(time, device=lengths.device)  # (B, T)
        self.index = index.clamp(max=cache.length)
        self.upto = min(int(lengths.max()) + time, cache.length)
        seen = torch.arange(self.upto, device=lengths.device)
        self.mask = (seen <= self.index[:, :, None])[:, None]  # (B, 1, T, upto)
