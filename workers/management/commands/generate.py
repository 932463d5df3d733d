"""manage.py generate: a model writes, here and now, in this process."""

import secrets
from typing import Any

from django.core.management import CommandParser

from labeling.playground import check_sampling
from registry.commands import ReportCommand
from registry.models import ModelVersion
from registry.services import RegistryError, find_model


class Command(ReportCommand):
    help = "Let a model answer a prompt."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--model", required=True, help="policy-3, or project/policy-3")
        parser.add_argument("--prompt", required=True)
        parser.add_argument("--n", type=int, default=1)
        parser.add_argument("--temperature", type=float, default=1.0)
        parser.add_argument("--top-k", type=int, default=0)
        parser.add_argument("--top-p", type=float, default=1.0)
        parser.add_argument("--max-new-tokens", type=int, default=48)
        parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1 = off")
        parser.add_argument("--stop", action="append", default=[], help="a text that ends it, which is cut before it")
        parser.add_argument("--seed", type=int)

    def report(self, **options: Any) -> tuple[dict[str, Any], str]:
        version = find_model(options["model"])
        if not version.can_write:
            raise RegistryError(f"{version.name} is a {version.kind} model and cannot write text: choose another.")
        names = ("temperature", "top_k", "top_p", "max_new_tokens")
        sampling = check_sampling({name: options[name] for name in names})
        if options["repetition_penalty"] <= 0:
            raise RegistryError(f"repetition-penalty is {options['repetition_penalty']}: it must be above 0.")
        held = {"repetition_penalty": options["repetition_penalty"], "stop": options["stop"]}
        seed = secrets.randbelow(2**31) if options["seed"] is None else options["seed"]
        written = write(version, options["prompt"], max(1, options["n"]), sampling, seed, **held)
        said = {
            "model": version.name,
            "prompt": options["prompt"],
            **sampling,
            **held,
            "seed": seed,
            "completions": written,
        }
        return said, "\n".join(completion["text"] for completion in written)


def write(
    version: ModelVersion, prompt: str, n: int, sampling: dict[str, Any], seed: int, **held: Any
) -> list[dict[str, Any]]:
    """n completions with the seeds seed, seed + 1, ...; `held` are further settings of a training.engine.Request."""
    from training.config import TrainingError
    from workers.serving import Served

    try:
        engine = Served(version)
        requests = [engine.thread.submit(engine.request(prompt, sampling, seed + i, **held)) for i in range(n)]
    except TrainingError as error:
        raise RegistryError(str(error)) from error
    for request in requests:
        request.done.wait()
    engine.thread.close()
    keep = ("text", "tokens", "logprobs", "seed", "finish_reason")
    return [{name: getattr(request, name) for name in keep} for request in requests]
