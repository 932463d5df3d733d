"""Model directories in Hugging Face's layout. safetensors only."""

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training import chat, vocabulary
from training.checkpoints import atomic_dir
from training.config import ModelConfig, TrainingError
from training.model import GPT, RewardModel, parameter_count
from training.vocabulary import Tokenizer

# Hugging Face's GPT-2 and GPT-1 keep these as Conv1D: the transpose of our Linear.
_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_GPT1_NAMES = {"wte.": "tokens_embed.", "wpe.": "positions_embed."}


def save_model(path: Path, model: GPT | RewardModel, tok: Tokenizer, kind: str, meta: dict[str, Any]) -> None:
    """A model directory, atomically: config.json, model.safetensors, tokenizer.json and bucle.json.

    kind: base, sft, reward or policy; meta: parent, run, stage and whatever else bucle.json should say.
    """
    with atomic_dir(path) as folder:
        save_file(_hf_tensors(model), folder / "model.safetensors", metadata={"format": "pt"})
        _write_json(folder / "config.json", _hf_config(model, tok))
        end = {"eos_token_id": tok.eos_id, "bos_token_id": tok.eos_id, "pad_token_id": tok.pad_id}
        _write_json(folder / "generation_config.json", {"_from_model_config": True, **end})
        tok.save(folder)
        (folder / "chat_template.jinja").write_text(chat.TEMPLATE, encoding="utf-8")
        if isinstance(model, RewardModel):
            meta = {**meta, "reward_bias": float(model.bias)}
        write_card(folder, tok, kind, {**meta, "parameters": parameter_count(model)})


def write_card(folder: Path, tok: Tokenizer, kind: str, meta: dict[str, Any]) -> None:
    """bucle.json: where this artifact comes from and what it must be used with."""
    card = {"kind": kind, "parent": None, "run": None, "stage": None, **meta}
    contract = {"template_hash": chat.TEMPLATE_HASH, "tokenizer_hash": tok.hash, "eos_id": tok.eos_id}
    _write_json(folder / "bucle.json", {**card, **contract, "vocab_size": tok.vocab_size, "revision": _revision()})


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """The network, its tokenizer and bucle.json ({} for a plain Hugging Face GPT-2 folder)."""
    config, tensors, tok, card = _read(path)
    if card.get("kind") == "reward":
        raise TrainingError(f"{path} is a reward model with 1 score, not a language model: choose a policy.")
    model = _fill(GPT(config), tensors, path)
    return _widen(model, tok, path).to(device), tok, card


def load_reward_model(path: Path, device: torch.device | str = "cpu") -> tuple[RewardModel, Tokenizer, dict[str, Any]]:
    config, tensors, tok, card = _read(path)
    if "score.weight" not in tensors:
        raise TrainingError(f"{path} has 0 reward heads (no score.weight): choose the result of a reward run.")
    model = RewardModel(_fill(GPT(dataclasses.replace(config, tie_head=True)), tensors, path))
    model.head.weight.data.copy_(tensors["score.weight"])
    model.bias.fill_(card.get("reward_bias", 0.0))
    return model.to(device), tok, card


def require_same_tokenizer(one: Tokenizer, other: Tokenizer, names: tuple[str, str]) -> None:
    """Refuse two models that would read the same ids as different texts."""
    if one.hash != other.hash:
        raise TrainingError(
            f"{names[0]} has a vocabulary of {one.vocab_size} and {names[1]} another one of {other.vocab_size}: "
            "use models that come from the same tokenizer."
        )


def _read(path: Path) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer, dict[str, Any]]:
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise TrainingError(
                f"There is no model at {path} (0 files {name}): give the directory of a finished model."
            )
    card = _read_json(path / "bucle.json") if (path / "bucle.json").is_file() else {}
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
    try:
        tensors = load_file(path / "model.safetensors")
    except SafetensorError as error:
        size = (path / "model.safetensors").stat().st_size
        raise TrainingError(f"{path}/model.safetensors ({size} bytes) is damaged ({error}): copy it again.") from None
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    return _model_config(_read_json(path / "config.json"), tensors, path), tensors, tok, card


def _model_config(stored: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> ModelConfig:
    kind = stored.get("model_type")
    if kind not in ("gpt2", "openai-gpt"):
        raise TrainingError(f"{path} is of type {kind!r}: 2 types can be read, gpt2 and openai-gpt.")
    activation = stored.get("activation_function", stored.get("afn", "gelu_new"))
    if activation not in ("gelu_new", "gelu_pytorch_tanh") and not (kind == "openai-gpt" and activation == "gelu"):
        raise TrainingError(f"{path} uses the activation {activation!r}: 1 can be read, gelu_new.")
    # Some GPT-2 exports leave tied out of the config; the file of weights knows.
    tied = stored.get("tie_word_embeddings", True) and "lm_head.weight" not in tensors
    tied = tied or bool(torch.equal(tensors.get("lm_head.weight", torch.zeros(0)), _embedding(tensors)))
    return ModelConfig(
        vocab_size=stored["vocab_size"],
        n_positions=stored["n_positions"],
        n_embd=stored["n_embd"],
        n_layer=stored["n_layer"],
        n_head=stored["n_head"],
        dropout=float(stored.get("resid_pdrop", 0.0)),
        positions=stored.get("positions", "learned"),
        norm="pre" if kind == "gpt2" else "post",
        tie_head=tied,
    )


def _embedding(tensors: dict[str, Tensor]) -> Tensor:
    return tensors.get("wte.weight", tensors.get("tokens_embed.weight", torch.zeros(1)))


def _fill(model: GPT, tensors: dict[str, Tensor], path: Path) -> GPT:
    state = {}
    for name, own in model.state_dict().items():
        tensor = tensors.get(_hf_name(name, model.config))
        if tensor is None and name == "lm_head.weight":
            tensor = _embedding(tensors)
        if tensor is None:
            raise TrainingError(f"{path}/model.safetensors has {len(tensors)} tensors and lacks {name}: copy it again.")
        tensor = tensor.t() if name.endswith(_CONV1D) else tensor
        if tensor.shape != own.shape:
            raise TrainingError(
                f"{name} in {path} is {tuple(tensor.shape)} and config.json says {tuple(own.shape)}: "
                "restore the file that belongs to these weights."
            )
        state[name] = tensor.float()
    model.load_state_dict(state)
    return model


def _widen(model: GPT, tok: Tokenizer, path: Path) -> GPT:
    """Room for the chat tokens in a plain GPT-2: new rows begin as the mean of the others."""
    have, need = model.config.vocab_size, tok.vocab_size
    if have >= need:
        return model
    if need - have > len(vocabulary.CHAT_TOKENS):
        raise TrainingError(
            f"The tokenizer in {path} has {need} ids and the model {have}: use the one it was trained with."
        )
    wide = GPT(dataclasses.replace(model.config, vocab_size=need))
    state = model.state_dict()
    for name in ("wte.weight", "lm_head.weight"):
        if name in state:
            state[name] = torch.cat([state[name], state[name].mean(0, keepdim=True).expand(need - have, -1)])
    wide.load_state_dict(state)
    return wide


def _hf_name(name: str, config: ModelConfig) -> str:
    if config.norm == "post":
        for ours, theirs in _GPT1_NAMES.items():
            name = name.replace(ours, theirs)
    return name


def _hf_tensors(model: GPT | RewardModel) -> dict[str, Tensor]:
    trunk = model.trunk if isinstance(model, RewardModel) else model
    tensors = {}
    for name, tensor in trunk.state_dict().items():
        if name == "lm_head.weight":
            if trunk is model:
                tensors[name] = tensor
            continue
        tensors[f"transformer.{_hf_name(name, trunk.config)}"] = tensor.t() if name.endswith(_CONV1D) else tensor
    if trunk.config.positions == "sinusoidal":  # a fixed table is, to Hugging Face, a learned one
        tensors[f"transformer.{_hf_name('wpe.weight', trunk.config)}"] = trunk.waves
    if isinstance(model, RewardModel):
        tensors["score.weight"] = model.head.weight
    return {name: tensor.detach().float().contiguous().cpu() for name, tensor in tensors.items()}


def _hf_config(model: GPT | RewardModel, tok: Tokenizer) -> dict[str, Any]:
    config, reward = model.config, isinstance(model, RewardModel)
    post = config.norm == "post"
    family = "OpenAIGPT" if post else "GPT2"
    sizes = {k: getattr(config, k) for k in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "positions")}
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    return {
        "architectures": [family + ("ForSequenceClassification" if reward else "LMHeadModel")],
        "model_type": "openai-gpt" if post else "gpt2",
        **sizes,
        **drop,
        "afn" if post else "activation_function": "gelu" if post else "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": tok.eos_id,
        "eos_token_id": tok.eos_id,
        "pad_token_id": tok.pad_id,
        "tie_word_embeddings": config.tie_head,
        "torch_dtype": "float32",
        **({"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}} if reward else {}),
    }


@functools.cache
def _revision() -> str | None:
    if os.environ.get("BUCLE_REVISION"):
        return os.environ["BUCLE_REVISION"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        here = Path(__file__).parent
        told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
        return told.stdout.strip() or None if told.returncode == 0 else None
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise TrainingError(f"{path} ({path.stat().st_size} bytes) is not JSON ({error}): restore it.") from None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
