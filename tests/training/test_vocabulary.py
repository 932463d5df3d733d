"""Byte-level BPE: ids, round trips, and agreement between tiktoken and `tokenizers`."""

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference

from tests.training.conftest import ROOT
from training import vocabulary as tokenizers
from training.config import TrainingError
from training.vocabulary import ASSISTANT, EOS, PAD, USER, Tokenizer

STRINGS = [
    "",
    " ",
    "¿Cuánto cuesta el pan?  Cuesta 12 monedas.\n\n\tSí.",
    "don't  we'll I'M y'all's 's",
    "日本語のテキスト、한국어 текст עברית العربية हिन्दी ไทย",
    "👩‍👩‍👧‍👦🇪🇸 e\u0301 \u00a0nbsp\u2003em\u3000wide\u200bzero \ufeff",
    "\r\n\r\n  x\r\ny\n \n  z   ",
    "1234567890 3.14 ½ ٣٤ x86_64 #!/bin/sh --flag=../../path//",
    "<|endoftext|><|pad|><|user|>",
    "\x00\x01\x7f\x85\u2028\ud7ff\U0010fffd",
    "aaaaaaaaaaaaaaaa          bbbbbbbb\n\n\n\n\n\n",
]


def random_strings(n: int) -> list[str]:
    draw = random.Random(5)
    ranges = [(32, 126), (9, 13), (160, 591), (0x370, 0x5FF), (0x900, 0x97F), (0x2000, 0x206F), (0x4E00, 0x4FFF)]
    ranges += [(0x1F300, 0x1F6FF)]

    def letter() -> str:
        return chr(draw.randint(*draw.choice(ranges)))

    return ["".join(letter() if draw.random() < 0.7 else draw.choice(" \n'ae1") for _ in range(40)) for _ in range(n)]


def reference(tok: Tokenizer, folder: Path) -> Reference:
    tok.save(folder)
    return Reference.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("encoding", ["trained", "gpt2", "cl100k_base", "o200k_base"])
def test_tiktoken_and_tokenizers_give_the_same_ids(encoding: str, tok: Tokenizer, tmp_path: Path) -> None:
    own = tok if encoding == "trained" else tokenizers.named(encoding)
    theirs = reference(own, tmp_path)
    for string in STRINGS + random_strings(300):
        ids = own.encode(string)
        if "<|" not in string:  # the reference turns a special token's text into the token, we never do
            assert theirs.encode(string, add_special_tokens=False).ids == ids, string
        assert own.decode(ids) == string


ENCODINGS = ["trained", "gpt2", "cl100k_base", "o200k_base"]
# Everything UTF-8 can hold, and texts that mix its odd corners: marks, spaces, digits of all scripts, contractions.
ODD = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
CORNERS = ["'s", "'LL", " ", "  ", "\n", "\r\n", "\u00a0", "\u2028", "é", "e\u0301", "ß", "Ǆ", "ſ"]
CORNERS += ["12", "٣", "½", "日本", "🍞", "a"]
ANY = st.characters(categories=["L", "M", "N", "P", "S", "Z", "Cc", "Cf"])
MIXED = st.lists(st.sampled_from(CORNERS) | ANY, max_size=60).map("".join)


@pytest.fixture(scope="module")
def both(tok: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Tokenizer, Reference]]:
    """A vocabulary as we use it, through tiktoken, and as `tokenizers` reads its tokenizer.json."""

    @functools.cache
    def load(encoding: str) -> tuple[Tokenizer, Reference]:
        own = tok if encoding == "trained" else tokenizers.named(encoding)
        return own, reference(own, tmp_path_factory.mktemp(encoding))

    return load


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_ids_agree_on_any_unicode(encoding: str, both: Callable[[str], tuple[Tokenizer, Reference]]) -> None:
    own, other = both(encoding)

    @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given((ODD | MIXED).filter(lambda text: "<|" not in text))
    def check(text: str) -> None:
        ids = own.encode(text)
        assert other.encode(text, add_special_tokens=False).ids == ids == own.encode_array(text).tolist()
        assert own.decode(ids) == text

    check()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_ids_agree_on_every_real_text(encoding: str, both: Callable[[str], tuple[Tokenizer, Reference]]) -> None:
    folder = ROOT / ".." / "shared" / "data"
    files = sorted(p for p in folder.rglob("*") if p.suffix in {".txt", ".jsonl", ".csv"})
    if not files:
        pytest.skip("shared/data is absent: no texts to compare ids on")
    own, other = both(encoding)
    for path in files:
        # Pieces of some kB that overlap by nothing: a difference is then shown, not buried in a megabyte.
        text = path.read_bytes().decode("utf-8-sig")
        pieces = [text[i : i + 20_000] for i in range(0, len(text), 20_000)]
        for piece, encoded in zip(pieces, other.encode_batch(pieces, add_special_tokens=False), strict=True):
            assert encoded.ids == own.encode(piece), (path.name, piece[:80])


def test_a_token_that_no_merge_reaches_is_taken_whole_by_both(tmp_path: Path) -> None:
    ranks = {bytes([i]): i for i in range(256)} | {b"bc": 256, b"ab": 257, b"cd": 258, b"abcd": 259}
    own = Tokenizer(ranks, tokenizers.GPT2_PATTERN, {EOS: 260})
    for string in ("abcd", "abcdx", "xabcd abcd"):
        assert reference(own, tmp_path).encode(string).ids == own.encode(string)
    assert own.encode("abcd") == [259]


def test_named_encodings_equal_tiktokens_published_ids() -> None:
    assert tokenizers.named("gpt2").encode("Hello, world!") == [15496, 11, 995, 0]
    assert tokenizers.named("cl100k_base").encode("tiktoken is great!") == [83, 1609, 5963, 374, 2294, 0]
    assert tokenizers.named("gpt2").eos_id == 50256


def test_chat_tokens_follow_a_named_vocabulary() -> None:
    gpt2 = tokenizers.named("gpt2")
    assert (gpt2.pad_id, gpt2.user_id, gpt2.assistant_id, gpt2.vocab_size) == (50257, 50258, 50259, 50260)


def test_special_tokens_are_four_different_ids_and_pad_is_not_eos(tok: Tokenizer) -> None:
    assert len({tok.eos_id, tok.pad_id, tok.user_id, tok.assistant_id}) == 4
    assert max(tok.special.values()) == tok.vocab_size - 1


def test_text_never_becomes_a_special_token(tok: Tokenizer) -> None:
    ids = tok.encode(f"a{EOS}{PAD}{USER}{ASSISTANT}b")
    assert not set(ids) & set(tok.special.values())
    assert tok.decode(ids) == f"a{EOS}{PAD}{USER}{ASSISTANT}b"


def test_vocabulary_has_the_size_asked_for_and_is_learned_alike_twice(text: str, tok: Tokenizer) -> None:
    smaller = tokenizers.train([text], 300)
    assert smaller.vocab_size == 300 < tok.vocab_size
    assert smaller.hash == tokenizers.train([text], 300).hash != tok.hash


def test_a_small_corpus_gives_a_smaller_vocabulary() -> None:
    assert tokenizers.train(["ab"], 1000).vocab_size < 300


def test_load_gives_back_what_was_saved(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert again.hash == tok.hash
    assert again.encode(STRINGS[2]) == tok.encode(STRINGS[2])


def test_half_a_character_decodes_without_an_error(tok: Tokenizer) -> None:
    assert tok.decode([tok.ranks[b"\xc3"]]) == "\ufffd"
    assert tok.decode([tok.vocab_size + 5]) == ""


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    stored = {"model": {"vocab": {"▁hola": 0}, "merges": []}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(TrainingError, match="not byte-level BPE"):
        tokenizers.load(tmp_path)


def test_missing_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no tokenizer"):
        tokenizers.load(tmp_path)


def test_merges_in_another_order_than_the_ids_are_refused(tok: Tokenizer, tmp_path: Path) -> None:
    """tiktoken merges by id, `tokenizers` by the order of its merges: the two would split texts otherwise."""
    tok.save(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    merges = stored["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(TrainingError, match="merges are not in the order of its ids"):
        tokenizers.load(tmp_path)
