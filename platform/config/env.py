"""Settings from the environment: an unknown value refuses to start."""

import os
import secrets
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

TRUE = {"1", "true", "yes", "on"}
FALSE = {"0", "false", "no", "off", ""}


def env_bool(name: str, default: bool) -> bool:
    value = os.environ.get(name)
    if value is None:
        return default
    if value.lower() in TRUE:
        return True
    if value.lower() in FALSE:
        return False
    raise ImproperlyConfigured(f"{name}={value!r} is neither yes nor no; write 1 or 0.")


def env_int(name: str, default: int) -> int:
    value = os.environ.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except ValueError:
        raise ImproperlyConfigured(f"{name}={value!r} is not a whole number.") from None


def env_list(name: str, default: list[str]) -> list[str]:
    value = os.environ.get(name)
    return default if value is None else [part.strip() for part in value.split(",") if part.strip()]


def env_secret(name: str, keep_in: Path) -> str:
    """The variable, or a random secret made once for this installation and kept readable by its owner alone."""
    value = os.environ.get(name)
    if value:
        return value
    try:
        return keep_in.read_text()
    except FileNotFoundError:
        pass
    keep_in.parent.mkdir(parents=True, exist_ok=True)
    made = secrets.token_urlsafe(50)
    aside = keep_in.with_name(f"{keep_in.name}.{os.getpid()}")
    aside.write_text("")
    aside.chmod(0o600)
    aside.write_text(made)
    try:
        os.link(aside, keep_in)  # two processes starting at once agree on whichever came first
    except FileExistsError:
        return keep_in.read_text()
    finally:
        aside.unlink()
    return made


def database(url: str, home: Path) -> dict[str, object]:
    """Django's DATABASES entry for a URL; SQLite in the home directory where there is none."""
    parts = urlsplit(url or f"sqlite:///{home / 'bucle.sqlite3'}")
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": unquote(parts.path[1:] if parts.path.startswith("//") else parts.path),
            # IMMEDIATE: a transaction that reads and then writes would else fail at once instead of waiting.
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL;PRAGMA temp_store=MEMORY;"
                "PRAGMA mmap_size=134217728;PRAGMA journal_size_limit=27103364;PRAGMA cache_size=2000;",
            },
            # A file, not memory: workers and threads of a test see the same rows.
            "TEST": {"NAME": str(home / "test.sqlite3")},
        }
    if parts.scheme in {"postgres", "postgresql"}:
        query = dict(parse_qsl(parts.query))
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": unquote(parts.path.lstrip("/")),
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": query.pop("host", parts.hostname or ""),
            "PORT": str(parts.port or ""),
            "OPTIONS": query,
        }
    raise ImproperlyConfigured(f"DATABASE_URL starts with {parts.scheme!r}; write sqlite:// or postgres://.")
