"""The network: size of the first loss, causality, padding, and the reward head."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from training.config import ModelConfig, TrainingError
from training.model import GPT, RewardModel, sinusoids

KINDS = [{}, {"norm": "post"}, {"positions": "sinusoidal"}, {"tie_head": False}]


def tokens(model: GPT, rows: int = 3, length: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.config.vocab_size, (rows, length), generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_first_loss_is_ln_vocabulary(kind: dict) -> None:
    torch.manual_seed(1)
    model = GPT(ModelConfig(vocab_size=1024, n_embd=64, n_layer=2, n_head=2, n_positions=64, **kind))
    ids = tokens(model, 16, 65)
    loss = F.cross_entropy(model.logits(model(ids[:, :-1])).flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1024), abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_can_be_learned_by_heart(kind: dict, tiny: Callable[..., GPT]) -> None:
    model = tiny(**kind).train()
    ids = tokens(model, 4, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss = F.cross_entropy(model.logits(model(ids[:, :-1])).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_token_changes_nothing_before_it(kind: dict, tiny: Callable[..., GPT]) -> None:
    model = tiny(**kind)
    ids = tokens(model)
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % model.config.vocab_size
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().max() > 1e-3


def packed(model: GPT) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three documents of 5, 3 and 4 tokens in one row, beside a row of one document: ids, positions, documents."""
    ids = tokens(model, 2)
    positions = torch.stack([torch.cat([torch.arange(n) for n in (5, 3, 4)]), torch.arange(12)])
    documents = torch.stack([torch.tensor([0] * 5 + [1] * 3 + [2] * 4), torch.zeros(12, dtype=torch.long)])
    return ids, positions, documents


@pytest.mark.parametrize("kind", KINDS)
def test_documents_in_a_row_are_as_each_alone(kind: dict, tiny: Callable[..., GPT]) -> None:
    model = tiny(**kind)
    ids, positions, documents = packed(model)
    together = model(ids, positions, documents=documents)
    alone = [model(part[None])[0] for part in (*ids[0].split([5, 3, 4]), ids[1])]
    torch.testing.assert_close(torch.cat(alone).view_as(together), together, atol=1e-5, rtol=0)
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(out.square().mean(), list(model.h.parameters()))])
        for out in (together, torch.cat(alone))
    ]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=0)


def test_dropout_works_in_training_only(tiny: Callable[..., GPT]) -> None:
    model = tiny(dropout=0.5)
    ids = tokens(model)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_too_long_a_text_is_one_sentence(tiny: Callable[..., GPT]) -> None:
    with pytest.raises(TrainingError, match="33 tokens and the model reads 32"):
        tiny()(torch.zeros(1, 33, dtype=torch.long))


def test_sinusoids_are_vaswanis() -> None:
    table = sinusoids(50, 8) / (0.02 * math.sqrt(2))
    assert float(table[7, 2]) == pytest.approx(math.sin(7 / 10_000 ** (2 / 8)), abs=1e-5)
    assert float(table[7, 3]) == pytest.approx(math.cos(7 / 10_000 ** (2 / 8)), abs=1e-5)


def test_reward_is_read_at_eos_only(tiny: Callable[..., GPT]) -> None:
    model = RewardModel(tiny())
    ids, eos = tokens(model.trunk), torch.tensor([3, 7, 11])
    scores = model.score(ids, eos)
    padded = ids.clone()
    padded[0, 4:], padded[1, 8:] = 0, 0  # what follows EOS
    assert torch.equal(model.score(padded, eos), scores)
    torch.testing.assert_close(scores, model.values(ids)[torch.arange(3), eos])
    model.bias.fill_(2.0)
    torch.testing.assert_close(model.score(ids, eos), scores + 2)


def test_what_writes_to_the_residual_stream_begins_smaller(tiny: Callable[..., GPT]) -> None:
    """GPT-2: 0.02 / sqrt(2 layers), so that the stream's size does not grow with depth."""
    model = tiny(n_layer=8, n_embd=64)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert weight.std().item() == pytest.approx(expected, rel=0.1), name
