"""docker-compose.yml and the Dockerfile against the code: there is no Docker here to try them."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from django.core.management import get_commands
from django.urls import resolve

from workers.processes import WORKERS, valkey_config, worker_command

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ["migrate", "web", *WORKERS]
PLACE = r"\$\{(\w+)(?::([-?])([^}]*))?\}"


def _command(service: str) -> list[str]:
    """As the shell of the container would split it, with the defaults put in."""
    return shlex.split(re.sub(PLACE, lambda m: m[3] if m[2] == "-" else m[1], SERVICES[service]["command"]))


def _option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_every_process_of_the_platform_has_a_service() -> None:
    assert set(SERVICES) == {*OURS, "postgres", "redis"}


@pytest.mark.parametrize("queue", WORKERS)
def test_a_worker_runs_as_up_would_run_it(queue: str) -> None:
    command, local = _command(queue), worker_command(queue, WORKERS[queue])
    assert command[:2] == ["python", "-m"]
    importlib.import_module(command[2])
    for option in ("-A", "-Q", "-n", "-P", "-c"):
        assert _option(command, option) == _option(local, option)
    assert ("-B" in command) == ("-B" in local)


def test_exactly_one_service_has_the_clock() -> None:
    assert [name for name in SERVICES if "-B" in str(SERVICES[name].get("command")).split()] == ["default"]


def test_the_web_command_serves_our_application_on_the_published_port() -> None:
    command = _command("web")
    module, _, name = command[3].partition(":")
    assert command[:3] == ["python", "-m", "uvicorn"]
    assert callable(getattr(importlib.import_module(module), name))
    port = _option(command, "--port")
    assert SERVICES["web"]["ports"][0].endswith(f":{port}")
    assert port in " ".join(SERVICES["web"]["healthcheck"]["test"])


def test_management_commands_exist() -> None:
    for service in OURS:
        for words in (_command(service), SERVICES[service].get("healthcheck", {}).get("test", [])):
            if "manage.py" in words:
                assert words[words.index("manage.py") + 1] in get_commands()


def test_health_checks_ask_what_is_there() -> None:
    url = re.search(r"http://[^'\"]+", " ".join(SERVICES["web"]["healthcheck"]["test"]))
    assert url is not None
    assert resolve(urlsplit(url[0]).path).url_name == "health"
    assert urlsplit(url[0]).hostname == "localhost"
    for queue in WORKERS:
        assert SERVICES[queue]["healthcheck"]["test"] == ["CMD", "python", "manage.py", "alive"]


def test_whoever_is_waited_for_can_be_seen_to_be_ready() -> None:
    for name, service in SERVICES.items():
        for other, condition in service.get("depends_on", {}).items():
            assert other in SERVICES, name
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other]
            else:
                assert condition["condition"] == "service_completed_successfully"
                assert SERVICES[other]["restart"] == "no"


def test_every_variable_given_to_our_services_is_read_by_the_settings() -> None:
    read = "".join((ROOT / "platform" / "config" / name).read_text() for name in ("settings.py", "env.py"))
    names = set(COMPOSE["x-bucle"]["environment"])
    assert names
    for name in names:
        assert f'"{name}"' in read, f"{name} is set in docker-compose.yml and read nowhere"
    for service in OURS:
        assert set(SERVICES[service]["environment"]) == names


def test_secrets_have_no_default_and_everything_else_has_one() -> None:
    places = re.findall(PLACE, re.sub(r"#.*", "", TEXT))
    secrets = {"SECRET_KEY", "POSTGRES_PASSWORD"}
    for name, kind, _text in places:
        if name in secrets:
            assert kind in {"?", ""}, name
        else:
            assert kind == "-", name
    assert {name for name, kind, _text in places if kind == "?"} == secrets
    written = [str(value) for s in SERVICES.values() for value in s.get("environment", {}).values()]
    for value in written:
        assert not re.search(r"(?i)password(?!\}|:\?)", value.replace("POSTGRES_PASSWORD", "")), value


def test_the_database_url_matches_the_database() -> None:
    url = urlsplit(re.sub(PLACE, "secret", COMPOSE["x-bucle"]["environment"]["DATABASE_URL"]))
    postgres = SERVICES["postgres"]["environment"]
    assert (url.hostname, url.username) == ("postgres", postgres["POSTGRES_USER"])
    assert url.path == f"/{postgres['POSTGRES_DB']}"
    assert "${POSTGRES_PASSWORD" in COMPOSE["x-bucle"]["environment"]["DATABASE_URL"]


def test_redis_is_kept_as_the_embedded_one_is(tmp_path: Path) -> None:
    words = SERVICES["redis"]["command"].split()
    ours = dict(line.split(" ", 1) for line in valkey_config(tmp_path)[1].read_text().splitlines())
    for name in ("appendonly", "appendfsync", "maxmemory-policy"):
        assert words[words.index(f"--{name}") + 1] == ours[name]
    environment = COMPOSE["x-bucle"]["environment"]
    assert environment["REDIS_URL"].rpartition("/")[0] == environment["CACHE_URL"].rpartition("/")[0]
    assert environment["REDIS_URL"] != environment["CACHE_URL"]


def test_artifacts_are_shared_by_all_who_need_them() -> None:
    place = COMPOSE["x-bucle"]["environment"]["ARTIFACTS"]
    for service in OURS:
        assert SERVICES[service]["volumes"] == [f"artifacts:{place}"]
    used = {volume.split(":")[0] for s in SERVICES.values() for volume in s["volumes"]}
    assert used == set(COMPOSE["volumes"])


def _dockerfile() -> list[tuple[str, str]]:
    joined = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def test_the_dockerfile_copies_what_is_there() -> None:
    copied = [words.split()[:-1] for verb, words in _dockerfile() if verb == "COPY" and "--from" not in words]
    assert copied
    for path in (path for paths in copied for path in paths):
        assert (ROOT / path).exists(), path


def test_the_dockerfile_installs_every_package_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    steps = _dockerfile()
    install = next(n for n, (verb, words) in enumerate(steps) if verb == "RUN" and "pip install" in words)
    before = {path for verb, words in steps[:install] if verb == "COPY" for path in words.split()[:-1]}
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]) <= before
    assert {"pyproject.toml", project["project"]["readme"]} <= before


def test_the_dockerfile_runs_scripts_and_modules_that_exist_as_a_person_without_rights() -> None:
    steps = _dockerfile()
    for verb, words in steps:
        for script in re.findall(r"python (\S+\.py)", words if verb == "RUN" else ""):
            assert (ROOT / script).is_file(), script
    command = next(words for verb, words in steps if verb == "CMD")
    assert "config.asgi:application" in command
    assert next(words for verb, words in steps if verb == "USER") != "root"
    home = re.search(r"BUCLE_HOME=(\S+)", " ".join(words for verb, words in steps if verb == "ENV"))
    assert home is not None
    assert home[1] == COMPOSE["x-bucle"]["environment"]["BUCLE_HOME"]
    assert any(verb == "RUN" and home[1] in words for verb, words in steps)


def test_the_image_has_a_python_the_project_supports() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    version = next(words for verb, words in _dockerfile() if verb == "FROM" and words.startswith("python:"))
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    assert found >= tuple(map(int, re.findall(r"\d+", wanted)))
