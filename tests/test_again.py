"""The second try of `make test`: for what failed by chance, and for nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

AGAIN = Path(__file__).with_name("again.py")
LUCKY = """
import pathlib
def test_lucky_{0}():
    tried = pathlib.Path("{0}")
    seen = tried.exists()
    tried.touch()
    assert seen
"""


@pytest.fixture(autouse=True)
def _without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # seconds to load, and none is needed


def both_tries(folder: Path, tests: str, *, selecting: str = "") -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder that holds nothing but these tests, then the second try, as `make test` does."""
    (folder / "test_it.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    first = subprocess.run([sys.executable, "-m", "pytest", "-q", *selecting.split()], cwd=folder, check=False)
    command = [sys.executable, str(AGAIN), str(first.returncode)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_what_failed_by_chance_passes_and_is_named(tmp_path: Path) -> None:
    done = both_tries(tmp_path, LUCKY.format(1) + "def test_right():\n    pass\n")
    assert done.returncode == 0, done.stdout
    assert "PASSED ONLY AT THE SECOND TRY" in done.stdout
    assert "test_it.py::test_lucky_1" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("tests", "selecting", "code"),
    [
        (LUCKY.format(1) + "def test_wrong():\n    assert False\n", "", 1),
        ("".join(LUCKY.format(number) for number in range(4)), "", 1),
        ("def test_right():\n    pass\n", "-k nothing", 5),
        ("import nothing_of_this_name\n", "", 2),
    ],
    ids=["wrong twice", "too many", "none were run", "they cannot be read"],
)
def test_whatever_is_no_chance_fails(tmp_path: Path, tests: str, selecting: str, code: int) -> None:
    done = both_tries(tmp_path, tests, selecting=selecting)
    assert done.returncode == code, done.stdout
    assert "SECOND TRY" not in done.stdout
