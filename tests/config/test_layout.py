"""Where things lie: `platform` stays a folder and hides no standard module, weights are never pickled."""

import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
SOURCES = sorted(
    path for folder in ("platform", "labeling", "training", "workers") for path in (ROOT / folder).rglob("*.py")
)


def test_platform_is_no_package() -> None:
    assert (ROOT / "platform").is_dir()
    assert not (ROOT / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("start", [["-c"], ["-I", "-c"]])
def test_the_standard_librarys_platform_is_itself(start: list[str]) -> None:
    code = "import platform, uuid, celery; print(platform.__file__); assert platform.python_version()"
    done = subprocess.run([sys.executable, *start, code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == Path(sysconfig.get_path("stdlib"))


def test_no_package_hides_a_standard_module() -> None:
    assert not set(PACKAGES) & sys.stdlib_module_names
    inside = {path.name.removesuffix(".py") for path in (ROOT / "platform").iterdir() if path.name != "static"}
    assert not inside & sys.stdlib_module_names


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT)) for path in SOURCES
        if path.stat().st_size and "migrations" not in path.parts and not path.read_text().startswith('"""')
    ]  # fmt: skip
    assert silent == []


def test_no_pickle_is_ever_read_or_written() -> None:
    pattern = re.compile(r"\b(pickle|cPickle|joblib|dill|shelve)\b|torch\.(load|save)\(")
    found = [str(path.relative_to(ROOT)) for path in SOURCES if pattern.search(path.read_text())]
    assert found == []


def test_no_file_grows_beyond_what_one_reads_at_a_time() -> None:
    written = [path for path in SOURCES if "migrations" not in path.parts]
    long = {str(p.relative_to(ROOT)): n for p in written if (n := len(p.read_text().splitlines())) > 350}
    assert long == {}
