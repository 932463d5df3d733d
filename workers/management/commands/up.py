"""manage.py up: the whole platform in the foreground, with an embedded Valkey and SQLite unless told otherwise."""

import signal
import threading
from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser, call_command

from registry.services import RegistryError
from workers.processes import Processes


class Command(BaseCommand):
    help = "Start web, workers and the embedded Valkey; stop them together with Ctrl-C."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--port", type=int, default=8000, help="another free one is taken where it is in use")
        parser.add_argument("--host", default="127.0.0.1")

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", verbosity=0)
        ending = stop_on_signals()
        try:
            with Processes(options["port"], options["host"], say=self.stderr.write) as all_processes:
                self.stdout.write(f"Bucle is up at {all_processes.url}  (Ctrl-C stops it)")
                self.stdout.flush()
                ending.wait()
                self.stdout.write("Stopping ...")
        except RegistryError as error:
            raise CommandError(str(error)) from error


def stop_on_signals() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set; a second signal interrupts."""
    ending = threading.Event()

    def end(number: int, _frame: object) -> None:
        if ending.is_set():
            raise KeyboardInterrupt
        ending.set()

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    return ending
