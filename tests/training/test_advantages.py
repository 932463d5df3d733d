"""PPO's arithmetic against brute force and tables worked out by hand."""

import math

import pytest
import torch

from training import advantages as adv


def _ragged(rows: int = 5, states: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, values and a mask whose completions start and end at different places."""
    torch.manual_seed(0)
    mask = torch.zeros(rows, states)
    for row in range(rows):
        mask[row, row % 3 : states - row % 4] = 1
    rewards, values = torch.randn(2, rows, states, dtype=torch.float64)
    return rewards * mask, values, mask


def _gae_by_definition(rewards, values, gamma, lam):
    """O(T^2): A_t = sum_l (gamma lam)^l delta_{t+l}, with value 0 after the end."""
    n = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, n)) for t in range(n)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_equals_its_definition(gamma, lam):
    rewards, values, mask = _ragged()
    advantages, returns = adv.gae(rewards, values, mask, gamma, lam)
    for row in range(mask.shape[0]):
        on = mask[row].bool()
        expected = _gae_by_definition(rewards[row, on].tolist(), values[row, on].tolist(), gamma, lam)
        assert advantages[row, on].tolist() == pytest.approx(expected, abs=1e-12)
        assert (returns - advantages)[row, on].tolist() == pytest.approx(values[row, on].tolist(), abs=1e-12)
        assert advantages[row, ~on].abs().sum() == 0


def test_with_lambda_one_every_advantage_is_the_score_minus_the_value():
    _, values, mask = _ragged()
    rewards = adv.token_rewards(torch.zeros_like(values), torch.ones(len(values), dtype=torch.float64), mask, 0.1)
    advantages, _ = adv.gae(rewards, values, mask, 1.0, 1.0)
    assert torch.allclose(advantages, (1 - values) * mask, atol=1e-12)


def test_score_sits_on_the_last_completion_token_and_nowhere_else():
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).float()
    rewards = adv.token_rewards(torch.zeros(3, 5), torch.tensor([2.0, 3.0, 5.0]), mask, 0.5)
    assert rewards.tolist() == [[0, 0, 0, 2, 0], [3, 0, 0, 0, 0], [0, 0, 0, 0, 5]]


def test_kl_is_charged_per_token_inside_the_completion_only():
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    rewards = adv.token_rewards(torch.tensor([[9.0, 2.0, -1.0, float("nan")]]), torch.tensor([1.0]), mask, 0.5)
    assert rewards.tolist() == [[0.0, -1.0, 1.5, 0.0]]


def test_whitening_uses_the_mask_and_the_biased_variance():
    values = torch.tensor([[1.0, 2.0, 4.0, 1000.0], [5.0, float("nan"), 1000.0, 1000.0]])
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0]])
    on = values[mask.bool()]
    white = adv.whiten(values, mask)
    assert torch.allclose(white[mask.bool()], (on - on.mean()) / on.std(unbiased=False), atol=1e-6)
    assert white[~mask.bool()].tolist() == [0.0] * 4
    kept = adv.whiten(values, mask, shift_mean=False)
    assert adv.masked_mean(kept, mask).item() == pytest.approx(on.mean().item(), abs=1e-5)
    assert adv.masked_var(kept, mask).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        (1.0, 1.0, -1.0, 0, -1.0),
        (1.5, 1.0, -1.2, 1, 0.0),  # good and already likelier: no further push
        (0.5, 1.0, -0.5, 0, -1.0),
        (0.5, -1.0, 0.8, 1, 0.0),  # bad and already rarer: no further push
        (1.5, -1.0, 1.5, 0, 1.0),
    ],
)
def test_policy_loss_table(ratio, advantage, loss, clipped, gradient):
    r = torch.tensor([ratio], requires_grad=True)
    got, was_clipped = adv.policy_loss(r, torch.tensor([advantage]), 0.2)
    got.sum().backward()
    assert got.item() == pytest.approx(loss)
    assert was_clipped.item() == clipped
    assert r.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("value", "old", "target", "cliprange", "loss"),
    [
        (1.0, 1.0, 0.0, 0.2, 0.5),
        (0.5, 1.0, 0.0, 0.2, 0.5 * 0.8**2),  # moved 0.5 towards the target, credited with 0.2
        (2.0, 1.0, 0.0, 0.2, 0.5 * 4.0),
        (0.5, 1.0, 0.0, 0.0, 0.5 * 0.25),
    ],
)
def test_value_loss_table(value, old, target, cliprange, loss):
    got = adv.value_loss(torch.tensor([value]), torch.tensor([old]), torch.tensor([target]), cliprange)
    assert got.item() == pytest.approx(loss)


def test_explained_variance_is_read_on_the_mask():
    returns, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    shares = [adv.explained_variance(torch.tensor([v]), returns, mask) for v in ([1, 3.0, 0], [2, 2.0, 0], [3, 1.0, 0])]
    assert shares == [1.0, 0.0, -3.0]
    assert adv.explained_variance(returns, torch.ones(1, 3), mask) == 0.0  # nothing to explain


def test_k3_is_never_negative_and_agrees_with_the_exact_kl():
    torch.manual_seed(1)
    p, q = torch.randn(2, 6).log_softmax(-1)
    assert (adv.k3(p, q) >= 0).all()
    exact = (p.exp() * (p - q)).sum()
    assert (p.exp() * adv.k3(p, q)).sum().item() == pytest.approx(exact.item(), abs=1e-6)
    assert adv.k3(p, p).abs().max() == 0


def test_kl_controller_follows_ziegler():
    assert adv.next_kl_coef(0.1, 5.0, target=0, horizon=1000, episodes=64) == 0.1
    assert adv.next_kl_coef(0.1, 6.0, target=6, horizon=1000, episodes=64) == 0.1
    assert adv.next_kl_coef(0.1, 60.0, target=6, horizon=1000, episodes=64) == pytest.approx(0.1 * (1 + 0.2 * 0.064))
    assert adv.next_kl_coef(0.1, 0.0, target=6, horizon=1000, episodes=64) == pytest.approx(0.1 * (1 - 0.2 * 0.064))
    assert not math.isnan(adv.next_kl_coef(0.1, -3.0, target=6, horizon=1000, episodes=64))
