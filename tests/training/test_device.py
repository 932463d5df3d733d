"""Where a run computes: when compiling is worth it, and what happens when it fails."""

import dataclasses

import pytest
import torch

from training import device
from training.device import Compute
from training.parse import parse

CPU = Compute(torch.device("cpu"), bf16=False)
LONG = 2 * device.WORTH_COMPILING["cpu"]


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
    monkeypatch.setattr(device, "_has_compiler", lambda: True)
    return asked


@pytest.mark.parametrize(
    ("setting", "flops", "expected"),
    [("auto", LONG, True), ("auto", LONG / 4, False), ("on", 0.0, True), ("off", LONG, False)],
)
def test_long_runs_are_compiled(setting: str, flops: float, expected: bool, compiler: list[str]) -> None:
    config = parse("pretrain", {"sources": [{"path": "a"}], "compile": setting, "device": "cpu"})
    function = device.prepare(config).compiled(double, flops)
    assert bool(compiler) is expected
    assert function(torch.ones(2)).tolist() == [2, 2]


def test_without_a_compiler_auto_stays_plain(compiler: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_has_compiler", lambda: False)
    assert dataclasses.replace(CPU, compile="auto").compiled(double, LONG) is double


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
    monkeypatch.setattr(device, "_has_compiler", lambda: True)
    function = dataclasses.replace(CPU, compile="auto").compiled(double, LONG)
    assert [function(torch.ones(1)).item() for _ in range(2)] == [2, 2]
    said = capsys.readouterr().err
    assert said == "torch.compile failed (FailedToCompile): this run goes on uncompiled.\n"
    with pytest.raises(FailedToCompile):
        dataclasses.replace(CPU, compile="on").compiled(double, LONG)(torch.ones(1))


def test_other_errors_are_not_swallowed(compiler: list[str]) -> None:
    with pytest.raises(TypeError):
        dataclasses.replace(CPU, compile="auto").compiled(double, LONG)(None)
