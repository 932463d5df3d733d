"""TRL's RewardTrainer in a run directory of our stage `reward`: the same config.json in, the same figures out.

`python -m bench.trl_reward RUN_DIR`. It gets the token ids of our template, so that only the trainers differ.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel
from trl import RewardConfig, RewardTrainer

from bench import runs
from training import comparisons, vocabulary
from training.reward import Ranking, read_rankings


def pair_ids(rankings: list[Ranking]) -> list[dict[str, list[int]]]:
    """Every untied pair as the columns that RewardTrainer takes for tokenized rows."""
    return [
        {"chosen_ids": ranking.examples[better], "rejected_ids": ranking.examples[worse]}
        for ranking in rankings
        for better, worse in ranking.pairs()
    ]


def arguments(config: dict[str, Any], steps: int, n_pairs: int, out: Path) -> RewardConfig:
    """One pass in as many steps as ours: a ranking's pairs count as so many rows. The rest as our stage does it."""
    return RewardConfig(
        output_dir=str(out),
        per_device_train_batch_size=math.ceil(n_pairs / steps),
        num_train_epochs=config["epochs"],
        learning_rate=config["learning_rate"],
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config["min_lr_ratio"]},
        warmup_steps=config["warmup_steps"],
        adam_beta2=0.99,
        weight_decay=0.0,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        seed=config["seed"],
        max_length=None,
        bf16=config["precision"] == "bf16",
        gradient_checkpointing=False,  # its default saves memory that nobody lacks here and takes a third more time
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


@torch.no_grad()
def score(model: PreTrainedModel, examples: list[list[int]], pad_id: int, at_once: int = 64) -> list[float]:
    """One reward per example, in their order."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    rewards = [0.0] * len(examples)
    for start in range(0, len(order), at_once):
        chosen = order[start : start + at_once]
        longest = max(len(examples[i]) for i in chosen)
        ids = torch.tensor([[*examples[i], *[pad_id] * (longest - len(examples[i]))] for i in chosen])
        scores = model(input_ids=ids, attention_mask=(ids != pad_id).long()).logits[:, 0]
        for i, value in zip(chosen, scores.tolist(), strict=True):
            rewards[i] = value
    return rewards


def main(run_dir: Path) -> None:
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    started = time.monotonic()
    tok = vocabulary.load(Path(config["base"]))
    context = json.loads((Path(config["base"]) / "config.json").read_text(encoding="utf-8"))["n_positions"]
    learn, _ = read_rankings(Path(config["data"]), tok, context)
    held_out, _ = read_rankings(Path(config["val"]), tok, context)
    pairs = pair_ids(learn)
    trainer = RewardTrainer(
        model=config["base"],
        args=arguments(config, math.ceil(len(learn) / config["batch_size"]), len(pairs), run_dir / "trainer"),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(config["base"]),
    )
    trained = trainer.train()
    rewards = score(trainer.model.eval(), [ids for ranking in held_out for ids in ranking.examples], tok.pad_id)
    scored, gaps, start = [], [], 0
    for ranking in held_out:
        for better, worse in ranking.pairs():
            chosen, rejected = rewards[start + better], rewards[start + worse]
            scored.append({"prompt": ranking.prompt, "chosen": ranking.responses[better]})
            scored[-1] |= {"rejected": ranking.responses[worse], "chosen_reward": chosen, "rejected_reward": rejected}
            gaps.append(chosen - rejected)
        start += len(ranking.examples)
    runs.write_rows(run_dir / "val_pairs.jsonl", scored)
    accuracy, n = comparisons.accuracy(gaps)
    result = {"val_accuracy": accuracy, "val_pairs": n, "train_pairs": len(pairs), "steps": trained.global_step}
    result |= {"train_loss": trained.training_loss, "seconds": round(time.monotonic() - started, 2)}
    (run_dir / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
