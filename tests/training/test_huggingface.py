"""A Hugging Face folder and a model of ours compute the same function, both ways; reward models likewise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.conftest import prompt_ids, tiny_config
from training import huggingface
from training.checkpoint import load_model, load_reward_model, save_model
from training.config import TrainingError
from training.model import GPT, RewardModel
from training.vocabulary import Tokenizer, named

TOLERANCE = 1e-4
KINDS = [{}, {"tie_head": False}, {"norm": "post"}, {"norm": "post", "tie_head": False}, {"positions": "sinusoidal"}]
SIZES = [  # width, layers, heads, context
    {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32},
    {"n_embd": 96, "n_layer": 5, "n_head": 6, "n_positions": 80},
    {"n_embd": 256, "n_layer": 3, "n_head": 4, "n_positions": 128},
]


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is absent: pip install -e .[interop]")


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights ten times GPT-2's, biases and LayerNorms too: at the initial ones most errors stay invisible."""
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.3 / parameter.shape[-1] ** 0.25)
    return model.eval()


def batch(vocab_size: int, time: int = 29) -> Tensor:
    return torch.randint(vocab_size, (3, time), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model: GPT, ids: Tensor) -> Tensor:
    return model.logits(model(ids))


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"d{size['n_embd']}")
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_transformers_computes_our_logits(
    kind: dict, size: dict, tok: Tokenizer, tmp_path: Path, transformers: Any
) -> None:
    model, ids = loud(GPT(tiny_config(tok.vocab_size, **size, **kind))), batch(tok.vocab_size)
    save_model(tmp_path / "model", model, tok, "base", {})
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(theirs).__name__ == ("OpenAIGPTLMHeadModel" if model.config.norm == "post" else "GPT2LMHeadModel")
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        own = logits(model, ids)
        assert gap(theirs.eval()(ids).logits, own) <= TOLERANCE
    assert own.std() > 0.5  # logits so flat that anything would agree prove nothing


def their_folder(transformers: Any, name: str, tok: Tokenizer, folder: Path, task: str, **options: Any) -> Any:
    """A random model of theirs, saved with a GPT-2 tokenizer that knows <|endoftext|> only."""
    torch.manual_seed(5)
    config = transformers.AutoConfig.for_model(name, vocab_size=tok.eos_id + 1, **options)
    theirs = loud(getattr(transformers, f"AutoModelFor{task}").from_config(config))
    theirs.save_pretrained(folder)
    tok.save(folder)
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    stored["added_tokens"] = stored["added_tokens"][:1]
    stored["model"]["vocab"] = {k: v for k, v in stored["model"]["vocab"].items() if v <= tok.eos_id}
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    return theirs


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"d{size['n_embd']}")
@pytest.mark.parametrize(("name", "tied"), [("gpt2", True), ("gpt2", False), ("openai-gpt", True)])
def test_we_compute_their_logits(
    name: str, tied: bool, size: dict, tok: Tokenizer, tmp_path: Path, transformers: Any
) -> None:
    theirs = their_folder(transformers, name, tok, tmp_path, "CausalLM", **size, tie_word_embeddings=tied)
    model, own, card = load_model(tmp_path)
    assert (card, own.hash) == ({}, tok.hash)
    assert model.config.vocab_size == own.vocab_size == tok.eos_id + 4  # room for the three chat tokens
    ids = batch(tok.eos_id)
    with torch.no_grad():
        expected = theirs(ids).logits
        assert gap(logits(model.eval(), ids)[..., : tok.eos_id + 1], expected) <= TOLERANCE
    assert expected.std() > 0.5
    assert torch.isfinite(logits(model, torch.tensor([prompt_ids(own)]))).all()


@pytest.mark.slow
def test_gpt2_at_its_published_size_is_the_same_function_both_ways(tmp_path: Path, transformers: Any) -> None:
    """124 M parameters, a context of 1,024, GPT-2's own vocabulary: the folder that people bring."""
    torch.manual_seed(7)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config()).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="200MB")
    named("gpt2").save(tmp_path / "theirs")
    ours, tok, _ = load_model(tmp_path / "theirs")
    ids = torch.randint(50_257, (1, 1024), generator=torch.Generator().manual_seed(2))
    save_model(tmp_path / "ours", ours.eval(), tok, "base", {})
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        expected = theirs(ids).logits
        assert gap(logits(ours, ids)[..., :50_257], expected) <= TOLERANCE
        assert gap(again(ids).logits[..., :50_257], expected) <= TOLERANCE
    assert again.num_parameters() == sum(p.numel() for p in ours.parameters()) == 124_439_808 + 3 * 768


def test_sharded_weights_are_read(tok: Tokenizer, tmp_path: Path, transformers: Any) -> None:
    theirs = their_folder(transformers, "gpt2", tok, tmp_path, "CausalLM", **SIZES[0])
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert not (tmp_path / "model.safetensors").exists()
    ids = batch(tok.eos_id)
    with torch.no_grad():
        assert gap(logits(load_model(tmp_path)[0].eval(), ids)[..., : tok.eos_id + 1], theirs(ids).logits) <= TOLERANCE
    shards[1].unlink()
    with pytest.raises(TrainingError, match=rf"lacks the file {shards[1].name} \(1 of {len(shards)}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_norm_epsilon": 1e-6},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"activation_function": "relu"},
        {"model_type": "gptj"},
    ],
    ids=str,
)
def test_a_folder_that_we_would_compute_differently_is_refused(
    change: dict, tiny: Callable[..., GPT], tok: Tokenizer, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", tiny(), tok, "base", {})
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(TrainingError, match=str(next(iter(change.values())))):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_transformers_gives_our_centred_score(norm: str, tok: Tokenizer, tmp_path: Path, transformers: Any) -> None:
    model = RewardModel(loud(GPT(tiny_config(tok.vocab_size, norm=norm)))).eval()
    model.bias.fill_(-3.25)
    save_model(tmp_path / "model", model, tok, "reward", {"reward_std": 2.0})
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([[*tok.encode("pan y miel"), tok.eos_id, tok.pad_id, tok.pad_id]])
    eos = (ids[0] == tok.eos_id).nonzero()[0]
    with torch.no_grad():
        own = model.score(ids, eos)
        assert gap(theirs(ids).logits[:, 0], own) <= TOLERANCE
        again, _, card = load_reward_model(tmp_path / "model")
        assert gap(again.eval().score(ids, eos), own) <= 1e-5
    assert (card["reward_bias"], float(again.bias), card["reward_std"]) == (0.0, 0.0, 2.0)


def test_a_bias_kept_on_the_card_still_counts(tiny: Callable[..., GPT], tok: Tokenizer, tmp_path: Path) -> None:
    model = RewardModel(tiny()).eval()
    save_model(tmp_path / "model", model, tok, "reward", {})
    card = tmp_path / "model" / "bucle.json"
    card.write_text(json.dumps(json.loads(card.read_text(encoding="utf-8")) | {"reward_bias": 0.75}), encoding="utf-8")
    ids, eos = torch.tensor([[3, tok.eos_id]]), torch.tensor([1])
    with torch.no_grad():
        own = load_reward_model(tmp_path / "model")[0].eval().score(ids, eos)
        assert gap(own, model.score(ids, eos) + 0.75) <= 1e-6


def test_a_bias_survives_a_head_of_zeros(tiny: Callable[..., GPT], tok: Tokenizer, tmp_path: Path) -> None:
    model = RewardModel(tiny()).eval()
    model.head.weight.data.zero_()
    model.bias.fill_(0.5)
    save_model(tmp_path / "model", model, tok, "reward", {})
    again, _, _ = load_reward_model(tmp_path / "model")
    assert float(again.bias) == 0.5
    assert all(torch.isfinite(tensor).all() for tensor in huggingface.read_tensors(tmp_path / "model").values())


def test_their_sequence_classifier_is_a_reward_model(tok: Tokenizer, tmp_path: Path, transformers: Any) -> None:
    options = {**SIZES[0], "num_labels": 1, "pad_token_id": tok.eos_id}
    theirs = their_folder(transformers, "gpt2", tok, tmp_path, "SequenceClassification", **options)
    model, own, card = load_reward_model(tmp_path)
    assert (card, own.hash) == ({}, tok.hash)
    ids = torch.tensor([[*tok.encode("El pan cuesta 5."), 7]])
    with torch.no_grad():
        score = model.eval().score(ids, torch.tensor([ids.shape[1] - 1]))
        assert gap(score, theirs(ids).logits[:, 0]) <= TOLERANCE
    assert torch.isfinite(model.score(torch.tensor([prompt_ids(own)]), torch.tensor([0]))).all()
    with pytest.raises(TrainingError, match="is a reward model with 1 score"):
        load_model(tmp_path)


def test_a_classifier_of_two_classes_is_refused(tok: Tokenizer, tmp_path: Path, transformers: Any) -> None:
    their_folder(transformers, "gpt2", tok, tmp_path, "SequenceClassification", **SIZES[0], num_labels=2)
    with pytest.raises(TrainingError, match="tells 2 classes apart"):
        load_reward_model(tmp_path)
