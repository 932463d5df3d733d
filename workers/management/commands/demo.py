"""manage.py demo: the whole loop on the built-in small world."""

import json
import os
import threading
import time
from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser, call_command

from registry.services import RegistryError
from workers import demo
from workers.demo_summary import ORDER, summarise, table
from workers.management.commands.up import stop_on_signals
from workers.processes import Processes


class Command(BaseCommand):
    help = "Start the platform, run one feedback round on the small world, print what came of it, and stay up."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--exit", action="store_true", help="end after the summary")
        parser.add_argument("--seed", type=int, default=1)
        parser.add_argument("--language", choices=list(demo.NAMES), default="es", help="the town's language")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--json", action="store_true", help="the summary as one JSON object on standard output")

    def handle(self, *args: Any, **options: Any) -> None:
        self.began = time.monotonic()
        call_command("migrate", verbosity=0)
        demo.folder().mkdir(parents=True, exist_ok=True)
        ending = stop_on_signals()
        try:
            with Processes(options["port"], say=self.say) as processes:
                project = demo.project_for(options["seed"], options["language"])
                passwords = demo.people(project, os.environ.get("BUCLE_DEMO_PASSWORD", ""))
                self.say(f"The platform is up at {processes.url}; the loop begins.")
                summary = self.run_until(ending, options["seed"], options["language"])
                if summary is None:
                    return
                self.stdout.write(json.dumps(summary, ensure_ascii=False) if options["json"] else table(summary))
                if not options["exit"]:
                    self.invite(processes.url, passwords)
                    ending.wait()
                    self.say("Stopping ...")
        except RegistryError as error:
            raise CommandError(str(error)) from error

    def run_until(self, ending: threading.Event, seed: int, language: str) -> dict[str, Any] | None:
        """The loop's summary; None when a person stopped it."""
        kept = demo.folder() / f"{demo.project_for(seed, language).slug}.json"
        if kept.exists():
            self.say(f"This loop has been run before: its figures come from {kept}.")
            return dict(json.loads(kept.read_text(encoding="utf-8")))

        def say(text: str) -> None:
            if ending.is_set():
                raise KeyboardInterrupt
            self.say(text)

        try:
            project, round = demo.loop(seed, language, say)
        except KeyboardInterrupt:
            self.say("Stopped; the same command goes on from here.")
            return None
        summary = summarise(project, round, time.monotonic() - self.began, seed)
        for file in (kept, demo.folder() / "summary.json"):
            figures = {name: summary[name] for name in ORDER} if file.name == "summary.json" else summary
            file.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return summary

    def invite(self, url: str, passwords: dict[str, str]) -> None:
        self.stdout.write(f"\n  Open {url} and sign in:")
        for name, password in passwords.items():
            self.stdout.write(f"    {name:<6} {password:<16} {demo.PEOPLE[name].label}")
        self.stdout.write("  Ctrl-C stops everything; `make demo` brings it back as it was.\n")
        self.stdout.flush()

    def say(self, text: str) -> None:
        self.stderr.write(f"[{time.monotonic() - self.began:4.0f} s] {text}")
        self.stderr.flush()
