"""Generation at size b, ours beside transformers, CTranslate2 and nanoGPT, all with the same weights.

Prompts are random ids and every text runs to its full length. Ours samples at temperature 1 and hands out the tokens'
log-probabilities; the peers decode greedily where that is faster for them, nanoGPT samples. Everything is counted from
the prompts to the last token: ours packs its weights anew for each round, as PPO does for each rollout.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.ppo import SIZE, folders
from training import checkpoint, device
from training.config import GenerateConfig
from training.engine import generate

TASKS = {"1": (1, 64, 64), "8": (8, 64, 64), "32": (32, 64, 64), "rollout": (32, 32, 48)}  # rows, prompt, new tokens
Work = Callable[[list[list[int]], int], Any]


def _measured(task: str, work: Work) -> Callable[[], dict[str, Any]]:
    rows, length, new = TASKS[task]
    draw = torch.Generator().manual_seed(1)

    def measured() -> dict[str, Any]:
        prompts = torch.randint(256, 4000, (rows, length), generator=draw).tolist()
        began = time.perf_counter()
        work(prompts, new)
        return {"rate": rows * new / (time.perf_counter() - began), "unit": "tokens/s"}

    measured()  # kernels are made at the first call
    return measured


def ours(root: Path, precision: str) -> Work:
    model, tok, _ = checkpoint.load_model(root / "policy")
    tok.eos_id = -1  # nothing ends a text early
    compute = device.prepare(GenerateConfig(model="policy", device="cpu", precision=precision))

    def work(prompts: list[list[int]], new: int) -> None:
        written = generate(model, tok, prompts, range(len(prompts)), max_new_tokens=new, compute=compute)
        assert all(len(request.tokens) == new for request in written)

    return work


def transformers(root: Path, precision: str) -> Work:
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(root / "policy", dtype=dtype).eval()

    @torch.inference_mode()
    def work(prompts: list[list[int]], new: int) -> None:
        ids = torch.tensor(prompts)
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            use_cache=True, pad_token_id=0,
        )  # fmt: skip
        assert written.shape == (len(prompts), len(prompts[0]) + new)

    return work


def ctranslate2(root: Path, precision: str) -> Work:
    import ctranslate2 as ct
    from ctranslate2.converters import TransformersConverter

    kind = {"fp32": "float32", "int8": "int8", "bf16": "bfloat16"}[precision]
    if kind not in ct.get_supported_compute_types("cpu"):
        raise harness.NotRun(f"CTranslate2 does not compute in {kind} on this processor")
    folder = root / f"ct-{precision}-{os.getpid()}"
    TransformersConverter(str(root / "policy")).convert(str(folder), quantization=kind)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["unk_token"] = settings["unk_token"] or settings["eos_token"]  # it does not load without one
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    model = ct.Generator(str(folder), device="cpu", compute_type=kind, intra_threads=torch.get_num_threads())
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))

    def work(prompts: list[list[int]], new: int) -> None:
        written = model.generate_batch(
            [[words[i] for i in prompt] for prompt in prompts], max_length=new, min_length=new, sampling_topk=1,
            include_prompt_in_result=False, max_batch_size=len(prompts),
        )  # fmt: skip
        assert all(len(result.sequences_ids[0]) == new for result in written)

    return work


def nanogpt(root: Path, precision: str) -> Work:
    folder = os.environ.get("NANOGPT", "")
    if not Path(folder, "model.py").is_file():
        raise harness.NotRun("NANOGPT names no checkout of nanoGPT")
    sys.path.insert(0, folder)
    from model import GPT, GPTConfig

    if not hasattr(GPT, "generate"):
        raise harness.NotRun("the checkout that NANOGPT names has no GPT.generate")
    model = GPT(
        GPTConfig(
            block_size=SIZE["n_positions"], vocab_size=SIZE["vocab_size"], n_layer=SIZE["n_layer"],
            n_head=SIZE["n_head"], n_embd=SIZE["n_embd"], dropout=0.0, bias=True,
        )
    ).eval()  # fmt: skip

    @torch.inference_mode()
    def work(prompts: list[list[int]], new: int) -> None:
        model.generate(torch.tensor(prompts), new)

    return work


CONTENDERS: dict[str, tuple[Callable[[Path, str], Work], str]] = {
    "ours, fp32": (ours, "fp32"),
    "ours, bf16": (ours, "bf16"),
    "transformers, fp32": (transformers, "fp32"),
    "transformers, bf16": (transformers, "bf16"),
    "CTranslate2, fp32": (ctranslate2, "fp32"),
    "CTranslate2, bf16": (ctranslate2, "bf16"),
    "CTranslate2, int8": (ctranslate2, "int8"),
    "nanoGPT, fp32": (nanogpt, "fp32"),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.generation", description=__doc__)
    parser.add_argument("tasks", nargs="*", choices=TASKS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments or [])
    for task in options.tasks or TASKS:
        with tempfile.TemporaryDirectory() as root:
            folders(Path(root))
            # Without a cache nanoGPT needs minutes at 32 rows, and it knows no bf16 weights.
            names = [name for name in CONTENDERS if not (name.startswith("nanoGPT") and task in ("32", "rollout"))]
            found = harness.compare(
                {name: [sys.executable, "-m", "bench.generation", "--serve", root, name, task] for name in names},
                options.rounds,
            )
        harness.section(f"generation-{task}", _table(task, found, options.rounds))


def _table(task: str, found: dict[str, harness.Measured], rounds: int) -> str:
    rows, length, new = TASKS[task]
    base = found["transformers, fp32"].median
    lines = [
        f"{rows} x ({length} + {new}) tokens, `python -m bench.generation {task}`; {harness.machine()}; median "
        f"(lowest-highest) of {rounds}.\n",
        "| | new tokens/s | against transformers fp32 | peak MiB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, m in found.items():
        ratio = f"{m.median / base:.2f}" if base and m.median else "-"
        lines.append(f"| {name} | {m} | {ratio} | {m.peak_mib or '-'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        root, name, task = sys.argv[2:]
        setup, precision = CONTENDERS[name]
        harness.serve(lambda: _measured(task, setup(Path(root), precision)))
    else:
        main(sys.argv[1:])
