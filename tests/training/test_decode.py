"""The decoder says what the network says, whatever the batch, the norm, the positions, the head or the packing."""

from collections.abc import Callable

import pytest
import torch

from training import decode_kernel
from training.decode import Decoder
from training.device import Compute
from training.model import GPT

pytestmark = pytest.mark.usefixtures("setting")
KINDS = [{}, {"norm": "post"}, {"positions": "sinusoidal"}, {"tie_head": False}]
FP32, BF16 = (Compute(torch.device("cpu"), bf16) for bf16 in (False, True))
LENGTHS = [5, 2, 8, 1, 7]


def _ids(model: GPT, rows: int = 5, length: int = 16) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def _largest_gap(model: GPT, compute: Compute) -> float:
    """Read ragged prompts, then eight tokens of each row one by one, beside the whole pass of each row alone."""
    ids, lengths, rows = _ids(model), torch.tensor(LENGTHS), torch.arange(5)
    decoder = Decoder(model, 5, 16, compute)
    whole = torch.cat([model.logits(model(row[None])) for row in ids])
    padded = torch.where(torch.arange(8) < lengths[:, None], ids[:, :8], 0)
    gaps = [decoder.prefill(padded, lengths, rows, rows) - whole[rows, lengths - 1]]
    for at in (lengths + i for i in range(8)):
        gaps.append(decoder.step(ids[rows, at], at, int(at.max()) + 1) - whole[rows, at])
    return max(gap.abs().max().item() for gap in gaps)


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_prompts_and_steps_equal_the_whole_pass_of_each_alone(kind: dict, tiny: Callable[..., GPT]) -> None:
    assert _largest_gap(tiny(**kind), FP32) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_near(kind: dict, tiny: Callable[..., GPT]) -> None:
    assert 0 < _largest_gap(tiny(**kind), BF16) < 0.05


@torch.inference_mode()
def _logits(model: GPT, compute: Compute, rows: list[int], threads: int) -> torch.Tensor:
    """Nine tokens, one by one, of some of 30 texts."""
    ids = _ids(model, 30, 9)[rows]
    decoder = Decoder(model, len(rows), 9, compute)
    before, torch_threads = torch.get_num_threads(), torch.set_num_threads
    torch_threads(threads)
    try:
        steps = [decoder.step(ids[:, at], torch.full((len(rows),), at), at + 1) for at in range(9)]
    finally:
        torch_threads(before)
    return torch.stack(steps, 1)


@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_neighbours_and_threads_change_no_bit_of_a_row(
    compute: Compute, setting: str, tiny: Callable[..., GPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(n_embd=128)
    if Decoder(model, 1, 9, compute).kernel is None:
        pytest.skip("torch's own products depend on the batch")
    monkeypatch.setattr(decode_kernel, "ALONE", 0)
    all_rows = _logits(model, compute, list(range(30)), threads=2)
    assert all_rows.std() > 0.1
    for rows in ([0], [17], [29, 3], list(range(10, 24)), list(range(30))):
        assert torch.equal(_logits(model, compute, rows, threads=1), all_rows[rows])


def test_machines_without_onednn_compute_the_same(tiny: Callable[..., GPT], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert _largest_gap(tiny(), FP32) <= 1e-5


@torch.inference_mode()
def test_rows_can_be_filled_copied_and_reordered(tiny: Callable[..., GPT]) -> None:
    model = tiny()
    ids = _ids(model, 2)
    decoder = Decoder(model, 4, 16, FP32)
    rows, source = torch.tensor([3, 0, 1]), torch.tensor([1, 0, 0])
    decoder.prefill(ids[:, :6], torch.tensor([6, 6]), rows, source)  # rows hold texts 0, 0, nothing, 1
    decoder.cache.copy(3, 2, 6)
    decoder.cache.reorder(torch.tensor([3, 1, 0]), 6)  # 1, 0, 0
    texts, at = torch.tensor([1, 0, 0, 1]), torch.full((4,), 6)
    out = decoder.step(ids[texts, 6], at, 7)
    whole = model.logits(model(ids[:, :7]))[:, 6]
    torch.testing.assert_close(out, whole[texts], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_decoder_is_as_the_model_was_when_it_was_made(tiny: Callable[..., GPT]) -> None:
    """PPO makes a new one for each rollout; what an old one says after training is not defined and not asked."""
    model = tiny()
    ids, rows = _ids(model, 8, 8), torch.arange(8)
    first = Decoder(model, 8, 16, FP32).prefill(ids, torch.full((8,), 8), rows, rows)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    second = Decoder(model, 8, 16, FP32).prefill(ids, torch.full((8,), 8), rows, rows)
    with torch.no_grad():
        torch.testing.assert_close(second, model.logits(model(ids))[:, -1], atol=1e-4, rtol=0)
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_biases_and_norms_that_have_learned_count_too(kind: dict, tiny: Callable[..., GPT], setting: str) -> None:
    """A fresh network's biases are all 0: one that is read from the wrong place would not show."""
    model = tiny(**kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    assert _largest_gap(model, FP32) <= 2e-5
