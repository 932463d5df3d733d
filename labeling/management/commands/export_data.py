"""manage.py export_data: a project's rows into a file."""

import gzip
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from django.core.management import BaseCommand, CommandParser
from django.core.management.base import no_translations

from labeling.errors import LabelingError
from labeling.exports import FORMATS, KINDS, write_rows
from registry.commands import ReportCommand
from registry.services import find_project


class Command(ReportCommand):
    help = "Write a project's rows into a file, which appears whole or not at all."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--project", required=True, metavar="P", help="the project's address, such as plaza")
        parser.add_argument("--kind", required=True, choices=KINDS)
        parser.add_argument("--format", default="jsonl", choices=FORMATS)
        parser.add_argument("--out", required=True, metavar="FILE", help="- for standard output; .gz is packed")

    @no_translations
    def report(self, **options: Any) -> tuple[dict[str, Any], str]:
        name = options["out"]
        if name == "-" and options["json"]:
            raise LabelingError("--json and --out - would both write to standard output: name a file.")
        project = find_project(options["project"])
        try:
            with _stdout(self) if name == "-" else _whole(Path(name)) as out:
                rows = write_rows(project, options["kind"], options["format"], out)
        except OSError as error:
            raise LabelingError(f"{name} could not be written ({error.strerror or error}).") from None
        said = {"project": project.slug, "kind": options["kind"], "format": options["format"], "rows": rows}
        return {**said, "out": name}, "" if name == "-" else f"{name}: {rows} rows"


@contextmanager
def _stdout(command: BaseCommand) -> Iterator[TextIO]:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # rows are UTF-8, whatever the terminal is set to
    command.stdout.ending = ""  # else the empty report would follow the rows as an empty line
    yield cast(TextIO, command.stdout)


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """The file appears under its name when all of it is on the disk; what stood there before stays until then."""
    path = path.resolve()  # a link is followed, not replaced
    if path.exists() and not path.is_file():
        raise LabelingError(f"{path} is not a file: name one, or - for standard output.")
    if not path.parent.is_dir():
        raise LabelingError(f"There is no folder {path.parent}: make it first.")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("xb") as raw:
            with _text(raw, packed=path.suffix == ".gz") as out:
                yield out
            raw.flush()
            os.fsync(raw.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _text(raw: BinaryIO, packed: bool) -> Iterator[TextIO]:
    """Text into a binary file that stays open; packed rows are the same bytes every time, so without a date."""
    with ExitStack() as stack:
        target = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0)) if packed else raw
        out = io.TextIOWrapper(target, encoding="utf-8", newline="\n", write_through=True)
        try:
            yield out
        finally:
            out.detach()
