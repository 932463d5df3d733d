"""Rows of the engine: what a request brings along when it joins, moves or shares its reading."""

import torch

from tests.training.tiny import make_model, make_tokenizer
from training.engine import Engine, Request
from training.rows import Rows

TOKENIZER = make_tokenizer()


def test_a_row_that_moves_takes_all_of_its_columns_along():
    rows = Rows(3, 8, TOKENIZER.vocab_size, torch.device("cpu"))
    filters = {"temperature": 0.5, "top_k": 3, "top_p": 0.4, "repetition_penalty": 2.0, "bad_words": [[3], [4]]}
    for row, more in enumerate([{}, {}, filters]):
        rows.put(row, Request([5] * (row + 1), seed=row, **more), 8)
    rows.tokens[:], rows.drawn[:] = torch.tensor([7, 8, 9]), torch.tensor([0, 1, 2])
    columns = {name: column for name, column in vars(rows).items() if isinstance(column, torch.Tensor)}
    before = {name: column.clone() for name, column in columns.items()}
    assert all(not torch.equal(column[0], column[2]) for column in before.values())
    rows.move(2, 0)
    for name, column in columns.items():
        assert torch.equal(column[0], before[name][2]), name
        assert torch.equal(column[1:], before[name][1:]), name


def _written(engine: Engine, requests: list[Request]) -> list[Request]:
    for request in requests:
        engine.submit(request)
    engine.run_until_idle()
    return requests


def test_a_prompt_is_copied_whole_into_a_row_that_held_another():
    model = make_model(TOKENIZER, seed=3, spread=3.0)
    prompt, other = [9, 60, 33, 120], [200] * 30
    first, _, second = _written(
        Engine(model, TOKENIZER, 2),
        [Request(prompt, 20, seed=1), Request(other, 2, seed=2), Request(prompt, 15, seed=3)],
    )
    for request in (first, second):
        (alone,) = _written(Engine(model, TOKENIZER, 1), [Request(prompt, request.max_new_tokens, seed=request.seed)])
        assert request.tokens == alone.tokens


def test_what_is_cancelled_while_it_waits_is_never_begun():
    engine = Engine(make_model(TOKENIZER), TOKENIZER, 1)
    running, waiting = (engine.submit(Request([5, 6], 8, seed=seed)) for seed in (1, 2))
    engine.step()
    waiting.cancel()
    engine.run_until_idle()
    assert (waiting.finish_reason, waiting.tokens) == ("cancelled", [])
    assert running.finish_reason in ("eos", "length")
