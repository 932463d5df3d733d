"""Settings from the environment: read rightly, or refused at the start."""

import stat
import threading
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from config.env import database, env_bool, env_int, env_list, env_secret


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("YES", True), ("on", True), ("0", False), ("False", False), ("", False)]
)
def test_yes_and_no_are_understood(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("SOME_SWITCH", value)
    assert env_bool("SOME_SWITCH", not expected) is expected


def test_what_is_not_set_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_SWITCH", raising=False)
    assert env_bool("SOME_SWITCH", True) is True
    assert env_int("SOME_SWITCH", 7) == 7
    assert env_list("SOME_SWITCH", ["a"]) == ["a"]


def test_an_unknown_value_refuses_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SWITCH", "maybe")
    with pytest.raises(ImproperlyConfigured, match="SOME_SWITCH='maybe' is neither yes nor no"):
        env_bool("SOME_SWITCH", True)
    with pytest.raises(ImproperlyConfigured, match="SOME_SWITCH='maybe' is not a whole number"):
        env_int("SOME_SWITCH", 1)


def test_a_list_has_no_empty_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTS", " a.org, ,b.org,")
    assert env_list("HOSTS", []) == ["a.org", "b.org"]
    monkeypatch.setenv("HOSTS", "")
    assert env_list("HOSTS", ["a.org"]) == []


def test_a_secret_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRET_KEY", raising=False)
    kept = tmp_path / "home" / "secret_key"
    made = env_secret("SECRET_KEY", kept)
    assert len(made) >= 50
    assert env_secret("SECRET_KEY", kept) == made
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [file.name for file in kept.parent.iterdir()] == ["secret_key"]
    assert env_secret("SECRET_KEY", tmp_path / "other" / "secret_key") != made


def test_a_given_secret_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "given")
    assert env_secret("SECRET_KEY", tmp_path / "secret_key") == "given"
    assert not (tmp_path / "secret_key").exists()


def test_two_starts_at_once_agree_on_one_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRET_KEY", raising=False)
    kept, found, turn = tmp_path / "secret_key", [], threading.local()
    monkeypatch.setattr("config.env.os.getpid", lambda: turn.pid)  # threads stand for processes
    start = threading.Barrier(8)

    def begin(pid: int) -> None:
        turn.pid = pid
        start.wait()
        found.append(env_secret("SECRET_KEY", kept))

    threads = [threading.Thread(target=begin, args=(pid,)) for pid in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {kept.read_text()}
    assert len(found) == 8


def test_sqlite_waits_for_its_turn_and_lies_in_the_home(tmp_path: Path) -> None:
    found = database("", tmp_path)
    assert (found["ENGINE"], found["NAME"]) == ("django.db.backends.sqlite3", str(tmp_path / "bucle.sqlite3"))
    options = found["OPTIONS"]
    assert isinstance(options, dict)
    assert options["transaction_mode"] == "IMMEDIATE"
    assert options["timeout"] >= 5
    assert "journal_mode=WAL" in options["init_command"]


@pytest.mark.parametrize(
    ("url", "name"), [("sqlite:////srv/a%20b.db", "/srv/a b.db"), ("sqlite:///srv/b.db", "/srv/b.db")]
)
def test_a_sqlite_url_names_its_file(tmp_path: Path, url: str, name: str) -> None:
    assert database(url, tmp_path)["NAME"] == name


def test_a_postgres_url_is_taken_apart(tmp_path: Path) -> None:
    found = database("postgres://bu%40cle:p%3Aw%2Fd@db.example:6543/loop?sslmode=require", tmp_path)
    assert found == {
        "ENGINE": "django.db.backends.postgresql", "NAME": "loop", "USER": "bu@cle", "PASSWORD": "p:w/d",
        "HOST": "db.example", "PORT": "6543", "OPTIONS": {"sslmode": "require"},
    }  # fmt: skip
    assert database("postgresql:///loop?host=/run/pg", tmp_path)["HOST"] == "/run/pg"


def test_another_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="starts with 'mysql'"):
        database("mysql://root@localhost/x", tmp_path)
