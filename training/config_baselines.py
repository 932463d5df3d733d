"""Settings of the stages that PPO is measured against. Standard library only: the web process imports this module."""

from dataclasses import dataclass

from training.fields import Optimised, setting


@dataclass(frozen=True, kw_only=True)
class DPOConfig(Optimised):
    """Learn from rankings without a reward model and without sampling (Rafailov et al. 2023)."""

    base: str = setting("", "Policy to start from, also the frozen reference.", required=True)
    data: str = setting("data/train.jsonl", "Rows {prompt, responses, ranking}.", required=True)
    val: str = setting("", "Held-out rows of the same shape.")
    beta: float = setting(0.1, "Price of KL: the larger, the nearer the policy stays to its reference.", low=1e-6)
    label_smoothing: float = setting(
        0.0, "Share of comparisons believed to be the wrong way round.", low=0.0, high=0.49, advanced=True
    )
    epochs: int = setting(1, "Passes over the rankings; more than 1 overfits quickly.", low=1)
    batch_size: int = setting(8, "Rankings per step.", low=1)
    learning_rate: float = setting(2e-4, "Highest learning rate.", low=0.0)
    warmup_steps: int = setting(5, "Steps in which the learning rate rises from 0.", low=0)
    min_comparisons: int = setting(32, "Fewest comparisons to train on.", low=1)
    val_every: int = setting(0, "Steps between validations; 0 = four times a pass.", low=0, advanced=True)
    kl_samples: int = setting(128, "Answers that the final KL is measured on; 0 = not measured.", low=0, advanced=True)
    max_new_tokens: int = setting(48, "Longest answer in tokens.", low=1)
    checkpoint_every: int = setting(50, "Steps between checkpoints.", low=1, advanced=True)
