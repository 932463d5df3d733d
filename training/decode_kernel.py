"""A step of decoding in one call of decode.cpp, for CPUs: a small network's step is otherwise mostly calls of torch.

Shapes: n rows, d = n_embd, V = vocab_size. Weights are packed in panels of 32 outputs, inputs in order, so that a
product reads them from front to back; in bf16 the weights of two inputs stand side by side.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import kernels
from training.cache import Cache
from training.model import GPT

PANEL = 32  # outputs
ALONE = 250_000  # products below which a second thread costs more than it does


class _Network(ctypes.Structure):
    """As in decode.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "width", "heads", "words", "length", "rows")),
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "norm", "norm_bias", "head", "cache")),
        *((name, ctypes.c_void_p) for name in ("x", "qkv", "normed", "input", "answer", "hidden")),
    ]


class DecodeKernel:
    """A model's weights as they are now, packed, and the cache that its steps read and extend."""

    @staticmethod
    def able(model: GPT, dtype: torch.dtype) -> bool:
        """Whether the kernels are enabled and know this network: GPT-2's, of whole panels and vectors."""
        if not kernels.usable(model.wte.weight) or not isinstance(model.ln_f, nn.LayerNorm):
            return False
        head = model.config.n_embd // model.config.n_head
        whole = model.config.n_embd % PANEL == 0 and head % 16 == 0 and head <= 256
        return whole and (dtype == torch.float32 or kernels.has_bf16())

    @torch.inference_mode()
    def __init__(self, model: GPT, cache: Cache, dtype: torch.dtype) -> None:
        width, rows = model.config.n_embd, cache.rows
        self.dtype, self.words = dtype, model.config.vocab_size
        self._kept: list[Tensor] = []  # addresses keep nothing alive
        layers = []
        for block in model.h:
            attention, mlp = block.attn, block.mlp
            layers += [*self._norm(block.ln_1), *self._linear(attention.c_attn), *self._linear(attention.c_proj)]
            layers += [*self._norm(block.ln_2), *self._linear(mlp.c_fc), *self._linear(mlp.c_proj)]
        self._layers = (ctypes.c_void_p * len(layers))(*layers)
        head = model.wte if model.lm_head is None else model.lm_head
        panels = pack(head.weight.detach(), torch.float32)
        self._stride = len(panels) * PANEL
        self._network = _Network(
            len(model.h), width, model.config.n_head, self._stride, cache.length, rows,
            self._address(model.wte.weight.detach()), self._address(model.position_table.detach()),
            *self._norm(model.ln_f), self._address(panels), self._address(cache.data),
            *(self._address(torch.empty(rows, n * width)) for n in (1, 3, 1)),
            *(self._address(torch.empty(rows, n * width, dtype=dtype)) for n in (1, 1, 4)),
        )  # fmt: skip
        self._products = sum(p.numel() for p in model.h.parameters()) + head.weight.numel()

    def __call__(self, tokens: Tensor, at: Tensor) -> Tensor:
        """One token (n,) for rows 0 .. n - 1 of the cache, at places (n,) of their texts. Logits (n, V)."""
        n = len(tokens)
        logits = torch.empty(n, self._stride)
        threads = 1 if n * self._products < ALONE else torch.get_num_threads()
        kernels.run(
            "decode", self.dtype, ctypes.byref(self._network), self._layers, tokens.contiguous(), at.contiguous(),
            logits, n, threads,
        )  # fmt: skip
        return logits[:, : self.words]

    def _linear(self, linear: nn.Linear) -> tuple[int, int]:
        return self._address(pack(linear.weight.detach(), self.dtype)), self._address(linear.bias.detach())

    def _norm(self, norm: nn.LayerNorm) -> tuple[int, int]:
        return self._address(norm.weight.detach()), self._address(norm.bias.detach())

    def _address(self, tensor: Tensor) -> int:
        assert tensor.is_contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def pack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights (o, i) in panels: (o / 32, i, 32), in bf16 (o / 32, i / 2, 32, 2); zeros fill the last panel."""
    weight = F.pad(weight.to(dtype), (0, 0, 0, -len(weight) % PANEL))
    pair = 2 if dtype == torch.bfloat16 else 1
    return weight.view(-1, PANEL, weight.shape[1] // pair, pair).transpose(1, 2).contiguous()
