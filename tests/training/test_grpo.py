"""Stage grpo: both estimators' arithmetic, a bandit with a known optimum, and runs that are killed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.conftest import curve, jsonl, kill_at, rows_of, run_stage
from tests.training.tiny import Arms, make_model, make_reward_model, make_tokenizer
from training import grpo, optim, rollout
from training.checkpoint import load_model, load_reward_model, save_model
from training.config import ModelConfig, TrainingError
from training.config_baselines import GRPOConfig
from training.device import Compute
from training.grpo import Frozen, group_advantages, grpo_update, losses
from training.model import GPT, RewardModel
from training.parse import parse
from training.report import Report
from training.rollout import Episodes

CPU = Compute(torch.device("cpu"), bf16=False)
TOKENIZER = make_tokenizer()


def _config(**changes: Any) -> GRPOConfig:
    settings = {"base": "b", "reward_model": "r", "batch_size": 8, "group_size": 4, "max_new_tokens": 10}
    return GRPOConfig(**{**settings, **changes})


@pytest.fixture
def world() -> tuple[GPT, torch.optim.Optimizer, Frozen]:
    policy = make_model(TOKENIZER, spread=2.0)
    prompts = [[5] * n for n in range(1, 9)]
    frozen = Frozen(make_model(TOKENIZER, spread=2.0), make_reward_model(TOKENIZER), TOKENIZER, prompts, CPU)
    return policy, optim.adamw(policy, 1e-3), frozen


def test_each_answers_baseline_is_its_groups_others():
    rewards = torch.tensor([1.0, 4.0, 1.0, 0.0, 0.0, 6.0])
    assert group_advantages(rewards, 3, "rloo").tolist() == pytest.approx([1 - 2.5, 4 - 1, 1 - 2.5, -3, -3, 6])
    expected = [-1 / 2**0.5, 2 / 2**0.5, -1 / 2**0.5, -2 / 8**0.5, -2 / 8**0.5, 4 / 8**0.5]
    assert group_advantages(rewards, 3, "grpo").tolist() == pytest.approx(expected, rel=1e-3)


def test_a_group_of_equal_scores_teaches_nothing():
    for estimator in ("rloo", "grpo"):
        assert group_advantages(torch.full((4,), 3.0), 4, estimator).tolist() == [0.0] * 4


def test_rloos_first_gradient_is_reinforces_over_whole_answers():
    torch.manual_seed(0)
    logprobs, mask = (-torch.rand(3, 4)).requires_grad_(), torch.tensor([[1.0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]])
    advantages = torch.tensor([2.0, -1.0, 0.5])
    loss, clipped, _ = losses(logprobs - logprobs.detach(), logprobs, logprobs, mask, advantages, _config())
    loss.backward()
    assert torch.allclose(logprobs.grad, -advantages[:, None] * mask / 3)
    assert clipped == 0


def test_grpos_loss_is_a_mean_over_tokens_and_then_over_answers():
    """A long answer weighs as much as a short one; the KL term is k3 with a gradient of its own."""
    logprobs = torch.log(torch.tensor([[0.5, 0.25], [0.5, 0.5]])).requires_grad_()
    ref = torch.log(torch.tensor([[0.25, 0.25], [0.5, 0.5]]))
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    config = _config(estimator="grpo")
    loss, _, kl = losses(logprobs - logprobs.detach(), logprobs, ref, mask, torch.tensor([1.0, 3.0]), config)
    assert loss.item() == pytest.approx(-(1 + 3) / 2)
    k3 = 0.5 - 1 - torch.log(torch.tensor(0.5))
    assert kl.item() == pytest.approx((k3.item() + 0) / 2 / 2)
    gradient = torch.autograd.grad(loss + kl, logprobs)[0]
    assert gradient[0, 0].item() == pytest.approx(-1 / 4 + (1 - 0.5) / 4)
    assert gradient[1].tolist() == pytest.approx([-3 / 2, 0.0])


def test_a_ratio_that_left_its_clip_has_no_gradient():
    logprobs = torch.tensor([[0.5], [0.0]]).requires_grad_()
    for estimator in ("rloo", "grpo"):
        loss, clipped, _ = losses(
            logprobs,
            logprobs,
            logprobs.detach(),
            torch.ones(2, 1),
            torch.tensor([1.0, 1.0]),
            _config(estimator=estimator),
        )
        gradient = torch.autograd.grad(loss, logprobs)[0]
        assert gradient.flatten().tolist() == pytest.approx([0.0, -0.5])
        assert clipped.item() == 0.5


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_an_update_starts_at_ratio_one_and_the_first_at_kl_zero(world, estimator):
    policy, optimizer, frozen = world
    for update in range(3):
        figures, _, judged = grpo_update(
            policy, optimizer, frozen, _config(estimator=estimator, temperature=0.7, minibatches=4), update
        )
        assert figures["ratio_first"] == pytest.approx(1.0, abs=1e-6)
        assert figures["sampler_gap"] < 1e-5
        assert (figures["kl"] == 0.0) == (update == 0)
        assert judged.advantages.view(-1, 4).sum(1).abs().max() < 1e-4


def test_a_groups_answers_share_their_prompt(world):
    policy, _, frozen = world
    requests = grpo._sample_answers(policy, frozen, _config(), 0)
    prompts = [tuple(request.prompt_ids) for request in requests]
    assert prompts == [p for p in prompts[::4] for _ in range(4)]
    assert len(set(prompts)) == 2
    assert len({tuple(request.tokens) for request in requests}) > 4


def test_padding_has_no_gradient(world):
    policy, optimizer, frozen = world
    config = _config(estimator="grpo", max_new_tokens=24)
    _, requests, _ = grpo_update(policy, optimizer, frozen, config, 0)
    requests[0].tokens = requests[0].tokens[:2]
    episodes = Episodes.of(requests, TOKENIZER.pad_id, "cpu")
    judged = grpo.judge(policy, frozen, config, episodes, [torch.arange(8)])
    outside = ~judged.episodes.mask.bool()
    assert judged.logprobs[outside].abs().max() == judged.ref_logprobs[outside].abs().max() == 0


@pytest.mark.parametrize("kl_coef", [0.0, 0.5, 1.0])
def test_grpo_pays_for_kl_in_its_loss(world, monkeypatch, kl_coef):
    """Equal scores leave no advantage: what gradient there is comes from the KL, in proportion to its price."""
    policy, _, frozen = world
    frozen = replace(frozen, ref_policy=make_model(TOKENIZER, seed=9, spread=2.0))
    monkeypatch.setattr(grpo, "scores", lambda _, part, *a, **k: torch.ones(len(part.tokens)))
    norms = []
    for price in (kl_coef, 0.1):
        figures, _, judged = grpo_update(
            policy, torch.optim.SGD(policy.parameters(), lr=0.0), frozen,
            _config(estimator="grpo", kl_coef=price, learning_rate=0.0, minibatches=1), 1,
        )  # fmt: skip
        assert judged.advantages.abs().max() == 0
        norms.append(figures["grad_norm"])
    assert norms[1] > 0
    assert norms[0] == pytest.approx(norms[1] * kl_coef / 0.1, rel=1e-3)


def test_a_policy_that_changed_between_sampling_and_learning_stops_the_run(world, monkeypatch):
    policy, optimizer, frozen = world
    honest = grpo.judge

    def nudged(*arguments: Any) -> Any:
        judged = honest(*arguments)
        with torch.no_grad():
            policy.wte.weight.mul_(1.001)
        return judged

    monkeypatch.setattr(grpo, "judge", nudged)
    with pytest.raises(TrainingError, match=r"first ratio of an update is off by .* run again"):
        grpo_update(policy, optimizer, frozen, _config(), 0)


def test_a_reference_that_is_not_the_base_stops_the_run(world):
    policy, optimizer, frozen = world
    other = replace(frozen, ref_policy=make_model(TOKENIZER, seed=8, spread=2.0))
    with pytest.raises(TrainingError, match="policy and reference differ"):
        grpo_update(policy, optimizer, other, _config(), 0)


def test_answers_of_another_policy_or_temperature_stop_the_run(world, monkeypatch):
    policy, optimizer, frozen = world
    honest = rollout.generate
    monkeypatch.setattr(rollout, "generate", lambda *a, **k: honest(*a, **{**k, "temperature": 0.5}))
    with pytest.raises(TrainingError, match=r"sampler's log-probabilities are .* nats from the trainer's"):
        grpo_update(policy, optimizer, frozen, _config(), 1)
    monkeypatch.setattr(rollout, "generate", lambda *a, **k: honest(frozen.ref_policy, *a[1:], **k))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with pytest.raises(TrainingError, match="not sampled from the policy that is scored"):
        grpo_update(policy, optimizer, frozen, _config(batch_size=64), 5)


def test_bandit_converges_to_the_closed_form_optimum(monkeypatch):
    """One token, eight arms: the best policy is softmax(log ref + r / kl_coef) (Ziegler et al. 2019, eq. 2)."""
    arms = torch.tensor([0.0, 0.9, -0.6, 0.3, -1.2, 0.6, 0.0, -0.3])
    config = ModelConfig(vocab_size=8, n_positions=4, n_embd=16, n_layer=1, n_head=2)
    torch.manual_seed(0)
    policy, ref = GPT(config).eval(), GPT(config).eval()
    with torch.no_grad():
        policy.wte.weight.mul_(4)
    ref.load_state_dict(policy.state_dict())
    monkeypatch.setattr(grpo, "scores", lambda _, part, *a, **k: arms[part.tokens[:, 1]])
    settings = _config(
        batch_size=512, group_size=8, minibatches=1, max_new_tokens=1, kl_coef=0.5, updates=150, learning_rate=0.01
    )
    frozen = Frozen(ref, RewardModel(GPT(config)).eval(), Arms(), [[0]], CPU)  # type: ignore[arg-type]
    optimizer = optim.adamw(policy, 0.01)
    for update in range(settings.updates):
        grpo_update(policy, optimizer, frozen, settings, update)

    def distribution(model: GPT) -> Tensor:
        with torch.no_grad():
            return model.logits(model(torch.tensor([[0]]))[0, 0]).softmax(-1)

    best = (distribution(ref).log() + arms / 0.5).softmax(-1)
    distance = 0.5 * (distribution(policy) - best).abs().sum()
    assert 0.5 * (distribution(ref) - best).abs().sum() > 0.3
    assert distance < 0.02, (distribution(policy), best)


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_it_learns_what_a_sequence_is_rewarded_for(world, monkeypatch, estimator):
    """Score = share of even tokens, paid once for the whole answer."""
    policy, optimizer, frozen = world

    def even(_: Any, part: Episodes, *__: Any, **___: Any) -> Tensor:
        chosen = (part.tokens[:, 1:] % 2 == 0).float() * part.mask
        return chosen.sum(1) / part.mask.sum(1) * 4

    monkeypatch.setattr(grpo, "scores", even)
    settings = _config(batch_size=64, updates=30, learning_rate=3e-3, kl_coef=0.001, estimator=estimator)
    shares = [grpo_update(policy, optimizer, frozen, settings, update)[0]["score"] / 4 for update in range(30)]
    assert shares[0] < 0.6
    assert shares[-1] > 0.8


# Whole runs


def _run(run_dir: Path) -> dict[str, Any]:
    settings = json.loads((run_dir / "config.json").read_text())
    return grpo.run(parse("grpo", settings), run_dir, Report(run_dir))


@pytest.fixture
def grpo_run(make_run: Callable[..., Path], base_dir: Path, reward_dir: Path) -> Callable[..., Path]:
    prompts = jsonl([{"prompt": f"pan {i}"} for i in range(10)])

    def build(name: str = "run", **changes: Any) -> Path:
        config = {
            "base": str(base_dir), "reward_model": str(reward_dir), "updates": 12, "batch_size": 8, "group_size": 2,
            "max_new_tokens": 8, "checkpoint_every": 3, "sample_every": 4, "learning_rate": 1e-3,
        }  # fmt: skip
        return make_run({**config, **changes}, {"prompts.jsonl": prompts}, name)

    return build


def test_a_run_killed_anywhere_ends_like_an_undisturbed_one(grpo_run):
    whole, broken = grpo_run("whole"), grpo_run("broken")
    assert run_stage("grpo", whole).returncode == 0
    kill_at("grpo", broken, 2)
    kill_at("grpo", broken, 8)
    assert run_stage("grpo", broken).returncode == 0
    assert curve(broken) == curve(whole)
    assert rows_of(broken / "samples.jsonl") == rows_of(whole / "samples.jsonl")
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    results = [json.loads((run / "result.json").read_text()) for run in (broken, whole)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def test_the_models_card_says_where_it_comes_from(grpo_run, base_dir):
    run_dir = grpo_run(updates=2, estimator="grpo")
    result = _run(run_dir)
    _, _, card = load_model(run_dir / "model")
    assert (card["kind"], card["stage"], card["parent"]) == ("policy", "grpo", str(base_dir))
    assert card["estimator"] == "grpo"
    assert result["episodes"] == 16


def test_a_kl_budget_ends_the_run_and_says_so(grpo_run):
    run_dir = grpo_run(kl_budget=1e-6)
    result = _run(run_dir)
    assert result["stopped_by_kl_budget"]
    assert _run(run_dir)["updates"] == result["updates"]  # killed after its last checkpoint, before its result
    assert result["updates"] < 5  # an update whose answers all lack an EOS leaves the policy where it was


def test_scores_are_divided_by_the_reward_models_spread(grpo_run):
    run_dir = grpo_run()
    settings = json.loads((run_dir / "config.json").read_text())
    tokens, at = torch.tensor([[1, 2, 3]]), torch.tensor([2])
    scaled, raw = (
        grpo._load(parse("grpo", {**settings, "scale_scores": on}), run_dir)[1].reward_model.score(tokens, at).item()
        for on in (True, False)
    )
    assert scaled == pytest.approx(2 * raw, abs=1e-5)


def test_answers_that_never_end_and_a_reward_model_that_learns_stop_the_run(grpo_run, monkeypatch):
    honest = grpo.grpo_update

    def careless(policy: GPT, optimizer: Any, frozen: Frozen, *rest: Any) -> Any:
        with torch.no_grad():
            frozen.reward_model.head.weight.mul_(1.01)
        return honest(policy, optimizer, frozen, *rest)

    monkeypatch.setattr(grpo, "grpo_update", careless)
    with pytest.raises(TrainingError, match="reward model or the reference has changed since the run began"):
        _run(grpo_run())
    monkeypatch.setattr(grpo, "grpo_update", honest)
    monkeypatch.setattr(grpo.monitors, "SILENT", 8)
    with pytest.raises(TrainingError, match="None of the last 8 answers ended with EOS"):
        _run(grpo_run("silent", max_new_tokens=1))


def test_a_run_does_not_go_on_with_another_reward_model(grpo_run, reward_dir, tmp_path):
    model, tok, card = load_reward_model(reward_dir)
    save_model(tmp_path / "judge", model, tok, "reward", card)
    run_dir = grpo_run(reward_model=str(tmp_path / "judge"), updates=2)
    _run(run_dir)
    model.head.weight.data.mul_(2)
    save_model(tmp_path / "judge", model, tok, "reward", card)
    with pytest.raises(TrainingError, match="put the model's files back"):
        _run(run_dir)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"group_size": 3}, "batch_size is 8 and group_size is 3: choose a group_size that divides the batch"),
        ({"minibatches": 3}, "batch_size is 8 and minibatches is 3"),
        ({"estimator": "ppo"}, "estimator is 'ppo': choose one of 'rloo', 'grpo'"),
        ({"max_new_tokens": 63}, "None of 10 prompts leaves room for an answer of 63 tokens"),
    ],
)
def test_bad_input_is_one_sentence(grpo_run, changes, sentence):
    with pytest.raises(TrainingError, match=sentence):
        _run(grpo_run(**changes))
