"""Choosing the next token."""

import numpy as np
import pytest
import torch

from training import sampling

EVERYTHING = {"top_k": torch.tensor([0]), "top_p": torch.tensor([1.0])}


def _draw(logits: torch.Tensor, n: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0):
    rows = logits.expand(n, -1)
    return sampling.choose(
        rows,
        torch.from_numpy(sampling.uniforms(seed, n)),
        torch.full((n,), temperature),
        torch.full((n,), top_k),
        torch.full((n,), top_p),
    )


def test_a_longer_stream_begins_with_the_shorter_one():
    assert np.array_equal(sampling.uniforms(7, 50)[:20], sampling.uniforms(7, 20))
    assert not np.array_equal(sampling.uniforms(7, 20), sampling.uniforms(8, 20))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_scaled_distribution(temperature):
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    tokens, logprobs = _draw(logits, 20_000, temperature)
    expected = (logits[0] / temperature).softmax(-1)
    shares = torch.bincount(tokens, minlength=4) / len(tokens)
    assert torch.allclose(shares, expected, atol=0.015)
    assert torch.allclose(logprobs, expected.log()[tokens], atol=1e-6)


def test_temperature_zero_and_top_k_one_are_greedy():
    torch.manual_seed(0)
    logits = torch.randn(1, 50)
    best = logits.argmax().item()
    assert set(_draw(logits, 200, temperature=0.0)[0].tolist()) == {best}
    assert set(_draw(logits, 200, top_k=1)[0].tolist()) == {best}
    assert set(_draw(logits, 200, top_p=1e-9)[0].tolist()) == {best}


def test_top_k_keeps_the_k_best_and_the_unfiltered_logprob():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    tokens, logprobs = _draw(logits, 2_000, top_k=2)
    assert set(tokens.tolist()) == {1, 3}
    assert torch.allclose(logprobs, logits.log_softmax(-1)[0, tokens], atol=1e-6)


def test_top_p_keeps_the_smallest_set_that_holds_the_mass():
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log()
    assert set(_draw(logits, 2_000, top_p=0.45)[0].tolist()) == {1}
    assert set(_draw(logits, 2_000, top_p=0.6)[0].tolist()) == {1, 2}
    assert set(_draw(logits, 2_000, top_p=0.85)[0].tolist()) == {0, 1, 2}


def test_filters_are_read_row_by_row():
    logits = torch.zeros(3, 10)
    kept = sampling.filtered(logits, torch.tensor([1, 0, 4]), torch.tensor([1.0, 1.0, 0.25])).isfinite().sum(-1)
    assert kept.tolist() == [1, 10, 3]


def test_the_tail_of_a_large_vocabulary_is_reached():
    logits = torch.zeros(1, 200_000)
    token, _ = sampling.choose(
        logits, torch.tensor([1 - 1e-7]), torch.ones(1), EVERYTHING["top_k"], EVERYTHING["top_p"]
    )
    assert token.item() >= 199_900
