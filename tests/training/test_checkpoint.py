"""Model directories: what is saved comes back, and what does not belong together is refused."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training import huggingface
from training import vocabulary as tokenizers
from training.checkpoint import load_model, load_reward_model, require_same_tokenizer, save_model
from training.config import TrainingError
from training.model import GPT, RewardModel
from training.vocabulary import Tokenizer

KINDS = [{}, {"tie_head": False}, {"norm": "post"}, {"norm": "post", "tie_head": False}, {"positions": "sinusoidal"}]


def batch(vocab_size: int) -> Tensor:
    return torch.randint(vocab_size, (2, 9), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model: GPT, ids: Tensor) -> Tensor:
    return model.logits(model(ids))


@pytest.fixture
def saved(tmp_path: Path, tiny: Callable[..., GPT], tok: Tokenizer) -> Path:
    save_model(tmp_path / "model", tiny(), tok, "base", {"parent": "abc", "run": "7", "stage": "pretrain"})
    return tmp_path / "model"


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_loads_back_equal(kind: dict, tiny: Callable[..., GPT], tok: Tokenizer, tmp_path: Path) -> None:
    model = tiny(**kind)
    save_model(tmp_path / "model", model, tok, "base", {})
    again, _, _ = load_model(tmp_path / "model")
    assert again.config == model.config
    assert torch.equal(logits(again.eval(), batch(tok.vocab_size)), logits(model, batch(tok.vocab_size)))


def test_gpt2_vocab_json_is_read(tmp_path: Path, tok: Tokenizer) -> None:
    tok.save(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(stored["model"]["vocab"]), encoding="utf-8")
    assert tokenizers.load(tmp_path).hash == tok.hash


def test_card_says_where_a_model_comes_from(saved: Path, tok: Tokenizer) -> None:
    _, _, card = load_model(saved)
    expected = {"kind": "base", "parent": "abc", "run": "7", "stage": "pretrain", "eos_id": tok.eos_id}
    assert {key: card[key] for key in expected} == expected
    assert card["parameters"] > 10_000


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_missing_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"There is no model at .*nowhere"):
        load_model(tmp_path / "nowhere")


def test_a_model_with_another_chat_template_is_refused(saved: Path) -> None:
    change(saved / "bucle.json", template_hash="0123")
    with pytest.raises(TrainingError, match="chat template 0123"):
        load_model(saved)


def test_a_model_with_another_tokenizer_is_refused(saved: Path, text: str) -> None:
    tokenizers.train([text], 290).save(saved)
    with pytest.raises(TrainingError, match=r"290 ids.*is not the one"):
        load_model(saved)


def test_a_tokenizer_larger_than_the_model_is_refused(saved: Path) -> None:
    (saved / "bucle.json").unlink()
    tokenizers.named("gpt2").save(saved)
    with pytest.raises(TrainingError, match="has 50260 ids and the model 3"):
        load_model(saved)


def test_damaged_weights_are_one_sentence(saved: Path) -> None:
    os.truncate(saved / "model.safetensors", 2000)
    with pytest.raises(TrainingError, match="2000 bytes"):
        load_model(saved)


def test_weights_of_another_size_are_one_sentence(saved: Path) -> None:
    change(saved / "config.json", n_positions=16)
    with pytest.raises(TrainingError, match=r"wpe.weight .* is \(32, 32\) and config.json says \(16, 32\)"):
        load_model(saved)


def test_a_language_model_is_no_reward_model_and_the_reverse(
    saved: Path, tiny: Callable[..., GPT], tok: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="0 reward heads"):
        load_reward_model(saved)
    save_model(tmp_path / "reward", RewardModel(tiny()), tok, "reward", {})
    with pytest.raises(TrainingError, match="is a reward model"):
        load_model(tmp_path / "reward")


def test_two_vocabularies_are_refused(tok: Tokenizer, text: str) -> None:
    require_same_tokenizer(tok, tok, ("a", "b"))
    with pytest.raises(TrainingError, match="and the reward model another one of 290"):
        require_same_tokenizer(tok, tokenizers.train([text], 290), ("The policy", "the reward model"))


def test_no_pickle_is_written(saved: Path) -> None:
    assert {path.suffix for path in saved.iterdir()} == {".json", ".safetensors", ".jinja"}


@pytest.mark.parametrize("kind", [{}, {"tie_head": False}])
def test_chat_tokens_begin_as_the_mean_of_the_others(
    kind: dict, tiny: Callable[..., GPT], tok: Tokenizer, tmp_path: Path
) -> None:
    plain = GPT(dataclasses.replace(tiny(**kind).config, vocab_size=tok.vocab_size - 3)).eval()
    wide = huggingface.widen(plain, tok, tmp_path).eval()
    assert wide.config.vocab_size == tok.vocab_size
    for weight, before in ((wide.wte.weight, plain.wte.weight), (wide.head, plain.head)):
        torch.testing.assert_close(weight[-3:], before.mean(0).expand(3, -1))
    ids = batch(tok.vocab_size - 3)
    torch.testing.assert_close(logits(wide, ids)[..., :-3], logits(plain, ids))
