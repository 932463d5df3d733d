"""Demonstrations as ids with a loss mask, and the rows that SFT sees: several short ones may share a row (packing)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import chat, data
from training.config import TrainingError
from training.vocabulary import Tokenizer

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """One conversation; every turn of the assistant is learned, since each is what serving asks of the model."""

    ids: list[int]
    mask: list[int]  # 1 on each answer and its EOS
    prompt: str | chat.Messages  # what comes before the last answer


@dataclass(frozen=True)
class Batch:
    """Rows of one step. Where examples share rows, `documents` numbers them and `positions` begin again with each."""

    inputs: Tensor  # (R, T)
    targets: Tensor  # (R, T), -1 = not learned
    positions: Tensor | None  # (R, T)
    documents: Tensor | None  # (R, T), 0 = padding
    tokens: int  # inputs that are not padding

    def to(self, device: torch.device) -> tuple[Tensor | None, ...]:
        """inputs, targets, positions and documents on the device."""
        return tuple(
            None if t is None else t.to(device) for t in (self.inputs, self.targets, self.positions, self.documents)
        )


def read(path: Path, tok: Tokenizer, context: int) -> tuple[list[Example], int, int]:
    """The examples that fit the context, the length of the longest in the file, and how many were left out.

    Rows are {instruction, response} or {messages: [{role, content}, ...]}, ending with the assistant.
    """
    rows = data.read_rows(path, {"instruction": str, "response": str}, instead={"messages": list})
    examples = [_example(row, f"{path.name} row {number}", tok) for number, row in enumerate(rows, start=1)]
    fitting = [example for example in examples if len(example.ids) <= context]
    return fitting, max(len(example.ids) for example in examples), len(examples) - len(fitting)


def _example(row: dict[str, Any], where: str, tok: Tokenizer) -> Example:
    if "messages" not in row:
        ids, mask = chat.render_example(tok, row["instruction"], row["response"])
        return Example(ids, mask, row["instruction"])
    messages = row["messages"]
    for number, message in enumerate(messages, start=1):
        said = f"{where}, message {number} of {len(messages)}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise TrainingError(f"{said} has none of the 3 roles {', '.join(ROLES)}: write {{role, content}}.")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise TrainingError(f"{said} is empty (0 characters): write its content or take the row out.")
    if len(messages) < 2 or messages[0]["role"] == "assistant" or messages[-1]["role"] != "assistant":
        raise TrainingError(f"{where} has {len(messages)} messages: begin with the user and end with the assistant.")
    return Example(*chat.render_conversation(tok, messages), messages[:-1])


def collate(examples: Sequence[Example], pad: int, context: int, packing: bool) -> Batch:
    """Inputs and targets of these examples, padded on the right, each example in a row of its own unless packed.

    The mean over learned tokens is the same either way: a packed token sees its own example only, at the same position.
    """
    lengths = [len(example.ids) - 1 for example in examples]  # the last id is a target only
    rows, width = pack(lengths, context) if packing else ([[i] for i in range(len(examples))], max(lengths))
    inputs, targets = torch.full((len(rows), width), pad), torch.full((len(rows), width), -1)
    positions, documents = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros_like(targets)
    for row, members in enumerate(rows):
        start = 0
        for number, i in enumerate(members, start=1):
            span = slice(start, start + lengths[i])
            ids, mask = torch.tensor(examples[i].ids), torch.tensor(examples[i].mask, dtype=torch.bool)
            inputs[row, span] = ids[:-1]
            targets[row, span] = ids.masked_fill(~mask, -1)[1:]
            positions[row, span] = torch.arange(lengths[i])
            documents[row, span] = number
            start += lengths[i]
    shared = len(rows) < len(examples)
    return Batch(inputs, targets, positions if shared else None, documents if shared else None, sum(lengths))


def pack(lengths: Sequence[int], context: int) -> tuple[list[list[int]], int]:
    """Rows of indices and their width: the fewest places in all, of narrower rows where it is a draw.

    Every number of rows is tried with the width it would need if nothing were lost, a little more where that fails.
    """
    longest, total = max(lengths), sum(lengths)
    best: tuple[int, int, list[list[int]]] | None = None
    for rows in range(math.ceil(total / context), math.ceil(total / longest) + 1):
        width = max(longest, math.ceil(total / rows))
        for wide in sorted({width, min(context, width + width // 32), min(context, width + width // 8)}):
            packed = _best_fit(lengths, wide)
            if best is None or (len(packed) * wide, wide) < best[:2]:
                best = (len(packed) * wide, wide, packed)
    assert best is not None
    return best[2], best[1]


def _best_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Best fit, the longest first: each goes into the fullest row that still has room; equal ones keep their order."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [row for row, free in enumerate(room) if free >= lengths[i]]
        if fits:
            row = min(fits, key=room.__getitem__)
            rows[row].append(i)
            room[row] -= lengths[i]
        else:
            rows.append([i])
            room.append(width - lengths[i])
    return rows
