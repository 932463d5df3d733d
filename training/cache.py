"""Keys and values of the tokens that have been read: one block of memory, written in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.config import ModelConfig


class Cache:
    """Keys and values of S rows of at most `length` tokens. Axes: layer, key or value, row, head, token, channel."""

    def __init__(self, config: ModelConfig, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> None:
        self.rows, self.length, self.heads = rows, length, config.n_head
        self.width = config.n_embd // config.n_head
        self.data = torch.zeros(config.n_layer, 2, rows, self.heads, length, self.width, device=device, dtype=dtype)
        self._lines = self.data.view(config.n_layer, -1, self.width)  # one line per key or value, row, head and token
        self._starts = torch.arange(2 * rows * self.heads, device=device).view(2, rows, self.heads) * length

    def places(self, at: Tensor) -> Tensor:
        """Lines of the token at[b] of rows b = 0 .. n - 1, keys first: (2 n H,). The same for every layer."""
        return (self._starts[:, : len(at)] + at[:, None]).flatten()

    def write(self, layer: int, kv: Tensor, places: Tensor) -> None:
        """kv (2, n, H, D), one token a row."""
        self._lines[layer].index_copy_(0, places, kv.reshape(-1, self.width).to(self.data.dtype))

    def fill(self, layer: int, rows: Tensor, k: Tensor, v: Tensor, source: Tensor) -> None:
        """The first T tokens of rows (n,): row rows[i] takes k, v (U, H, T, D) of text source[i]."""
        self.data[layer, 0][rows, :, : k.shape[2]] = k[source].to(self.data.dtype)
        self.data[layer, 1][rows, :, : k.shape[2]] = v[source].to(self.data.dtype)

    def views(self, rows: int, upto: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Per layer, keys (rows H, D, upto), which a product with queries wants, and values (rows H, upto, D)."""
        shape = (-1, rows * self.heads, self.length, self.width)
        keys, values = (self.data[:, kind, :rows].view(shape)[:, :, :upto] for kind in (0, 1))
        return keys.transpose(2, 3).unbind(0), values.unbind(0)

    def copy(self, source: int, target: int, length: int) -> None:
        """The first tokens of row source into row target."""
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]

    def reorder(self, source: Tensor, length: int) -> None:
        """Row i becomes what row source[i] was, in its first tokens; for beam search."""
        self.data[:, :, : len(source), :, :length] = self.data[:, :, source, :, :length]
