"""Demonstrations as rows: what is learned of a conversation, and how short ones share rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.conftest import jsonl
from training import chat, demonstrations
from training.config import TrainingError
from training.demonstrations import Example, collate, pack
from training.vocabulary import Tokenizer

CHAT = [
    {"role": "user", "content": "¿Cuánto cuesta el pan?"},
    {"role": "assistant", "content": "Cinco."},
    {"role": "user", "content": "¿Y la miel?"},
    {"role": "assistant", "content": "Nueve."},
]


def example(tok: Tokenizer, prompt: str, answer: str) -> Example:
    return Example(*chat.render_example(tok, prompt, answer), prompt)


def read(tmp_path: Path, tok: Tokenizer, rows: list[dict[str, Any]], context: int = 64) -> list[Example]:
    (tmp_path / "train.jsonl").write_text(jsonl(rows), encoding="utf-8")
    return demonstrations.read(tmp_path / "train.jsonl", tok, context)[0]


def test_targets_are_the_answer_and_its_eos(tok: Tokenizer) -> None:
    answers = ("Cinco.", "Nueve monedas, y gracias.")
    rows = [example(tok, "¿pan?", answers[0]), example(tok, "miel", answers[1])]
    batch = collate(rows, tok.pad_id, 64, packing=False)
    for row, answer in zip(batch.targets, answers, strict=True):
        assert row[row >= 0].tolist() == chat.render_response(tok, answer)
    learned = batch.targets >= 0
    shifted = learned[:, :-1] & (batch.targets[:, :-1] != tok.eos_id)  # an EOS is learned and never read
    assert (batch.inputs[:, 1:][shifted] == batch.targets[:, :-1][shifted]).all()
    assert batch.inputs[learned][0] == tok.assistant_id  # the first answer token is learned too
    assert batch.targets[learned].tolist().count(tok.eos_id) == 2
    assert batch.tokens == sum(len(row.ids) - 1 for row in rows)
    assert batch.documents is batch.positions is None


def test_every_turn_of_the_assistant_is_learned(tok: Tokenizer, tmp_path: Path) -> None:
    (row,) = read(tmp_path, tok, [{"messages": CHAT}])
    learned = [i for i, m in zip(row.ids, row.mask, strict=True) if m]
    assert learned == chat.render_response(tok, "Cinco.") + chat.render_response(tok, "Nueve.")
    assert row.ids == chat.render_prompt(tok, CHAT[:3]) + chat.render_response(tok, "Nueve.")
    assert row.prompt == CHAT[:3]


def test_a_conversation_of_one_turn_is_an_instruction_and_its_response(tok: Tokenizer, tmp_path: Path) -> None:
    plain = {"instruction": CHAT[0]["content"], "response": "Cinco."}
    one, other = read(tmp_path, tok, [{"messages": CHAT[:2]}, plain])
    assert (one.ids, one.mask) == (other.ids, other.mask)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "row 1 has 0 messages: begin with the user"),
        (CHAT[:3], "row 1 has 3 messages: begin with the user and end with the assistant"),
        (CHAT[1:2], "row 1 has 1 messages"),
        (CHAT[1:4], "begin with the user"),
        ([{"role": "tool", "content": "x"}, CHAT[1]], "message 1 of 2 has none of the 3 roles"),
        ([CHAT[0], {"role": "assistant", "content": " "}], "message 2 of 2 is empty"),
        ([CHAT[0], "Cinco."], "message 2 of 2 has none"),
        ("Cinco.", "line 1: messages must be of type list"),
    ],
)
def test_a_bad_conversation_is_named(messages: Any, sentence: str, tok: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=sentence):
        read(tmp_path, tok, [{"messages": messages}])


def test_long_rows_are_left_out_and_counted(tok: Tokenizer, tmp_path: Path) -> None:
    rows = [{"instruction": "pan", "response": "zyx " * n} for n in (1, 300, 2, 300)]
    (tmp_path / "train.jsonl").write_text(jsonl(rows), encoding="utf-8")
    fitting, longest, dropped = demonstrations.read(tmp_path / "train.jsonl", tok, 64)
    assert (len(fitting), dropped) == (2, 2)
    assert longest > 300
    most = max(len(row.ids) for row in fitting)
    assert len(demonstrations.read(tmp_path / "train.jsonl", tok, most)[0]) == 2  # the context may be filled
    assert len(demonstrations.read(tmp_path / "train.jsonl", tok, most - 1)[0]) == 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_packing_puts_each_once_into_rows_that_hold_it(lengths: list[int]) -> None:
    rows, width = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(lengths) <= width <= 64
    assert all(sum(lengths[i] for i in row) <= width for row in rows)
    assert len(rows) * width <= len(lengths) * max(lengths)  # never more than one to a row
    assert (rows, width) == pack(lengths, 64)


def test_packing_wastes_little_of_mixed_lengths() -> None:
    draw = torch.Generator().manual_seed(1)
    used = places = unpacked = 0
    for _ in range(50):
        lengths = torch.randint(20, 250, (32,), generator=draw).tolist()
        rows, width = pack(lengths, 256)
        used, places, unpacked = used + sum(lengths), places + len(rows) * width, unpacked + 32 * max(lengths)
    assert used / places > 0.9
    assert used / unpacked < 0.6


def test_documents_and_positions_keep_packed_examples_apart(tok: Tokenizer) -> None:
    rows = [example(tok, "pan" * (n % 4), "Cinco. " * (1 + n % 3)) for n in range(9)]
    batch = collate(rows, tok.pad_id, 64, packing=True)
    assert batch.documents is not None
    assert batch.positions is not None
    found = []
    for inputs, targets, positions, documents in zip(
        batch.inputs, batch.targets, batch.positions, batch.documents, strict=True
    ):
        for number in range(1, int(documents.max()) + 1):
            own = documents == number
            assert positions[own].tolist() == list(range(int(own.sum())))
            found.append((inputs[own].tolist(), targets[own].tolist()))
        assert (inputs[documents == 0] == tok.pad_id).all()
        assert (targets[documents == 0] == -1).all()
    apart = [collate([row], tok.pad_id, 64, packing=True) for row in rows]
    assert sorted(found) == sorted((one.inputs[0].tolist(), one.targets[0].tolist()) for one in apart)
