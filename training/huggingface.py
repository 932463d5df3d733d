"""Hugging Face's GPT-2 and GPT-1: their config.json and tensors to our network and back, the same function."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training import parallel, vocabulary
from training.config import ModelConfig, TrainingError
from training.model import GPT, RewardModel
from training.vocabulary import Tokenizer

# Both keep these as Conv1D: the transpose of our Linear.
_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_GPT1_NAMES = {"wte.": "tokens_embed.", "wpe.": "positions_embed."}
# Switches of GPT2Config that change the function; ours is the one that these values give.
_AS_PUBLISHED = {"layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The weights of a folder, in one file or sharded, without the prefix `transformer.`"""
    index, tensors = path / "model.safetensors.index.json", {}
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
    for name in names:
        if not (path / name).is_file():
            raise TrainingError(f"{path} lacks the file {name} (1 of {len(names)} with weights): copy it again.")
        try:
            tensors |= load_file(path / name)
        except SafetensorError as error:
            size = (path / name).stat().st_size
            raise TrainingError(f"{path}/{name} ({size} bytes) is damaged ({error}): copy it again.") from None
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def model_config(path: Path, tensors: dict[str, Tensor]) -> ModelConfig:
    """The architecture of config.json; raises TrainingError for one that we would compute differently."""
    stored = read_json(path / "config.json")
    kind = stored.get("model_type")
    if kind not in ("gpt2", "openai-gpt"):
        raise TrainingError(f"{path} is of type {kind!r}: 2 types can be read, gpt2 and openai-gpt.")
    activation = stored.get("activation_function", stored.get("afn", "gelu_new"))
    if activation not in ("gelu_new", "gelu_pytorch_tanh") and not (kind == "openai-gpt" and activation == "gelu"):
        raise TrainingError(f"{path} uses the activation {activation!r}: 1 can be read, gelu_new.")
    for name, ours in _AS_PUBLISHED.items():
        if stored.get(name, ours) != ours:
            raise TrainingError(f"{path} has {name} {stored[name]}: only {ours} can be read, as in GPT-2.")
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


def fill(model: GPT, tensors: dict[str, Tensor], path: Path) -> GPT:
    """Our network with their weights, in fp32; `path` is for the messages."""
    state = {}
    for name, own in model.state_dict().items():
        tensor = tensors.get(_hf_name(name, model.config))
        if tensor is None and name == "lm_head.weight":
            tensor = _embedding(tensors)
        if tensor is None:
            raise TrainingError(f"{path} has {len(tensors)} tensors of weights and lacks {name}: copy it again.")
        tensor = tensor.t() if name.endswith(_CONV1D) else tensor
        if tensor.shape != own.shape:
            raise TrainingError(
                f"{name} in {path} is {tuple(tensor.shape)} and config.json says {tuple(own.shape)}: "
                "restore the file that belongs to these weights."
            )
        state[name] = tensor.float()
    model.load_state_dict(state)
    return model


def widen(model: GPT, tok: Tokenizer, path: Path) -> GPT:
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


def tensors_of(model: GPT | RewardModel) -> dict[str, Tensor]:
    """Our weights under their names, fp32.

    Their score head has no bias. A reward model's own is stored in the last LayerNorm's bias b, as b + c w / |w|²
    for a head w and a bias c: w · (b + c w / |w|²) = w · b + c, so that their score is our centred one.
    """
    trunk = model.trunk if isinstance(model, RewardModel) else model
    state = {name: parallel.whole(tensor) for name, tensor in trunk.state_dict().items()}
    if isinstance(model, RewardModel):
        head = parallel.whole(model.head.weight)[0].double()
        last = "ln_f.bias" if trunk.config.norm == "pre" else f"h.{trunk.config.n_layer - 1}.ln_2.bias"
        state[last] = (state[last] + model.bias * head / head.square().sum().clamp(min=1e-30)).float()
        state.pop("lm_head.weight", None)
    tensors = {_hf_name(name, trunk.config): t.t() if name.endswith(_CONV1D) else t for name, t in state.items()}
    if trunk.config.positions == "sinusoidal":  # a fixed table is, to Hugging Face, a learned one
        tensors[_hf_name("wpe.weight", trunk.config)] = trunk.waves
    tensors = {name if name == "lm_head.weight" else f"transformer.{name}": t for name, t in tensors.items()}
    if isinstance(model, RewardModel):
        tensors["score.weight"] = parallel.whole(model.head.weight)
    return {name: tensor.detach().float().contiguous().cpu() for name, tensor in tensors.items()}


def config_of(model: GPT | RewardModel, tok: Tokenizer) -> dict[str, Any]:
    """Their config.json for our network."""
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise TrainingError(f"{path} ({path.stat().st_size} bytes) is not JSON ({error}): restore it.") from None


def _embedding(tensors: dict[str, Tensor]) -> Tensor:
    return tensors.get("wte.weight", tensors.get("tokens_embed.weight", torch.zeros(1)))


def _hf_name(name: str, config: ModelConfig) -> str:
    if config.norm == "post":
        for ours, theirs in _GPT1_NAMES.items():
            name = name.replace(ours, theirs)
    return name
