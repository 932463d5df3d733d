"""Beam search beside all sequences there are."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from training.beam import Hypothesis, _decided, beam_search
from training.config import ModelConfig, TrainingError
from training.decode import Decoder
from training.model import GPT

VOCABULARY, EOS, LONGEST = 5, 4, 4
TOKENIZER = SimpleNamespace(eos_id=EOS)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(2)
    model = GPT(ModelConfig(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12.0 if parameter.ndim > 1 else 1.0)
    return model


@torch.no_grad()
def _everything(model: GPT, prompt: list[int], length_penalty: float) -> list[tuple[float, list[int]]]:
    """Every completion with its score: those that end in EOS, and those of full length; the best first."""
    letters = [t for t in range(VOCABULARY) if t != EOS]
    found = []
    for length in range(LONGEST + 1):
        for body in itertools.product(letters, repeat=length):
            tokens = [*body] if length == LONGEST else [*body, EOS]
            logprobs = model.logits(model(torch.tensor([[*prompt, *tokens]])))[0].log_softmax(-1)
            chosen = [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens)]
            found.append((sum(chosen) / len(tokens) ** length_penalty, tokens))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("prompt", [[0], [3, 1, 2], [2, 2]])
@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 0.7, 1.0, 2.0])
def test_with_room_for_all_beginnings_it_equals_brute_force(
    model: GPT, prompt: list[int], length_penalty: float
) -> None:
    expected = _everything(model, prompt, length_penalty)[:6]
    found = beam_search(model, TOKENIZER, prompt, beams=256, max_new_tokens=LONGEST, n=6, length_penalty=length_penalty)
    assert [h.tokens for h in found] == [tokens for _, tokens in expected]
    assert [h.score for h in found] == pytest.approx([score for score, _ in expected], abs=1e-5)
    assert all(sum(h.logprobs) / len(h.tokens) ** length_penalty == pytest.approx(h.score, abs=1e-5) for h in found)
    assert all(h.finish_reason == ("eos" if h.tokens[-1] == EOS else "length") for h in found)


def test_one_beam_takes_the_likeliest_token_each_time(model: GPT) -> None:
    ids = [1, 0]
    (found,) = beam_search(model, TOKENIZER, ids, beams=1, max_new_tokens=10, length_penalty=0.0)
    for token in found.tokens:
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([ids])))[0, -1]
        best = logits.topk(2).indices.tolist()
        assert token == best[0] or (token == EOS and EOS in best)  # an EOS that scores well enough ends it
        ids.append(token)


def test_more_beams_find_a_likelier_text_and_few_are_enough_to_start(model: GPT) -> None:
    scores = [beam_search(model, TOKENIZER, [2], beams=b, max_new_tokens=8)[0].score for b in (1, 4, 64)]
    assert scores[0] <= scores[2] + 1e-6
    assert scores[1] <= scores[2] + 1e-6


def test_a_prompt_that_fills_the_context_is_refused_with_its_length(model: GPT) -> None:
    with pytest.raises(TrainingError, match="has 16 tokens and this model reads 1 to 15"):
        beam_search(model, TOKENIZER, [1] * 16, beams=2, max_new_tokens=4)


@pytest.mark.parametrize(("length_penalty", "decided"), [(1.0, False), (0.0, True), (-1.0, True)])
def test_it_goes_on_while_a_longer_text_may_score_better(length_penalty: float, decided: bool) -> None:
    """-3 nats after 2 of 6 tokens: at best -3 / 6, which beats -1; without a reward of length it cannot rise again."""
    ended = [Hypothesis([4], [-1.0], -1.0, "eos")]
    assert _decided(ended, 1, torch.tensor([-3.0, -7.0]), 2, 6, length_penalty) == decided
    assert not _decided(ended, 2, torch.tensor([-3.0]), 2, 6, length_penalty)


def test_an_end_takes_no_beam_away(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    living, honest = [], Decoder.step
    monkeypatch.setattr(
        Decoder, "step", lambda self, tokens, *rest: living.append(len(tokens)) or honest(self, tokens, *rest)
    )
    for first in range(VOCABULARY):
        beam_search(model, TOKENIZER, [first, 1], beams=2, max_new_tokens=8)
    assert set(living) == {2}
