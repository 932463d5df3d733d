"""Settings with which a model learns the small world in minutes on two cores; the demo uses them as they are."""

from typing import Any

# Sizes of what the demo imports.
CHARACTERS = 5_000_000
DEMONSTRATIONS = 4_000
PROMPTS = {"train": 533, "holdout": 190}
LEFT_TO_WRITE = 12  # questions without a demonstration: work for people

TOKENIZER: dict[str, Any] = {"vocab_size": 1024}
PRETRAIN: dict[str, Any] = {
    "preset": "nano",
    "steps": 1500,
    "batch_size": 16,
    "learning_rate": 4e-3,
    "min_lr_ratio": 0.03,
    "val_fraction": 0.02,
    "val_every": 300,
    "sample_every": 500,
}
SFT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3}

# Below temperature 1 the model misspells less: people then judge what it says, not how it stumbles.
SAMPLING: dict[str, Any] = {"temperature": 0.6, "max_new_tokens": 40}
ROUND: dict[str, Any] = {"prompts": 533, "k": 6, "overlap": 2, "sampling": SAMPLING}
NEXT_ROUND: dict[str, Any] = {"prompts": 12, "k": 4, "overlap": 2, "sampling": SAMPLING}
ANNOTATORS: dict[str, Any] = {"annotators": 3, "noise": 0.25}
REWARD: dict[str, Any] = {"epochs": 1, "batch_size": 4, "learning_rate": 7e-4}
# At a fifth of this price of KL the policy flatters the reward model: kinder still, but wrong more often than before.
PPO: dict[str, Any] = {**SAMPLING, "updates": 40, "batch_size": 64, "learning_rate": 2e-4, "kl_coef": 0.25}
EVALUATE: dict[str, Any] = {**SAMPLING, "samples_per_prompt": 2}
