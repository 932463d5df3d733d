"""One installation for all tests of this folder, with a project that has data and a base model."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labeling import world
from tests.loop.platform import Installation

TINY = ["n_embd=32", "n_layer=2", "n_head=2", "n_positions=96"]


@pytest.fixture(scope="session")
def bucle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("home"))
    installation.start()
    yield installation
    installation.stop()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus, demonstrations, rankings and prompts of the small world."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "town.txt").write_text("\n\n".join(world.corpus(1, 60_000, "es")) + "\n", encoding="utf-8")
    shown = world.demonstrations(1, 240, "es")
    _rows(
        folder / "demonstrations.jsonl",
        [{"instruction": row["instruction"], "response": row["response"]} for row in shown[:120]],
    )
    _rows(folder / "rankings.jsonl", [_ranked(row["instruction"], shown) for row in shown[:90]])
    _rows(folder / "prompts.jsonl", [{"prompt": p.text} for p in world.prompts(1, 40, "es", split="train")])
    _rows(folder / "held-out.jsonl", [{"prompt": p.text} for p in world.prompts(1, 12, "es", split="holdout")])
    return folder


@pytest.fixture(scope="session")
def project(bucle: Installation, files: Path) -> str:
    """The address of a project with all data in it, a tokenizer, a base model and an SFT model that is live."""
    slug = "town"
    bucle.run("import_data", "--project", slug, "--create", "--kind", "corpus", str(files / "town.txt"))
    for kind in ("demonstrations", "rankings", "prompts"):
        bucle.manage("import_data", "--project", slug, "--kind", kind, str(files / f"{kind}.jsonl"))
    held_out = str(files / "held-out.jsonl")
    bucle.manage("import_data", "--project", slug, "--kind", "prompts", "--split", "holdout", held_out)
    bucle.manage("train", "tokenizer", "--project", slug, "--set", "vocab_size=400", "--wait")
    size = ["steps=20", "batch_size=8", "warmup_steps=2", *TINY]
    bucle.manage("train", "pretrain", "--project", slug, "--set", *size, "--wait")
    bucle.manage("train", "sft", "--project", slug, "--set", "epochs=1", "--wait")
    bucle.manage("promote", "sft-1", "--project", slug)
    return slug


def _ranked(prompt: str, shown: list[dict[str, str]]) -> dict[str, Any]:
    """Four answers of the world to any question, in a random order: enough to train on, nothing to learn."""
    rng = random.Random(prompt)
    order = [0, 1, 2, 3]
    rng.shuffle(order)
    return {"prompt": prompt, "responses": [row["response"] for row in rng.sample(shown, 4)], "ranking": order}


def _rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
