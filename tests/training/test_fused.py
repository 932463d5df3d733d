"""The one-pass parts of the network against plain autograd in fp32, with and without compiled kernels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import fused, kernels
from training.config import TrainingError
from training.device import Compute
from training.model import GPT
from training.pretrain import token_loss

# Relative error of a whole gradient (L2): fp32 rounding, and bf16's 8 bits through a few layers.
FP32, BF16 = 1e-5, 2e-2


pytestmark = pytest.mark.usefixtures("setting")


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The result and the gradients of its product with fixed random numbers."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    torch.manual_seed(9)
    (y.float() * torch.randn(y.shape)).sum().backward()
    return [y.detach().float(), *(leaf.grad.float() for leaf in leaves if leaf.grad is not None)]


def same(found: list[Tensor], expected: list[Tensor], limit: float) -> None:
    errors = [error(one, other) for one, other in zip(found, expected, strict=True)]
    assert max(errors) < limit, errors


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_gelu_is_torchs(dtype: torch.dtype, limit: float) -> None:
    x = torch.cat([draw(1001) * 3, torch.tensor([0.0, -100.0, 100.0, 1e4, -1e4])]).to(dtype)
    plain = gradients(lambda v: F.gelu(v, approximate="tanh"), x.float())
    same(gradients(fused.gelu, x), plain, limit)
    assert fused.gelu(torch.tensor([float("nan")], dtype=dtype)).isnan().all()


@pytest.mark.parametrize(("bf16", "limit"), [(False, 1e-6), (True, 1e-2)])
@pytest.mark.parametrize("alone", [False, True])
def test_add_norm_is_a_sum_and_its_layer_norm(alone: bool, bf16: bool, limit: float) -> None:
    norm = nn.LayerNorm(48)
    norm.weight.data += draw(48, seed=3)
    norm.bias.data += draw(48, seed=4)

    def both(function: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        norm.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and function is fused.add_norm):
            found = gradients(
                lambda x, d: torch.cat(
                    [part.float() for part in function(x, None if alone else d, norm)] + [0 * d], -1
                ),
                draw(5, 37, 48),
                draw(5, 37, 48, seed=2),
            )
        return [*found[: 2 if alone else 3], norm.weight.grad, norm.bias.grad]

    def plain(x: Tensor, delta: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        x = x if delta is None else x + delta
        return x, norm(x)

    same(both(fused.add_norm), both(plain), limit)


def parts(*lengths: int) -> list[int]:
    """A row of documents of these lengths; every third one goes on with the first one's number."""
    return [number % 3 for number, length in enumerate(lengths) for _ in range(length)]


@pytest.mark.parametrize(
    ("heads", "width", "documents"),
    [
        (4, 16, [[], []]),
        (4, 16, [parts(20, 13), parts(33)]),
        (1, 40, [parts(70, 1, 30, 100, 99)]),
        (2, 32, [[], [], []]),
        (1, 64, [parts(96), parts(31, 1, 32, 32)]),
        (3, 32, [parts(*[5] * 20)]),
    ],
)
def test_attention_is_sdpa(heads: int, width: int, documents: list[list[int]]) -> None:
    rows, time, wide = len(documents), len(documents[0]) or 45, heads * width
    numbers = torch.tensor(documents) if documents[0] else None
    c_attn = nn.Linear(wide, 3 * wide)
    c_attn.weight.data, c_attn.bias.data = draw(3 * wide, wide, seed=2) * 2 / wide**0.5, draw(3 * wide, seed=3)

    def exact(x: Tensor) -> Tensor:
        q, k, v = c_attn(x).view(rows, time, 3, heads, width).permute(2, 0, 3, 1, 4)
        seen = torch.ones(time, time, dtype=torch.bool).tril()
        seen = seen if numbers is None else seen & (numbers[:, None, :] == numbers[:, :, None])[:, None]
        return F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).reshape(rows, time, wide)

    def with_weights(function: Callable[[Tensor], Tensor], bf16: bool = False) -> list[Tensor]:
        c_attn.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return [*gradients(function, draw(rows, time, wide)), c_attn.weight.grad, c_attn.bias.grad]

    def ours(x: Tensor) -> Tensor:
        return fused.attention(x, c_attn, heads, numbers, 0.0)

    same(with_weights(ours), with_weights(exact), FP32)
    same(with_weights(ours, bf16=True), with_weights(exact), BF16)


def test_attention_drops_weights_and_their_gradients_alike() -> None:
    c_attn = nn.Linear(32, 96)
    c_attn.weight.data, c_attn.bias.data = torch.eye(32).repeat(3, 1), torch.zeros(96)
    x = draw(1, 8, 32)

    def once(x: Tensor, dropout: float, seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            return fused.attention(x, c_attn, 2, None, dropout).float()

    mean = torch.stack([once(x, 0.5, seed) for seed in range(400)]).mean(0)
    torch.testing.assert_close(mean, once(x, 0.0, 0), atol=0.3, rtol=0)
    # The output is linear in the values: with queries and keys held, sum(y) = sum(values * their gradient).
    once(x, 0.5, 5).sum().backward()
    along = (c_attn.weight.grad[64:] * c_attn.weight[64:]).sum()
    torch.testing.assert_close(along, once(x, 0.5, 5).sum(), atol=0.3, rtol=0.03)


@pytest.mark.parametrize("words", [50, 64, 131])
@pytest.mark.parametrize("at_once", [2**26, 1000])
def test_cross_entropy_is_torchs(words: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_LOGITS", at_once)  # so few that the rows are taken in parts
    targets = torch.randint(words, (37,), generator=torch.Generator().manual_seed(3))

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(hidden @ weight.t(), targets, reduction="sum") / 37

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        return fused.cross_entropy(hidden, weight, targets) / 37

    inputs = draw(37, 24), draw(words, 24, seed=2)
    expected = gradients(plain, *inputs)
    found = gradients(ours, *inputs)
    same(found, expected, 1e-6)
    assert abs(found[0] - expected[0]) < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        same(gradients(ours, *inputs), expected, 1e-2)


def test_an_infinite_logit_is_a_loss_that_is_no_number() -> None:
    hidden, weight = draw(2, 4), draw(9, 4)
    hidden[0, 0] = float("nan")
    assert fused.cross_entropy(hidden, weight, torch.tensor([1, 2])).isnan()


def learn(model: GPT, bf16: bool, targets: Tensor, ids: Tensor) -> Tensor:
    model.zero_grad()
    token_loss(model, ids, targets, Compute(torch.device("cpu"), bf16)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


KINDS = [{}, {"norm": "post"}, {"positions": "sinusoidal"}, {"tie_head": False}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_has_the_gradient_of_plain_autograd(kind: dict, tiny: Callable[..., GPT]) -> None:
    model = tiny(**kind)
    ids = torch.randint(model.config.vocab_size, (3, 33), generator=torch.Generator().manual_seed(1))
    ids, targets = ids[:, :-1], ids[:, 1:].clone()
    targets[0, :9] = -1
    found = {bf16: learn(model, bf16, targets, ids) for bf16 in (False, True)}
    kernels.enable("off")
    logits = model.logits(model(ids))
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    model.zero_grad()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert error(found[False], expected) < FP32
    assert error(found[True], expected) < BF16


@pytest.mark.parametrize("bf16", [False, True])
def test_equal_steps_have_equal_bits_whatever_the_threads(bf16: bool, tiny: Callable[..., GPT], setting: str) -> None:
    model = tiny(dropout=0.1, n_embd=64).train()
    ids = torch.randint(model.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(1))
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(learn(model, bf16, ids, ids))
    assert torch.equal(*found)


def test_without_a_compiler_auto_stays_quiet_and_on_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "_library", kernels._library.__wrapped__)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert not kernels.enable("auto")
    assert capfd.readouterr().err == ""
    with pytest.raises(TrainingError, match="made 0 kernels"):
        kernels.enable("on")


def test_a_failing_compiler_is_one_sentence_in_auto(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "_library", kernels._library.__wrapped__)
    monkeypatch.setattr(kernels, "_cache", lambda: tmp_path)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: "/bin/false")
    assert not kernels.enable("auto")
    assert capfd.readouterr().err.count("\n") == 1


def test_kernels_are_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str) -> None:
    if setting != "kernels":
        pytest.skip("nothing to compile")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels._library.__wrapped__()
    (made,) = (tmp_path / "bucle").iterdir()
    before = made.stat().st_mtime_ns
    kernels._library.__wrapped__()
    assert made.stat().st_mtime_ns == before
