"""What a PPO run keeps on its way from the reference: policies at marks of KL, and the one that a judge likes best.

A proxy that is optimised stops measuring what it stood for (Gao et al. 2022), so nothing here looks at the reward. A
judge is a reward model of other rankings: it shares the proxy's task and not its luck. The rule: the judge's score of
an update's answers is averaged over the last SMOOTHED updates; once that average has had no new peak for
`judge_patience` updates, the run ends, and its model is the policy of the peak.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from training import checkpoint, data
from training.checkpoints import Checkpoints
from training.config import PPOConfig, TrainingError
from training.model import GPT, RewardModel
from training.ppo_update import Frozen, Judged
from training.report import Report
from training.rollout import Episodes
from training.vocabulary import Tokenizer

SMOOTHED = 5  # updates


def smoothed(scores: Sequence[float]) -> list[float]:
    """The mean of each score and the SMOOTHED - 1 before it (of what there is, at the start)."""
    return [statistics.fmean(scores[max(0, i + 1 - SMOOTHED) : i + 1]) for i in range(len(scores))]


def peak(scores: Sequence[float]) -> int:
    """Index of the highest smoothed score, the first of equals."""
    means = smoothed(scores)
    return means.index(max(means))


def past_peak(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` scores brought no new peak."""
    return bool(scores) and len(scores) - 1 - peak(scores) >= patience


@dataclass
class KLPath:
    """`snapshots` and `scores` change from update to update and belong in the checkpoint."""

    config: PPOConfig
    run_dir: Path
    tokenizer: Tokenizer
    checkpoints: Checkpoints
    judge: RewardModel | None
    spread: float  # of the judge's scores
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # the judge's, one an update

    @staticmethod
    def begin(config: PPOConfig, run_dir: Path, frozen: Frozen, checkpoints: Checkpoints) -> KLPath:
        """Nothing kept yet; the judge is loaded where the run has one, and refused if it cannot read the answers."""
        tokenizer, compute = frozen.tokenizer, frozen.compute
        if not config.judge_model:
            return KLPath(config, run_dir, tokenizer, checkpoints, None, 1.0)
        judge, other, card = checkpoint.load_reward_model(data.resolve(run_dir, config.judge_model), compute.device)
        checkpoint.require_same_tokenizer(tokenizer, other, ("The policy", "the judge"))
        longest = max(map(len, frozen.prompts)) + config.max_new_tokens
        if judge.config.n_positions < longest:
            raise TrainingError(
                f"The judge reads {judge.config.n_positions} tokens and prompts with answers have up to {longest}: "
                "choose another judge, lower max_new_tokens or leave out the longest prompts."
            )
        spread = float(card.get("reward_std") or 1.0) if config.scale_scores else 1.0
        return KLPath(config, run_dir, tokenizer, checkpoints, judge.eval().requires_grad_(False), spread)

    def pass_by(self, report: Report, policy: GPT, update: int, judged: Judged, figures: dict[str, float]) -> None:
        """Look at the policy that wrote this update's answers, before it learns from them; adds judge_score."""
        if self.judge is not None:
            figures["judge_score"] = self._ask(self.judge, judged.episodes)
            self.scores.append(figures["judge_score"])
            self.checkpoints.keep_best(update, -smoothed(self.scores)[-1], policy)
        if (mark := self._mark(figures["kl_k1"])) is not None:
            report.fence()
            folder = self.run_dir / "snapshots" / f"kl-{mark:.4g}"
            seen = {name: figures[name] for name in ("kl", "kl_k1", "score", "judge_score") if name in figures}
            entry = {"mark": mark, "path": str(folder.relative_to(self.run_dir)), "update": update, **seen}
            meta = {"stage": "ppo", "run": self.run_dir.name, "parent": self.config.base, **entry}
            checkpoint.save_model(folder, policy, self.tokenizer, "policy", meta)
            self.snapshots.append(entry)

    def _mark(self, kl: float) -> float | None:
        """The farthest mark, in nats, that no earlier policy has passed and this one has.

        Marks lie evenly in the square root of KL, in which rewards rise about straight. The estimate is k1, which
        rewards are charged by: far from the reference its noise is small, where k3 has heavy tails.
        """
        spacing = self.config.kl_snapshots
        steps = int(math.sqrt(max(kl, 0.0)) / spacing) if spacing else 0
        mark = (steps * spacing) ** 2
        return mark if steps and all(mark > old["mark"] for old in self.snapshots) else None

    @torch.no_grad()
    def _ask(self, judge: RewardModel, episodes: Episodes) -> float:
        """The judge's mean score in units of its own spread; an answer without an end counts as in the reward."""
        raw = judge.score(episodes.tokens, episodes.lengths - 1) / self.spread
        return float(torch.where(episodes.ended, raw, -self.config.missing_eos_penalty).mean())

    def past_peak(self) -> bool:
        """Whether the judge says that the run should end."""
        return past_peak(self.scores, self.config.judge_patience)

    def state(self) -> dict[str, Any]:
        return {"snapshots": self.snapshots, "judge_scores": self.scores}

    def resume(self, state: dict[str, Any]) -> None:
        """The inverse of state()."""
        self.snapshots, self.scores = state["snapshots"], state["judge_scores"]
