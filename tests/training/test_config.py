"""Settings: what is accepted, and the sentence for what is not."""

import dataclasses
import subprocess
import sys

import pytest

from training.config import PRESETS, STAGES, ConfigError, ModelConfig
from training.model import GPT, parameter_count
from training.parse import parse

MINIMAL = {
    "tokenizer": {},
    "pretrain": {"sources": [{"path": "a.txt"}]},
    "sft": {"base": "m"},
    "reward": {"base": "m"},
    "ppo": {"base": "m", "reward_model": "r"},
    "dpo": {"base": "m"},
    "grpo": {"base": "m", "reward_model": "r"},
    "rejection": {"base": "m", "reward_model": "r"},
    "best_of_n": {"base": "m", "reward_model": "r"},
    "evaluate": {"new": "a", "old": "b", "reward_model": "r"},
    "generate": {"model": "m"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_defaults_and_a_help_line_for_each_field(stage: str) -> None:
    config = parse(stage, MINIMAL[stage])
    for field in dataclasses.fields(config):
        assert field.metadata["help"].endswith("."), field.name
    assert parse(stage, dataclasses.asdict(config)) == config


def test_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"'learning_rat'.*did you mean 'learning_rate'"):
        parse("sft", {"base": "m", "learning_rat": 1})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": "ten"}, "steps is 'ten': it must be a whole number"),
        ({"steps": True}, "steps is True: it must be a whole number"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"steps": 0}, "steps is 0: it must be at least 1"),
        ({"val_fraction": 0.9}, "val_fraction is 0.9: it must be at most 0.5"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"preset": "huge"}, "preset is 'huge': choose one of 'nano'"),
        ({"sources": ["a.txt"]}, "sources is"),
        ({"sources": []}, "sources is missing"),
        ({"n_embd": "wide"}, "n_embd is 'wide': it must be a whole number or empty"),
    ],
)
def test_a_wrong_value_is_one_sentence(changes: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("(", r"\(")):
        parse("pretrain", MINIMAL["pretrain"] | changes)


def test_whole_number_is_accepted_as_a_number() -> None:
    assert parse("sft", {"base": "m", "learning_rate": 1}).learning_rate == 1.0


def test_own_numbers_lie_over_the_preset() -> None:
    config = parse("pretrain", MINIMAL["pretrain"] | {"preset": "gpt1", "n_layer": 2, "tie_head": False})
    model = config.model(vocab_size=500)
    assert (model.n_layer, model.n_embd, model.norm, model.tie_head, model.vocab_size) == (2, 768, "post", False, 500)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="n_embd is 10 and n_head is 4"):
        ModelConfig(n_embd=10, n_head=4)


def test_minibatches_must_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match="batch_size is 10 and minibatches is 4"):
        parse("ppo", MINIMAL["ppo"] | {"batch_size": 10, "minibatches": 4})


@pytest.mark.parametrize(
    ("preset", "millions"), [("gpt2", 124.4), ("gpt2-medium", 354.8), ("gpt2-large", 774.0), ("gpt2-xl", 1557.6)]
)
def test_presets_have_the_published_sizes(preset: str, millions: float) -> None:
    import torch

    with torch.device("meta"):
        model = GPT(ModelConfig(vocab_size=50257, **PRESETS[preset]))
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.1)


def test_config_needs_the_standard_library_only() -> None:
    code = "import sys, training.config; print([m for m in ('torch', 'numpy', 'tiktoken') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
