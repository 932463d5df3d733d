"""The inference engine: what it writes, that neighbours do not matter, and that it says what the trainer says."""

import random
import threading
from dataclasses import replace

import pytest
import torch

from tests.training.tiny import make_model, make_tokenizer
from training import engine as engine_module
from training.config import ModelConfig, TrainingError
from training.device import Compute
from training.engine import Engine, EngineThread, Request, generate
from training.graphs import GraphedSteps
from training.model import GPT
from training.rollout import Episodes, completion_logprobs

pytestmark = pytest.mark.usefixtures("setting")
TOKENIZER = make_tokenizer()
FP32 = Compute(torch.device("cpu"), bf16=False)


@pytest.fixture(scope="module")
def model():
    return make_model(TOKENIZER, seed=3, spread=3.0)


def _prompts(n: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(rng.randint(1, longest))] for _ in range(n)]


def _alone(model, request: Request) -> Request:
    engine = Engine(model, TOKENIZER, 1)
    engine.submit(request)
    engine.run_until_idle()
    return request


@torch.no_grad()
def _greedy_without_cache(model, prompt: list[int], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model.logits(model(torch.tensor([ids]))[0, -1]).argmax()))
        if ids[-1] == TOKENIZER.eos_id:
            break
    return ids[len(prompt) :]


def test_greedy_text_equals_the_full_forward_pass_token_by_token(model):
    prompts = _prompts(7)
    requests = generate(model, TOKENIZER, prompts, [0] * 7, max_new_tokens=25, temperature=0.0)
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.tokens == _greedy_without_cache(model, prompt, 25)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_equal_the_trainers(model, temperature):
    requests = generate(model, TOKENIZER, _prompts(9), range(9), max_new_tokens=30, temperature=temperature)
    episodes = Episodes.of(requests, TOKENIZER.pad_id, "cpu")
    trainer, _ = completion_logprobs(model, episodes, temperature, FP32)
    sampled = torch.tensor([p for request in requests for p in request.logprobs])
    assert len(sampled) > 60
    assert (trainer - sampled).abs().max() <= 1e-5


def test_dropout_is_off_for_whoever_scores_the_samples():
    model = GPT(ModelConfig(vocab_size=TOKENIZER.vocab_size, n_positions=64, n_embd=32, n_head=4, dropout=0.5)).train()
    (request,) = generate(model, TOKENIZER, _prompts(1), [1], max_new_tokens=10)
    trainer, _ = completion_logprobs(model, Episodes.of([request], TOKENIZER.pad_id, "cpu"), 1.0, FP32)
    torch.testing.assert_close(torch.tensor(request.logprobs), trainer, atol=1e-5, rtol=0)


def test_a_text_does_not_depend_on_its_neighbours(model):
    prompts = _prompts(10)
    together = generate(model, TOKENIZER, prompts, range(10), max_new_tokens=30)
    small = generate(model, TOKENIZER, prompts, range(10), max_new_tokens=30, max_batch=3)
    for seed, prompt in enumerate(prompts):
        alone = _alone(model, Request(prompt, 30, seed=seed))
        assert together[seed].tokens == small[seed].tokens == alone.tokens
        assert together[seed].logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_requests_join_and_leave_in_the_middle(model):
    prompts = _prompts(8, seed=5)
    expected = [_alone(model, Request(p, 5 + 4 * i, seed=i)).tokens for i, p in enumerate(prompts)]
    engine = Engine(model, TOKENIZER, 3)
    requests = [Request(p, 5 + 4 * i, seed=i) for i, p in enumerate(prompts)]
    for request in reversed(requests):
        engine.submit(request)
        engine.step()
    engine.run_until_idle()
    assert [request.tokens for request in requests] == expected


class _Recorded:
    """What a CUDA graph does, on a CPU: the same work into the same memory."""

    def __init__(self, work):
        self.work, self.answer = work, work().clone()

    def replay(self):
        self.answer.copy_(self.work())


def test_graphs_of_rounded_shapes_give_the_same_tokens(model):
    """The graphs of a GPU need rows and columns of few sizes; their rounding is what can be tested without one."""
    prompts = _prompts(9, seed=6, longest=40)
    expected = [_alone(model, Request(p, 3 + 3 * i, seed=i)).tokens for i, p in enumerate(prompts)]
    engine = Engine(model, TOKENIZER, 5)
    recorded = []
    engine.graphs = GraphedSteps(
        engine.decoder,
        engine.rows.tokens,
        engine.rows.places,
        lambda work: (recorded.append(_Recorded(work)) or recorded[-1], recorded[-1].answer),
    )
    requests = [engine.submit(Request(p, 3 + 3 * i, seed=i)) for i, p in enumerate(prompts)]
    engine.run_until_idle()
    assert [request.tokens for request in requests] == expected
    assert {rows for rows, _ in engine.graphs.graphs} <= {1, 2, 4, 5}
    assert len(recorded) == len(engine.graphs.graphs) <= 8


def test_same_seed_same_text_and_another_seed_another(model):
    prompt = _prompts(1)[0]
    first, again, other = (_alone(model, Request(prompt, 30, seed=s)).tokens for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_top_k_one_is_greedy_and_is_marked_as_filtered(model):
    prompt = _prompts(1)[0]
    request = _alone(model, Request(prompt, 20, top_k=1, seed=4))
    assert request.tokens == _greedy_without_cache(model, prompt, 20)
    assert request.filtered
    assert not Request(prompt).filtered


def test_it_stops_at_eos_and_keeps_it(model):
    requests = generate(model, TOKENIZER, _prompts(60, longest=3), range(60), max_new_tokens=60, temperature=3.0)
    ended = [r for r in requests if r.finish_reason == "eos"]
    assert ended
    assert all(r.tokens[-1] == TOKENIZER.eos_id and TOKENIZER.eos_id not in r.tokens[:-1] for r in ended)
    assert all(len(r.tokens) == 60 for r in requests if r.finish_reason == "length")
    assert "<|endoftext|>" not in "".join(r.text for r in requests)


def test_an_answer_ends_where_the_context_does(model):
    room = model.config.n_positions
    request = _alone(model, Request([5] * (room - 3), 50, temperature=0.0))
    assert len(request.tokens) <= 3
    assert request.finish_reason in ("length", "eos")


@pytest.mark.parametrize("length", [0, 64, 90])
def test_a_prompt_that_cannot_be_read_whole_is_refused_with_its_length(model, length):
    with pytest.raises(TrainingError, match=f"has {length} tokens and this model reads 1 to 63"):
        Engine(model, TOKENIZER, 2).submit(Request([5] * length))


def test_the_next_token_policy_gives_the_exact_sequence():
    """openai/lm-human-preferences' test: a network that says "next = previous + 1"."""
    width = 32
    config = ModelConfig(vocab_size=TOKENIZER.vocab_size, n_positions=64, n_embd=width, n_layer=1, n_head=4)
    model = GPT(replace(config, tie_head=False))
    torch.manual_seed(0)
    codes = torch.nn.functional.normalize(torch.randn(TOKENIZER.vocab_size, width), dim=-1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.ln_f.weight.fill_(1.0)
        model.wte.weight.copy_(codes)
        model.lm_head.weight.copy_(50 * codes.roll(1, 0))  # token t + 1 answers to the code of t
    requests = generate(model, TOKENIZER, [[10], [5, 40], [100]], [9, 8, 7], max_new_tokens=20)
    assert [r.tokens for r in requests] == [list(range(start, start + 20)) for start in (11, 41, 101)]


def _scripted(model, request: Request, script: list[int]) -> Request:
    """An engine whose network says what the script says."""
    engine = Engine(model, TOKENIZER, 1)
    steps = iter(script)

    def say(*_) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(steps)]), TOKENIZER.vocab_size).float()

    engine.decoder.prefill = engine.decoder.step = say
    engine.submit(request)
    engine.run_until_idle()
    return request


def test_streamed_pieces_are_whole_characters_and_make_the_text(model):
    euro = list("€".encode())
    pieces: list[str] = []
    request = _scripted(model, Request([7], 6, temperature=0.0, on_token=pieces.append), [*euro, ord("a"), *euro[:2]])
    assert pieces == ["€", "a", "�"]
    assert "".join(pieces) == request.text


def test_a_stop_string_across_tokens_ends_the_text_before_it_and_is_never_shown(model):
    pieces: list[str] = []
    request = Request([7], 40, temperature=0.0, stop=["\nUser:", "zzz"], on_token=pieces.append)
    _scripted(model, request, list(b"one\nUse two\nUser: three"))
    assert request.finish_reason == "stop"
    assert request.text == "".join(pieces) == "one\nUse two"
    assert bytes(request.tokens) == b"one\nUse two\nUser:"  # what was drawn stays, with its log-probabilities
    assert len(request.logprobs) == len(request.tokens)
    quiet = _scripted(model, Request([7], 40, temperature=0.0, stop=["ree"]), list(b"one two three four"))
    assert (quiet.text, quiet.finish_reason) == ("one two th", "stop")


def test_what_only_began_a_stop_string_is_shown_at_the_end(model):
    request = _scripted(model, Request([7], 5, temperature=0.0, stop=["END"]), list(b"an EN"))
    assert (request.text, request.finish_reason) == ("an EN", "length")


def test_repetition_penalty_counts_prompt_and_completion(model):
    prompt = _prompts(1)[0]
    request = _alone(model, Request(prompt, 15, temperature=0.0, repetition_penalty=1e9))
    ids = list(prompt)
    for token in request.tokens:
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([ids]))[0, -1])
        seen = torch.tensor(sorted(set(ids)))
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / 1e9, logits[seen] * 1e9)
        assert token == int(logits.argmax())
        ids.append(token)
    assert len(set(ids[-15:])) == 15
    assert request.filtered


def test_bad_words_are_never_drawn_and_the_logprobs_stay_the_trainers(model):
    prompt = _prompts(1)[0]
    free = _greedy_without_cache(model, prompt, 6)
    held = _alone(model, Request(prompt, 6, temperature=0.0, bad_words=[[free[0]]]))
    assert free[0] not in held.tokens
    pair = _alone(model, Request(prompt, 6, temperature=0.0, bad_words=[free[:2]]))
    assert pair.tokens[0] == free[0]
    assert pair.tokens[1] != free[1]
    for request in (held, pair):
        assert request.filtered
        trainer, _ = completion_logprobs(model, Episodes.of([request], TOKENIZER.pad_id, "cpu"), 1.0, FP32)
        torch.testing.assert_close(torch.tensor(request.logprobs), trainer, atol=1e-5, rtol=0)


def test_filters_of_one_request_leave_its_neighbours_alone(model):
    prompts = _prompts(6, seed=2)
    filters = [{}, {"repetition_penalty": 2.0}, {}, {"bad_words": [[3], [4, 5]]}, {"top_k": 3}, {"top_p": 0.5}]
    requests = [Request(p, 20, seed=i, **filters[i]) for i, p in enumerate(prompts)]
    engine = Engine(model, TOKENIZER, 4)  # fewer rows than requests: rows move while filters are on
    for request in requests:
        engine.submit(request)
    engine.run_until_idle()
    for seed, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
        assert request.tokens == _alone(model, Request(prompt, 20, seed=seed, **filters[seed])).tokens


def test_prompts_are_read_in_groups_of_like_length_that_fit(monkeypatch, model):
    prompts = _prompts(12, seed=3)
    expected = [_alone(model, Request(p, 8, seed=i)).tokens for i, p in enumerate(prompts)]
    monkeypatch.setitem(engine_module.READ_AT_ONCE, "cpu", 40)
    engine, shapes = Engine(model, TOKENIZER, 12), []
    real = engine.decoder.prefill
    engine.decoder.prefill = lambda tokens, *rest: shapes.append(tuple(tokens.shape)) or real(tokens, *rest)
    requests = [engine.submit(Request(p, 8, seed=i)) for i, p in enumerate(prompts)]
    engine.run_until_idle()
    assert [request.tokens for request in requests] == expected
    assert sum(rows for rows, _ in shapes) == 12
    assert all(rows * width <= 40 for rows, width in shapes)
    assert [width for _, width in shapes] == sorted(width for _, width in shapes)
    assert len(shapes) < 12


def test_samples_of_one_prompt_share_its_reading(model):
    prompt, other = _prompts(2, seed=4)
    expected = [_alone(model, Request(prompt, 12 + i, seed=i)) for i in range(7)]
    engine = Engine(model, TOKENIZER, 4)
    read: list[tuple[int, ...]] = []
    real = engine.decoder.prefill
    engine.decoder.prefill = lambda tokens, *rest: read.append(tuple(tokens.shape)) or real(tokens, *rest)
    requests = [engine.submit(Request(prompt, 12 + i, seed=i)) for i in range(7)]
    last = engine.submit(Request(other, 5, seed=1))
    engine.run_until_idle()
    assert [len(shape) and shape[0] for shape in read] == [1, 1]  # seven samples cost one reading, three join later
    for request, alone in zip(requests, expected, strict=True):
        assert request.tokens == alone.tokens
        assert request.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
    assert last.tokens == _alone(model, Request(other, 5, seed=1)).tokens


def test_cancelling_frees_the_slot_and_leaves_the_others_alone(model):
    prompts = _prompts(3, seed=8)
    expected = _alone(model, Request(prompts[2], 20, seed=2)).tokens
    engine = Engine(model, TOKENIZER, 3)
    requests = [engine.submit(Request(p, 20, seed=i)) for i, p in enumerate(prompts)]
    engine.step()
    requests[0].cancel()
    engine.run_until_idle()
    assert requests[0].finish_reason == "cancelled"
    assert len(requests[0].tokens) <= 1
    assert requests[2].tokens == expected


def test_a_listener_that_fails_loses_only_its_own_request(model):
    def broken(piece: str) -> None:
        raise ConnectionError("the browser went away")

    engine = Engine(model, TOKENIZER, 2)
    bad = engine.submit(Request([65, 66], 30, seed=1, on_token=broken))
    good = engine.submit(Request([65, 66], 30, seed=1))
    engine.run_until_idle()
    assert bad.finish_reason == "cancelled"
    assert isinstance(bad.failure, ConnectionError)
    assert good.finish_reason in ("eos", "length")


def test_a_request_that_comes_while_the_thread_closes_is_ended(model):
    """The engine takes it after the thread's last look at whether it is idle."""
    thread = EngineThread(Engine(model, TOKENIZER, 1))
    thread.start()
    real = thread.engine.submit

    def late(request: Request) -> Request:
        thread.close(10)
        assert not thread.is_alive()
        return real(request)

    thread.engine.submit = late
    request = thread.submit(Request([7], 5))
    assert request.done.wait(5)
    assert request.finish_reason == "cancelled"


def test_many_threads_submit_to_one_engine_thread(model):
    prompts = _prompts(12, seed=11)
    expected = [_alone(model, Request(p, 15, seed=i)).tokens for i, p in enumerate(prompts)]
    thread = EngineThread(Engine(model, TOKENIZER, 4))
    thread.start()
    requests = [Request(p, 15, seed=i) for i, p in enumerate(prompts)]
    submitters = [threading.Thread(target=thread.submit, args=(request,)) for request in requests]
    for submitter in submitters:
        submitter.start()
    for request in requests:
        assert request.done.wait(30)
    thread.close(10)
    assert not thread.is_alive()
    assert [request.tokens for request in requests] == expected
    with pytest.raises(TrainingError, match="stopped"):
        thread.submit(Request([5]))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_an_engine_that_broke(model):
    engine = Engine(model, TOKENIZER, 2)
    engine.step = lambda: 1 / 0  # type: ignore[method-assign]
    thread = EngineThread(engine)
    request = thread.submit(Request([5, 6]))
    thread.start()
    assert request.done.wait(10)
    assert request.finish_reason == "cancelled"
    thread.join(10)
    assert isinstance(thread.failure, ZeroDivisionError)
