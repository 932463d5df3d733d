"""Stage ppo: the invariants of an update, a bandit with a known optimum, and runs that are killed."""

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
from tests.training.tiny import make_model, make_reward_model, make_tokenizer
from training import ppo, rollout
from training import ppo_update as update_module
from training.config import ModelConfig, PPOConfig, TrainingError
from training.device import Compute
from training.engine import Request
from training.model import GPT, RewardModel
from training.parse import parse
from training.ppo_update import Frozen, Learner, judge, ppo_update
from training.report import Report
from training.rollout import Episodes

CPU = Compute(torch.device("cpu"), bf16=False)
TOKENIZER = make_tokenizer()


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


def _request(prompt: list[int], tokens: list[int], reason: str) -> Request:
    request = Request(prompt)
    request.tokens, request.finish_reason = tokens, reason  # type: ignore[assignment]
    return request


EOS, PAD = TOKENIZER.eos_id, TOKENIZER.pad_id
WRITTEN = [
    _request([EOS, 1], [7, 8, EOS], "eos"),
    _request([1], [9], "length"),
    _request([1, 2, EOS], [4, 5], "length"),  # an EOS in the prompt is not the answer's
]


def test_mask_covers_the_completion_and_its_eos_only():
    episodes = Episodes.of(WRITTEN, PAD, "cpu")
    assert episodes.tokens.tolist() == [[EOS, 1, 7, 8, EOS], [1, 9, PAD, PAD, PAD], [1, 2, EOS, 4, 5]]
    assert episodes.mask.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1]]
    assert episodes.ended.tolist() == [True, False, False]
    trimmed = episodes.rows(torch.tensor([1]))
    assert (trimmed.tokens.tolist(), trimmed.mask.tolist()) == ([[1, 9]], [[1]])


def test_a_missing_eos_replaces_the_score_and_an_eos_in_the_prompt_does_not_help():
    model = make_reward_model(TOKENIZER)
    episodes = Episodes.of(WRITTEN, PAD, "cpu")
    with torch.no_grad():
        model.bias += 100
        got = rollout.scores(model, episodes, CPU, missing_eos_penalty=3.0, score_clip=5.0)
        model.bias -= 100
        plain = rollout.scores(model, episodes, CPU, missing_eos_penalty=3.0, score_clip=0.0)
        alone = model.score(torch.tensor([[EOS, 1, 7, 8, EOS]]), torch.tensor([4]))
    assert got.tolist() == [5.0, -3.0, -3.0]
    assert plain[0].item() == pytest.approx(alone.item(), abs=1e-5)


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


def test_the_loss_of_demonstrations_is_on_the_answer_and_its_eos_only():
    model = make_model(TOKENIZER, spread=2.0)
    ids, mask = [1, 2, 70, 71, EOS], [0, 0, 1, 1, 1]
    with torch.no_grad():
        logprobs = model.logits(model(torch.tensor([ids]))[0]).log_softmax(-1)
        expected = -(logprobs[1, 70] + logprobs[2, 71] + logprobs[3, EOS]) / 3
        got = rollout.demonstration_loss(model, [(ids, mask), (ids, mask)], PAD, CPU)
    assert got.item() == pytest.approx(expected.item(), abs=1e-5)


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


def test_kl_coef_adapts_towards_its_target(world):
    learner, frozen = world
    ppo_update(learner, frozen, _config(kl_target=1.0, kl_horizon=80), 0)
    assert learner.kl_coef == pytest.approx(0.05 * (1 - 0.2 * 8 / 80))  # the KL was 0: below target, so cheaper


def test_a_python_function_may_score_instead_of_a_reward_model(ppo_run, tok):
    run_dir = ppo_run(reward_model="", updates=3)
    seen = []

    def score(prompts, completions):
        seen.extend(zip(prompts, completions, strict=True))
        return [0.25] * len(prompts)

    settings = json.loads((run_dir / "config.json").read_text())
    ppo.run(PPOConfig(**settings), run_dir, Report(run_dir), score)
    assert len(seen) == 24
    assert {prompt for prompt, _ in seen} <= {f"pan {i}" for i in range(10)}
    rows = rows_of(run_dir / "samples.jsonl")
    assert [(row["prompt"], row["text"]) for row in rows if row["step"] == 1] == seen[:4]
    assert json.loads((run_dir / "model" / "bucle.json").read_text())["kind"] == "policy"
    other = ppo_run("other", reward_model="")
    with pytest.raises(TrainingError, match="score gave 1 rewards for 8 answers"):
        ppo.run(PPOConfig(**settings), other, Report(other), lambda *_: [1.0])


def test_every_pass_takes_each_prompt_once():
    taken = [i for update in range(5) for i in rollout.prompts_of_update(10, update, 4, seed=3)]
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]
    assert sorted(set(rollout.prompts_of_update(3, 0, 8, seed=1))) == [0, 1, 2]  # fewer prompts than episodes


class _Arms:
    """A vocabulary of eight arms without text."""

    eos_id, pad_id, special = 7, 0, dict[str, int]()

    def decode(self, ids: object) -> str:
        return ""

    def decode_bytes(self, ids: object) -> bytes:
        return b""


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
    frozen = Frozen(ref, RewardModel(GPT(config)).eval(), _Arms(), [[0]], CPU)  # type: ignore[arg-type]
    for update in range(settings.updates):
        ppo_update(learner, frozen, settings, update)

    def distribution(model: GPT) -> Tensor:
        with torch.no_grad():
            return model.logits(model(torch.tensor([[0]]))[0, 0]).softmax(-1)

    best = (distribution(ref).log() + arms / 0.5).softmax(-1)
    distance = 0.5 * (distribution(policy) - best).abs().sum()
    assert 0.5 * (distribution(ref) - best).abs().sum() > 0.3
    assert distance < 0.02, (distribution(policy), best)


# Whole runs


def _run(run_dir: Path) -> dict[str, Any]:
    settings = json.loads((run_dir / "config.json").read_text())
    return ppo.run(parse("ppo", settings), run_dir, Report(run_dir))


@pytest.fixture(scope="module")
def reward_dir(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> Path:
    from training.checkpoint import load_model, save_model

    path = tmp_path_factory.mktemp("reward") / "model"
    trunk, tok, _ = load_model(base_dir)
    torch.manual_seed(5)
    save_model(path, RewardModel(trunk), tok, "reward", {"stage": "reward", "reward_std": 0.5})
    return path


@pytest.fixture
def ppo_run(make_run: Callable[..., Path], base_dir: Path, reward_dir: Path) -> Callable[..., Path]:
    prompts = jsonl([{"prompt": f"pan {i}"} for i in range(10)])

    def build(name: str = "run", **changes: Any) -> Path:
        config = {
            "base": str(base_dir), "reward_model": str(reward_dir), "updates": 12, "batch_size": 8,
            "max_new_tokens": 8, "value_warmup": 2, "checkpoint_every": 3, "sample_every": 4, "kl_target": 2.0,
            "kl_horizon": 100, "learning_rate": 1e-3,
        }  # fmt: skip
        return make_run({**config, **changes}, {"prompts.jsonl": prompts}, name)

    return build


def test_a_run_killed_anywhere_ends_like_an_undisturbed_one(ppo_run):
    whole, broken = ppo_run("whole"), ppo_run("broken")
    assert run_stage("ppo", whole).returncode == 0
    kill_at("ppo", broken, 2)
    kill_at("ppo", broken, 8)
    assert run_stage("ppo", broken).returncode == 0
    assert curve(broken) == curve(whole)
    assert rows_of(broken / "samples.jsonl") == rows_of(whole / "samples.jsonl")
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    results = [json.loads((run / "result.json").read_text()) for run in (broken, whole)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}
    assert len({row["kl_coef"] for row in curve(whole)}) > 5
    assert rows_of(whole / "metrics.jsonl")[0]["steps"] == 12


def test_a_kl_budget_ends_the_run_and_says_so(ppo_run):
    run_dir = ppo_run(kl_budget=1e-6, value_warmup=0)
    result = _run(run_dir)
    assert result["stopped_by_kl_budget"]
    assert result["updates"] == 2  # the first update's answers still come from the base


def test_the_value_model_begins_as_the_reward_model_and_only_it_learns(ppo_run):
    run_dir = ppo_run()
    learner, frozen, _ = ppo._load(parse("ppo", json.loads((run_dir / "config.json").read_text())), run_dir, None)
    theirs = frozen.reward_model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in learner.value_model.state_dict().items())
    assert learner.value_model is not frozen.reward_model
    assert all(p.requires_grad for p in learner.value_model.parameters())
    assert not any(p.requires_grad for model in (frozen.reward_model, frozen.ref_policy) for p in model.parameters())


def test_scores_are_divided_by_the_reward_models_spread(ppo_run, reward_dir):
    run_dir = ppo_run()
    settings = json.loads((run_dir / "config.json").read_text())
    raw = ppo._load(parse("ppo", {**settings, "scale_scores": False}), run_dir, None)[1].reward_model
    scaled = ppo._load(parse("ppo", settings), run_dir, None)[1].reward_model
    tokens, at = torch.tensor([[1, 2, 3]]), torch.tensor([2])
    assert scaled.score(tokens, at).item() == pytest.approx(2 * raw.score(tokens, at).item(), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reward_model": "nowhere"}, "There is no model at"),
        ({"max_new_tokens": 63}, "None of 10 prompts leaves room for an answer of 63 tokens in the model's 64"),
        ({"minibatches": 3}, "batch_size is 8 and minibatches is 3"),
        ({"prompts": "data/none.jsonl"}, "There is no file"),
    ],
)
def test_bad_input_is_one_sentence(ppo_run, changes, sentence):
    run_dir = ppo_run(**changes)
    with pytest.raises(TrainingError, match=sentence):
        _run(run_dir)
    assert not (run_dir / "model").exists()


def test_a_reward_model_of_another_vocabulary_is_refused(ppo_run, tmp_path):
    from training.checkpoint import save_model

    save_model(tmp_path / "other", make_reward_model(TOKENIZER), TOKENIZER, "reward", {})
    run_dir = ppo_run(reward_model=str(tmp_path / "other"))
    with pytest.raises(TrainingError, match="another one of 260"):
        _run(run_dir)
