"""The settings as a process sees them at its start, and as a visitor does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client

ROOT = Path(__file__).resolve().parents[2]
SHOW = """
import json
from config import settings
names = ["DEBUG", "SECRET_KEY", "ALLOWED_HOSTS", "SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE", "SECURE_SSL_REDIRECT",
         "SECURE_HSTS_SECONDS", "REDIS_URL", "CELERY_BROKER_URL", "ARTIFACTS", "LEASE_SECONDS"]
print(json.dumps({name: getattr(settings, name) for name in names}, default=str))
"""


def _start(home: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=ROOT,
        env={**kept, "BUCLE_HOME": str(home), **env},
        capture_output=True,
        text=True,
    )


def _settings(home: Path, **env: str) -> dict[str, Any]:
    done = _start(home, **env)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_bare_defaults_are_safe_and_two_homes_share_nothing(tmp_path: Path) -> None:
    one, two = _settings(tmp_path / "1"), _settings(tmp_path / "2")
    assert one["DEBUG"] is False
    assert one["SECRET_KEY"] != two["SECRET_KEY"]
    assert _settings(tmp_path / "1") == one
    assert one["ARTIFACTS"] == str(tmp_path / "1" / "artifacts")


def test_production_behind_tls(tmp_path: Path) -> None:
    found = _settings(
        tmp_path,
        HTTPS="1",
        ALLOWED_HOSTS="bucle.example",
        REDIS_URL="redis://r:1/0",
        SECRET_KEY="s",
        LEASE_SECONDS="60",
    )
    assert found["SESSION_COOKIE_SECURE"] is found["CSRF_COOKIE_SECURE"] is found["SECURE_SSL_REDIRECT"] is True
    assert found["SECURE_HSTS_SECONDS"] >= 31_536_000
    assert found["REDIS_URL"] == found["CELERY_BROKER_URL"] == "redis://r:1/0"
    assert found["ALLOWED_HOSTS"][0] == "bucle.example"
    assert "localhost" in found["ALLOWED_HOSTS"]
    assert (found["SECRET_KEY"], found["LEASE_SECONDS"]) == ("s", 60)
    assert not (tmp_path / "secret_key").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("DEBUG", "maybe"), ("LEASE_SECONDS", "soon"), ("DATABASE_URL", "mysql://x")]
)
def test_an_unknown_value_refuses_to_start(tmp_path: Path, name: str, value: str) -> None:
    done = _start(tmp_path, **{name: value})
    assert done.returncode != 0
    assert "ImproperlyConfigured" in done.stderr
    assert name in done.stderr


def test_the_embedded_valkey_of_the_home_is_found(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "url").write_text("redis://:pw@127.0.0.1:7777/0\n")
    assert _settings(tmp_path)["REDIS_URL"] == "redis://:pw@127.0.0.1:7777/0"
    assert _settings(tmp_path, REDIS_URL="redis://other/0")["REDIS_URL"] == "redis://other/0"


def test_the_health_check_needs_no_tls_and_no_sign_in(settings: Any) -> None:
    settings.SECURE_SSL_REDIRECT = True
    client = Client(headers={"host": "localhost:8000"})
    answer = client.get("/health/")
    assert (answer.status_code, answer.content) == (200, b"ok")
    assert client.get("/").status_code == 301


def test_a_foreign_host_is_refused() -> None:
    assert Client(headers={"host": "evil.example"}).get("/accounts/login/").status_code == 400


@pytest.mark.django_db
def test_pages_forbid_foreign_scripts_and_frames() -> None:
    answer = Client().get("/accounts/login/")
    policy = {part.split()[0]: part.split()[1:] for part in answer["Content-Security-Policy"].split(";")}
    assert policy.get("script-src", policy["default-src"]) == ["'self'"]
    assert policy["frame-ancestors"] == ["'none'"]
    assert answer["X-Frame-Options"] == "DENY"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Referrer-Policy"] == "same-origin"


@pytest.mark.django_db
def test_sqlite_is_in_wal_mode() -> None:
    if connection.vendor != "sqlite":
        pytest.skip("SQLite only")
    with connection.cursor() as cursor:
        assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert cursor.execute("PRAGMA synchronous").fetchone() == (1,)


def test_celery_keeps_no_results_and_its_queues_are_those_of_the_workers(settings: Any) -> None:
    from config.celery import app
    from registry.models import WorkerProcess
    from workers.processes import WORKERS

    assert app.conf.result_backend in (None, "disabled://")
    assert app.conf.task_ignore_result
    assert list(WORKERS) == WorkerProcess.Queue.values
    routed = {route["queue"] for route in settings.CELERY_TASK_ROUTES.values()}
    assert routed | {settings.CELERY_TASK_DEFAULT_QUEUE} == set(WORKERS)


def test_every_scheduled_and_routed_task_exists(settings: Any) -> None:
    from fnmatch import fnmatch

    import workers.tasks  # noqa: F401
    from config.celery import app

    for entry in settings.CELERY_BEAT_SCHEDULE.values():
        assert entry["task"] in app.tasks
    for pattern in settings.CELERY_TASK_ROUTES:
        assert any(fnmatch(name, pattern) for name in app.tasks), pattern
