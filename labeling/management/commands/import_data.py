"""manage.py import_data: files into a project."""

import json
from pathlib import Path
from typing import Any

from django.core.management import CommandParser
from django.core.management.base import no_translations

from accounts.models import Project
from accounts.services import create_project
from labeling.imports import DOCUMENTS, KINDS, ImportFailed, import_or_find, summary
from labeling.rows import SPLITS
from registry.commands import ReportCommand
from registry.models import Dataset
from registry.services import RegistryError, find_project


class Command(ReportCommand):
    help = "Bring files into a project: each of them whole or not at all, and the same file once."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".jsonl or .txt, or either with .gz")
        parser.add_argument("--project", required=True, metavar="P", help="the project's address, such as plaza")
        parser.add_argument("--kind", required=True, choices=list(KINDS))
        parser.add_argument("--split", default="train", choices=SPLITS, help="holdout: no training ever sees it")
        parser.add_argument("--weight", default=1.0, type=float, help="of a corpus in the mixture")
        parser.add_argument("--documents", default="file", choices=DOCUMENTS, help="what a corpus is made of")
        parser.add_argument("--ignore-unknown", action="store_true", help="count unknown fields and go on")
        parser.add_argument("--create", action="store_true", help="make the project if there is none")

    @no_translations
    def report(self, **options: Any) -> tuple[dict[str, Any], str]:
        project = _project(options["project"], options["create"])
        files: list[dict[str, Any]] = []
        lines: list[str] = []
        errors: list[str] = []
        for path in options["files"]:
            try:
                dataset, made = _import(project, path, options)
            except ImportFailed as error:
                errors.append(str(error))
                files.append({"file": str(path), "error": str(error)})
            else:
                files.append(_figures(dataset, path, made))
                lines.append(f"{path.name}: {summary(dataset) if made else 'it was there already, nothing changed'}")
        said = {"project": project.slug, "kind": options["kind"], "files": files}
        if errors:
            self._say_what_came_in(json.dumps(said, ensure_ascii=False) if options["json"] else "\n".join(lines))
            raise ImportFailed("\n".join(errors))
        return said, "\n".join(lines)

    def _say_what_came_in(self, text: str) -> None:
        if text:
            self.stdout.write(text)


def _project(slug: str, create: bool) -> Project:
    try:
        return find_project(slug)
    except RegistryError as error:
        if create:
            return create_project(name=slug, slug=slug)
        raise RegistryError(f"{error} Add --create to make it.") from None


def _import(project: Project, path: Path, options: dict[str, Any]) -> tuple[Dataset, bool]:
    named = {name: options[name] for name in ("kind", "split", "weight", "documents", "ignore_unknown")}
    return import_or_find(project=project, path=path, name=path.name, **named)


def _figures(dataset: Dataset, path: Path, made: bool) -> dict[str, Any]:
    return {
        "file": str(path),
        "dataset": dataset.pk,
        "new": made,
        "sha256": dataset.sha256,
        "rows": dataset.rows,
        "bytes": dataset.bytes,
        "weight": dataset.weight,
        "manifest": dataset.manifest,
    }
