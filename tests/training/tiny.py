"""Networks of a few thousand weights and a vocabulary of bytes: what the engine's tests are run with."""

import json
from pathlib import Path
from typing import Any

import torch

from training import checkpoint
from training.config import ModelConfig
from training.model import GPT, RewardModel
from training.vocabulary import EOS, GPT2_PATTERN, Tokenizer


def make_tokenizer() -> Tokenizer:
    """One token a byte, and the four special ones."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, GPT2_PATTERN, {EOS: 256})


class Arms:
    """A vocabulary of eight arms without text."""

    eos_id, pad_id, special = 7, 0, dict[str, int]()

    def decode(self, ids: object) -> str:
        return ""

    def decode_bytes(self, ids: object) -> bytes:
        return b""


def make_model(tokenizer: Tokenizer, *, seed: int = 0, layers: int = 2, width: int = 32, spread: float = 1.0) -> GPT:
    """A random network; a spread above 1 makes its distributions less flat."""
    torch.manual_seed(seed)
    model = GPT(
        ModelConfig(vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=width, n_layer=layers, n_head=2)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread if parameter.ndim > 1 else 1.0)
    return model


def make_reward_model(tokenizer: Tokenizer, *, seed: int = 1) -> RewardModel:
    torch.manual_seed(seed)
    return RewardModel(make_model(tokenizer, seed=seed)).eval()


def save(folder: Path, model: GPT | RewardModel, tokenizer: Tokenizer, kind: str, **meta: Any) -> str:
    checkpoint.save_model(folder, model, tokenizer, kind, meta)
    return str(folder)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
