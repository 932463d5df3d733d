"""Commands that report: one sentence where they fail, one JSON object with --json, logs on standard error."""

import json
from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser
from django.utils import translation

from registry.services import RegistryError


class ReportCommand(BaseCommand):
    """Subclasses return what they did from `report`, as a dictionary and as a text for people."""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="one JSON object on standard output")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with translation.override("en"):  # one language, whoever reads the logs
                said, text = self.report(**options)
        except RegistryError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(json.dumps(said, ensure_ascii=False, default=str) if options["json"] else text)

    def report(self, **options: Any) -> tuple[dict[str, Any], str]:
        raise CommandError("This command reports nothing.")

    def progress(self, text: str) -> None:
        """A line for the person who waits; standard output stays clean for --json."""
        self.stderr.write(text)
        self.stderr.flush()
