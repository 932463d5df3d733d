"""A small run of every stage that trains: settings that take seconds, and a directory with all it needs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.training.conftest import jsonl

JUDGED = {"ppo", "grpo", "rejection", "best_of_n"}
RANKED = {"responses": ["miel", "miel y pan", "queso"], "ranking": [2, [0, 1]]}
COMMON = {"checkpoint_every": 3, "log_every": 1, "threads": 1, "batch_size": 4, "learning_rate": 1e-3}
SETTINGS: dict[str, dict[str, Any]] = {
    "pretrain": {
        "steps": 30, "val_every": 10, "sample_every": 10, "sample_tokens": 4, "dropout": 0.2, "grad_accum": 2,
        "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "sources": [{"path": "data/a.txt"}],
    },
    "sft": {"epochs": 6, "val_every": 7, "sample_every": 9, "sample_tokens": 4},
    "reward": {"epochs": 4, "min_comparisons": 1, "val": "data/train.jsonl"},
    "dpo": {"epochs": 4, "min_comparisons": 1, "max_new_tokens": 4, "kl_samples": 4, "val": "data/train.jsonl"},
    "ppo": {
        "updates": 8, "max_new_tokens": 6, "value_warmup": 1, "kl_target": 2.0, "kl_horizon": 100, "sample_every": 3,
        "ptx_coef": 0.1, "demonstrations": "data/demonstrations.jsonl",
    },
    "grpo": {"updates": 8, "max_new_tokens": 6, "group_size": 2, "sample_every": 3},
    "rejection": {"epochs": 40, "n": 6, "max_new_tokens": 40, "write_batch": 12, "kl_samples": 4},
}  # fmt: skip
# Stages that train nothing.
WRITING = {"best_of_n": {"n": 3, "max_new_tokens": 40, "write_batch": 15, "threads": 1}}
Build = Callable[..., Path]  # build(stage, name, **changes of the settings)


def fill(run_dir: Path, stage: str, models: dict[str, Path], text: str, **changes: Any) -> Path:
    """models: base, tokenizer and reward_model as directories."""
    demonstrations = jsonl([{"instruction": f"pan {i}", "response": "miel " * (1 + i % 5)} for i in range(22)])
    rankings = jsonl([{"prompt": f"pan {i}", **RANKED} for i in range(22)])
    files = {
        "a.txt": text,
        "train.jsonl": demonstrations if stage == "sft" else rankings,
        "demonstrations.jsonl": demonstrations,
        "prompts.jsonl": jsonl([{"prompt": f"pan {i}"} for i in range(10)]),
    }
    (run_dir / "data").mkdir()
    for name, content in files.items():
        (run_dir / "data" / name).write_text(content, encoding="utf-8")
    names = ["tokenizer"] if stage == "pretrain" else ["base"]
    names += ["reward_model"] if stage in JUDGED else []
    own = {**COMMON, **SETTINGS[stage]} if stage in SETTINGS else WRITING[stage]
    settings = {**own, **{name: str(models[name]) for name in names}, **changes}
    (run_dir / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return run_dir
