"""Where a run computes: when compiling is worth it, and what happens when it fails."""

import dataclasses
from pathlib import Path

import pytest
import torch

from training import device, kernels
from training.device import Compute
from training.parse import parse

GPU = Compute(torch.device("cuda"), bf16=True)  # no tensor of these tests is there
LONG = 2 * device.WORTH_COMPILING


def double(x: torch.Tensor) -> torch.Tensor:
    return x + x


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was compiled; nothing really is."""
    asked: list[str] = []

    def compiled(function, **options):
        asked.append(function.__name__)
        return lambda *args: function(*args)

    monkeypatch.setattr(torch, "compile", compiled)
    return asked


@pytest.mark.parametrize(
    ("setting", "flops", "expected"),
    [("auto", LONG, True), ("auto", LONG / 4, False), ("on", 0.0, True), ("off", LONG, False)],
)
def test_long_runs_are_compiled(setting: str, flops: float, expected: bool, compiler: list[str]) -> None:
    function = dataclasses.replace(GPU, compile=setting).compiled(double, flops)
    assert bool(compiler) is expected
    assert function(torch.ones(2)).tolist() == [2, 2]


def test_on_a_cpu_there_are_kernels_instead(compiler: list[str]) -> None:
    config = parse("pretrain", {"sources": [{"path": "a"}], "compile": "on", "device": "cpu"})
    assert device.prepare(config).compiled(double, LONG) is double
    assert not compiler
    assert kernels.usable(torch.zeros(1))
    device.prepare(dataclasses.replace(config, compile="off"))
    assert not kernels.usable(torch.zeros(1))


@pytest.mark.parametrize(
    ("limit", "flags", "fast"),
    [
        ("", "fma avx512_bf16", True),
        ("", "fma amx_bf16 avx512_bf16", True),
        ("", "fma avx2", False),
        ("AVX512_CORE_BF16", "amx_bf16 avx512_bf16", True),
        ("AVX2", "amx_bf16 avx512_bf16", False),
    ],
)
def test_bf16_is_chosen_where_its_products_are_faster(
    limit: str, flags: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit or "ALL")
    monkeypatch.setattr(Path, "read_text", lambda self, **options: f"flags : {flags}\n")
    assert device.cpu_has_bf16() is fast


class FailedToCompile(Exception):
    __module__ = "torch._inductor.exc"


def failing(function, **options):
    def call(*args):
        raise FailedToCompile

    return call


def test_a_failed_compile_is_said_once_in_auto_and_raised_when_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", failing)
    function = dataclasses.replace(GPU, compile="auto").compiled(double, LONG)
    assert [function(torch.ones(1)).item() for _ in range(2)] == [2, 2]
    said = capsys.readouterr().err
    assert said == "torch.compile failed (FailedToCompile): this run goes on uncompiled.\n"
    with pytest.raises(FailedToCompile):
        dataclasses.replace(GPU, compile="on").compiled(double, LONG)(torch.ones(1))


def test_other_errors_are_not_swallowed(compiler: list[str]) -> None:
    with pytest.raises(TypeError):
        dataclasses.replace(GPU, compile="auto").compiled(double, LONG)(None)
