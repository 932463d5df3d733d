"""Every monitor lets a healthy run pass and stops a broken one with a sentence."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import jsonl
from tests.training.test_ppo_update import CPU, TOKENIZER, _config, _learner
from tests.training.tiny import make_model, make_reward_model
from training import chat, monitors, ppo, rollout, sft
from training import ppo_update as update_module
from training.checkpoint import load_model, load_reward_model, save_model
from training.config import TrainingError
from training.model import RewardModel
from training.parse import parse
from training.ppo_update import Frozen, Learner, ppo_update
from training.report import Report


@pytest.fixture
def world() -> tuple[Learner, Frozen]:
    learner = _learner(make_model(TOKENIZER, spread=2.0), make_reward_model(TOKENIZER))
    prompts = [[5] * n for n in range(1, 9)]
    return learner, Frozen(make_model(TOKENIZER, spread=2.0), make_reward_model(TOKENIZER), TOKENIZER, prompts, CPU)


def _rows(n: int, eos_share: float = 0.9, length: float = 20.0) -> list[dict[str, float]]:
    return [{"eos_share": eos_share, "length": length}] * n


# Kullback-Leibler


def test_a_policy_that_samples_from_itself_has_no_negative_kl():
    torch.manual_seed(0)
    p, q = (2 * torch.randn(2, 50)).log_softmax(-1)
    for seed in range(20):
        drawn = p.exp().multinomial(64, replacement=True, generator=torch.Generator().manual_seed(seed))
        k1 = (p - q)[drawn]
        monitors.kl(k1, torch.expm1(-k1) + k1, 3)


def test_samples_of_another_distribution_are_noticed_by_their_kl():
    torch.manual_seed(0)
    p, q = (2 * torch.randn(2, 50)).log_softmax(-1)
    k1 = (p - q)[q.exp().multinomial(64, replacement=True)]
    with pytest.raises(TrainingError, match=r"KL from the reference is -.* at update 4 .* not sampled from the policy"):
        monitors.kl(k1, torch.expm1(-k1) + k1, 3)


def test_a_negative_k3_is_no_kl():
    with pytest.raises(TrainingError, match="can only be positive"):
        monitors.kl(torch.ones(4), torch.tensor([0.1, 0.2, -0.3, 0.0]), 0)


def test_answers_of_another_policy_stop_ppo(world, monkeypatch):
    learner, frozen = world
    honest = rollout.generate
    monkeypatch.setattr(rollout, "generate", lambda *a, **k: honest(frozen.ref_policy, *a[1:], **k))
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with pytest.raises(TrainingError, match="not sampled from the policy that is scored"):
        ppo_update(learner, frozen, _config(batch_size=64), 5)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_sampler_of_another_temperature_stops_ppo(world, monkeypatch, bf16):
    learner, frozen = world
    frozen = replace(frozen, compute=replace(CPU, bf16=bf16))
    ppo_update(learner, frozen, _config(), 0)
    honest = rollout.generate
    monkeypatch.setattr(rollout, "generate", lambda *a, **k: honest(*a, **{**k, "temperature": 0.5}))
    with pytest.raises(TrainingError, match=r"sampler's log-probabilities are .* nats from the trainer's"):
        ppo_update(learner, frozen, _config(), 1)


# Answers


def test_answers_that_end_and_keep_their_length_are_well():
    monitors.answers(_rows(1, 0.0), 8)
    monitors.answers([*_rows(3, 0.9, 20), *_rows(20, 0.6, 44)], 64)
    monitors.answers([*_rows(3, 0.2, 20), *_rows(20, 0.01, 20)], 64)  # an SFT model that hardly ended
    monitors.answers([*_rows(3, 0.9, 2), *_rows(20, 0.9, 38)], 64)


@pytest.mark.parametrize(
    ("history", "sentence"),
    [
        (_rows(4, 0.0), "None of the last 256 answers ended with EOS, so none was scored: raise max_new_tokens"),
        (
            [*_rows(1, 0.9), *_rows(5, 0.1)],
            "10% of the answers end, and 90% did at first: .* missing_eos_penalty",
        ),
        ([*_rows(1, length=20), *_rows(5, length=3)], "Answers have 3 tokens, and had 20 at first"),
        ([*_rows(1, length=10), *_rows(5, length=60)], "Answers have 60 tokens, and had 10 at first: .* raise kl_coef"),
    ],
)
def test_answers_that_stop_ending_or_change_their_length_stop_the_run(history, sentence):
    monitors.answers(history[:-1], 64)
    with pytest.raises(TrainingError, match=sentence):
        monitors.answers(history, 64)


# Weights


def test_a_checksum_sees_one_bit_and_where_it_is():
    model = make_reward_model(TOKENIZER)
    before = monitors.checksum(model, None)
    with torch.no_grad():
        model.head.weight[0, 3] = torch.nextafter(model.head.weight[0, 3], torch.tensor(9.0))
    assert monitors.checksum(model) != before
    model = make_reward_model(TOKENIZER)
    assert monitors.checksum(model) == before
    with torch.no_grad():
        one, other = model.trunk.h[0].ln_1.weight, model.trunk.h[0].ln_1.bias
        one[0], other[0] = other[0].clone(), one[0].clone()
    assert monitors.checksum(model) != before


@pytest.fixture
def ppo_run(make_run: Callable[..., Path], base_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    trunk, tok, _ = load_model(base_dir)
    torch.manual_seed(5)
    save_model(tmp_path / "reward", RewardModel(trunk), tok, "reward", {"reward_std": 0.5})

    def build(**changes: Any) -> Path:
        config = {
            "base": str(base_dir), "reward_model": str(tmp_path / "reward"), "updates": 4, "batch_size": 4,
            "max_new_tokens": 4, "value_warmup": 0, "checkpoint_every": 1, **changes,
        }  # fmt: skip
        return make_run(config, {"prompts.jsonl": jsonl([{"prompt": f"pan {i}"} for i in range(10)])})

    return build


def _run(run_dir: Path) -> dict[str, Any]:
    return ppo.run(parse("ppo", json.loads((run_dir / "config.json").read_text())), run_dir, Report(run_dir))


def test_a_reward_model_that_learns_during_ppo_stops_it(ppo_run, monkeypatch):
    honest = ppo.ppo_update

    def careless(learner: Learner, frozen: Frozen, *rest: Any) -> Any:
        done = honest(learner, frozen, *rest)
        with torch.no_grad():
            frozen.reward_model.head.weight.mul_(1.01)
        return done

    monkeypatch.setattr(ppo, "ppo_update", careless)
    with pytest.raises(TrainingError, match="reward model or the reference has changed since the run began"):
        _run(ppo_run())


def test_a_run_does_not_go_on_with_another_reward_model(ppo_run, tmp_path):
    run_dir = ppo_run()
    _run(run_dir)
    model, tok, card = load_reward_model(tmp_path / "reward")
    model.head.weight.data.mul_(2)
    save_model(tmp_path / "reward", model, tok, "reward", card)
    with pytest.raises(TrainingError, match="put the model's files back"):
        _run(run_dir)


def test_answers_that_never_end_stop_a_run(ppo_run, monkeypatch):
    monkeypatch.setattr(monitors, "SILENT", 8)
    with pytest.raises(TrainingError, match="None of the last 8 answers ended with EOS"):
        _run(ppo_run(max_new_tokens=1))


def test_a_gradient_of_ten_thousand_passes_and_no_larger_one():
    monitors.gradient(9_999.0, "at step 1")
    with pytest.raises(
        TrainingError, match=r"The gradient's norm is 1\.1e\+04 at step 1 \(at most 1e\+04 is allowed\)"
    ):
        monitors.gradient(11_000.0, "at step 1")


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e9])
def test_a_gradient_beyond_all_measure_stops_ppo_before_it_reaches_a_weight(world, monkeypatch, broken):
    learner, frozen = world
    before = learner.policy.wte.weight.clone()
    honest = update_module.adv.policy_loss

    def wrong(*arguments: Any) -> Any:
        losses, clipped = honest(*arguments)
        return losses * broken, clipped

    monkeypatch.setattr(update_module.adv, "policy_loss", wrong)
    with pytest.raises(TrainingError, match=r"The gradient's norm is .* in this update .*: lower learning_rate"):
        ppo_update(learner, frozen, _config(), 0)
    assert torch.equal(before, learner.policy.wte.weight)


def test_a_mask_that_misses_a_sampled_token_stops_ppo(world, monkeypatch):
    learner, frozen = world
    honest = update_module.Episodes.of

    def short(*arguments: Any) -> Any:
        episodes = honest(*arguments)
        mask = episodes.mask.clone()
        mask[0, int(mask[0].nonzero()[-1])] = 0
        return replace(episodes, mask=mask)

    monkeypatch.setattr(update_module.Episodes, "of", staticmethod(short))
    with pytest.raises(TrainingError, match=r"\d+ tokens are learned and \d+ were sampled"):
        ppo_update(learner, frozen, _config(), 0)


# SFT


@pytest.fixture
def sft_run(make_run: Callable[..., Path], base_dir: Path) -> Callable[..., Path]:
    def build(**changes: Any) -> Path:
        rows = [{"instruction": f"pan {i}", "response": f"queso {i}"} for i in range(20)]
        config = {"base": str(base_dir), "epochs": 1, "sample_every": 0, "log_every": 1, **changes}
        return make_run(config, {"train.jsonl": jsonl(rows)})

    return build


def _sft(run_dir: Path) -> dict[str, Any]:
    return sft.run(parse("sft", json.loads((run_dir / "config.json").read_text())), run_dir, Report(run_dir))


def test_a_healthy_sft_run_passes_and_shows_its_share(sft_run):
    assert 0.2 < _sft(sft_run())["learned_share"] < 0.9


@pytest.mark.parametrize(
    ("on", "sentence"), [(1, "[1-9][0-9]* of them where a row begins"), (0, "Only 0 of 19 answers end")]
)
def test_a_lost_mask_stops_sft(sft_run, monkeypatch, on, sentence):
    honest = chat.render_example

    def all_alike(*arguments: Any) -> Any:
        ids, _ = honest(*arguments)
        return ids, [on] * len(ids)

    monkeypatch.setattr(chat, "render_example", all_alike)
    with pytest.raises(TrainingError, match=sentence):
        _sft(sft_run())


def test_answers_without_an_eos_stop_sft(sft_run, monkeypatch):
    honest = chat.render_example
    monkeypatch.setattr(chat, "render_example", lambda *a: tuple(part[:-1] for part in honest(*a)))
    with pytest.raises(TrainingError, match="Only 0 of 19 answers end in a learned EOS"):
        _sft(sft_run())


def test_a_gradient_that_is_no_number_stops_sft(sft_run, monkeypatch):
    monkeypatch.setattr(sft.optim, "clip", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match=r"The gradient's norm is nan at step 1 .* lower learning_rate"):
        _sft(sft_run())
