"""manage.py import_model: a Hugging Face GPT-2 folder becomes a base model, or a reward model, of a project."""

import shutil
import uuid
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import CommandParser
from django.db import transaction

from accounts.models import Project
from registry.commands import ReportCommand
from registry.models import ModelVersion
from registry.services import RegistryError, find_project, register_model
from workers.prepare import digest_of


class Command(ReportCommand):
    help = "Check a Hugging Face GPT-2 folder, copy it into the artifacts and give it a number."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("folder", type=Path, metavar="FOLDER", help="config.json, *.safetensors, tokenizer.json")
        parser.add_argument("--project", required=True, metavar="P", help="the project's address, such as plaza")

    def report(self, **options: Any) -> tuple[dict[str, Any], str]:
        version = import_model(find_project(options["project"]), options["folder"])
        said = {"model": version.name, "sha256": version.sha256, "parameters": version.parameters, "path": version.path}
        return said, f"{version.name}: {version.parameters:,} parameters, sha256 {version.sha256[:12]}"


def import_model(project: Project, folder: Path) -> ModelVersion:
    """Read the folder as a stage would, write it in our layout (room for the chat tokens, a card) and register it."""
    from training import checkpoint
    from training.config import TrainingError

    path = f"projects/{project.pk}/models/{uuid.uuid4().hex[:12]}"
    target = settings.ARTIFACTS / path
    try:
        kind = checkpoint.kind_of(folder)
        load = checkpoint.load_reward_model if kind == ModelVersion.Kind.REWARD else checkpoint.load_model
        model, tokenizer, card = load(folder)
        kept = {name: card[name] for name in ("reward_std",) if name in card}
        checkpoint.save_model(target, model, tokenizer, kind, {**kept, "stage": "import", "imported_from": folder.name})
    except TrainingError as error:
        raise RegistryError(str(error)) from error
    try:
        with transaction.atomic():
            return register_model(
                project=project, kind=kind, path=path, sha256=digest_of(target),
                parameters=sum(p.numel() for p in model.parameters()),
            )  # fmt: skip
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
