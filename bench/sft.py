"""SFT steps, ours beside TRL's SFTTrainer: size b, context 256, 16 rows a step where rows are rows.

Both load the same folder with random weights and learn the same examples of random ids, two thirds of each an answer.
Tokens are those of prompts and answers; padding counts for nothing. Packed, 16 rows hold about 40 of the mixed
examples, which is what our step takes then. TRL packs in two ways: bfd, its default, strings whole examples together
in one long row of a new length each step; wrapped cuts them to rows of 256 in which they see each other. As shipped,
TRL computes activations twice to save memory (gradient checkpointing); tuned, it does not.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.ppo import folders
from training import checkpoint, device, optim, sft
from training.config import SFTConfig
from training.demonstrations import Example, collate

CONTEXT, ROWS, PACKED, EXAMPLES = 256, 16, 40, 1200


def examples(kind: str, eos_id: int) -> list[Example]:
    """`full`: each as long as the context; `mixed`: 24 to 256 tokens, 101 on average, as demonstrations are."""
    draw = torch.Generator().manual_seed(5)
    lengths = torch.full((EXAMPLES,), CONTEXT)
    if kind == "mixed":
        lengths = (torch.randn(EXAMPLES, generator=draw) * 0.6 + 4.45).exp().long().clamp(24, CONTEXT)
    made = []
    for length in lengths.tolist():
        ids = torch.randint(256, 4000, (length,), generator=draw).tolist()
        ids[-1] = eos_id
        prompt = length // 3
        made.append(Example(ids, [0] * prompt + [1] * (length - prompt), ""))
    return made


def ours(root: Path, kind: str, precision: str, packing: str) -> Callable[[], dict[str, Any]]:
    config = SFTConfig(
        base="policy", batch_size=PACKED if packing == "packed" else ROWS, precision=precision, learning_rate=1e-5
    )
    compute = device.prepare(config)
    model, tok, _ = checkpoint.load_model(root / "policy")
    optimizer = optim.adamw(model.eval(), config.learning_rate)
    rows, step = examples(kind, tok.eos_id), 0

    def work() -> dict[str, Any]:
        nonlocal step
        began = time.perf_counter()
        first = step * config.batch_size % (len(rows) - config.batch_size)
        batch = collate(rows[first : first + config.batch_size], tok.pad_id, CONTEXT, packing == "packed")
        sft.learn(model, optimizer, batch, config, compute, step, 1000)
        step += 1
        return {"rate": batch.tokens / (time.perf_counter() - began), "unit": "tokens/s"}

    work()
    work()
    return work


def trl(root: Path, kind: str, precision: str, packing: str, compile: str, tuned: str) -> Callable[[], dict[str, Any]]:
    """TRL's own train() in a thread, held before every step until the harness says go."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig as Settings
    from trl import SFTTrainer

    go, over = threading.Semaphore(0), threading.Semaphore(0)
    tokens = 0

    class Gate(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            go.acquire()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            over.release()

    class Counted(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            nonlocal tokens
            tokens = int((inputs["input_ids"] != tok.pad_token_id).sum())
            return super().training_step(model, inputs, *rest, **named)

    tok = AutoTokenizer.from_pretrained(root / "policy")
    rows = [
        {"input_ids": e.ids, "labels": [i if m else -100 for i, m in zip(e.ids, e.mask, strict=True)]}
        for e in examples(kind, tok.eos_token_id)
    ]
    trainer = Counted(
        model=AutoModelForCausalLM.from_pretrained(root / "policy", dtype=torch.float32),
        args=Settings(
            output_dir=str(root / "out"), per_device_train_batch_size=ROWS, max_steps=10_000, learning_rate=1e-5,
            max_length=CONTEXT, packing=packing != "unpacked", bf16=precision == "bf16", torch_compile=compile == "on",
            packing_strategy="wrapped" if packing == "wrapped" else "bfd", gradient_checkpointing=tuned != "tuned",
            optim="adamw_torch_fused", use_cpu=True, save_strategy="no", logging_strategy="no", report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows), processing_class=tok, callbacks=[Gate()],
    )  # fmt: skip
    threading.Thread(target=trainer.train, daemon=True).start()

    def work() -> dict[str, Any]:
        began = time.perf_counter()
        go.release()
        over.acquire()
        return {"rate": tokens / (time.perf_counter() - began), "unit": "tokens/s"}

    work()
    work()
    return work


CONTENDERS: dict[str, dict[str, tuple[str, ...]]] = {
    "full": {
        "ours": ("ours", "full", "auto", "packed"),
        "ours, fp32": ("ours", "full", "fp32", "packed"),
        "TRL as shipped, fp32": ("trl", "full", "fp32", "unpacked", "off", "shipped"),
        "TRL as shipped, bf16 + compile": ("trl", "full", "bf16", "unpacked", "on", "shipped"),
        "TRL tuned, bf16 + compile": ("trl", "full", "bf16", "unpacked", "on", "tuned"),
    },
    "mixed": {
        "ours, packed": ("ours", "mixed", "auto", "packed"),
        "ours, unpacked": ("ours", "mixed", "auto", "unpacked"),
        "TRL as shipped, unpacked, bf16": ("trl", "mixed", "bf16", "unpacked", "off", "shipped"),
        "TRL as shipped, packed (bfd), bf16": ("trl", "mixed", "bf16", "packed", "off", "shipped"),
        "TRL as shipped, packed (wrapped), bf16 + compile": ("trl", "mixed", "bf16", "wrapped", "on", "shipped"),
        "TRL tuned, packed (bfd), bf16": ("trl", "mixed", "bf16", "packed", "off", "tuned"),
        "TRL tuned, packed (wrapped), bf16 + compile": ("trl", "mixed", "bf16", "wrapped", "on", "tuned"),
    },
}
TITLES = {"full": "rows as long as the context", "mixed": "rows of mixed lengths"}


def main(kinds: list[str] | None = None, rounds: int = 5) -> None:
    for kind in kinds or list(CONTENDERS):
        with tempfile.TemporaryDirectory() as root:
            folders(Path(root))
            commands = {
                name: [sys.executable, "-m", "bench.sft", root, *what] for name, what in CONTENDERS[kind].items()
            }
            found = harness.compare(commands, rounds)
        best, shipped = (
            max((m.median for name, m in found.items() if name.startswith(who)), default=0.0)
            for who in ("TRL", "TRL as shipped")
        )
        lines = [
            f"### SFT, {TITLES[kind]} (`python -m bench sft`)\n\n{(__doc__ or '').strip()}\n",
            f"{harness.machine()}; median (lowest-highest) of {rounds}.\n",
            "| | tokens/s | against TRL's best as shipped | against TRL's best | peak MiB |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name, m in found.items():
            ratios = [f"{m.median / rate:.2f}" if rate and m.median else "-" for rate in (shipped, best)]
            lines.append(f"| {name} | {m} | {' | '.join(ratios)} | {m.peak_mib or '-'} |")
        harness.section(f"sft-{kind}", "\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        root, who, *how = sys.argv[1:]
        harness.serve(lambda: {"ours": ours, "trl": trl}[who](Path(root), *how))
    else:
        main(sys.argv[1:])
