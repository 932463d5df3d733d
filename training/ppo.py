"""Stage `ppo`: raise the reward of a policy's answers while it stays near its reference (updates: ppo_update.py)."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training import checkpoint, data, device, memory, monitors, optim, parallel
from training.chat import render_example, render_prompt
from training.checkpoints import Checkpoints
from training.config import PPOConfig, TrainingError
from training.device import Compute
from training.engine import Request
from training.kl_path import KLPath
from training.model import GPT, RewardModel
from training.ppo_update import Frozen, Judged, Learner, Score, ppo_update
from training.report import Report, Stopped
from training.rollout import Demonstration
from training.vocabulary import Tokenizer

SAMPLES = 4  # answers stored at a time
ADAM_EPS = 1e-5  # 1e-8 makes the first steps so large that the ratio leaves its clip at once
KEPT = ("reward", "score", "kl", "kl_k1", "entropy", "eos_share", "length", "judge_score")


def run(config: PPOConfig, run_dir: Path, report: Report, score: Score | None = None) -> dict[str, Any]:
    """A policy, a reward model and prompts in, the updated policy out.

    score(prompts, completions) -> one reward for each takes the reward model's place. It is an argument and no setting:
    a name of code in a configuration would let whoever fills in a form run that code.
    """
    started = time.monotonic()
    learner, frozen, meta = _load(config, run_dir, score)
    checkpoints = Checkpoints(run_dir, report.fence, config.keep_checkpoints)
    path = KLPath.begin(config, run_dir, frozen, checkpoints)
    checksum = monitors.checksum(frozen.ref_policy, frozen.reward_model, path.judge)
    done, history = _resume(checkpoints, learner, path, checksum)
    report.rewind(done)
    over_budget = bool(history) and 0 < config.kl_budget < history[-1]["kl"]

    def on_fewer(rows: int) -> object:
        fewer = replace(config, batch_size=rows, epochs=1)
        longest = replace(frozen, prompts=sorted(frozen.prompts, key=len)[-rows:])
        return ppo_update(learner, longest, fewer, max(1, done, config.value_warmup))  # one in which the policy learns

    while done < config.updates and not over_budget and not path.past_peak():
        begun = time.monotonic()
        watch = partial(path.pass_by, report, learner.policy, done)
        with memory.explained(config.batch_size, on_fewer, "set batch_size to {fits}", config.minibatches):
            figures, requests, judged = ppo_update(learner, frozen, config, done, watch)
        done += 1
        history.append({name: figures[name] for name in KEPT if name in figures})
        monitors.frozen(checksum, monitors.checksum(frozen.ref_policy, frozen.reward_model, path.judge))
        monitors.answers(history, config.batch_size)
        # What was over budget is the policy that wrote these answers; the update just taken goes no further.
        over_budget = 0 < config.kl_budget < figures["kl"]
        last = done == config.updates or over_budget or path.past_peak()
        if done % config.log_every == 0 or done == 1 or last:
            seconds = round(time.monotonic() - begun, 3)
            report(done, {"steps": config.updates, **figures, "seconds": seconds})
        if config.sample_every and (done % config.sample_every == 0 or done == 1 or last):
            _sample(report, done, frozen, requests, judged)
        stopping = parallel.agree(report.stopping) and not last
        if checkpoints.due(done, config.checkpoint_every) or last or stopping:
            checkpoints.save(done, _tensors(learner), _state(learner, checksum, history) | path.state())
        if stopping:
            raise Stopped(done)
    report.fence()
    # Updates behind the policy that becomes the run's model.
    chosen = done if path.judge is None else checkpoints.load_best(learner.policy)
    history = history[: chosen + 1]
    meta |= {"stage": "ppo", "run": run_dir.name, "update": chosen, "kl": history[-1]["kl"]}
    checkpoint.save_model(run_dir / "model", learner.policy, frozen.tokenizer, "policy", meta)
    result = {"updates": done, "episodes": done * config.batch_size, "model_update": chosen}
    result |= _figures(history) | {"kl_coef": learner.kl_coef, "snapshots": path.snapshots}
    result |= {"stopped_by_kl_budget": over_budget, "stopped_by_judge": path.past_peak()}
    result |= {"prompts": len(frozen.prompts), "skipped_too_long": frozen.skipped}
    return result | {"seconds": round(time.monotonic() - started, 2)}


def _load(config: PPOConfig, run_dir: Path, score: Score | None) -> tuple[Learner, Frozen, dict[str, Any]]:
    """The networks, without dropout. Refuses a reward model of another vocabulary and prompts that do not fit."""
    compute = device.prepare(config)
    base = data.resolve(run_dir, config.base)
    policy, tokenizer, _ = checkpoint.load_model(base, compute.device)
    ref_policy, _, _ = checkpoint.load_model(base, compute.device)
    reward_model, value_model = _judges(config, run_dir, tokenizer, compute, score)
    for model in (policy, ref_policy, value_model):
        model.eval()
    ref_policy.requires_grad_(False)
    if reward_model is not None:
        reward_model.eval().requires_grad_(False)
    learner = Learner(
        policy,
        value_model,
        _adamw(policy, config.learning_rate, config),
        _adamw(value_model, config.value_learning_rate, config),
        config.kl_coef,
    )
    room = min(policy.config.n_positions, value_model.config.n_positions)
    prompts, skipped = read_prompts(data.resolve(run_dir, config.prompts), tokenizer, room, config.max_new_tokens)
    ids = [ids for _, ids in prompts]
    examples = _demonstrations(config, run_dir, tokenizer, policy.config.n_positions)
    meta = {"parent": config.base, "reward_model": config.reward_model}
    return learner, Frozen(ref_policy, reward_model, tokenizer, ids, compute, examples, skipped, score), meta


def _judges(
    config: PPOConfig, run_dir: Path, tokenizer: Tokenizer, compute: Compute, score: Score | None
) -> tuple[RewardModel | None, RewardModel]:
    """The reward model, and the value model that begins as a copy of it.

    Where a function scores and there is no reward model, the value model begins as the policy with a head of zeros.
    """
    if score is not None and not config.reward_model:
        trunk, _, _ = checkpoint.load_model(data.resolve(run_dir, config.base), compute.device)
        value_model = RewardModel(trunk).to(compute.device)
        value_model.head.weight.data.zero_()
        return None, value_model
    judge = data.resolve(run_dir, config.reward_model)
    reward_model, other, card = checkpoint.load_reward_model(judge, compute.device)
    value_model, _, _ = checkpoint.load_reward_model(judge, compute.device)
    checkpoint.require_same_tokenizer(tokenizer, other, ("The policy", "the reward model"))
    if config.scale_scores and score is None:
        for model in (reward_model, value_model):
            _scale(model, float(card.get("reward_std") or 1.0))
    return reward_model, value_model


def _demonstrations(config: PPOConfig, run_dir: Path, tokenizer: Tokenizer, context: int) -> list[Demonstration]:
    if not config.ptx_coef:
        return []
    rows = data.read_rows(data.resolve(run_dir, config.demonstrations), {"instruction": str, "response": str})
    rendered = [render_example(tokenizer, row["instruction"], row["response"]) for row in rows]
    fitting = [example for example in rendered if len(example[0]) <= context]
    if not fitting:
        raise TrainingError(f"All {len(rows)} demonstrations are longer than {context} tokens: shorten them.")
    return fitting


def read_prompts(
    path: Path, tokenizer: Tokenizer, room: int, max_new_tokens: int
) -> tuple[list[tuple[str, list[int]]], int]:
    """Prompts of a file with their ids, and how many were left out because no whole answer fits behind them."""
    texts = [row["prompt"] for row in data.read_rows(path, {"prompt": str})]
    prompts = [(text, render_prompt(tokenizer, text)) for text in texts]
    fitting = [prompt for prompt in prompts if len(prompt[1]) + max_new_tokens <= room]
    if not fitting:
        raise TrainingError(
            f"None of {len(prompts)} prompts leaves room for an answer of {max_new_tokens} tokens in the model's "
            f"{room}: shorten them or lower max_new_tokens."
        )
    return fitting, len(prompts) - len(fitting)


def _scale(model: RewardModel, spread: float) -> None:
    """Divide every score by the spread, so that kl_coef and missing_eos_penalty mean the same in every run."""
    model.head.weight.data /= spread
    model.bias /= spread


def _adamw(model: GPT | RewardModel, rate: float, config: PPOConfig) -> torch.optim.AdamW:
    optimizer = optim.adamw(model, rate, config.weight_decay, config.beta2)
    for group in optimizer.param_groups:
        group["eps"] = ADAM_EPS
    return optimizer


def _tensors(learner: Learner) -> dict[str, torch.Tensor]:
    return optim.state_tensors(learner.policy, learner.policy_optimizer, "policy.") | optim.state_tensors(
        learner.value_model, learner.value_optimizer, "value."
    )


def _state(learner: Learner, checksum: int, history: list[dict[str, float]]) -> dict[str, Any]:
    return {"kl_coef": learner.kl_coef, "frozen": checksum, "history": history}


def _resume(
    checkpoints: Checkpoints, learner: Learner, path: KLPath, checksum: int
) -> tuple[int, list[dict[str, float]]]:
    """Updates done and their figures; everything that changes from update to update is put back."""
    saved = checkpoints.latest()
    if saved is None:
        return 0, []
    done, tensors, state = saved
    monitors.frozen(state.get("frozen", checksum), checksum)
    optim.load_state_tensors(learner.policy, learner.policy_optimizer, tensors, "policy.")
    optim.load_state_tensors(learner.value_model, learner.value_optimizer, tensors, "value.")
    learner.kl_coef = state["kl_coef"]
    path.resume(state)
    return done, state["history"]


def _sample(report: Report, step: int, frozen: Frozen, requests: list[Request], judged: Judged) -> None:
    for request, score in list(zip(requests, judged.scores.tolist(), strict=True))[:SAMPLES]:
        prompt = frozen.tokenizer.decode(i for i in request.prompt_ids if i not in frozen.tokenizer.special.values())
        report.sample(step, prompt=prompt, text=request.text, score=score, finish_reason=request.finish_reason)


def _figures(history: list[dict[str, float]]) -> dict[str, Any]:
    """The first update's scores (still the base policy's) beside the means of the last five that led to the model."""
    first, tail = history[0], history[-5:]
    before = {f"{name}_before": first[name] for name in ("score", "reward", "judge_score") if name in first}
    return before | {name: statistics.fmean(row[name] for row in tail) for name in first}
