"""Inference with a KV cache and continuous batching: requests join and leave between steps, each on its own seed."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training.config import TrainingError
from training.decode import Decoder
from training.device import Compute
from training.graphs import GraphedSteps
from training.model import GPT
from training.request import FinishReason, Request, Text
from training.rows import Rows
from training.vocabulary import Tokenizer

# Tokens of prompts that are read in one pass: as many as keep the processor busy, which bounds the memory as well.
READ_AT_ONCE = {"cpu": 1024, "cuda": 16_384}


class _Slot:
    """A running request: how long it is and may become, and what of its text may be shown."""

    def __init__(self, request: Request, budget: int) -> None:
        self.request, self.budget = request, budget
        self.prompt = tuple(request.prompt_ids)
        self.length = len(self.prompt)  # tokens of prompt and completion, the newest drawn included
        self.first: Tensor | None = None  # logits (V,) after the prompt
        self.text = Text(request.stop) if request.stop or request.on_token is not None else None


class Engine:
    """Writes many completions at once. One thread steps; `submit` and `Request.cancel` may come from any thread.

    Running requests sit in rows 0 .. n - 1 of the cache, so a step reads one contiguous view; when a row falls free,
    the last one moves into it. Prompts are right-padded: causal attention never looks at what stands to the right.
    The engine writes with the weights that the model had when the engine was made, and leaves it in eval mode: whoever
    scores what was sampled must not meet dropout.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        max_batch: int = 16,
        compute: Compute | None = None,
        context: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.special_ids = frozenset(tokenizer.special.values())
        self.max_batch = max_batch
        self.device = model.device
        self.room = min(context or model.config.n_positions, model.config.n_positions)
        self.decoder = Decoder(model.eval(), max_batch, self.room, compute or Compute(model.device, bf16=False))
        self.rows = Rows(max_batch, self.room, model.config.vocab_size, model.device)
        cuda = model.device.type == "cuda"
        self.graphs = GraphedSteps(self.decoder, self.rows.tokens, self.rows.places) if cuda else None
        self.slots: list[_Slot] = []
        self.waiting: deque[Request] = deque()
        self.news = threading.Event()  # set by submit, so that an idle serving thread can sleep

    def submit(self, request: Request) -> Request:
        """Queue a request. Raises TrainingError where its prompt cannot be read whole."""
        if not 0 < len(request.prompt_ids) < self.room:
            raise TrainingError(
                f"The prompt has {len(request.prompt_ids)} tokens and this model reads 1 to {self.room - 1} "
                "before it answers: change its length."
            )
        self.waiting.append(request)
        self.news.set()
        return request

    @property
    def idle(self) -> bool:
        return not self.slots and not self.waiting

    def run_until_idle(self) -> None:
        while not self.idle:
            self.step()

    @torch.inference_mode()
    def step(self) -> None:
        """One token for every running request; those that wait join first, with their whole prompt at once."""
        for row in range(len(self.slots) - 1, -1, -1):
            if self.slots[row].request.cancelled.is_set():
                self._leave(row, "cancelled")
        running = len(self.slots)
        self._join()
        if running:
            upto = max(slot.length for slot in self.slots[:running])
            if self.graphs is not None:
                logits = self.graphs(running, upto)
            else:
                logits = self.decoder.step(self.rows.tokens[:running], self.rows.places[:running], upto)
            self._advance(0, logits)
        if len(self.slots) > running:
            self._advance(running, self._prefill(running))
        for row in range(len(self.slots) - 1, -1, -1):
            reason = self._ended(self.slots[row])
            if reason is not None:
                self._leave(row, reason)

    def _join(self) -> None:
        while self.waiting and len(self.slots) < self.max_batch:
            request = self.waiting.popleft()
            slot = _Slot(request, min(request.max_new_tokens, self.room - len(request.prompt_ids)))
            if request.cancelled.is_set() or slot.budget < 1:
                self._finish(slot, "cancelled" if request.cancelled.is_set() else "length")
                continue
            self.rows.put(len(self.slots), request, slot.budget)
            self.slots.append(slot)

    def _prefill(self, start: int) -> Tensor:
        """Logits (B, V) after the prompts of the rows from start on; a prompt that several wait for is read once."""
        running = {slot.prompt: row for row, slot in enumerate(self.slots[:start])}
        unread: dict[tuple[int, ...], list[int]] = {}
        for row, slot in enumerate(self.slots[start:], start):
            if slot.prompt in running:
                self.decoder.cache.copy(running[slot.prompt], row, len(slot.prompt))
                slot.first = self.slots[running[slot.prompt]].first
            else:
                unread.setdefault(slot.prompt, []).append(row)
        for group in _groups(sorted(unread, key=len), READ_AT_ONCE[self.device.type]):
            tokens = np.full((len(group), len(group[-1])), self.tokenizer.pad_id)
            for text, prompt in enumerate(group):
                tokens[text, : len(prompt)] = prompt
            rows = [row for prompt in group for row in unread[prompt]]
            source = [text for text, prompt in enumerate(group) for _ in unread[prompt]]
            lengths = self._tensor([len(prompt) for prompt in group])
            logits = self.decoder.prefill(self._tensor(tokens), lengths, self._tensor(rows), self._tensor(source))
            for row, text in zip(rows, source, strict=True):
                self.slots[row].first = logits[text]
        return torch.stack([slot.first for slot in self.slots[start:] if slot.first is not None])

    def _advance(self, start: int, logits: Tensor) -> None:
        """Draw and store one token for each row from start on."""
        slots = self.slots[start : start + len(logits)]
        drawn, logprobs = self.rows.choose(start, logits, [slot.request for slot in slots])
        for slot, token, logprob in zip(slots, drawn.tolist(), logprobs.tolist(), strict=True):
            slot.request.tokens.append(token)
            slot.request.logprobs.append(logprob)
            slot.length += 1
            if slot.text is not None and token not in self.special_ids:
                slot.request.tell(slot.text.feed(self.tokenizer.decode_bytes([token])))

    def _ended(self, slot: _Slot) -> FinishReason | None:
        if slot.request.tokens[-1] == self.tokenizer.eos_id:
            return "eos"
        if slot.text is not None and slot.text.stopped:
            return "stop"
        return "length" if len(slot.request.tokens) == slot.budget else None

    def _leave(self, row: int, reason: FinishReason) -> None:
        """Free a row: the last running request moves into it, so the rows in use stay contiguous."""
        slot, last = self.slots[row], self.slots.pop()
        if slot is not last:
            self.decoder.cache.copy(len(self.slots), row, last.length)
            self.rows.move(len(self.slots), row)
            self.slots[row] = last
        self._finish(slot, reason)

    def _finish(self, slot: _Slot, reason: FinishReason) -> None:
        request = slot.request
        if slot.text is not None:
            request.tell(slot.text.feed(b"", final=True))
        if slot.text is not None and slot.text.stopped:
            request.text = slot.text.shown
        else:
            request.text = self.tokenizer.decode([t for t in request.tokens if t not in self.special_ids])
        request.finish_reason = reason
        request.done.set()

    def abandon(self) -> None:
        """End every request as cancelled, without another step."""
        with contextlib.suppress(IndexError):  # two threads may abandon at once
            while self.slots:
                self._finish(self.slots.pop(), "cancelled")
            while self.waiting:
                self._finish(_Slot(self.waiting.popleft(), 0), "cancelled")

    def _tensor(self, values: Sequence[object] | np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(values), device=self.device)


def _groups(prompts: Sequence[tuple[int, ...]], most: int) -> list[list[tuple[int, ...]]]:
    """Prompts, the shortest first, in groups of at most `most` tokens, padding included: like lengths need little."""
    groups: list[list[tuple[int, ...]]] = []
    for prompt in prompts:
        if not groups or (len(groups[-1]) + 1) * len(prompt) > most:
            groups.append([])
        groups[-1].append(prompt)
    return groups


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_batch: int = 64,
    compute: Compute | None = None,
) -> list[Request]:
    """One finished request per prompt (lists of ids), in the order of the prompts; no threads."""
    context = max(map(len, prompts)) + max_new_tokens
    engine = Engine(model, tokenizer, min(max_batch, len(prompts)), compute, context)
    requests = [
        engine.submit(Request(prompt, max_new_tokens, temperature, top_k, top_p, seed))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    engine.run_until_idle()
    return requests


class EngineThread(threading.Thread):
    """Owns an engine and steps it while there is work. Everybody else only submits and cancels."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(name="engine", daemon=True)
        self.engine = engine
        self.failure: Exception | None = None
        self._closing, self._over = threading.Event(), threading.Event()

    def submit(self, request: Request) -> Request:
        if self.failure is not None or self._closing.is_set():
            raise TrainingError("The engine has stopped with 1 request refused: start it again.")
        self.engine.submit(request)
        if self._over.is_set():  # it ended between the two lines above: nobody else would end this request
            self.engine.abandon()
        return request

    def run(self) -> None:
        try:
            while not (self._closing.is_set() and self.engine.idle):
                if self.engine.idle:
                    self.engine.news.wait(timeout=1.0)
                    self.engine.news.clear()
                else:
                    self.engine.step()
        except Exception as failure:
            self.failure = failure
            raise
        finally:
            # Whoever waits on a request must not wait for ever on an engine that is gone.
            self._over.set()
            self.engine.abandon()

    def close(self, timeout: float | None = None) -> None:
        """Take nothing new, finish what was taken, end the thread."""
        self._closing.set()
        self.engine.news.set()
        self.join(timeout)
