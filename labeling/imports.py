"""Files coming into a project: all of a file or nothing, each once, stored with its sha256."""

import hashlib
import math
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as _lazy

from accounts.models import Project, User
from labeling.models import Prompt
from labeling.row_store import Arrival, store_rows
from labeling.rows import SPLITS, BadRow, Row, parse_row, prompt_row, shown
from labeling.streams import ImportFailed, failed, read_bytes, read_lines, read_text
from registry.models import Dataset

__all__ = ["DOCUMENTS", "KINDS", "ImportFailed", "import_file", "import_or_find", "summary"]

KINDS: dict[str, Dataset.Kind] = {
    "corpus": Dataset.Kind.CORPUS,
    "prompts": Dataset.Kind.PROMPTS,
    "demonstrations": Dataset.Kind.DEMONSTRATIONS,
    "preferences": Dataset.Kind.RANKINGS,
    "rankings": Dataset.Kind.RANKINGS,
}
SUFFIXES = {"corpus": (".txt",), "prompts": (".jsonl", ".txt")}
ROW_SUFFIXES = (".jsonl",)
# What a document of a corpus is: the whole file, every line, every block between blank lines.
DOCUMENTS = ("file", "lines", "paragraphs")
# Bytes after unpacking.
MOST_CORPUS_BYTES = 2_000_000_000
MOST_ROW_BYTES = 500_000_000
MOST_ROWS = 1_000_000

# The figures of a manifest in the order people read them.
LABELS = {
    "rows": _lazy("lines"),
    "characters": _lazy("characters"),
    "imported": _lazy("imported"),
    "prompts_new": _lazy("new prompts"),
    "tasks": _lazy("writing tasks"),
    "already_there": _lazy("already there"),
    "repeated": _lazy("repeated lines"),
    "left_out_holdout": _lazy("left out, because the prompt is held out"),
    "left_out_train": _lazy("left out, because the prompt is in training"),
    "left_out_equal": _lazy("left out, because all answers are the same"),
}


@dataclass
class Staged:
    """A file that has been read to its end and found good, waiting beside the datasets."""

    path: Path
    sha256: str = ""
    bytes: int = 0
    rows: int = 0
    characters: int = 0


def import_file(
    *,
    project: Project,
    kind: str,
    path: Path,
    name: str,
    by: User | None = None,
    split: str = "train",
    weight: float = 1.0,
    documents: str = "file",
    ignore_unknown: bool = False,
) -> Dataset:
    """Bring a file in; raises ImportFailed, and then nothing has changed. The same file again changes nothing."""
    dataset, _made = import_or_find(
        project=project, kind=kind, path=path, name=name, by=by, split=split, weight=weight, documents=documents,
        ignore_unknown=ignore_unknown,
    )  # fmt: skip
    return dataset


def import_or_find(
    *,
    project: Project,
    kind: str,
    path: Path,
    name: str,
    by: User | None = None,
    split: str = "train",
    weight: float = 1.0,
    documents: str = "file",
    ignore_unknown: bool = False,
) -> tuple[Dataset, bool]:
    """The file's dataset, and whether it is new."""
    name = _printable(Path(name).name)
    _check(name, kind, split, weight, documents)
    folder = f"projects/{project.pk}/datasets"
    with _staged(path, name, kind, ignore_unknown, settings.ARTIFACTS / folder) as staged, transaction.atomic():
        Project.objects.select_for_update().get(pk=project.pk)  # the same file sent twice at once waits here
        dataset = Dataset.objects.filter(
            project=project, kind=KINDS[kind], sha256=staged.sha256, manifest__origin="import"
        ).first()
        made = dataset is None
        if dataset is None:
            manifest: dict[str, Any] = {"origin": "import", "layout": kind, "rows": staged.rows}
            if kind == "corpus":
                manifest |= {"documents": documents, "characters": staged.characters}
            dataset = Dataset.objects.create(
                project=project, kind=KINDS[kind], name=name, path=f"{folder}/{staged.sha256[:12]}/{_file_name(name)}",
                sha256=staged.sha256, rows=staged.rows, bytes=staged.bytes, weight=weight, manifest=manifest,
                created_by=by,
            )  # fmt: skip
            if kind != "corpus":
                arrival = Arrival(dataset, kind, split, by)
                store_rows(arrival, _rows_of(staged, name, kind, ignore_unknown))
                _describe(dataset, arrival)
        _move(staged.path, dataset.file, name)  # last: what fails before leaves no file behind
    return dataset, made


def _check(name: str, kind: str, split: str, weight: float, documents: str) -> None:
    for value, known in ((kind, tuple(KINDS)), (split, SPLITS), (documents, DOCUMENTS)):
        if value not in known:
            reason = _("%(value)s is not known: choose one of %(known)s.")
            raise failed(name, reason % {"value": shown(value) or "''", "known": ", ".join(known)})
    if not (math.isfinite(weight) and weight > 0):
        raise failed(name, _("the weight is %(weight)s: choose a number above 0.") % {"weight": weight})
    suffixes = SUFFIXES.get(kind, ROW_SUFFIXES)
    if not name.lower().removesuffix(".gz").endswith(suffixes):
        endings = ", ".join(f"{suffix}, {suffix}.gz" for suffix in suffixes)
        reason = _("a file of kind %(kind)s is named %(endings)s.")
        raise failed(name, reason % {"kind": kind, "endings": endings})


@contextmanager
def _staged(path: Path, name: str, kind: str, ignore_unknown: bool, folder: Path) -> Iterator[Staged]:
    """The whole file checked and copied aside; the copy is gone afterwards unless it was moved into place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        handle, aside = tempfile.mkstemp(prefix=".incoming-", dir=folder)
    except OSError as error:
        raise _not_stored(error, name) from None
    staged = Staged(Path(aside))
    try:
        with os.fdopen(handle, "wb") as out:
            _copy(path, name, kind, ignore_unknown, out, staged)
        yield staged
    finally:
        staged.path.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Copies left behind by a process that was killed."""
    for aside in folder.glob(".incoming-*"):
        with suppress(FileNotFoundError):
            if aside.stat().st_mtime < time.time() - 86_400:
                aside.unlink()


def _copy(path: Path, name: str, kind: str, ignore_unknown: bool, out: BinaryIO, staged: Staged) -> None:
    limit = MOST_CORPUS_BYTES if kind == "corpus" else MOST_ROW_BYTES
    texts = _written(read_text(read_bytes(path, name, limit), name), name, out, staged)
    if kind == "corpus":
        _count_corpus(texts, name, staged)
    else:
        for _row in _parse(texts, name, kind, ignore_unknown):
            staged.rows += 1
            if staged.rows > MOST_ROWS:
                raise failed(
                    name, _("it has more than %(most)d rows: split it into several files.") % {"most": MOST_ROWS}
                )
        if not staged.rows:
            raise failed(name, _("it is empty: there is no row in it."))
    try:
        out.flush()
        os.fsync(out.fileno())
    except OSError as error:
        raise _not_stored(error, name) from None


def _written(texts: Iterable[str], name: str, out: BinaryIO, staged: Staged) -> Iterator[str]:
    """Write and hash what passes through."""
    sha256 = hashlib.sha256()
    for text in texts:
        content = text.encode()
        sha256.update(content)
        staged.bytes += len(content)
        staged.characters += len(text)
        try:
            out.write(content)
        except OSError as error:
            raise _not_stored(error, name) from None
        yield text
    staged.sha256 = sha256.hexdigest()


def _count_corpus(texts: Iterable[str], name: str, staged: Staged) -> None:
    """The rows of a corpus are its lines."""
    says_something, last = False, ""
    for text in texts:
        staged.rows += text.count("\n")
        says_something = says_something or not text.isspace()
        last = text
    staged.rows += not last.endswith("\n")
    if not says_something:
        raise failed(name, _("it is empty: there is no text in it."))


def _parse(texts: Iterable[str], name: str, kind: str, ignore_unknown: bool) -> Iterator[Row]:
    is_plain = name.lower().removesuffix(".gz").endswith(".txt")
    for number, line in read_lines(texts, name):
        if not line.strip():
            continue
        try:
            yield prompt_row(line.strip()) if is_plain else parse_row(kind, line, ignore_unknown=ignore_unknown)
        except BadRow as error:
            raise failed(name, str(error), number) from None


def _rows_of(staged: Staged, name: str, kind: str, ignore_unknown: bool) -> Iterator[Row]:
    texts = read_text(read_bytes(staged.path, "", MOST_ROW_BYTES), name)
    return _parse(texts, name, kind, ignore_unknown)


def summary(dataset: Dataset) -> str:
    """What became of an imported file, in a line."""
    figures = {**dataset.manifest, "rows": dataset.rows}
    return " · ".join(f"{label}: {figures[name]}" for name, label in LABELS.items() if figures.get(name))


def _describe(dataset: Dataset, arrival: Arrival) -> None:
    """Into the manifest: what became of the rows, and which fields nothing reads (the 20 most frequent)."""
    fields = {"notes": dict(arrival.notes.most_common(20)), "ignored": dict(arrival.ignored.most_common(20))}
    dataset.manifest = {
        **dataset.manifest,
        "split": arrival.split,
        "imported": 0,
        "repeated": 0,
        "left_out_holdout": 0,
        "prompts_new": Prompt.objects.filter(dataset=dataset).count(),
        **arrival.counts,
        **{name: counts for name, counts in fields.items() if counts},
    }
    dataset.save(update_fields=["manifest"])


def _move(aside: Path, target: Path, name: str) -> None:
    """Into place at once. A file that is already there has the same sha256 in its path."""
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.chmod(0o644)  # workers may run as somebody else
        aside.rename(target)
    except OSError as error:
        raise _not_stored(error, name) from None


def _not_stored(error: OSError, name: str) -> ImportFailed:
    return failed(name, _("it could not be stored (%(reason)s).") % {"reason": error.strerror or error})


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[-150:])


def _file_name(name: str) -> str:
    """A name for the disk: unpacked, without anything a shell or a file system minds."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", re.sub(r"\.gz$", "", name, flags=re.IGNORECASE))
    stem, _dot, suffix = plain.rpartition(".")
    return f"{stem.lstrip('.')[:80] or 'file'}.{suffix}"
