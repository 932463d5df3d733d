"""The inference engine inside the serve worker: one per model version, shared by every request for it."""

import logging
import threading
import time
import uuid
from collections import OrderedDict
from typing import Any

import torch
from django.db.models import QuerySet
from django.utils.timezone import now

from labeling.models import Completion
from registry.live import publish
from registry.models import ModelVersion
from training import chat, checkpoint, kernels
from training.config import TrainingError
from training.engine import Engine, EngineThread, Request
from workers.life import stopping

log = logging.getLogger(__name__)
MAX_BATCH = 64
KEPT = 3  # models in memory: live, candidate, one more for the playground
OTHER_SEEDS = 4  # how often a completion that repeats another one of its task is drawn again
STOPPED = "The engine stopped while it wrote this text: try again."

Status = Completion.Status


class Served:
    """A model version, its tokenizer and the thread that writes with it."""

    def __init__(self, version: ModelVersion) -> None:
        kernels.enable("auto")
        model, self.tokenizer, _about = checkpoint.load_model(
            version.folder, "cuda" if torch.cuda.is_available() else "cpu"
        )
        self.is_base = version.kind == ModelVersion.Kind.BASE
        self.thread = EngineThread(
            Engine(model, self.tokenizer, MAX_BATCH)
        )  # in fp32: a stored seed writes its text again
        self.thread.start()

    def request(self, prompt: str, sampling: dict[str, Any], seed: int, **more: Any) -> Request:
        """A base model continues the text as it is; all others answer it. `more`: listeners, stop strings, ..."""
        ids = self.tokenizer.encode(prompt) if self.is_base else chat.render_prompt(self.tokenizer, prompt)
        return Request(
            ids,
            max_new_tokens=sampling["max_new_tokens"], temperature=sampling["temperature"],
            top_k=sampling["top_k"], top_p=sampling["top_p"], seed=seed, **more,
        )  # fmt: skip


_served: "OrderedDict[int, Served]" = OrderedDict()
_loading = threading.Lock()


def served(version: ModelVersion) -> Served:
    """The engine of a model version, loaded at its first request; the longest unused one makes room."""
    with _loading:
        found = _served.get(version.pk)
        if found is None or found.thread.failure is not None:
            found = _served[version.pk] = Served(version)
            while len(_served) > KEPT:
                _pk, oldest = _served.popitem(last=False)
                oldest.thread.close(timeout=0)
        _served.move_to_end(version.pk)
        return found


def warm(model_id: int) -> None:
    """Have a promoted model ready before the first question comes."""
    version = ModelVersion.objects.filter(pk=model_id).first()
    if version is not None and version.can_write:
        served(version)


def _claim(completions: "QuerySet[Completion]", most: int) -> list[Completion]:
    """Take up to `most` pending completions; what another worker took meanwhile is left to it."""
    token = uuid.uuid4()
    wanted = list(completions.filter(status=Status.PENDING).values_list("pk", flat=True)[:most])
    Completion.objects.filter(pk__in=wanted, status=Status.PENDING).update(
        status=Status.WRITING, claim=token, leased_until=now() + Completion.LEASE
    )
    return list(Completion.objects.filter(claim=token).select_related("model"))


def _mine(completion: Completion) -> "QuerySet[Completion]":
    return Completion.objects.filter(pk=completion.pk, claim=completion.claim, status=Status.WRITING)


def _wait(completion: Completion, request: Request) -> None:
    """Until a text is written; meanwhile the lease of all that was claimed with it is kept."""
    while not request.done.wait(timeout=Completion.LEASE.total_seconds() / 4):
        claimed = Completion.objects.filter(claim=completion.claim, status=Status.WRITING)
        claimed.update(leased_until=now() + Completion.LEASE)


def text_of(request: Request) -> str:
    """What was written, without the byte 0, which PostgreSQL stores in no text; the tokens keep it."""
    return str(request.text).replace("\x00", "\ufffd").strip()


def _store(completion: Completion, request: Request, seed: int) -> None:
    _mine(completion).update(
        status=Status.DONE, text=text_of(request), tokens=request.tokens, written_at=now(), seed=seed,
        logprobs=[round(value, 6) for value in request.logprobs], finish_reason=request.finish_reason,
    )  # fmt: skip


def _sentence(completion: Completion, error: Exception) -> str:
    """What the person who waits for this text reads; whatever goes wrong, nobody waits for ever."""
    if isinstance(error, TrainingError):
        return str(error)
    log.exception("Completion %d", completion.pk)
    return f"Model {completion.model} could not be loaded ({type(error).__name__}): the serve worker's log says more."


def _fail(completion: Completion, sentence: str) -> None:
    _mine(completion).update(status=Status.FAILED, error=sentence)


def write_round(round_id: int) -> None:
    """Write what is missing of a round, as many texts at once as the engine takes."""
    pending = Completion.objects.filter(task__round_id=round_id).order_by("task", "position")
    while not stopping.is_set() and (batch := _claim(pending, MAX_BATCH)):
        _write_batch(batch)


def _write_batch(batch: list[Completion]) -> None:
    """Texts of one task differ where the model lets them: a repeated one is drawn again with another seed."""
    todo = [(completion, completion.seed) for completion in batch]
    for trial in range(OTHER_SEEDS + 1):
        written = _write_all(todo)
        todo = []
        for completion, request, seed in written:
            others = Completion.objects.filter(task=completion.task_id, status=Status.DONE).exclude(pk=completion.pk)
            again = trial < OTHER_SEEDS and others.filter(text=text_of(request)).exists()
            if again:
                todo.append((completion, (seed * 1_000_003 + 1) % 2**31))
            else:
                _store(completion, request, seed)
        if not todo:
            return


def _write_all(todo: list[tuple[Completion, int]]) -> list[tuple[Completion, Request, int]]:
    waiting = []
    for completion, seed in todo:
        try:
            if completion.model is None:
                raise TrainingError("This completion names no model: open a new round.")
            engine = served(completion.model)
            request = engine.request(completion.prompt_text, completion.sampling, seed)
            waiting.append((completion, engine.thread.submit(request), seed))
        except Exception as error:
            _fail(completion, _sentence(completion, error))
    done = []
    for completion, request, seed in waiting:
        _wait(completion, request)
        if request.finish_reason == "cancelled":
            _fail(completion, STOPPED)
        else:
            done.append((completion, request, seed))
    return done


class _Stream:
    """Sends a growing text to the page that waits for it, at most ten times a second."""

    def __init__(self, completion: Completion) -> None:
        self.name, self.text, self.sent_at = f"completion:{completion.pk}", "", 0.0

    def __call__(self, piece: str) -> None:
        self.text += piece
        if time.monotonic() - self.sent_at > 0.1:
            publish(self.name, {"text": self.text})
            self.sent_at = time.monotonic()


def write_one(completion_id: int) -> None:
    """Write one completion of the playground and stream it."""
    for completion in _claim(Completion.objects.filter(pk=completion_id), 1):
        stream = _Stream(completion)
        try:
            engine = served(completion.model)  # type: ignore[arg-type]
            request = engine.request(completion.prompt_text, completion.sampling, completion.seed, on_token=stream)
            engine.thread.submit(request)
        except Exception as error:
            _fail(completion, sentence := _sentence(completion, error))
            publish(stream.name, {"error": sentence})
            return
        _wait(completion, request)
        if request.finish_reason == "cancelled":
            _fail(completion, STOPPED)
            publish(stream.name, {"error": STOPPED})
            return
        _store(completion, request, completion.seed)
        publish(stream.name, {"done": True, "text": text_of(request), "finish_reason": request.finish_reason})
