"""What all stages have in common: where dropout is on, the learning rate of every step, orders of epochs, clipping."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import jsonl, tiny_config
from training import data, optim, rejection
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


@pytest.fixture(autouse=True)
def every_prompt_has_an_answer_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random network ends few of its answers: rejection sampling would have no rows."""
    monkeypatch.setattr(rejection, "best_ended", lambda answers: answers[0])


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


def _models(stage: str, folders: dict[str, str]) -> dict[str, str]:
    names = {"evaluate": ("new", "old"), "generate": ("model",)}.get(stage, ("base",))
    return dict.fromkeys(names, folders["base"]) | ({"reward_model": folders["judge"]} if stage in JUDGED else {})


def _run(stage: str, settings: dict[str, Any], make_run: Callable[..., Path]) -> None:
    shown = [{"instruction": f"pan {i}", "response": "miel"} for i in range(8)]
    rows = shown if stage == "sft" else [{"prompt": f"pan {i}", **RANKED} for i in range(8)]
    files = {"train.jsonl": jsonl(rows), "prompts.jsonl": jsonl([{"prompt": f"pan {i}"} for i in range(8)])}
    run_dir = make_run(settings, files | {"a.txt": "El pan cuesta 3 monedas.\n" * 90})
    importlib.import_module(f"training.{stage}").run(parse(stage, settings), run_dir, Report(run_dir))


@pytest.mark.parametrize("stage", SETTINGS)
def test_dropout_is_off(stage: str, folders: dict[str, str], modes: list, make_run: Callable[..., Path]) -> None:
    _run(stage, SETTINGS[stage] | _models(stage, folders), make_run)
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


LEARNING = {
    "pretrain": {"sources": [{"path": "data/a.txt"}], "steps": 6, "sample_every": 0},
    **{stage: SETTINGS[stage] | {"epochs": 3} for stage in ("sft", "reward", "dpo", "rejection")},
}
PACE = {"learning_rate": 2e-4, "warmup_steps": 2, "min_lr_ratio": 0.25, "batch_size": 4}


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[set[float]]:
    """The learning rates that each step of AdamW was taken with."""
    seen: list[set[float]] = []
    honest = optim.AdamW.step

    def watched(self: optim.AdamW, *arguments: Any) -> None:
        seen.append({group["lr"] for group in self.param_groups})
        honest(self, *arguments)

    monkeypatch.setattr(optim.AdamW, "step", watched)
    return seen


@pytest.mark.parametrize("stage", LEARNING)
def test_every_step_has_the_rate_of_its_schedule(
    stage: str, folders: dict[str, str], rates: list, make_run: Callable[..., Path]
) -> None:
    _run(stage, LEARNING[stage] | _models(stage, folders) | PACE, make_run)
    assert len(rates) == 6
    assert rates == [{optim.learning_rate(step, 6, 2e-4, 2, 0.25)} for step in range(6)]


def test_grpos_rate_falls_in_a_straight_line(
    folders: dict[str, str], rates: list, make_run: Callable[..., Path]
) -> None:
    pace = {"updates": 4, "minibatches": 1, "min_lr_ratio": 0.2, "warmup_steps": 1, "learning_rate": 1e-4}
    _run("grpo", SETTINGS["grpo"] | _models("grpo", folders) | pace, make_run)
    assert [pytest.approx(rate.pop()) for rate in rates] == [0.5e-4, 0.8e-4, 0.6e-4, 0.4e-4]


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "rejection"])
def test_each_epoch_has_an_order_of_its_own(
    stage: str, folders: dict[str, str], make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, asked = data.epoch_order, list[int]()
    monkeypatch.setattr(data, "epoch_order", lambda n, seed, epoch: asked.append(epoch) or honest(n, seed, epoch))
    _run(stage, LEARNING[stage] | _models(stage, folders) | PACE, make_run)
    assert [epoch for epoch in asked if epoch >= 0] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("stage", [*LEARNING, "ppo", "grpo"])
def test_gradients_are_clipped_where_the_settings_say(
    stage: str, folders: dict[str, str], make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, asked = optim.clip, list[float]()
    monkeypatch.setattr(optim, "clip", lambda model, limit: asked.append(limit) or honest(model, limit))
    settings = LEARNING.get(stage) or SETTINGS[stage]
    _run(stage, settings | _models(stage, folders) | {"grad_clip": 0.7}, make_run)
    assert set(asked) == {0.7}


@pytest.mark.parametrize(("limit", "after"), [(0.0, 5.0), (9.0, 5.0), (1.0, 1.0)])
def test_a_gradient_above_the_limit_is_scaled_down_to_it(limit: float, after: float) -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert float(optim.clip(model, limit)) == pytest.approx(5.0)
    assert float(model.weight.grad.norm()) == pytest.approx(after, rel=1e-4)


def test_every_step_of_every_seed_has_a_seed_and_every_epoch_an_order() -> None:
    seeds = [optim.step_seed(seed, step) for seed in (1, 2, 3) for step in range(50)]
    assert len(set(seeds)) == 150
    assert all(0 <= seed < 2**63 for seed in [*seeds, optim.step_seed(2**31 - 1, 10**9)])
    orders = {tuple(data.epoch_order(20, seed, epoch)) for seed in (1, 2) for epoch in (-1, 0, 1)}
    assert len(orders) == 6
