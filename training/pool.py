"""Several answers to each prompt with their rewards, kept part by part: a run that was killed goes on where it was."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from training import memory, parallel
from training.config import TrainingError
from training.device import Compute
from training.engine import Request
from training.evaluate import rewards_of
from training.model import GPT, RewardModel
from training.report import Report, Stopped
from training.rollout import generator, write_answers
from training.vocabulary import Tokenizer


@dataclass(frozen=True)
class Answer:
    """What was written, and its reward as people would meet it: one that was cut off is read as if it ended there."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    seed: int
    finish_reason: str
    reward: float


@dataclass(frozen=True)
class Writer:
    """Who writes and who judges; an answer depends on the seed, its prompt's place and its own place alone."""

    policy: GPT
    reward_model: RewardModel
    tokenizer: Tokenizer
    compute: Compute
    seed: int
    temperature: float
    max_new_tokens: int

    def write(self, prompts: Sequence[Sequence[int]], n: int, first: int) -> list[list[Answer]]:
        """n answers to each prompt, shared by the ranks; `first` is the place of prompts[0] among all."""
        places = [(first + i, j) for i in range(len(prompts)) for j in range(n)]
        requests = write_answers(
            self.policy,
            self.tokenizer,
            [prompts[i - first] for i, _ in places],
            [int(generator(self.seed, 8, i, j).integers(2**53)) for i, j in places],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            compute=self.compute,
        )
        own = requests[parallel.share(len(requests))]
        rewards = parallel.gather(rewards_of(self.reward_model, own, self.tokenizer, self.compute))
        answers = [_answer(request, reward) for request, reward in zip(requests, rewards, strict=True)]
        return [answers[i * n : (i + 1) * n] for i in range(len(prompts))]


class Pool:
    """pool.jsonl: one line per part of about `rows` answers, n for every prompt."""

    def __init__(self, run_dir: Path, prompts: Sequence[Sequence[int]], n: int, rows: int) -> None:
        self.path, self.prompts, self.n = run_dir / "pool.jsonl", prompts, n
        self.size = max(1, rows // n)  # prompts a part
        self.parts = math.ceil(len(prompts) / self.size)
        with parallel.first():
            self.answers = self._read()

    @property
    def done(self) -> int:
        """Whole parts; after another write_batch the next one is shorter, so that it ends where parts end now."""
        return self.parts if len(self.answers) == len(self.prompts) else len(self.answers) // self.size

    def fill(self, writer: Writer, report: Report, steps: int) -> list[list[Answer]]:
        """Write what is missing; part p is step p + 1 of the curves."""
        while (first := len(self.answers)) < len(self.prompts):
            part = self.done
            prompts = self.prompts[first : (part + 1) * self.size]

            def on_fewer(rows: int, prompts: Sequence[Sequence[int]] = prompts, first: int = first) -> object:
                return writer.write(sorted(prompts, key=len)[-(rows // self.n) :], self.n, first)

            with memory.explained(len(prompts) * self.n, on_fewer, "set write_batch to {fits}", self.n):
                written = writer.write(prompts, self.n, first)
            everything = [answer.reward for answers in written for answer in answers]
            best = statistics.fmean(max(answer.reward for answer in answers) for answers in written)
            # Reported before it is kept: what was not kept is cut from the curves and written again.
            report(part + 1, {"steps": steps, "score": statistics.fmean(everything), "score_best": best})
            if report.writes:
                with self.path.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps([[asdict(a) for a in answers] for answers in written]) + "\n")
            self.answers += written
            if parallel.agree(report.stopping) and part + 1 < self.parts:
                raise Stopped(part + 1)
        return self.answers

    def _read(self) -> list[list[Answer]]:
        if not self.path.exists():
            return []
        whole, newline, _torn = self.path.read_bytes().rpartition(b"\n")
        with self.path.open("r+b") as file:
            file.truncate(len(whole + newline))
        rows = [row for line in whole.splitlines() for row in json.loads(line)]
        answers = [[Answer(**answer) for answer in row] for row in rows]
        if len(answers) > len(self.prompts) or any(len(row) != self.n for row in answers):
            raise TrainingError(f"{self.path.name} holds {len(answers)} prompts of another run: delete it.")
        return answers


def _answer(request: Request, reward: float) -> Answer:
    return Answer(request.text, request.tokens, request.logprobs, request.seed, str(request.finish_reason), reward)
