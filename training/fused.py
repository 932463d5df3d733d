"""Parts of the network in one pass each, gradients written by hand; torch's own operations where kernels are off.

Shapes: B rows, T tokens, H heads, D = width // H, V words.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from training import kernels

_LOGITS = 2**26  # most logits that are held at once


def product_dtype(x: Tensor) -> torch.dtype:
    """What a product of x is taken in: bf16 under autocast, else x's own format."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def gelu(x: Tensor) -> Tensor:
    """GPT-2's tanh GELU."""
    return _Gelu.apply(x) if kernels.usable(x) else F.gelu(x, approximate="tanh")


class _Gelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        # Also where nobody learns: PPO asks the same weights without a gradient and then with one, and the ratio has to
        # be 1 to the bit, which two loops would not give.
        slope = torch.empty_like(x)
        kernels.run("gelu", x.dtype, x, y, slope, x.numel())
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy * ctx.saved_tensors[0]


def add_norm(x: Tensor, delta: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """The residual stream x + delta in fp32, and its LayerNorm in the format of products."""
    dtype = product_dtype(x)
    if not kernels.usable(x) or x.dtype != torch.float32 or dtype not in (torch.float32, torch.bfloat16):
        x = x if delta is None else x + delta
        return x, norm(x)
    if delta is None:
        return x, _AddNorm.apply(x, None, norm.weight, norm.bias, dtype)[1]
    return _AddNorm.apply(x, delta.to(dtype), norm.weight, norm.bias, dtype)


class _AddNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor]:
        x, delta = x.contiguous(), None if delta is None else delta.contiguous()
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        total = None if delta is None else torch.empty_like(x)
        y, mean, scale = torch.empty_like(x, dtype=dtype), x.new_empty(rows), x.new_empty(rows)
        kernels.run("add_norm", dtype, x, delta, weight, bias, total, y, mean, scale, rows, width)
        ctx.save_for_backward(x if total is None else total, mean, scale, weight)
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dsum: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        total, mean, scale, weight = ctx.saved_tensors
        if dy is None:
            return dsum, dsum, None, None, None
        rows, width = total.numel() // total.shape[-1], total.shape[-1]
        dy, dsum = dy.contiguous(), None if dsum is None else dsum.contiguous()
        dx, parts = torch.empty_like(total), total.new_empty(kernels.PARTS, 2, width)
        ddelta = torch.empty_like(dy) if ctx.needs_input_grad[1] and dy.dtype != dx.dtype else None
        kernels.run("add_norm_backward", dy.dtype, dy, dsum, total, mean, scale, weight, dx, ddelta, parts, rows, width)
        dweight, dbias = parts.sum(0)
        if ctx.needs_input_grad[1] and ddelta is None:
            ddelta = dx
        return dx, ddelta, dweight, dbias, None


def attention(x: Tensor, c_attn: nn.Linear, heads: int, documents: Tensor | None, dropout: float) -> Tensor:
    """Causal self-attention up to its output projection: (B, T, width) -> (B, T, width).

    c_attn gives queries, keys and values side by side; documents (B, T) keep tokens of other numbers out.
    """
    batch, time, width = x.shape
    if kernels.usable(x) and product_dtype(x) == torch.bfloat16 and kernels.has_bf16() and not dropout:
        return _Attention.apply(x.to(torch.bfloat16), c_attn.weight, c_attn.bias, heads, documents)
    q, k, v = c_attn(x).view(batch, time, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    seen = None if documents is None else (documents[:, None, :] == documents[:, :, None]).tril()[:, None]
    return causal_attention(q, k, v, dropout, seen).transpose(1, 2).reshape(batch, time, width)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float, seen: Tensor | None = None) -> Tensor:
    """q, k, v (B, H, T, D); seen (B, 1, T, T): true where a token looks, default: at itself and all before.

    SDPA, except for bf16 on a CPU at short context, where plain products are faster.
    """
    batch, heads, time, width = q.shape
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or time > 256:
        return F.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None, dropout_p=dropout)
    flat = (batch * heads, time, width)
    unseen = torch.full((time, time), float("-inf"), dtype=q.dtype).triu(1)
    if seen is not None:
        unseen = unseen.new_zeros(batch, heads, time, time)
        unseen = unseen.masked_fill_(~seen, float("-inf")).view(batch * heads, time, time)
    keys = k.reshape(flat).transpose(1, 2)
    weights = torch.baddbmm(unseen, q.reshape(flat), keys, alpha=width**-0.5).softmax(-1)  # (B H, T, T)
    weights = F.dropout(weights, dropout) if dropout else weights
    return torch.bmm(weights, v.reshape(flat)).view(batch, heads, time, width)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, heads: int, documents: Tensor | None) -> Tensor:
        batch, time, width = x.shape
        x, w, b = x.reshape(-1, width), weight.to(x.dtype), bias.to(x.dtype)
        qkv = x.new_empty(3, len(x), width)
        for part, w_part, b_part in zip(qkv, w.chunk(3), b.chunk(3), strict=True):
            torch.addmm(b_part, x, w_part.t(), out=part)  # three products are up to twice as fast as one of 3 width
        y, mass = x.new_empty(batch, time, width), x.new_empty(batch, heads, time, dtype=torch.float32)
        documents = None if documents is None else documents.contiguous()
        ctx.sizes = (batch, time, heads, width // heads)
        kernels.run("attention", x.dtype, *qkv, width, documents, y, mass, *ctx.sizes)
        ctx.save_for_backward(x, w, qkv, documents, y, mass)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, qkv, documents, y, mass = ctx.saved_tensors
        width, dy = x.shape[1], dy.contiguous()
        dqkv = x.new_empty(len(x), 3 * width)
        slopes = (part.data_ptr() for part in dqkv.chunk(3, 1))
        kernels.run(
            "attention_backward", x.dtype, *qkv, width, documents, y, mass, dy, *slopes, 3 * width, *ctx.sizes
        )  # fmt: skip
        dx = (dqkv @ w).view(y.shape)
        return dx, (dqkv.t() @ x).float(), dqkv.sum(0).float(), None, None


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed cross entropy of hidden (N, width) against targets (N,), -1 = not learned, over weight's (V, width) words.

    On a CPU the gradient is taken in the same pass, some rows at a time: no (N, V) logits in fp32, none kept.
    """
    if hidden.device.type != "cpu":
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, ignore_index=-1, reduction="sum")
    learned = targets >= 0
    if not learned.all():
        hidden, targets = hidden[learned], targets[learned]
    return _CrossEntropy.apply(hidden, weight, targets)


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        dtype, words = product_dtype(hidden), len(weight)
        stride = words if dtype == torch.float32 else -(-words // 64) * 64  # products like round numbers
        w = weight.new_empty(stride, weight.shape[1], dtype=dtype) if stride != words else weight.to(dtype)
        if stride != words:
            w[:words], w[words:] = weight, 0
        learn_hidden, learn_weight = ctx.needs_input_grad[:2]
        x, targets = hidden.to(dtype), targets.contiguous()
        loss = torch.empty(len(x), device=x.device)
        dhidden = torch.empty_like(x) if learn_hidden else None
        dweight = None
        step = max(1, _LOGITS // stride)
        for rows in (slice(first, first + step) for first in range(0, len(x), step)):
            logits = x[rows] @ w.t()
            _losses(logits, targets[rows], loss[rows], words, learn_hidden or learn_weight)
            if dhidden is not None:
                torch.mm(logits, w, out=dhidden[rows])
            if learn_weight:
                part = (logits.t() @ x[rows])[:words]
                dweight = part.to(weight.dtype) if dweight is None else dweight.add_(part)
        ctx.save_for_backward(None if dhidden is None else dhidden.to(hidden.dtype), dweight)
        return loss.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if g is None else g * upstream for g in ctx.saved_tensors), None


def _losses(logits: Tensor, targets: Tensor, loss: Tensor, words: int, learn: bool) -> None:
    """Fill loss (N,); with `learn`, turn logits (N, words or more) into its gradient."""
    if kernels.usable(logits):
        kernels.run(
            "cross_entropy", logits.dtype, logits, targets, loss, *logits[:, :words].shape, logits.shape[1], learn
        )
        return
    exact = logits[:, :words].float()
    total = exact.logsumexp(-1)
    torch.sub(total, exact.gather(-1, targets[:, None])[:, 0], out=loss)
    if learn:
        probabilities = exact.sub_(total[:, None]).exp_()
        probabilities[torch.arange(len(targets), device=targets.device), targets] -= 1
        logits[:, :words] = probabilities
        logits[:, words:] = 0
