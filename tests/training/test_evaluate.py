"""Stage evaluate: two policies side by side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import jsonl, rows_of, run_stage
from training import evaluate
from training.checkpoint import load_model, load_reward_model, save_model
from training.config import TrainingError
from training.device import Compute
from training.engine import Request, generate
from training.model import RewardModel
from training.parse import parse
from training.report import Report
from training.rollout import Episodes, completion_logprobs, padded

CPU = Compute(torch.device("cpu"), bf16=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> dict[str, str]:
    """An old policy, a new one that ends its answers sooner, and a reward model."""
    folder = tmp_path_factory.mktemp("models")
    model, tok, _ = load_model(base_dir)
    torch.manual_seed(5)
    save_model(folder / "judge", RewardModel(load_model(base_dir)[0]), tok, "reward", {})
    with torch.no_grad():
        model.wpe.weight[4:] += model.wte.weight[tok.eos_id] * 20
    save_model(folder / "new", model, tok, "policy", {})
    return {"old": str(base_dir), "new": str(folder / "new"), "reward_model": str(folder / "judge")}


@pytest.fixture
def evaluate_run(make_run: Callable[..., Path], models: dict[str, str]) -> Callable[..., Path]:
    def build(name: str = "run", **changes: Any) -> Path:
        config = {**models, "samples_per_prompt": 3, "batch_size": 7, "max_new_tokens": 12, "seed": 3}
        prompts = jsonl([{"prompt": f"pan {i}"} for i in range(6)])
        return make_run({**config, **changes}, {"prompts.jsonl": prompts}, name)

    return build


def _run(run_dir: Path) -> dict[str, Any]:
    settings = json.loads((run_dir / "config.json").read_text())
    return evaluate.run(parse("evaluate", settings), run_dir, Report(run_dir))


def test_figures_agree_with_the_stored_samples(evaluate_run):
    run_dir = evaluate_run()
    result = _run(run_dir)
    rows = rows_of(run_dir / "samples.jsonl")
    assert len(rows) == 18
    assert result["prompts"] == 6
    gaps = [row["reward_new"] - row["reward_old"] for row in rows]
    assert result["win_rate"] == pytest.approx(sum((g > 0) + 0.5 * (g == 0) for g in gaps) / 18)
    assert result["reward_new"] == pytest.approx(sum(row["reward_new"] for row in rows) / 18)
    assert 0 <= result["win_rate_low"] <= result["win_rate"] <= result["win_rate_high"] <= 1
    assert result["eos_new"] > result["eos_old"]
    assert result["length_new"] < result["length_old"]
    assert result["kl"] > 0


def test_a_policy_against_itself_ties_everywhere(evaluate_run, models):
    result = _run(evaluate_run(new=models["old"]))
    assert result["win_rate"] == 0.5
    assert result["kl"] == 0.0
    assert result["reward_new"] == result["reward_old"]


def test_answers_do_not_depend_on_the_batch_size(evaluate_run):
    one, other = evaluate_run("one"), evaluate_run("other", batch_size=64)
    _run(one), _run(other)
    texts = [[(row["new"], row["old"]) for row in rows_of(run / "samples.jsonl")] for run in (one, other)]
    assert texts[0] == texts[1]


def test_running_it_again_does_not_double_the_samples(evaluate_run):
    run_dir = evaluate_run()
    _run(run_dir), _run(run_dir)
    assert len(rows_of(run_dir / "samples.jsonl")) == 18


def test_it_runs_as_a_program_and_leaves_no_model(evaluate_run):
    run_dir = evaluate_run()
    assert run_stage("evaluate", run_dir).returncode == 0
    assert json.loads((run_dir / "result.json").read_text())["win_rate_high"] <= 1
    assert not (run_dir / "model").exists()


def test_a_reward_model_as_policy_is_refused(evaluate_run, models):
    with pytest.raises(TrainingError, match="is a reward model with 1 score"):
        _run(evaluate_run(new=models["reward_model"]))


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_kl_is_the_mean_log_ratio_with_less_noise(models, temperature):
    new, tok, _ = load_model(Path(models["new"]))
    old, _, _ = load_model(Path(models["old"]))
    prompts = [[tok.user_id, 5, tok.assistant_id]] * 400
    answers = generate(new.eval(), tok, prompts, list(range(400)), max_new_tokens=6, temperature=temperature)
    kl = evaluate.sequence_kl(new, old.eval(), answers, tok.pad_id, temperature, 64, CPU)
    exact = 0.0
    for answer in answers[:40]:  # one by one, every state of the answer, at the temperature of both
        ids = torch.tensor([[*answer.prompt_ids, *answer.tokens]])
        with torch.no_grad():
            p, q = ((m.logits(m(ids))[0, 2:-1] / temperature).log_softmax(-1) for m in (new, old))
        exact += (p.exp() * (p - q)).sum().item() / 40
    some = evaluate.sequence_kl(new, old, answers[:40], tok.pad_id, temperature, 7, CPU)
    assert some == pytest.approx(exact, rel=1e-3)
    episodes = Episodes.of(answers, tok.pad_id, "cpu")
    with torch.no_grad():
        ours, theirs = (completion_logprobs(m, episodes, temperature, CPU)[0] for m in (new, old))
    ratios = padded(ours - theirs, episodes.mask).sum(1)
    assert kl == pytest.approx(ratios.mean().item(), abs=4 * ratios.std().item() / 20)
    assert kl > 0.01


def test_an_answer_that_was_cut_off_is_scored_as_if_it_ended_there(models):
    """And one that fills the context loses its last token to the EOS."""
    judge, tok, _ = load_reward_model(Path(models["reward_model"]))
    room = judge.eval().config.n_positions
    texts = [[tok.user_id, 5, tok.assistant_id, 7, 8], [5] * room, [tok.user_id, 5, tok.assistant_id, 7, tok.eos_id]]
    answers = [Request(ids[:3]) for ids in texts]
    for answer, ids in zip(answers, texts, strict=True):
        answer.tokens = ids[3:]
    whole = [[*texts[0], tok.eos_id], [*texts[1][:-1], tok.eos_id], texts[2]]
    with torch.no_grad():
        expected = [judge.score(torch.tensor([ids]), torch.tensor([len(ids) - 1])).item() for ids in whole]
    assert evaluate.rewards_of(judge, answers, tok, CPU) == pytest.approx(expected, abs=1e-5)
