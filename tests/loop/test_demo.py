"""The whole demo, with what it must reach. Minutes: `make test-slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loop.platform import ROOT


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_loop_learns_what_people_prefer(tmp_path: Path, seed: int) -> None:
    env = {**os.environ, "BUCLE_HOME": str(tmp_path)}
    for name in ("REDIS_URL", "DATABASE_URL"):
        env.pop(name, None)
    command = [sys.executable, "manage.py", "demo", "--exit", "--json", "--port", "0", "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout)
    assert summary["win_rate"] >= 0.65
    assert summary["win_rate_low"] > 0.5
    assert summary["rm_accuracy"] >= 0.9 * summary["rm_ceiling"]
    assert summary["utility_after"] > summary["utility_before"]
    assert {"seconds", "tokens_per_s", "val_loss", "sft_loss", "kl", "right_after", "kind_after"} <= set(
        json.loads((tmp_path / "demo" / "summary.json").read_text(encoding="utf-8"))
    )
