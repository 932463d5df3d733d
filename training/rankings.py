"""Rankings of a file as ids: what a reward model learns from and is measured on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training import comparisons, data
from training.chat import render_example
from training.config import TrainingError
from training.vocabulary import Tokenizer

OPTIONAL = {"none_good": bool, "annotator": str, "policies": list}


@dataclass(frozen=True)
class Ranking:
    """One prompt's completions as ids, each ending in EOS, and their order from best to worst in groups of equals."""

    prompt: str
    responses: list[str]
    examples: list[list[int]]
    answer_lengths: list[int]
    groups: list[list[int]]
    annotator: str = ""  # who judged; empty = unknown
    policies: list[str] = field(default_factory=list)  # what wrote each response; empty = unknown

    @property
    def longest(self) -> int:
        return max(map(len, self.examples))

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) completions; ties have no order to learn or to test."""
        return [(p.first, p.second) for p in comparisons.comparisons(self.groups) if p.target == 1.0]

    def split(self) -> list[Ranking]:
        """Every comparison, ties too, as a ranking of two."""
        return [
            Ranking(
                self.prompt,
                [self.responses[i] for i in (pair.first, pair.second)],
                [self.examples[i] for i in (pair.first, pair.second)],
                [self.answer_lengths[i] for i in (pair.first, pair.second)],
                [[0], [1]] if pair.target == 1.0 else [[0, 1]],
            )
            for pair in comparisons.comparisons(self.groups)
        ]


def read_rankings(path: Path, tokenizer: Tokenizer, context: int) -> tuple[list[Ranking], int]:
    """Rankings of a file, and how many were left out because an answer passes the context."""
    rows = data.read_rows(path, {"prompt": str, "responses": list, "ranking": list}, OPTIONAL)
    rankings = [read_ranking(row, f"{path.name} row {number}", tokenizer) for number, row in enumerate(rows, start=1)]
    fitting = [ranking for ranking in rankings if ranking.longest <= context]
    if not fitting:
        raise TrainingError(
            f"All {len(rankings)} rankings are longer than the context of {context} tokens (the shortest has "
            f"{min(ranking.longest for ranking in rankings)}): shorten them or take a base model with a longer context."
        )
    return fitting, len(rankings) - len(fitting)


def read_ranking(row: dict[str, Any], where: str, tokenizer: Tokenizer) -> Ranking:
    responses, policies = row["responses"], row.get("policies", [])
    if len(responses) < 2 or not all(isinstance(response, str) for response in responses):
        raise TrainingError(f"{where} has {len(responses)} responses: give at least 2 texts.")
    if policies and (len(policies) != len(responses) or not all(isinstance(policy, str) for policy in policies)):
        raise TrainingError(f"{where} has {len(policies)} policies: name one for each of {len(responses)} responses.")
    try:
        groups = comparisons.tiers(row["ranking"], len(responses))
    except ValueError as error:
        raise TrainingError(f"{where}: {error}; name each of the {len(responses)} responses once.") from None
    rendered = [render_example(tokenizer, row["prompt"], response) for response in responses]
    ids, lengths = [ids for ids, _ in rendered], [sum(mask) for _, mask in rendered]
    return Ranking(row["prompt"], responses, ids, lengths, groups, row.get("annotator", ""), policies)
