"""The network as inference runs it: packed weights, flat activations, keys and values in place, no autograd.

Shapes: n rows, T tokens, d = n_embd, H heads, D = d / H, V = vocab_size. Everything here runs in inference mode.
"""

from __future__ import annotations

import math
import platform

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.cache import Cache
from training.decode_kernel import DecodeKernel
from training.device import Compute
from training.fused import causal_attention
from training.model import GPT, Block

ROWS = 32  # what oneDNN is told to expect: its order for 32 rows is the fastest one for 1 and for 2,048 as well


class Decoder:
    """A model's weights as they are now, in the layout that decoding wants, and a cache for `rows` texts.

    Packing is one copy of the weights: PPO makes a decoder for each rollout. In bf16 the products of the blocks and
    the cache are bf16, while residual stream, LayerNorm and logits are fp32, as the trainer computes them.
    """

    @torch.inference_mode()
    def __init__(self, model: GPT, rows: int, length: int, compute: Compute) -> None:
        self.config, self.device = model.config, model.device
        self.dtype = torch.bfloat16 if compute.bf16 else torch.float32
        self.cache = Cache(model.config, rows, length, model.device, self.dtype)
        self.tokens, self.positions = model.wte.weight.detach(), model.position_table.detach()
        self.blocks = [_Block(block, self.dtype) for block in model.h]
        self.norm = _Norm(model.ln_f) if isinstance(model.ln_f, nn.LayerNorm) else None
        head = model.wte if model.lm_head is None else model.lm_head
        self.head = _Linear(head.weight, None, torch.float32)
        self.columns = torch.arange(length, device=model.device)
        able = DecodeKernel.able(model, self.dtype)
        self.kernel = DecodeKernel(model, self.cache, self.dtype) if able else None

    def prefill(self, tokens: Tensor, lengths: Tensor, rows: Tensor, source: Tensor) -> Tensor:
        """Read U prompts (U, T), right-padded, of lengths (U,); rows[i] (n,) holds prompt source[i] (n,).

        Logits (U, V) after each prompt's last token. Several rows of one prompt cost one reading.
        """
        texts, time = tokens.shape
        x = (F.embedding(tokens, self.tokens) + self.positions[:time]).flatten(0, 1)  # (U T, d)
        last = torch.arange(texts, device=self.device) * time + lengths - 1
        for layer, block in enumerate(self.blocks):
            q, k, v = block.qkv(x).view(texts, time, 3, self.config.n_head, -1).permute(2, 0, 3, 1, 4)
            self.cache.fill(layer, rows, k, v, source)
            y = causal_attention(q, k, v, 0.0).transpose(1, 2).reshape(x.shape)
            if layer == len(self.blocks) - 1:  # nothing is asked of the other positions any more
                x, y = x[last], y[last]
            x = block.rest(x, y)
        return self.logits(x)

    def step(self, tokens: Tensor, at: Tensor, upto: int) -> Tensor:
        """One token (n,) for rows 0 .. n - 1, at places (n,) of their texts, all below `upto`. Logits (n, V)."""
        if self.kernel is not None:
            return self.kernel(tokens, at)
        n, heads = len(tokens), self.config.n_head
        x = F.embedding(tokens, self.tokens) + F.embedding(at, self.positions)  # (n, d)
        hidden = (
            self.columns[:upto] > at[:, None]
        )  # (n, upto); a CUDA graph may hold no copy from the host, so no where
        unseen = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, -math.inf)
        unseen = unseen[:, None].expand(n, heads, upto).reshape(n * heads, 1, upto)
        places = self.cache.places(at)
        keys, values = self.cache.views(n, upto)
        scale = self.cache.width**-0.5
        for layer, block in enumerate(self.blocks):
            qkv = block.qkv(x).view(n, 3, heads, -1).transpose(0, 1).contiguous()  # (3, n, H, D)
            self.cache.write(layer, qkv[1:], places)
            weights = torch.baddbmm(unseen, qkv[0].view(n * heads, 1, -1), keys[layer], alpha=scale).softmax(-1)
            x = block.rest(x, torch.bmm(weights, values[layer]).view(n, -1))
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(x if self.norm is None else self.norm(x))


class _Block:
    """A block in two halves: what attention is asked, and what is made of its answer."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        self.pre = block.pre
        self.norm_1, self.norm_2 = _Norm(block.ln_1), _Norm(block.ln_2)
        self.attention = _Linear(block.attn.c_attn.weight, block.attn.c_attn.bias, dtype)
        self.projection = _Linear(block.attn.c_proj.weight, block.attn.c_proj.bias, dtype)
        self.up = _Linear(block.mlp.c_fc.weight, block.mlp.c_fc.bias, dtype)
        self.down = _Linear(block.mlp.c_proj.weight, block.mlp.c_proj.bias, dtype)

    def qkv(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, 3 d)."""
        return self.attention(self.norm_1(x) if self.pre else x)

    def rest(self, x: Tensor, y: Tensor) -> Tensor:
        """The residual stream (n, d) after attention's answer y (n, d) and the feed-forward layers."""
        if self.pre:
            x = x + self.projection(y)
            return x + self.down(self.up(self.norm_2(x), gelu=True))
        x = self.norm_1(x + self.projection(y))
        return self.norm_2(x + self.down(self.up(x, gelu=True)))


class _Norm:
    """LayerNorm without the walk through nn.Module: a tenth of a small step was that."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.shape, self.weight, self.bias, self.eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class _Linear:
    """x W^T + b, (n, i) -> (n, o), with GELU if asked.

    On x86 the weights are kept in oneDNN's own order. At 32 rows of 256 x 1,024 that is 1.8 times as fast as MKL on the
    plain order in fp32 and 2.9 times in bf16; at 1 row it reads weights that are not in the caches 1.8 times as fast;
    and GELU costs next to nothing there.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.packed = _pack(self.weight)

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        x = x.to(self.dtype)
        if self.packed is not None:
            attribute = "gelu" if gelu else "none"
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, attribute, [], "tanh")
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y, approximate="tanh") if gelu else y


def _pack(weight: Tensor) -> Tensor | None:
    """The weights in oneDNN's order, or None where there is no oneDNN or no x86, where alone this is measured."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
