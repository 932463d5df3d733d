"""Dropout is on in the steps of pretraining and nowhere else, whatever the base model's config says."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import jsonl, tiny_config
from training.checkpoint import save_model
from training.model import GPT, RewardModel
from training.parse import parse
from training.report import Report
from training.vocabulary import Tokenizer

RANKED = {"responses": ["miel", "miel y pan", "queso"], "ranking": [2, [0, 1]]}
SHORT = {"max_new_tokens": 12}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"epochs": 1, "sample_every": 1},
    "reward": {"min_comparisons": 1, "val": "data/train.jsonl"},
    "dpo": {"min_comparisons": 1, "val": "data/train.jsonl", "kl_samples": 4, **SHORT},
    "ppo": {"updates": 2, "value_warmup": 0, "batch_size": 8, **SHORT},
    "grpo": {"updates": 2, "batch_size": 8, **SHORT},
    "rejection": {"n": 4, "kl_samples": 4, "epochs": 1, **SHORT},
    "best_of_n": {"n": 2, **SHORT},
    "evaluate": SHORT,
    "generate": SHORT,
}
JUDGED = ("ppo", "grpo", "rejection", "best_of_n", "evaluate")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tok: Tokenizer) -> dict[str, str]:
    """A model whose config asks for dropout, which ends its answers now and then, and a reward model of it."""
    folder = tmp_path_factory.mktemp("dropout")
    torch.manual_seed(3)
    model = GPT(tiny_config(tok.vocab_size, n_positions=64, dropout=0.5))
    with torch.no_grad():
        model.wpe.weight[4:] += model.wte.weight[tok.eos_id] * 20
    save_model(folder / "base", model, tok, "base", {})
    save_model(folder / "judge", RewardModel(model), tok, "reward", {})
    return {"base": str(folder / "base"), "judge": str(folder / "judge")}


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """(in training mode, with a gradient) of every pass through a network."""
    seen: list[tuple[bool, bool]] = []
    honest = GPT.forward

    def watched(self: GPT, *arguments: Any, **named: Any) -> Any:
        assert self.config.dropout == 0.5
        seen.append((self.training, torch.is_grad_enabled()))
        return honest(self, *arguments, **named)

    monkeypatch.setattr(GPT, "forward", watched)
    return seen


def _run(stage: str, settings: dict[str, Any], make_run: Callable[..., Path]) -> None:
    shown = [{"instruction": f"pan {i}", "response": "miel"} for i in range(8)]
    rows = shown if stage == "sft" else [{"prompt": f"pan {i}", **RANKED} for i in range(8)]
    files = {"train.jsonl": jsonl(rows), "prompts.jsonl": jsonl([{"prompt": f"pan {i}"} for i in range(8)])}
    run_dir = make_run(settings, files | {"a.txt": "El pan cuesta 3 monedas.\n" * 90})
    importlib.import_module(f"training.{stage}").run(parse(stage, settings), run_dir, Report(run_dir))


@pytest.mark.parametrize("stage", SETTINGS)
def test_dropout_is_off(stage: str, folders: dict[str, str], modes: list, make_run: Callable[..., Path]) -> None:
    names = {"evaluate": ("new", "old"), "generate": ("model",)}.get(stage, ("base",))
    models = dict.fromkeys(names, folders["base"]) | ({"reward_model": folders["judge"]} if stage in JUDGED else {})
    _run(stage, SETTINGS[stage] | models, make_run)
    assert modes
    assert not any(training for training, _ in modes)


def test_pretraining_drops_in_its_steps_and_not_in_its_validations(
    folders: dict[str, str], modes: list, make_run: Callable[..., Path]
) -> None:
    settings = {"base": folders["base"], "sources": [{"path": "data/a.txt"}], "steps": 2, "batch_size": 2}
    _run("pretrain", settings | {"sample_every": 0, "val_every": 1}, make_run)
    assert {training for training, learns in modes if learns} == {True}
    assert {training for training, learns in modes if not learns} == {False}
    assert len(set(modes)) == 2
