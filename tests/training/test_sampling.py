"""Choosing the next token."""

import numpy as np
import pytest
import torch

from training import kernels, sampling

pytestmark = pytest.mark.usefixtures("setting")


def _draw(logits: torch.Tensor, n: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0):
    rows, temperatures = logits.expand(n, -1), torch.full((n,), temperature)
    allowed = sampling.filtered(sampling.scaled(rows, temperatures), torch.full((n,), top_k), torch.full((n,), top_p))
    uniform = torch.from_numpy(sampling.uniforms(seed, n))
    return sampling.choose(rows, uniform, temperatures, allowed if top_k or top_p < 1 else None)


def test_a_longer_stream_begins_with_the_shorter_one():
    assert np.array_equal(sampling.uniforms(7, 50)[:20], sampling.uniforms(7, 20))
    assert not np.array_equal(sampling.uniforms(7, 20), sampling.uniforms(8, 20))


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 1000, 50_257])
def test_the_kernel_chooses_what_torch_chooses(vocabulary):
    """The same tokens but where a uniform falls within rounding of a border, and log-probabilities to 1e-5."""
    if not kernels.enable("auto"):
        pytest.skip("no C++ compiler")
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(300, vocabulary + 7, generator=draw)[:, :vocabulary] * 4
    uniform, temperature = torch.rand(300, generator=draw, dtype=torch.float64), torch.rand(300, generator=draw) * 2
    temperature[::10], uniform[1], uniform[2] = 0.0, 0.0, 1 - 1e-16
    try:
        tokens, logprobs = sampling.choose(logits, uniform, temperature)
    finally:
        kernels.enable("off")
    expected, of_torch = sampling.choose(logits, uniform, temperature)
    assert (tokens == expected).float().mean() > 0.99
    assert torch.equal(tokens[::10], logits[::10].argmax(-1))
    same = tokens == expected
    assert torch.allclose(logprobs[same], of_torch[same], atol=1e-5)


def test_the_kernel_never_draws_a_token_without_mass():
    if not kernels.enable("auto"):
        pytest.skip("no C++ compiler")
    logits = torch.full((1000, 200), -300.0)
    logits[:, [3, 130]] = 0.0
    try:
        tokens, _ = sampling.choose(logits, torch.linspace(0, 1, 1000, dtype=torch.float64), torch.ones(1000))
    finally:
        kernels.enable("off")
    assert set(tokens.tolist()) == {3, 130}
    assert abs((tokens == 3).float().mean() - 0.5) < 0.01


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
    token, _ = sampling.choose(logits, torch.tensor([1 - 1e-7]), torch.ones(1))
    assert token.item() >= 199_900


@pytest.mark.parametrize("vocabulary", [5, 64, 65, 1000, 4096])
def test_drawing_in_two_steps_equals_the_inverted_cumulative_sum(vocabulary):
    torch.manual_seed(0)
    shares = (torch.randn(500, vocabulary) * 3).softmax(-1)
    uniform = torch.from_numpy(sampling.uniforms(1, 500))
    cumulative = shares.double().cumsum(-1)
    expected = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1)
    assert (sampling.draw(shares, uniform) == expected).float().mean() >= 0.998  # roundings at a border


def test_a_share_of_zero_is_never_drawn():
    shares = torch.zeros(4, 300)
    shares[:, 70] = shares[:, 200] = 0.25
    extremes = torch.tensor([0.0, 0.5, 1 - 2**-53, 0.4999999999999999], dtype=torch.float64)
    assert sampling.draw(shares, extremes).tolist() == [70, 200, 200, 70]


def test_the_penalty_makes_every_seen_token_less_likely():
    logits = torch.tensor([[2.0, -2.0, 1.0, -1.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert sampling.penalised(logits, seen, torch.tensor([2.0])).tolist() == [[1.0, -4.0, 1.0, -1.0]]
    assert torch.equal(sampling.penalised(logits, seen, torch.tensor([1.0])), logits)
