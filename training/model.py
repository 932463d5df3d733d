"""GPT-2 (and GPT-1) in PyTorch: the network and the reward head.

Shapes: B rows, T tokens, H heads, D = n_embd // n_head, V = vocab_size. Rows are padded on the RIGHT everywhere,
which causal attention makes exact without a mask.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import fused
from training.config import ModelConfig, TrainingError


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, documents: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        y = fused.attention(x, self.c_attn, self.n_head, documents, self.dropout if self.training else 0.0)
        return F.dropout(self.c_proj(picked(y, keep)), self.dropout, self.training)


class FeedForward(nn.Module):
    """Two layers with GPT-2's tanh GELU, four times as wide inside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(fused.gelu(self.c_fc(x)))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """x + f(LN(x)) as in GPT-2, or LN(x + f(x)) as in GPT-1."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, delta: Tensor | None = None, documents: Tensor | None = None, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream and what is still to be added to it, which the next LayerNorm does on its way.

        With `keep` (B, T) what follows the attention, most of the work, is done for the n chosen tokens alone.
        """
        if self.pre:
            x, h = fused.add_norm(x, delta, self.ln_1)
            x, h = fused.add_norm(picked(x, keep), self.attn(h, documents, keep), self.ln_2)
            return x, self.mlp(h)
        x = self.ln_1(picked(x, keep) + self.attn(x, documents, keep))
        return self.ln_2(x + self.mlp(x)), None


class GPT(nn.Module):
    """Token ids to hidden states; `logits` turns those into scores over the vocabulary."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.positions == "learned":
            self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        else:
            self.register_buffer("waves", sinusoids(config.n_positions, config.n_embd), persistent=False)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd) if config.norm == "pre" else nn.Identity()
        self.lm_head = None if config.tie_head else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._initialise)
        for name, weight in self.named_parameters():
            if name.endswith("c_proj.weight"):  # GPT-2: the residual stream sums 2 n_layer of these
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.n_layer))

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def position_table(self) -> Tensor:
        """(n_positions, n_embd)."""
        return self.wpe.weight if self.config.positions == "learned" else self.waves

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """(B, T) ids -> (B, T, n_embd), or (n, n_embd) of the n tokens where keep (B, T) is True, row after row.

        documents (B, T): a token looks only at tokens of its own number, so several texts can share a row; give
        positions that begin again with each.
        """
        assert tokens.ndim == 2, tokens.shape
        time, table = tokens.shape[1], self.position_table
        if time > self.config.n_positions:
            raise TrainingError(
                f"The text has {time} tokens and the model reads {self.config.n_positions}: shorten it."
            )
        x = self.wte(tokens) + (table[:time] if positions is None else F.embedding(positions, table))
        x = F.dropout(x, self.config.dropout, self.training)
        delta = None
        for block in self.h:
            x, delta = block(x, delta, documents, keep if block is self.h[-1] else None)
        return self.ln_f(x if delta is None else x + delta)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., n_embd) -> (..., V)."""
        return F.linear(hidden, self.head)

    @property
    def head(self) -> Tensor:
        """(V, n_embd) weights of the output head."""
        return self.wte.weight if self.lm_head is None else self.lm_head.weight

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class RewardModel(nn.Module):
    """A GPT trunk with one number per position; the stored bias puts the demonstrations' mean at 0."""

    def __init__(self, trunk: GPT) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.config.n_embd, 1, bias=False)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(trunk.config.n_embd + 1))
        self.register_buffer("bias", torch.zeros(()))

    @property
    def config(self) -> ModelConfig:
        return self.trunk.config

    @property
    def device(self) -> torch.device:
        return self.trunk.device

    def values(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, T) ids -> (B, T), or (n,) where `keep` (B, T) chooses n of them: the bias is included.

        The head is fp32 always: one product costs nothing, and in bf16 near scores would tie.
        """
        hidden = self.trunk(tokens, keep=keep)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).squeeze(-1) + self.bias

    def score(self, tokens: Tensor, eos_index: Tensor) -> Tensor:
        """(B, T) ids and where each row's EOS stands (B,) -> (B,) rewards, read there only."""
        return self.values(tokens, torch.arange(tokens.shape[1], device=tokens.device) == eos_index[:, None])


def picked(x: Tensor, keep: Tensor | None) -> Tensor:
    """(B, T, width) -> (n, width): the tokens where keep (B, T) is True, row after row."""
    return x if keep is None else x.flatten(0, 1).index_select(0, keep.flatten().nonzero().squeeze(1))


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width) fixed position waves of Vaswani et al. 2017, scaled to the embeddings' 0.02."""
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)[:, : width // 2]
    return table * 0.02 * math.sqrt(2)


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
