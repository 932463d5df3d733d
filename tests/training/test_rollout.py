"""How the models read episodes: only what is used is computed, and it is what a plain reading computes."""

import pytest
import torch
from torch.nn import functional as F

from tests.training.tiny import make_model, make_reward_model, make_tokenizer
from training import rollout
from training.device import Compute
from training.rollout import Episodes

TOKENIZER = make_tokenizer()
FP32, BF16 = (Compute(torch.device("cpu"), bf16=bf16) for bf16 in (False, True))


def _episodes() -> Episodes:
    torch.manual_seed(2)
    tokens = torch.randint(TOKENIZER.vocab_size, (3, 12))
    lengths = torch.tensor([12, 7, 10])
    state = torch.arange(11)
    mask = (state >= torch.tensor([4, 2, 5])[:, None]) & (state < lengths[:, None] - 1)
    return Episodes(tokens, mask.float(), lengths, torch.tensor([True, False, True]))


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probabilities_and_their_gradients_are_those_of_the_softmax(temperature):
    model, episodes = make_model(TOKENIZER, spread=2.0), _episodes()
    on, chosen = episodes.mask.bool(), episodes.tokens[:, 1:]
    plain = (model.logits(model(episodes.tokens[:, :-1])) / temperature).log_softmax(-1)
    expected = plain.gather(-1, chosen[:, :, None]).squeeze(-1)[on]
    got, everything = rollout.completion_logprobs(model, episodes, temperature, FP32)
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.allclose(everything, plain[on], atol=1e-5)
    assert not everything.requires_grad
    weights, push = list(model.parameters()), torch.linspace(-1, 1, len(got))
    exact = torch.autograd.grad((expected * push).sum(), weights)
    ours = torch.autograd.grad((got * push).sum(), weights)
    for one, other in zip(ours, exact, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_in_bf16_gradients_point_where_the_exact_ones_do():
    model, episodes = make_model(TOKENIZER, spread=2.0), _episodes()
    gradients = []
    for compute in (FP32, BF16):
        got, _ = rollout.completion_logprobs(model, episodes, 1.0, compute)
        found = torch.autograd.grad((got * torch.linspace(-1, 1, len(got))).sum(), list(model.parameters()))
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.999


def test_scores_are_finer_than_bf16_in_bf16():
    """The head is fp32: in bf16 scores near 3 would lie on steps of 0.016, and near answers would tie."""
    with torch.no_grad(), BF16.autocast():
        scores = make_reward_model(TOKENIZER).score(_episodes().tokens, torch.tensor([11, 6, 9]))
    assert scores.dtype == torch.float32
    assert (scores.bfloat16().float() != scores).all()


def test_values_are_read_at_the_states_that_choose_completion_tokens():
    model, episodes = make_reward_model(TOKENIZER), _episodes()
    with torch.no_grad():
        got = rollout.completion_values(model, episodes, FP32)
        whole = model.values(episodes.tokens[:, :-1])[episodes.mask.bool()]
    assert torch.allclose(got, whole, atol=1e-5)
    assert torch.equal(rollout.padded(got, episodes.mask)[episodes.mask.bool()], got)
