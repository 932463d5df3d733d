"""One completion to write: how it is drawn, where it stops, and what was written."""

from __future__ import annotations

import codecs
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass(eq=False)
class Request:
    """One completion to write, and afterwards what was written.

    `logprobs` are those of the temperature-scaled distribution before every filter: what the trainer computes for the
    same tokens. `filtered` says whether a filter was on, so that nobody takes such samples for on-policy ones.
    `stop` are strings that end the text, which is cut before them; `tokens` keep what was drawn. `bad_words` are
    sequences of ids that are never drawn; `repetition_penalty` makes what stands in prompt or text less likely.
    `on_token` gets every new piece of text that is complete UTF-8 and cannot be the beginning of a stop string; it
    runs on the thread that steps the engine.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int = 48
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    on_token: Callable[[str], None] | None = None
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    bad_words: Sequence[Sequence[int]] = ()

    tokens: list[int] = field(default_factory=list, init=False)
    logprobs: list[float] = field(default_factory=list, init=False)
    text: str = field(default="", init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    failure: Exception | None = field(default=None, init=False)  # what on_token raised, if it did
    done: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    cancelled: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    @property
    def filtered(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.repetition_penalty != 1 or len(self.bad_words) > 0

    def cancel(self) -> None:
        """Ask for an early end, from any thread: before the engine's next step, or when a row would fall free."""
        self.cancelled.set()

    def tell(self, piece: str) -> None:
        """A listener that fails loses its own request; its neighbours go on."""
        if piece and self.on_token is not None:
            try:
                self.on_token(piece)
            except Exception as failure:
                self.failure = failure
                self.cancel()


class Text:
    """What of a growing text may be shown: whole characters, and nothing that may turn out to be a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = tuple(string for string in stop if string)
        self.shown, self.stopped, self._held = "", False, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, more: bytes, final: bool = False) -> str:
        """The new piece that may be shown; `stopped` says whether a stop string came, after which nothing is shown."""
        if self.stopped:
            return ""
        held = self._held + self._decoder.decode(more, final)
        found = [at for string in self.stop if (at := held.find(string)) >= 0]
        self.stopped = bool(found)
        end = min(found) if found else len(held) - (0 if final else self._begun(held))
        piece, self._held = held[:end], held[end:]
        self.shown += piece
        return piece

    def _begun(self, held: str) -> int:
        """Length of the longest end of `held` with which a stop string begins."""
        return max(
            (n for string in self.stop for n in range(1, min(len(string), len(held) + 1)) if held.endswith(string[:n])),
            default=0,
        )
