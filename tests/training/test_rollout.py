"""How the models read episodes: only what is used is computed, and it is what a plain reading computes."""

import pytest
import torch
from torch.nn import functional as F

from tests.training.tiny import make_model, make_reward_model, make_tokenizer
from training import rollout
from training.config import ModelConfig
from training.device import Compute
from training.engine import Request
from training.model import GPT, RewardModel
from training.rollout import Episodes

TOKENIZER = make_tokenizer()
EOS, PAD = TOKENIZER.eos_id, TOKENIZER.pad_id
FP32, BF16 = (Compute(torch.device("cpu"), bf16=bf16) for bf16 in (False, True))


def _episodes() -> Episodes:
    torch.manual_seed(2)
    tokens = torch.randint(TOKENIZER.vocab_size, (3, 12))
    lengths = torch.tensor([12, 7, 10])
    state = torch.arange(11)
    mask = (state >= torch.tensor([4, 2, 5])[:, None]) & (state < lengths[:, None] - 1)
    return Episodes(tokens, mask.float(), lengths, torch.tensor([True, False, True]))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_last_block_for_chosen_tokens_alone_changes_neither_states_nor_gradients(norm):
    torch.manual_seed(0)
    model = GPT(ModelConfig(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=4, norm=norm)).eval()
    tokens, keep = torch.randint(50, (3, 20)), torch.rand(3, 20) < 0.4
    whole, chosen = model(tokens)[keep], model(tokens, keep=keep)
    assert torch.allclose(whole, chosen, atol=1e-5)
    weights = list(model.parameters())
    ours, theirs = (torch.autograd.grad((states**3).sum(), weights, allow_unused=True) for states in (chosen, whole))
    for one, other in zip(ours, theirs, strict=True):
        assert one is None or torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    reward_model, at = RewardModel(model), torch.tensor([3, 19, 7])
    scores = reward_model.score(tokens, at)
    assert torch.allclose(scores, reward_model.values(tokens)[torch.arange(3), at], atol=1e-5)


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


@pytest.mark.parametrize("compute", [FP32, BF16])
def test_weights_say_the_same_bits_with_and_without_a_gradient(setting, compute):
    """Old log-probabilities are read without one and new ones with it: the first ratio is 1, not almost 1."""
    torch.manual_seed(0)
    policy = GPT(ModelConfig(vocab_size=512, n_positions=64, n_embd=128, n_layer=4, n_head=4)).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    tokens, mask = torch.randint(512, (16, 64)), torch.ones(16, 63)
    episodes = Episodes(tokens, mask, torch.full((16,), 64), torch.ones(16, dtype=torch.bool))
    value_model = RewardModel(policy)
    read = []
    for learns in (False, True):
        with torch.set_grad_enabled(learns):
            logprobs, _ = rollout.completion_logprobs(policy, episodes, 0.7, compute)
            read.append((logprobs, rollout.completion_values(value_model, episodes, compute)))
        assert logprobs.requires_grad == learns
    for old, new in zip(*read, strict=True):
        assert torch.equal(old, new)


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


def _request(prompt: list[int], tokens: list[int], reason: str) -> Request:
    request = Request(prompt)
    request.tokens, request.finish_reason = tokens, reason  # type: ignore[assignment]
    return request


WRITTEN = [
    _request([EOS, 1], [7, 8, EOS], "eos"),
    _request([1], [9], "length"),
    _request([1, 2, EOS], [4, 5], "length"),  # an EOS in the prompt is not the answer's
]


def test_mask_covers_the_completion_and_its_eos_only():
    episodes = Episodes.of(WRITTEN, PAD, "cpu")
    assert episodes.tokens.tolist() == [[EOS, 1, 7, 8, EOS], [1, 9, PAD, PAD, PAD], [1, 2, EOS, 4, 5]]
    assert episodes.mask.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1]]
    assert episodes.ended.tolist() == [True, False, False]
    trimmed = episodes.rows(torch.tensor([1]))
    assert (trimmed.tokens.tolist(), trimmed.mask.tolist()) == ([[1, 9]], [[1]])


def test_a_missing_eos_replaces_the_score_and_an_eos_in_the_prompt_does_not_help():
    model = make_reward_model(TOKENIZER)
    episodes = Episodes.of(WRITTEN, PAD, "cpu")
    with torch.no_grad():
        model.bias += 100
        got = rollout.scores(model, episodes, FP32, missing_eos_penalty=3.0, score_clip=5.0)
        model.bias -= 100
        plain = rollout.scores(model, episodes, FP32, missing_eos_penalty=3.0, score_clip=0.0)
        alone = model.score(torch.tensor([[EOS, 1, 7, 8, EOS]]), torch.tensor([4]))
    assert got.tolist() == [5.0, -3.0, -3.0]
    assert plain[0].item() == pytest.approx(alone.item(), abs=1e-5)


def test_the_limit_is_on_scores_and_not_on_what_a_missing_eos_costs():
    raw, ended = torch.tensor([50.0, -50.0, 50.0]), torch.tensor([True, True, False])
    assert rollout.settled(raw, ended, missing_eos_penalty=20.0, score_clip=10.0).tolist() == [10.0, -10.0, -20.0]


def test_the_loss_of_demonstrations_is_on_the_answer_and_its_eos_only():
    model = make_model(TOKENIZER, spread=2.0)
    ids, mask = [1, 2, 70, 71, EOS], [0, 0, 1, 1, 1]
    with torch.no_grad():
        logprobs = model.logits(model(torch.tensor([ids]))[0]).log_softmax(-1)
        expected = -(logprobs[1, 70] + logprobs[2, 71] + logprobs[3, EOS]) / 3
        got = rollout.demonstration_loss(model, [(ids, mask), (ids, mask)], PAD, FP32)
    assert got.item() == pytest.approx(expected.item(), abs=1e-5)


def test_every_pass_takes_each_prompt_once():
    taken = [i for update in range(5) for i in rollout.prompts_of_update(10, update, 4, seed=3)]
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]
    assert sorted(set(rollout.prompts_of_update(3, 0, 8, seed=1))) == [0, 1, 2]  # fewer prompts than episodes
