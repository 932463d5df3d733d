"""Settings of every stage, as frozen dataclasses. Standard library only: the web process imports this module."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from training.config_baselines import BestOfNConfig, DPOConfig, GRPOConfig, RejectionConfig
from training.fields import Common, ConfigError, Optimised, require_rows, setting
from training.fields import TrainingError as TrainingError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The GPT-2 architecture; norm="post" gives GPT-1's order of LayerNorm."""

    vocab_size: int = setting(1024, "Number of token ids.", low=1)
    n_positions: int = setting(128, "Context length in tokens.", low=2)
    n_embd: int = setting(128, "Width of the residual stream.", low=1)
    n_layer: int = setting(4, "Number of blocks.", low=1)
    n_head: int = setting(4, "Attention heads per block; must divide n_embd.", low=1)
    dropout: float = setting(0.0, "Share of activations dropped in pretraining.", low=0.0, high=0.9)
    positions: str = setting("learned", "Position embeddings.", choices=("learned", "sinusoidal"))
    norm: str = setting("pre", "LayerNorm before (GPT-2) or after (GPT-1) each sub-layer.", choices=("pre", "post"))
    tie_head: bool = setting(True, "Use the token embeddings as the output head.")

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"n_embd is {self.n_embd} and n_head is {self.n_head}: choose a number of heads that divides the width."
            )


PRESETS: dict[str, dict[str, Any]] = {
    "nano": {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 128, "dropout": 0.0},
    "gpt1": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 512, "dropout": 0.1, "norm": "post"},
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "dropout": 0.1},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024, "dropout": 0.1},
    "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20, "n_positions": 1024, "dropout": 0.1},
    "gpt2-xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024, "dropout": 0.1},
}


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Train a byte-level BPE on files, or take a named encoding."""

    files: list[str] = setting([], "Text files to learn the vocabulary from.")  # noqa: RUF009
    vocab_size: int = setting(
        1024, "Size of the vocabulary, 4 special tokens included; 260 = bytes alone.", low=260, high=1_000_000
    )
    encoding: str = setting(
        "", "A named encoding instead of training.", choices=("", "gpt2", "cl100k_base", "o200k_base")
    )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Optimised):
    """Next-token prediction on any number of texts."""

    tokenizer: str = setting("", "Directory of the tokenizer (not needed with a base model).")
    sources: list[dict[str, Any]] = setting(  # noqa: RUF009
        [], "Texts: path, weight (share of the rows), documents (file, lines or paragraphs).", required=True
    )
    base: str = setting("", "Model to train further; empty = start from random weights.")
    preset: str = setting("nano", "Size of the model.", choices=tuple(PRESETS))
    n_positions: int | None = setting(None, "Context length; empty = the preset's.", low=2)
    n_embd: int | None = setting(None, "Width; empty = the preset's.", low=1)
    n_layer: int | None = setting(None, "Blocks; empty = the preset's.", low=1)
    n_head: int | None = setting(None, "Heads; empty = the preset's.", low=1)
    dropout: float | None = setting(None, "Dropout; empty = the preset's.", low=0.0, high=0.9)
    positions: str | None = setting(
        None, "Position embeddings; empty = the preset's.", choices=("learned", "sinusoidal")
    )
    norm: str | None = setting(None, "LayerNorm order; empty = the preset's.", choices=("pre", "post"))
    tie_head: bool | None = setting(None, "Tie head and embeddings; empty = the preset's.")
    document_mask: bool = setting(
        False, "Tokens see their own document only, not what stands before it in a row.", advanced=True
    )
    steps: int = setting(600, "Optimizer steps.", low=1)
    batch_size: int = setting(32, "Rows of one context per step.", low=1)
    grad_accum: int = setting(1, "Parts a step's rows are computed in, to save memory.", low=1)
    learning_rate: float = setting(2e-3, "Highest learning rate.", low=0.0)
    warmup_steps: int = setting(50, "Steps in which the learning rate rises from 0.", low=0)
    weight_decay: float = setting(0.1, "AdamW's decay of matrices.", low=0.0)
    val_fraction: float = setting(0.05, "Tail of each file kept for validation; 0 = none.", low=0.0, high=0.5)
    val_every: int = setting(100, "Steps between validations.", low=1)
    val_batches: int = setting(10, "Most batches in one validation.", low=1, advanced=True)
    sharded: str = setting(
        "auto",
        "Spread weights and optimizer over the devices (FSDP); auto = where one device cannot hold them.",
        choices=("auto", "on", "off"),
        advanced=True,
    )
    save_best: bool = setting(
        False, "The model is that of the lowest validation loss, not of the last step.", advanced=True
    )
    sample_every: int = setting(200, "Steps between sampled texts; 0 = none.", low=0)
    sample_prompt: str = setting("", "How sampled texts begin; empty = a new document.")
    sample_tokens: int = setting(60, "Length of a sampled text in tokens.", low=1, advanced=True)

    def model(self, vocab_size: int) -> ModelConfig:
        """The preset with this run's own numbers laid over it."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(ModelConfig) if hasattr(self, f.name)}
        return ModelConfig(
            vocab_size=vocab_size, **{**PRESETS[self.preset], **{k: v for k, v in own.items() if v is not None}}
        )


@dataclass(frozen=True, kw_only=True)
class SFTConfig(Optimised):
    """Learn to answer from demonstrations: the loss is on the answer and its EOS only."""

    base: str = setting("", "Model to start from.", required=True)
    data: str = setting(
        "data/train.jsonl", "Rows {instruction, response} or {messages: [{role, content}, ...]}.", required=True
    )
    val: str = setting("", "Held-out rows of the same shape; empty = val_fraction of the data.")
    val_fraction: float = setting(
        0.05, "Share of the rows kept for validation where no file is given.", low=0, high=0.5
    )
    epochs: int = setting(3, "Passes over the rows.", low=1)
    batch_size: int = setting(16, "Demonstrations per step, packed or not.", low=1)
    packing: bool = setting(
        True, "Short demonstrations share a row, unseen by each other: faster, and the same is learned.", advanced=True
    )
    learning_rate: float = setting(5e-4, "Highest learning rate.", low=0.0)
    warmup_steps: int = setting(10, "Steps in which the learning rate rises from 0.", low=0)
    val_every: int = setting(50, "Steps between validations.", low=1)
    sharded: str = setting(
        "auto",
        "Spread weights and optimizer over the devices (FSDP); auto = where one device cannot hold them.",
        choices=("auto", "on", "off"),
        advanced=True,
    )
    save_best: bool = setting(
        False, "The model is that of the lowest validation loss, not of the last step.", advanced=True
    )
    sample_every: int = setting(100, "Steps between sampled answers; 0 = none.", low=0)
    sample_tokens: int = setting(60, "Length of a sampled answer in tokens.", low=1, advanced=True)


@dataclass(frozen=True, kw_only=True)
class RewardConfig(Optimised):
    """Learn from rankings which answers people prefer (InstructGPT's K-wise loss)."""

    base: str = setting("", "Model to start from: the SFT model.", required=True)
    data: str = setting("data/train.jsonl", "Rows {prompt, responses, ranking}.", required=True)
    val: str = setting("", "Held-out rows of the same shape.")
    demonstrations: str = setting("", "Rows {instruction, response} whose mean reward becomes 0.")
    epochs: int = setting(1, "Passes over the rankings; more than 1 overfits quickly.", low=1)
    pairing: str = setting(
        "k-wise",
        "Whole rankings together, or their pairs shuffled apart (overfits sooner).",
        choices=("k-wise", "pairs"),
        advanced=True,
    )
    val_every: int = setting(0, "Steps between validations; 0 = four times a pass.", low=0, advanced=True)
    save_best: bool = setting(
        False, "The model is that of the lowest validation loss, not of the last step.", advanced=True
    )
    batch_size: int = setting(8, "Rankings per step.", low=1)
    learning_rate: float = setting(5e-4, "Highest learning rate.", low=0.0)
    warmup_steps: int = setting(5, "Steps in which the learning rate rises from 0.", low=0)
    min_comparisons: int = setting(32, "Fewest comparisons to train on.", low=1)
    checkpoint_every: int = setting(50, "Steps between checkpoints.", low=1, advanced=True)


@dataclass(frozen=True, kw_only=True)
class PPOConfig(Optimised):
    """Raise the reward of the policy's answers while it stays near its reference (PPO)."""

    base: str = setting("", "Policy to start from, also the frozen reference.", required=True)
    reward_model: str = setting("", "Model that scores answers.", required=True)
    prompts: str = setting("data/prompts.jsonl", "Rows {prompt}.", required=True)
    demonstrations: str = setting("", "Rows {instruction, response} for ptx_coef; optional.")
    ptx_coef: float = setting(0.0, "Weight of the demonstrations' loss beside PPO's; 0 = none.", low=0.0, advanced=True)
    updates: int = setting(60, "Rounds of sampling and learning.", low=1)
    batch_size: int = setting(64, "Answers sampled per update.", low=1)
    epochs: int = setting(2, "Passes over the answers of one update.", low=1)
    minibatches: int = setting(2, "Parts of one pass; must divide batch_size.", low=1)
    learning_rate: float = setting(2e-4, "Highest learning rate of the policy; falls in a straight line.", low=0.0)
    value_learning_rate: float = setting(5e-4, "Highest learning rate of the value model.", low=0.0)
    min_lr_ratio: float = setting(0.0, "Learning rate at the end, as a share of the highest.", low=0.0, high=1.0)
    warmup_steps: int = setting(0, "Updates in which the learning rate rises from 0.", low=0)
    value_warmup: int = setting(3, "First updates that train the value model only.", low=0)
    kl_coef: float = setting(0.05, "Price of one nat of KL from the reference.", low=0.0)
    kl_target: float = setting(0.0, "KL that kl_coef adapts to; 0 = fixed.", low=0.0)
    kl_horizon: int = setting(10_000, "Answers over which kl_coef adapts.", low=1)
    gamma: float = setting(1.0, "Discount of later rewards.", low=0.0, high=1.0, advanced=True)
    lam: float = setting(0.95, "Lambda of generalised advantage estimation.", low=0.0, high=1.0, advanced=True)
    cliprange: float = setting(0.2, "Clip of the policy's ratio.", low=0.0, advanced=True)
    cliprange_value: float = setting(0.2, "Clip of the value's step.", low=0.0, advanced=True)
    vf_coef: float = setting(0.1, "Weight of the value loss; grad_clip sees it, Adam does not.", low=0.0, advanced=True)
    whiten_rewards: bool = setting(False, "Scale rewards to variance 1.", advanced=True)
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
    target_kl: float = setting(0.0, "Ends an update early when approx_kl passes it; 0 = never.", low=0.0, advanced=True)
    kl_snapshots: float = setting(
        0.0,
        "Keeps the policy each time the square root of its KL has grown by this; 0 = never.",
        low=0.0,
        advanced=True,
    )
    judge_model: str = setting("", "A reward model of other rankings, which says when to stop and what to keep.")
    judge_patience: int = setting(
        10, "Updates without a new peak of the judge's smoothed score that end the run.", low=1, advanced=True
    )
    sample_every: int = setting(10, "Updates between stored samples; 0 = none.", low=0)
    log_every: int = setting(1, "Updates between two points of the curves.", low=1, advanced=True)
    checkpoint_every: int = setting(10, "Updates between checkpoints.", low=1, advanced=True)

    def __post_init__(self) -> None:
        if self.batch_size % self.minibatches:
            raise ConfigError(
                f"batch_size is {self.batch_size} and minibatches is {self.minibatches}: "
                "choose a number of minibatches that divides the batch."
            )
        require_rows(self.batch_size // self.minibatches, self.devices)
        if self.updates <= self.value_warmup:
            raise ConfigError(
                f"updates is {self.updates} and value_warmup is {self.value_warmup}: the policy would not move; "
                "set more updates or a shorter warm-up."
            )
        if self.judge_model and self.judge_model == self.reward_model:
            raise ConfigError("The judge is the reward model itself, 1 model for both: choose one of other rankings.")
        if self.ptx_coef and not self.demonstrations:
            raise ConfigError(f"ptx_coef is {self.ptx_coef} and demonstrations is empty: name a file or set it to 0.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Common):
    """Compare two policies on held-out prompts by a reward model."""

    new: str = setting("", "The newer policy.", required=True)
    old: str = setting("", "The policy it is compared with.", required=True)
    reward_model: str = setting("", "Model that scores answers.", required=True)
    prompts: str = setting("data/prompts.jsonl", "Rows {prompt}.", required=True)
    samples_per_prompt: int = setting(1, "Answers per prompt and policy.", low=1)
    batch_size: int = setting(64, "Answers sampled at once.", low=1, advanced=True)
    temperature: float = setting(1.0, "Sampling temperature; 0 = greedy.", low=0.0, high=10.0)
    max_new_tokens: int = setting(48, "Longest answer in tokens.", low=1)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Common):
    """Write completions for prompts."""

    model: str = setting("", "Model that writes.", required=True)
    prompts: str | list[str] = setting("data/prompts.jsonl", "A file of rows {prompt}, or a list of them.")  # noqa: RUF009
    n: int = setting(4, "Completions per prompt.", low=1)
    batch_size: int = setting(64, "Completions written at once.", low=1, advanced=True)
    temperature: float = setting(1.0, "Sampling temperature; 0 = greedy.", low=0.0, high=10.0)
    top_k: int = setting(0, "Sample among the k likeliest tokens; 0 = all.", low=0)
    top_p: float = setting(1.0, "Sample among the likeliest tokens that hold this share.", low=0.0, high=1.0)
    max_new_tokens: int = setting(48, "Longest completion in tokens.", low=1)
    repetition_penalty: float = setting(
        1.0, "Divides the logits of tokens that stand in the text already; 1 = off.", low=1e-3, high=1e6, advanced=True
    )
    stop: list[str] = setting([], "Texts that end a completion, which is cut before them.", advanced=True)  # noqa: RUF009
    bad_words: list[str] = setting([], "Texts whose tokens are never written in a row.", advanced=True)  # noqa: RUF009
    beams: int = setting(0, "Beams of a beam search for the n likeliest completions; 0 = sample.", low=0, advanced=True)
    length_penalty: float = setting(
        1.0, "Power of the length that a beam's log-probability is divided by.", low=-10.0, high=10.0, advanced=True
    )

    def __post_init__(self) -> None:
        if 0 < self.beams < self.n:
            raise ConfigError(f"beams is {self.beams} and n is {self.n}: search with at least as many beams.")


STAGES: dict[str, type] = {
    "tokenizer": TokenizerConfig,
    "pretrain": PretrainConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
    "rejection": RejectionConfig,
    "best_of_n": BestOfNConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
}
