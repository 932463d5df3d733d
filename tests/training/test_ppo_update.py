"""One update of PPO: its invariants, what each setting does in it, and a bandit with a known optimum."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.tiny import Arms, make_model, make_reward_model, make_tokenizer
from training import ppo_update as update_module
from training import rollout
from training.config import ModelConfig, PPOConfig, TrainingError
from training.device import Compute
from training.model import GPT, RewardModel
from training.ppo_update import Frozen, Learner, judge, ppo_update
from training.rollout import Episodes

CPU = Compute(torch.device("cpu"), bf16=False)
TOKENIZER = make_tokenizer()
EOS, PAD = TOKENIZER.eos_id, TOKENIZER.pad_id


def _config(**changes: Any) -> PPOConfig:
    settings = {"base": "b", "reward_model": "r", "batch_size": 8, "max_new_tokens": 10, "value_warmup": 0}
    return PPOConfig(**{**settings, **changes})


def _learner(policy: GPT, value_model: RewardModel, rate: float = 1e-3, kl_coef: float = 0.05) -> Learner:
    optimizers = [torch.optim.AdamW(m.parameters(), lr=rate, weight_decay=0) for m in (policy, value_model)]
    return Learner(policy, value_model, *optimizers, kl_coef)


@pytest.fixture
def world() -> tuple[Learner, Frozen]:
    learner = _learner(make_model(TOKENIZER, spread=2.0), make_reward_model(TOKENIZER))
    frozen = Frozen(
        make_model(TOKENIZER, spread=2.0), make_reward_model(TOKENIZER), TOKENIZER, [[5] * n for n in range(1, 9)], CPU
    )
    return learner, frozen


def test_the_first_update_starts_with_kl_zero_and_ratio_one(world):
    learner, frozen = world
    figures, _, judged = ppo_update(learner, frozen, _config(), 0)
    assert figures["kl"] == figures["kl_k1"] == 0.0
    assert figures["ratio_first"] == pytest.approx(1.0, abs=1e-6)
    assert figures["sampler_gap"] < 1e-5
    mask = judged.episodes.mask.bool()
    assert judged.advantages[mask].mean().abs() < 1e-5
    assert judged.advantages[mask].var(unbiased=False) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_the_first_ratio_stays_one_in_later_updates(world, temperature):
    learner, frozen = world
    for update in range(3):
        figures, _, _ = ppo_update(learner, frozen, _config(temperature=temperature, minibatches=4), update)
        assert figures["ratio_first"] == pytest.approx(1.0, abs=1e-6)
        assert figures["sampler_gap"] < 1e-5
    assert figures["kl"] > 0


def test_a_policy_that_changed_between_sampling_and_learning_stops_the_run(world, monkeypatch):
    learner, frozen = world
    honest = judge

    def nudged(*arguments: Any) -> Any:
        judged = honest(*arguments)
        with torch.no_grad():
            learner.policy.wte.weight.mul_(1.001)
        return judged

    monkeypatch.setattr(update_module, "judge", nudged)
    with pytest.raises(TrainingError, match=r"first ratio of an update is off by .* run again"):
        ppo_update(learner, frozen, _config(), 0)


def test_a_reference_that_is_not_the_base_stops_the_run(world):
    learner, frozen = world
    with pytest.raises(TrainingError, match="policy and reference differ"):
        ppo_update(learner, replace(frozen, ref_policy=make_model(TOKENIZER, seed=8, spread=2.0)), _config(), 0)


def test_a_nan_stops_the_run_with_a_sentence(world):
    learner, frozen = world
    with torch.no_grad():
        frozen.reward_model.head.weight.fill_(float("nan"))
        for model in (learner.policy, frozen.ref_policy):
            model.ln_f.bias.add_(model.wte.weight[EOS])  # answers end and are scored
    with pytest.raises(TrainingError, match=r"is nan at update 1: lower learning_rate"):
        ppo_update(learner, frozen, _config(max_new_tokens=40), 0)


def _policy_gradient(policy: GPT, judged: Any, tokens: Tensor) -> Tensor:
    policy.zero_grad()
    episodes = replace(judged.episodes, tokens=tokens)
    logprobs, _ = rollout.completion_logprobs(policy, episodes, 1.0, CPU)
    on = episodes.mask.bool()
    ((logprobs - judged.logprobs[on]).exp() * judged.advantages[on]).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_padding_has_no_gradient_and_no_say(world):
    learner, frozen = world
    _, requests, _ = ppo_update(learner, frozen, _config(), 0)
    requests[0].tokens = requests[0].tokens[:2]
    judged = judge(learner, frozen, _config(), Episodes.of(requests, PAD, "cpu"), [torch.arange(8)])
    tokens = judged.episodes.tokens
    padding = torch.arange(tokens.shape[1]) >= judged.episodes.lengths[:, None]
    assert padding.any()
    before = _policy_gradient(learner.policy, judged, tokens)
    after = _policy_gradient(learner.policy, judged, torch.where(padding, 17, tokens))
    assert before.abs().max() > 0
    assert torch.equal(before, after)
    with torch.no_grad():
        values = rollout.completion_values(learner.value_model, judged.episodes, CPU)
        rubbish = replace(judged.episodes, tokens=torch.where(padding, 17, tokens))
        assert torch.equal(values, rollout.completion_values(learner.value_model, rubbish, CPU))


def test_value_warmup_leaves_the_policy_alone(world):
    learner, frozen = world
    before = learner.policy.wte.weight.clone()
    values = learner.value_model.head.weight.clone()
    figures, _, _ = ppo_update(learner, frozen, _config(value_warmup=1), 0)
    assert torch.equal(before, learner.policy.wte.weight)
    assert not torch.equal(values, learner.value_model.head.weight)
    assert "policy_loss" not in figures
    ppo_update(learner, frozen, _config(value_warmup=1), 1)
    assert not torch.equal(before, learner.policy.wte.weight)


def test_target_kl_ends_the_policys_passes_of_an_update(world):
    learner, frozen = world
    free, _, _ = ppo_update(learner, frozen, _config(epochs=6, minibatches=1), 0)
    other = _learner(make_model(TOKENIZER, spread=2.0), make_reward_model(TOKENIZER))
    held, _, _ = ppo_update(other, frozen, _config(epochs=6, minibatches=1, target_kl=1e-9), 0)
    assert held["approx_kl"] < free["approx_kl"]


def test_returns_are_taken_before_the_advantages_are_whitened(world):
    """Without KL and with lambda 1 every state of an answer returns the answer's score."""
    learner, frozen = world
    judged = ppo_update(learner, frozen, _config(lam=1.0, missing_eos_penalty=2.5), 0)[2]
    on = judged.episodes.mask.bool()
    expected = judged.scores[:, None].expand_as(judged.returns)[on]
    assert torch.allclose(judged.returns[on], expected, atol=1e-5)
    plain = (expected - judged.values[on]).double()
    white = (plain - plain.mean()) / plain.var(unbiased=False).sqrt()
    assert torch.allclose(judged.advantages[on].double(), white, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"gamma": 0.9, "lam": 0.5}, {"whiten_rewards": True}])
def test_advantages_come_from_kl_score_and_values_as_the_settings_say(world, changes):
    """By brute force, with the coefficient that the controller has reached and not the one in the settings."""
    learner, frozen = world
    config = _config(kl_coef=9.0, missing_eos_penalty=2.5, **changes)
    ppo_update(learner, frozen, config, 0)
    learner.kl_coef = 0.3
    judged = ppo_update(learner, frozen, config, 1)[2]
    on = judged.episodes.mask.bool()
    rewards = torch.where(on, -0.3 * (judged.logprobs - judged.ref_logprobs), 0.0).double()
    for row, score in enumerate(judged.scores):
        rewards[row, on[row].nonzero()[-1]] += score
    if config.whiten_rewards:  # variance 1, the mean kept
        mean, spread = rewards[on].mean(), rewards[on].std(unbiased=False)
        rewards = (rewards - mean) / spread + mean
    plain = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        states = on[row].nonzero()[:, 0].tolist()
        values = [*judged.values[row, states].tolist(), 0.0]
        deltas = [rewards[row, s] + config.gamma * values[i + 1] - values[i] for i, s in enumerate(states)]
        for i, s in enumerate(states):
            plain[row, s] = sum((config.gamma * config.lam) ** j * delta for j, delta in enumerate(deltas[i:]))
    assert torch.allclose((judged.returns - judged.values)[on].double(), plain[on], atol=1e-4)
    white = (plain[on] - plain[on].mean()) / plain[on].std(unbiased=False)
    assert torch.allclose(judged.advantages[on].double(), white, atol=1e-3)


def test_ratios_that_left_their_clip_are_counted_and_a_wide_clip_holds_none(world):
    learner, frozen = world
    narrow, _, _ = ppo_update(learner, frozen, _config(epochs=4, cliprange=1e-6), 0)
    wide, _, _ = ppo_update(learner, frozen, _config(epochs=4, cliprange=10.0), 1)
    assert narrow["clipfrac"] > 0.2
    assert wide["clipfrac"] == 0.0


def test_a_values_step_is_clipped_and_weighs_what_the_settings_say(world):
    """A value 1 above its old one and 3 below its return is charged as if it had moved 0.2, and pushed no further."""
    learner, frozen = world
    judged = ppo_update(learner, frozen, _config(value_warmup=9, updates=10), 0)[2]
    judged = judge(learner, frozen, _config(), judged.episodes, [torch.arange(8)])
    moved = replace(judged, values=judged.values - 1, returns=judged.values + 3)
    still = _learner(learner.policy, learner.value_model, rate=0.0)

    def step(**changes: float) -> tuple[float, float]:
        seen = update_module._value_step(still, _config(**changes), moved, torch.arange(8), CPU)
        return seen["value_loss"], seen["value_grad_norm"]

    assert step(cliprange_value=0.2) == (pytest.approx(0.5 * 3.8**2, rel=1e-3), 0.0)
    loss, norm = step(cliprange_value=0.0)
    assert loss == pytest.approx(0.5 * 3**2, rel=1e-3)
    assert step(cliprange_value=0.0, vf_coef=1.0)[1] == pytest.approx(norm / PPOConfig.vf_coef, rel=1e-3)


def test_both_rates_warm_up_and_fall_in_a_straight_line(world):
    learner, frozen = world
    config = _config(updates=10, warmup_steps=4, min_lr_ratio=0.1, learning_rate=1e-4, value_learning_rate=3e-4)
    for update, factor in ((0, 0.2), (4, 0.1 + 0.9 * 0.6), (9, 0.1 + 0.9 * 0.1)):
        figures, _, _ = ppo_update(learner, frozen, config, update)
        assert figures["lr"] == pytest.approx(1e-4 * factor)
        assert learner.value_optimizer.param_groups[0]["lr"] == pytest.approx(3e-4 * factor)


def test_what_is_random_depends_on_seed_and_update_alone(world):
    learner, frozen = world
    frozen = replace(frozen, demonstrations=[([n, EOS], [0, 1]) for n in range(200)])

    def drawn(seed: int, update: int) -> list[Any]:
        """Seeds of the answers, order of the minibatches in two passes, demonstrations of two minibatches."""
        config = _config(seed=seed, ptx_coef=1.0, demonstrations="d")
        requests = update_module._sample_answers(learner.policy, frozen, config, update)
        parts = [torch.cat(update_module._parts(config, update, epoch)).tolist() for epoch in (0, 1)]
        assert [sorted(order) for order in parts] == [list(range(8))] * 2
        shown = [update_module._demonstrations(frozen, config, (update, place), 8) for place in (0, 1)]
        return [[request.seed for request in requests], *parts, *shown]

    one = drawn(1, 0)
    assert one == drawn(1, 0)
    assert one[1] != one[2]
    assert one[3] != one[4]
    for other in (drawn(1, 1), drawn(2, 0)):
        assert all(a != b for a, b in zip(one, other, strict=True))


def test_demonstrations_weigh_what_the_settings_say(world):
    learner, frozen = world
    judged = ppo_update(learner, frozen, _config(value_warmup=9, updates=10), 0)[2]
    silent = replace(judged, advantages=torch.zeros_like(judged.advantages))
    still, shown = _learner(learner.policy, learner.value_model, rate=0.0), [([1, 2, 70, EOS], [0, 0, 1, 1])]

    def step(coef: float) -> dict[str, float]:
        config = _config(ptx_coef=coef, demonstrations="d")
        return update_module._policy_step(still, frozen, config, silent, torch.arange(8), shown, first=False)

    one, three = step(1.0), step(3.0)
    assert one["ptx_loss"] == pytest.approx(rollout.demonstration_loss(still.policy, shown, PAD, CPU).item())
    assert three["ptx_loss"] == one["ptx_loss"]
    assert three["grad_norm"] == pytest.approx(3 * one["grad_norm"], rel=1e-4)
    assert three["grad_norm"] > 0


def test_demonstrations_hold_the_policy_where_they_are(world):
    learner, frozen = world
    shown = [([1, 2, 70, 71, EOS], [0, 0, 1, 1, 1])] * 3
    with torch.no_grad():
        before = rollout.demonstration_loss(learner.policy, shown, PAD, CPU).item()
    settings = _config(ptx_coef=5.0, demonstrations="d", learning_rate=1e-2)
    for update in range(4):
        figures, _, _ = ppo_update(learner, replace(frozen, demonstrations=shown), settings, update)
    with torch.no_grad():
        after = rollout.demonstration_loss(learner.policy, shown, PAD, CPU).item()
    assert after < before - 1
    assert figures["ptx_loss"] == pytest.approx(after, abs=2)
    with pytest.raises(TrainingError, match="demonstrations is empty"):
        _config(ptx_coef=1.0)


def test_in_bf16_the_first_ratio_is_one_too(world):
    learner, frozen = world
    rough = replace(frozen, compute=Compute(torch.device("cpu"), bf16=True))
    for update in range(2):
        figures, _, _ = ppo_update(learner, rough, _config(), update)
        assert figures["ratio_first"] == pytest.approx(1.0, abs=1e-6)
    assert figures["kl"] > 0


def test_ppo_learns_what_a_sequence_is_rewarded_for(world, monkeypatch):
    """Score = share of even tokens: credit must reach every token of an answer, though it is paid at the end."""
    learner, frozen = world

    def even(_: Any, part: Episodes, *__: Any, **___: Any) -> Tensor:
        chosen = (part.tokens[:, 1:] % 2 == 0).float() * part.mask
        return chosen.sum(1) / part.mask.sum(1) * 4

    monkeypatch.setattr(update_module, "scores", even)
    settings = _config(batch_size=64, updates=25, learning_rate=3e-3, value_learning_rate=3e-3, kl_coef=0.001)
    learner.kl_coef = settings.kl_coef
    shares = [ppo_update(learner, frozen, settings, update)[0]["score"] / 4 for update in range(25)]
    assert shares[0] < 0.6
    assert shares[-1] > 0.85


def test_kl_coef_adapts_towards_its_target(world, monkeypatch):
    learner, frozen = world
    ppo_update(learner, frozen, _config(kl_target=1.0, kl_horizon=80, learning_rate=1e-2), 0)
    assert learner.kl_coef == pytest.approx(0.05 * (1 - 0.2 * 8 / 80))  # the KL was 0: below target, so cheaper
    cheap = learner.kl_coef
    honest, told = update_module.adv.next_kl_coef, []
    monkeypatch.setattr(update_module.adv, "next_kl_coef", lambda c, kl, **k: told.append(kl) or honest(c, kl, **k))
    figures, _, _ = ppo_update(learner, frozen, _config(kl_target=0.01, kl_horizon=80), 1)
    assert told == [figures["kl_k1"]] != [figures["kl"]]  # it adapts by what rewards are charged
    assert figures["kl_k1"] > 0.012
    assert figures["kl_coef"] == cheap  # what this update's rewards paid
    assert learner.kl_coef == pytest.approx(cheap * (1 + 0.2 * 8 / 80))


@pytest.mark.parametrize("seed", [1, 2])
def test_bandit_converges_to_the_closed_form_optimum(monkeypatch, seed):
    """One token, eight arms: the best policy is softmax(log ref + r / kl_coef) (Ziegler et al. 2019, eq. 2)."""
    arms = torch.tensor([0.0, 0.9, -0.6, 0.3, -1.2, 0.6, 0.0, -0.3])
    config = ModelConfig(vocab_size=8, n_positions=4, n_embd=16, n_layer=1, n_head=2)
    torch.manual_seed(0)
    policy, ref = GPT(config).eval(), GPT(config).eval()
    with torch.no_grad():
        policy.wte.weight.mul_(4)
    ref.load_state_dict(policy.state_dict())
    monkeypatch.setattr(update_module, "scores", lambda _, part, *a, **k: arms[part.tokens[:, 1]])
    settings = _config(
        batch_size=512, minibatches=2, epochs=2, max_new_tokens=1, kl_coef=0.5, updates=120, learning_rate=0.01,
        value_learning_rate=0.02, cliprange_value=0.0, seed=seed,
    )  # fmt: skip
    learner = _learner(policy, RewardModel(GPT(config)).eval(), kl_coef=0.5)
    frozen = Frozen(ref, RewardModel(GPT(config)).eval(), Arms(), [[0]], CPU)  # type: ignore[arg-type]
    for update in range(settings.updates):
        ppo_update(learner, frozen, settings, update)

    def distribution(model: GPT) -> Tensor:
        with torch.no_grad():
            return model.logits(model(torch.tensor([[0]]))[0, 0]).softmax(-1)

    best = (distribution(ref).log() + arms / 0.5).softmax(-1)
    distance = 0.5 * (distribution(policy) - best).abs().sum()
    assert 0.5 * (distribution(ref) - best).abs().sum() > 0.3
    assert distance < 0.02, (distribution(policy), best)
