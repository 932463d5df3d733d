"""Settings of the stages that PPO is measured against. Standard library only: the web process imports this module."""

from dataclasses import dataclass

from training.fields import Common, ConfigError, Optimised, require_rows, setting


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


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(Optimised):
    """Raise the reward without a value model: a prompt's other answers are the baseline (GRPO, RLOO)."""

    base: str = setting("", "Policy to start from, also the frozen reference.", required=True)
    reward_model: str = setting("", "Model that scores answers.", required=True)
    prompts: str = setting("data/prompts.jsonl", "Rows {prompt}.", required=True)
    estimator: str = setting(
        "rloo",
        "rloo: whole answers, KL in the reward; grpo: tokens, scores by their spread in the group, KL in the loss.",
        choices=("rloo", "grpo"),
    )
    group_size: int = setting(4, "Answers per prompt that are measured against each other.", low=2)
    updates: int = setting(60, "Rounds of sampling and learning.", low=1)
    batch_size: int = setting(64, "Answers sampled per update.", low=2)
    epochs: int = setting(1, "Passes over the answers of one update.", low=1)
    minibatches: int = setting(2, "Parts of one pass; must divide batch_size.", low=1)
    learning_rate: float = setting(2e-4, "Highest learning rate of the policy; falls in a straight line.", low=0.0)
    min_lr_ratio: float = setting(0.0, "Learning rate at the end, as a share of the highest.", low=0.0, high=1.0)
    warmup_steps: int = setting(0, "Updates in which the learning rate rises from 0.", low=0)
    kl_coef: float = setting(0.05, "Price of one nat of KL from the reference.", low=0.0)
    cliprange: float = setting(0.2, "Clip of the policy's ratio.", low=0.0, advanced=True)
    temperature: float = setting(1.0, "Sampling temperature.", low=1e-3, high=10.0)
    max_new_tokens: int = setting(48, "Longest answer in tokens.", low=1)
    missing_eos_penalty: float = setting(
        1.0, "An answer that does not end scores minus this, whatever it says.", low=0.0
    )
    scale_scores: bool = setting(True, "Divide scores by their spread over the rankings.", advanced=True)
    score_clip: float = setting(10.0, "Largest size of a score; 0 = no limit.", low=0.0, advanced=True)
    kl_budget: float = setting(
        0.0, "Ends the run when an answer's KL from the reference passes it; 0 = never.", low=0.0
    )
    sample_every: int = setting(10, "Updates between stored samples; 0 = none.", low=0)
    log_every: int = setting(1, "Updates between two points of the curves.", low=1, advanced=True)
    checkpoint_every: int = setting(10, "Updates between checkpoints.", low=1, advanced=True)

    def __post_init__(self) -> None:
        for name, parts in (("group_size", self.group_size), ("minibatches", self.minibatches)):
            if self.batch_size % parts:
                raise ConfigError(
                    f"batch_size is {self.batch_size} and {name} is {parts}: choose a {name} that divides the batch."
                )
        require_rows(self.batch_size // self.minibatches, self.devices)


@dataclass(frozen=True, kw_only=True)
class RejectionConfig(Optimised):
    """Write n answers to each prompt, keep the best by the reward model, learn from those (rejection-sampling SFT)."""

    base: str = setting("", "Policy to start from, also the frozen reference.", required=True)
    reward_model: str = setting("", "Model that scores answers.", required=True)
    prompts: str = setting("data/prompts.jsonl", "Rows {prompt}.", required=True)
    n: int = setting(8, "Answers per prompt, of which the best is learned.", low=2)
    epochs: int = setting(2, "Passes over the best answers.", low=1)
    batch_size: int = setting(16, "Best answers per step.", low=1)
    learning_rate: float = setting(5e-4, "Highest learning rate.", low=0.0)
    temperature: float = setting(1.0, "Sampling temperature.", low=1e-3, high=10.0)
    max_new_tokens: int = setting(48, "Longest answer in tokens.", low=1)
    write_batch: int = setting(64, "Answers sampled at once.", low=1, advanced=True)
    kl_samples: int = setting(128, "Answers that the final KL is measured on; 0 = not measured.", low=0, advanced=True)


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(Common):
    """Answer n times and take the best by the reward model: no training, and what it costs in KL."""

    base: str = setting("", "Policy that writes.", required=True)
    reward_model: str = setting("", "Model that scores answers.", required=True)
    prompts: str = setting("data/prompts.jsonl", "Rows {prompt}.", required=True)
    n: int = setting(16, "Largest n; 1, 2, 4 ... up to it are measured.", low=2, high=1024)
    pool: int = setting(0, "Answers written per prompt, more than n; 0 = twice n.", low=0, advanced=True)
    temperature: float = setting(1.0, "Sampling temperature.", low=1e-3, high=10.0)
    max_new_tokens: int = setting(48, "Longest answer in tokens.", low=1)
    write_batch: int = setting(64, "Answers sampled at once.", low=1, advanced=True)
    devices: int = setting(1, "Processes that share each step's rows, one per GPU.", low=1, high=1024, advanced=True)

    def __post_init__(self) -> None:
        if 0 < self.pool <= self.n:
            raise ConfigError(f"pool is {self.pool} and n is {self.n}: write more answers than n, or set pool to 0.")
