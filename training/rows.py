"""What the running requests are drawn with, row by row, kept on the engine's device so that a step copies nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from training.request import Request
from training.sampling import choose, filtered, penalised, scaled, uniforms


class Rows:
    """S rows of at most `room` tokens over V ids; row b belongs to the request that runs in row b of the cache."""

    def __init__(self, rows: int, room: int, vocabulary: int, device: torch.device) -> None:
        def column(dtype: torch.dtype, *width: int) -> Tensor:
            return torch.zeros(rows, *width, dtype=dtype, device=device)

        self.tokens = column(torch.long)  # the newest
        self.places = column(torch.long)  # where it stands in the text
        self.drawn = column(torch.long)  # how many were drawn
        self.uniforms = column(torch.float64, room)
        self.temperature, self.top_p, self.penalty = (column(torch.float32) for _ in range(3))
        self.top_k = column(torch.long)
        self.shape = (rows, vocabulary)
        self.seen: Tensor | None = None  # (S, V) bool, from the first request with a repetition penalty on
        self.banned: Tensor | None = None  # (S, V) bool, from the first request with bad words on

    def put(self, row: int, request: Request, budget: int) -> None:
        device = self.tokens.device
        self.places[row], self.drawn[row] = len(request.prompt_ids) - 1, 0
        self.uniforms[row, :budget] = torch.from_numpy(uniforms(request.seed, budget)).to(device)
        self.temperature[row], self.top_k[row] = request.temperature, request.top_k
        self.top_p[row], self.penalty[row] = request.top_p, request.repetition_penalty
        if request.repetition_penalty != 1 and self.seen is None:
            self.seen = torch.zeros(self.shape, dtype=torch.bool, device=device)
        if request.bad_words and self.banned is None:
            self.banned = torch.zeros(self.shape, dtype=torch.bool, device=device)
        if self.seen is not None:
            self.seen[row] = False
            self.seen[row, torch.tensor(list(request.prompt_ids), device=device)] = True
        if self.banned is not None:
            self.banned[row] = False
            self.banned[row, [word[0] for word in request.bad_words if len(word) == 1]] = True

    def move(self, source: int, target: int) -> None:
        """Row target becomes row source."""
        for column in (
            *(self.tokens, self.places, self.drawn, self.uniforms, self.temperature, self.top_k, self.top_p),
            *(self.penalty, self.seen, self.banned),
        ):
            if column is not None:
                column[target] = column[source]

    def choose(self, start: int, logits: Tensor, requests: Sequence[Request]) -> tuple[Tensor, Tensor]:
        """Next tokens and their log-probabilities (n,) for rows start .. start + n - 1, after logits (n, V)."""
        rows = slice(start, start + len(logits))
        allowed = None
        if any(request.filtered for request in requests):
            allowed = self._allowed(rows, logits, requests)
        greedy = any(request.temperature == 0 for request in requests)
        uniform = self.uniforms[rows].gather(1, self.drawn[rows, None])[:, 0]
        tokens, logprobs = choose(logits, uniform, self.temperature[rows], allowed, greedy)
        self.tokens[rows] = tokens
        self.places[rows] += 1
        self.drawn[rows] += 1
        if self.seen is not None:
            self.seen[rows].scatter_(1, tokens[:, None], True)
        return tokens, logprobs

    def _allowed(self, rows: slice, logits: Tensor, requests: Sequence[Request]) -> Tensor:
        """Scaled logits (n, V) after penalty, bad words, top-k and top-p, in this order."""
        if self.seen is not None:
            logits = penalised(logits, self.seen[rows], self.penalty[rows])
        allowed = scaled(logits, self.temperature[rows])
        if self.banned is not None:
            allowed = allowed.masked_fill(self.banned[rows], -math.inf)
            for row, request in enumerate(requests):
                for *begun, last in request.bad_words:
                    if begun and request.tokens[-len(begun) :] == list(begun):
                        allowed[row, last] = -math.inf
        if any(request.top_k > 0 or request.top_p < 1 for request in requests):
            allowed = filtered(allowed, self.top_k[rows], self.top_p[rows])
        return allowed
