"""Inference with a KV cache and continuous batching: requests join and leave between steps, each on its own seed."""

from __future__ import annotations

import codecs
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from training.config import TrainingError
from training.device import Compute
from training.model import GPT
from training.sampling import choose, uniforms
from training.vocabulary import Tokenizer

FinishReason = Literal["eos", "length", "cancelled"]


@dataclass(eq=False)
class Request:
    """One completion to write, and afterwards what was written.

    `logprobs` are those of the temperature-scaled distribution before top-k and top-p: what the trainer computes for
    the same tokens. `filtered` says whether a filter was on, so that nobody takes such samples for on-policy ones.
    `on_token` gets every new piece of text that is complete UTF-8; it runs on the thread that steps the engine.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int = 48
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    on_token: Callable[[str], None] | None = None
    on_finish: Callable[[Request], None] | None = None

    tokens: list[int] = field(default_factory=list, init=False)
    logprobs: list[float] = field(default_factory=list, init=False)
    text: str = field(default="", init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    failure: Exception | None = field(default=None, init=False)  # what on_token raised, if it did
    done: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    cancelled: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    @property
    def filtered(self) -> bool:
        return self.top_k > 0 or self.top_p < 1

    def cancel(self) -> None:
        """Ask for an early end, from any thread; the request finishes before the engine's next step."""
        self.cancelled.set()


class _Slot:
    """A running request: its stream of uniforms and the bytes that are not yet a whole character."""

    def __init__(self, request: Request, budget: int) -> None:
        self.request = request
        self.uniforms = uniforms(request.seed, budget)
        self.length = len(request.prompt_ids)  # tokens whose keys and values are, or are about to be, in the cache
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")


class Engine:
    """Writes many completions at once. One thread steps; `submit` and `Request.cancel` may come from any thread.

    Running requests sit in rows 0 .. n - 1 of the cache, so a step reads one contiguous view; when a row falls free,
    the last one moves into it. Prompts are right-padded: causal attention never looks at what stands to the right.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        max_batch: int = 16,
        compute: Compute | None = None,
        context: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.special_ids = frozenset(tokenizer.special.values())
        self.max_batch = max_batch
        self.device = model.device
        self.compute = compute or Compute(model.device, bf16=False)
        self.room = min(context or model.config.n_positions, model.config.n_positions)
        self.cache = model.cache(max_batch, self.room, torch.bfloat16 if self.compute.bf16 else None)
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
        joining = self._join()
        running = len(self.slots) - len(joining)
        if running:
            self._advance(0, self._decode(running))
        if joining:
            self._advance(running, self._prefill(running))
        for row in range(len(self.slots) - 1, -1, -1):
            reason = self._ended(self.slots[row])
            if reason is not None:
                self._leave(row, reason)

    def _join(self) -> list[_Slot]:
        joining: list[_Slot] = []
        while self.waiting and len(self.slots) < self.max_batch:
            request = self.waiting.popleft()
            budget = min(request.max_new_tokens, self.room - len(request.prompt_ids))
            slot = _Slot(request, budget)
            if request.cancelled.is_set() or budget < 1:
                self._finish(slot, "cancelled" if request.cancelled.is_set() else "length")
                continue
            joining.append(slot)
            self.slots.append(slot)
        return joining

    def _prefill(self, start: int) -> Tensor:
        """Logits (B, V) after the prompts of the rows from start on, padded on the right to the longest."""
        prompts = [slot.request.prompt_ids for slot in self.slots[start:]]
        longest = max(map(len, prompts))
        tokens = np.full((len(prompts), longest), self.tokenizer.pad_id)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        rows = torch.arange(start, len(self.slots), device=self.device)
        with self.compute.autocast():
            hidden = self.model(
                self._tensor(tokens), cache=self.cache.at(rows), lengths=torch.zeros_like(rows)
            )  # (B, T, d)
        last = self._tensor([len(prompt) - 1 for prompt in prompts])
        return self.model.logits(hidden[torch.arange(len(prompts), device=self.device), last].float())

    def _decode(self, running: int) -> Tensor:
        """Logits (B, V) after the newest token of the first rows."""
        slots = self.slots[:running]
        tokens = self._tensor([[slot.request.tokens[-1]] for slot in slots])
        lengths = self._tensor([slot.length - 1 for slot in slots])
        with self.compute.autocast():  # a cache without slots gives the first rows, as a view
            hidden = self.model(tokens, cache=self.cache, lengths=lengths)
        return self.model.logits(hidden[:, -1].float())

    def _advance(self, start: int, logits: Tensor) -> None:
        """Draw and store one token for each row from start on."""
        slots = self.slots[start : start + logits.shape[0]]
        requests = [slot.request for slot in slots]
        drawn, logprobs = choose(
            logits,
            self._tensor([slot.uniforms[len(slot.request.tokens)] for slot in slots]),
            self._tensor([request.temperature for request in requests]),
            self._tensor([request.top_k for request in requests]),
            self._tensor([request.top_p for request in requests]),
        )
        for slot, token, logprob in zip(slots, drawn.tolist(), logprobs.tolist(), strict=True):
            slot.request.tokens.append(token)
            slot.request.logprobs.append(logprob)
            slot.length += 1
            if slot.request.on_token is not None:
                self._emit(slot, token)

    def _emit(self, slot: _Slot, token: int) -> None:
        """Hand out the characters that this token completes; half a character waits for its other half."""
        if token in self.special_ids:
            return
        self._tell(slot.request, slot.decoder.decode(self.tokenizer.decode_bytes([token])))

    @staticmethod
    def _tell(request: Request, piece: str) -> None:
        """A listener that fails loses its own request; its neighbours go on."""
        if piece and request.on_token is not None:
            try:
                request.on_token(piece)
            except Exception as failure:
                request.failure = failure
                request.cancel()

    def _ended(self, slot: _Slot) -> FinishReason | None:
        if slot.request.tokens[-1] == self.tokenizer.eos_id:
            return "eos"
        return "length" if len(slot.request.tokens) == len(slot.uniforms) else None

    def _leave(self, row: int, reason: FinishReason) -> None:
        """Free a row: the last running request moves into it, so the rows in use stay contiguous."""
        slot, last = self.slots[row], self.slots.pop()
        if slot is not last:
            for layer in (*self.cache.keys, *self.cache.values):
                layer[row, :, : last.length] = layer[len(self.slots), :, : last.length]
            self.slots[row] = last
        self._finish(slot, reason)

    def _finish(self, slot: _Slot, reason: FinishReason) -> None:
        request = slot.request
        request.text = self.tokenizer.decode([t for t in request.tokens if t not in self.special_ids])
        request.finish_reason = reason
        self._tell(request, slot.decoder.decode(b"", final=True))
        request.done.set()
        if request.on_finish is not None:
            request.on_finish(request)

    def abandon(self) -> None:
        """End every request as cancelled, without another step."""
        with contextlib.suppress(IndexError):  # two threads may abandon at once
            while self.slots:
                self._finish(self.slots.pop(), "cancelled")
            while self.waiting:
                self._finish(_Slot(self.waiting.popleft(), 0), "cancelled")

    def _tensor(self, values: Sequence[object] | np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(values), device=self.device)


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
        self._closing = threading.Event()

    def submit(self, request: Request) -> Request:
        if self.failure is not None or self._closing.is_set():
            raise TrainingError("The engine has stopped with 1 request refused: start it again.")
        self.engine.submit(request)
        if self.failure is not None:  # it stopped between the two lines above: nobody else would end this request
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
            # Whoever waits on a request must not wait for ever on an engine that is gone.
            self.failure = failure
            self.engine.abandon()
            raise

    def close(self, timeout: float | None = None) -> None:
        """Take nothing new, finish what was taken, end the thread."""
        self._closing.set()
        self.engine.news.set()
        self.join(timeout)
