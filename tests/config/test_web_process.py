"""The web process serves pages and rings the queues without ever loading the engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"torch", "tiktoken", "tokenizers", "safetensors", "numpy", "workers.tasks", "workers.serving"}
SERVE = """
import json, sys, threading, time, urllib.request
import uvicorn
from django.core.management import call_command
from config.asgi import application
call_command("migrate", verbosity=0)
server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning"))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    time.sleep(0.02)
port = server.servers[0].sockets[0].getsockname()[1]
answers = {}
for path in ("/", "/accounts/login/", "/health/", "/static/bucle/theme.css"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
        answers[path] = [answer.status, answer.url.split(str(port))[1]]
from registry.bell import ring
answers["rung"] = ring("workers.train", 1)
print(json.dumps({"answers": answers, "modules": sorted(sys.modules)}))
"""


def test_a_started_web_process_has_no_engine_in_it(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "BUCLE_TEST_HOME"}}
    done = subprocess.run(
        [sys.executable, "-c", SERVE], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**env, "BUCLE_HOME": str(tmp_path), "DJANGO_SETTINGS_MODULE": "config.settings"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answers"] == {
        "/": [200, "/accounts/login/?next=/"],
        "/accounts/login/": [200, "/accounts/login/"],
        "/health/": [200, "/health/"],
        "/static/bucle/theme.css": [200, "/static/bucle/theme.css"],
        "rung": False,
    }
    modules = set(found["modules"])
    assert not modules & FORBIDDEN
    assert {"labeling.urls", "registry.views.runs", "accounts.views.members"} <= modules
    settings_only = {"training.config", "training.config_baselines", "training.fields", "training.parse"}
    assert {name for name in modules if name.startswith("training.")} <= settings_only
