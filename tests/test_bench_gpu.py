"""The GPU's measurements: the formula of MFU, and every path at tiny sizes on a CPU."""

import pytest
import torch

from bench import gpu
from training.config import ModelConfig
from training.model import GPT, parameter_count


def test_operations_per_token_of_gpt2_at_1024() -> None:
    """124M: 123,653,376 weights without position embeddings; 12 x 12 x 12 x 64 x 1,024 for attention."""
    config = ModelConfig(vocab_size=50_257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
    with torch.device("meta"):
        parameters = parameter_count(GPT(config))
    assert parameters == 124_439_808
    assert gpu.flops_per_token(config, parameters) == 6 * 123_653_376 + 12 * 12 * 12 * 64 * 1024 == 855_166_464


def test_mfu_of_llm_c_is_its_published_share() -> None:
    """~460 k tokens/s of GPT-2 124M on one H100 is ~40 %."""
    assert 460e3 * gpu.flops_per_token(gpu.GPT2, 124_475_904) / gpu.H100 == pytest.approx(0.40, abs=0.01)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main([])
    assert capsys.readouterr().out == "not run: no CUDA device\n"


@pytest.mark.slow
def test_every_path_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    gpu.main(["--dry"])
    table = capsys.readouterr().out
    for word in ("pretraining", "MFU", "decoding, 3 rows", "rollout", "scoring", "DDP, 2 processes"):
        assert word in table
