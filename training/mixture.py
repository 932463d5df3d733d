"""The rows of pretraining: sources in exact proportion, documents in a new order each pass, a validation tail.

Everything is a function of (sources, seed, step): nothing to save, nothing to restore.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.config import TrainingError
from training.data import DOCUMENTS, require_text, resolve
from training.shards import Progress, open_shard
from training.vocabulary import Tokenizer


@dataclass(eq=False)
class Source:
    """One text as tokens on disk, its tail kept for validation."""

    name: str
    weight: float
    train: np.ndarray  # (tokens,) memory-mapped
    val: np.ndarray
    ends: np.ndarray  # (documents,) where each document of `train` ends; the last is len(train)
    bytes_per_token: float
    eos_id: int = -1
    _pass: "tuple[tuple[int, ...], _Pass] | None" = field(default=None, repr=False)

    def window(self, number: int, context: int, *seed: int) -> np.ndarray:
        """Row `number` of this source: (context + 1,) tokens.

        Passes follow each other. In one, the documents are strung together in an order of its own, the ring of them is
        cut into windows from a place of its own, and these come in an order of their own: every token is an input once,
        fewer than `context` of them twice, whether the text is one document or a million.
        """
        windows = -(-len(self.train) // context)
        epoch, place = divmod(number, windows)
        key = (*seed, epoch, context)
        if self._pass is None or self._pass[0] != key:
            self._pass = key, _Pass.of(self, windows, np.random.default_rng([*seed, epoch]))
        return self._pass[1].read(self.train, place, context)


@dataclass(frozen=True)
class _Pass:
    """One pass over a source."""

    ends: np.ndarray  # (documents,) where each ends in this pass's string of them
    shift: np.ndarray  # (documents,) from a place in the string to the place in the text
    windows: np.ndarray  # the order of the windows
    phase: int  # where the first window begins

    @classmethod
    def of(cls, source: Source, windows: int, random: np.random.Generator) -> "_Pass":
        lengths = np.diff(source.ends, prepend=0)
        order = random.permutation(len(lengths))
        ends = np.cumsum(lengths[order])
        return cls(
            ends, source.ends[order] - ends, random.permutation(windows), int(random.integers(len(source.train)))
        )

    def read(self, tokens: np.ndarray, place: int, context: int) -> np.ndarray:
        at = (self.phase + int(self.windows[place]) * context + np.arange(context + 1)) % len(tokens)
        return tokens[at + self.shift[np.searchsorted(self.ends, at, side="right")]]


def open_sources(
    sources: Sequence[dict[str, Any]],
    run_dir: Path,
    tokenizer: Tokenizer,
    context: int,
    val_fraction: float,
    report: Progress | None = None,
) -> list[Source]:
    """Encode each text once into RUN_DIR/shards, and split off its validation tail."""
    opened = []
    for number, source in enumerate(sources):
        path, weight, documents = _checked_source(source, run_dir)
        shard = open_shard(path, documents, tokenizer, run_dir / "shards" / f"{number:03d}-{path.stem}", report)
        tokens, need = shard.tokens, context + 1
        kept = max(int(len(tokens) * val_fraction), need) if val_fraction else 0
        if len(tokens) - kept < need:
            raise TrainingError(
                f"{path.name} has {len(tokens)} tokens and this run needs {need + kept} "
                f"({need} for one context{f', {kept} for validation' if kept else ''}): "
                "add more text or choose a smaller n_positions."
            )
        split = len(tokens) - kept
        ends = np.append(shard.ends[: np.searchsorted(shard.ends, split)], split)
        density = shard.bytes / len(tokens)
        opened.append(Source(path.name, weight, tokens[:split], tokens[split:], ends, density, tokenizer.eos_id))
    return opened


def _checked_source(source: dict[str, Any], run_dir: Path) -> tuple[Path, float, str]:
    unknown = set(source) - {"path", "weight", "documents"}
    if unknown or "path" not in source:
        raise TrainingError(f"A source has the keys {sorted(source)}: the 3 known ones are path, weight and documents.")
    path, weight = resolve(run_dir, str(source["path"])), source.get("weight", 1.0)
    documents = source.get("documents", "file")
    require_text(path)
    if not isinstance(weight, (int, float)) or not weight > 0:
        raise TrainingError(f"The weight of {path.name} is {weight!r}: it must be a number above 0.")
    if documents not in DOCUMENTS:
        raise TrainingError(f"documents of {path.name} is {documents!r}: choose one of the 3: {', '.join(DOCUMENTS)}.")
    return path, float(weight), documents


def batch(sources: Sequence[Source], seed: int, step: int, rows: int, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (rows, context) of one step."""
    windows = np.empty((rows, context + 1), dtype=np.int64)
    for row, (which, number) in enumerate(turns([source.weight for source in sources], step * rows, rows)):
        windows[row] = sources[which].window(number, context, seed, which)
    both = torch.from_numpy(windows)
    return both[:, :-1], both[:, 1:]


def turns(weights: Sequence[float], first: int, rows: int) -> list[tuple[int, int]]:
    """Whose turn each of rows first, first + 1, ... is, and the how manyeth of that source it is.

    Row j of a source of share p is due at time (j + 1/2) / p (Webster's method): after n rows a source of share p has
    had n p of them, give or take one.
    """
    shares = np.asarray(weights, dtype=np.float64) / sum(weights)
    before = np.array([_due_before(share, first - len(shares)) for share in shares])
    due = [
        ((number + 0.5) / share, which, number)
        for which, share in enumerate(shares)
        for number in range(before[which], _due_before(share, first + rows + len(shares)) + 1)
    ]
    skip = first - int(before.sum())
    return [(which, number) for _, which, number in sorted(due)[skip : skip + rows]]


def _due_before(share: float, time: float) -> int:
    """How many rows of a source are due before `time`, exactly as their due times compare."""
    number = max(0, int(np.ceil(time * share - 0.5)))
    while number and (number - 0.5) / share >= time:
        number -= 1
    while (number + 0.5) / share < time:
        number += 1
    return number


def apart(inputs: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """Positions and documents (B, T) that keep each document to itself; an EOS begins the one after it.

    So the model meets a new document as it does when it writes one: after an EOS at position 0.
    """
    begins = inputs == eos_id
    index = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    return index - (index * begins).cummax(1).values, begins.long().cumsum(1)


def val_batches(source: Source, rows: int, context: int, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    """At most `most` batches of windows side by side, spread evenly over the source's validation tail."""
    windows = (len(source.val) - 1) // context
    chosen = np.linspace(0, windows - 1, min(windows, rows * most)).round().astype(int)
    for first in range(0, len(chosen), rows):
        starts = chosen[first : first + rows] * context
        both = torch.from_numpy(np.stack([source.val[s : s + context + 1] for s in starts]).astype(np.int64))
        yield both[:, :-1], both[:, 1:]
