"""Model directories: weights in Hugging Face's layout, tokenizer, and a card. safetensors only."""

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from training import chat, huggingface, parallel, vocabulary
from training.checkpoints import atomic_dir
from training.config import TrainingError
from training.model import GPT, RewardModel, parameter_count
from training.vocabulary import Tokenizer


def save_model(path: Path, model: GPT | RewardModel, tok: Tokenizer, kind: str, meta: dict[str, Any]) -> None:
    """A model directory, atomically: config.json, model.safetensors, tokenizer.json and bucle.json.

    kind: base, sft, reward or policy; meta: parent, run, stage and whatever else bucle.json should say. All ranks of
    a run must call it, rank 0 writes.
    """
    tensors = huggingface.tensors_of(model)
    if parallel.rank():
        return
    with atomic_dir(path) as folder:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        _write_json(folder / "config.json", huggingface.config_of(model, tok))
        end = {"eos_token_id": tok.eos_id, "bos_token_id": tok.eos_id, "pad_token_id": tok.pad_id}
        _write_json(folder / "generation_config.json", {"_from_model_config": True, **end})
        tok.save(folder)
        (folder / "chat_template.jinja").write_text(chat.TEMPLATE, encoding="utf-8")
        if isinstance(model, RewardModel):
            # The last LayerNorm's bias holds it, unless the head is 0 and nothing can.
            meta = {**meta, "reward_bias": 0.0 if model.head.weight.any() else float(model.bias)}
        write_card(folder, tok, kind, {**meta, "parameters": parameter_count(model)})


def write_card(folder: Path, tok: Tokenizer, kind: str, meta: dict[str, Any]) -> None:
    """bucle.json: where this artifact comes from and what it must be used with."""
    card = {"kind": kind, "parent": None, "run": None, "stage": None, **meta}
    contract = {"template_hash": chat.TEMPLATE_HASH, "tokenizer_hash": tok.hash, "eos_id": tok.eos_id}
    _write_json(folder / "bucle.json", {**card, **contract, "vocab_size": tok.vocab_size, "revision": _revision()})


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """The network, its tokenizer and bucle.json ({} for a plain Hugging Face GPT-2 folder)."""
    tensors, tok, card = _read(path)
    if card.get("kind") == "reward" or "score.weight" in tensors:
        raise TrainingError(f"{path} is a reward model with 1 score, not a language model: choose a policy.")
    model = huggingface.fill(GPT(huggingface.model_config(path, tensors)), tensors, path)
    return huggingface.widen(model, tok, path).to(device), tok, card


def load_reward_model(path: Path, device: torch.device | str = "cpu") -> tuple[RewardModel, Tokenizer, dict[str, Any]]:
    """The scorer, its tokenizer and bucle.json ({} for a GPT2ForSequenceClassification with one label)."""
    tensors, tok, card = _read(path)
    if "score.weight" not in tensors:
        raise TrainingError(f"{path} has 0 reward heads (no score.weight): choose the result of a reward run.")
    if len(tensors["score.weight"]) != 1:
        raise TrainingError(f"{path} tells {len(tensors['score.weight'])} classes apart: a reward model has 1 score.")
    config = dataclasses.replace(huggingface.model_config(path, tensors), tie_head=True)
    trunk = huggingface.fill(GPT(config), tensors, path)
    model = RewardModel(huggingface.widen(trunk, tok, path))
    model.head.weight.data.copy_(tensors["score.weight"])
    model.bias.fill_(card.get("reward_bias", 0.0))
    return model.to(device), tok, card


def kind_of(path: Path) -> str:
    """base, sft, reward or policy: as its card says; without a card, what its architecture can do."""
    if (path / "bucle.json").is_file():
        return str(huggingface.read_json(path / "bucle.json")["kind"])
    stored = huggingface.read_json(path / "config.json") if (path / "config.json").is_file() else {}
    scores = any(name.endswith("ForSequenceClassification") for name in stored.get("architectures") or [])
    return "reward" if scores else "base"


def require_same_tokenizer(one: Tokenizer, other: Tokenizer, names: tuple[str, str]) -> None:
    """Refuse two models that would read the same ids as different texts."""
    if one.hash != other.hash:
        raise TrainingError(
            f"{names[0]} has a vocabulary of {one.vocab_size} and {names[1]} another one of {other.vocab_size}: "
            "use models that come from the same tokenizer."
        )


def _read(path: Path) -> tuple[dict[str, Tensor], Tokenizer, dict[str, Any]]:
    needed = ("config.json", "model.safetensors", "model.safetensors.index.json")
    found = [name for name in needed if (path / name).is_file()]
    if "config.json" not in found or len(found) < 2:
        raise TrainingError(
            f"There is no model at {path} (it has {', '.join(found) or '0 files'} of config.json and "
            "model.safetensors): give the directory of a finished model."
        )
    card = huggingface.read_json(path / "bucle.json") if (path / "bucle.json").is_file() else {}
    tok = vocabulary.load(path)
    if card.get("template_hash", chat.TEMPLATE_HASH) != chat.TEMPLATE_HASH:
        raise TrainingError(
            f"{path} was trained with chat template {card['template_hash']} and this version writes "
            f"{chat.TEMPLATE_HASH}: train it again from its base model."
        )
    if card.get("tokenizer_hash", tok.hash) != tok.hash:
        raise TrainingError(
            f"The tokenizer in {path} ({tok.vocab_size} ids) is not the one its model was trained with "
            f"({card.get('vocab_size')} ids): restore the whole directory."
        )
    return huggingface.read_tensors(path), tok, card


@functools.cache
def _revision() -> str | None:
    if os.environ.get("BUCLE_REVISION"):
        return os.environ["BUCLE_REVISION"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        here = Path(__file__).parent
        told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
        return told.stdout.strip() or None if told.returncode == 0 else None
    return None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
