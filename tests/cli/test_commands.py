"""The command line as a person meets it: quick help that teaches, and failures that say what to do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from api.cli import app

HEAVY = ("torch", "mlflow", "celery", "monai", "fastapi", "psycopg", "httpx", "numpy", "api.cli.demo")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Walk every command of the application."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(typer.main.get_command(app)))


def overread(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person would, in a home of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    clean["PYTHONPATH"] = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments],
        env={**clean, "OVERREAD_HOME": str(home), "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself_with_an_example(path: tuple[str, ...]) -> None:
    text = " ".join((ALL[path].help or "").split())
    assert len(text.split("Example:")[0]) > 20
    assert f"overread {' '.join(path)}" in text.partition("Example:")[2]


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_has_a_help_text(path: tuple[str, ...]) -> None:
    silent = [
        parameter.name for parameter in ALL[path].params if parameter.opts[0].startswith("-") and not parameter.help
    ]
    assert silent == []


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom api.cli import main\nsys.argv = ['overread', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "Commands" in run.stdout or "up" in run.stdout
    assert run.stdout.strip().splitlines()[-1] == "LOADED []"


def test_without_a_key_it_says_how_to_get_one(tmp_path: Path) -> None:
    run = overread("line", "list", home=tmp_path)
    assert run.returncode == 2
    assert "OVERREAD_API_KEY is not set" in run.stderr
    assert "overread key create" in run.stderr


def test_without_a_service_it_says_how_to_start_one(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{_unused_port()}"
    run = overread("line", "list", home=tmp_path, OVERREAD_API_KEY="ovr_x_y", OVERREAD_API_URL=nobody)
    assert run.returncode == 3
    assert f"nobody answers at {nobody}" in run.stderr
    assert "overread up" in run.stderr
    for arguments in (["user", "list"], ["status"]):
        run = overread(*arguments, home=tmp_path)
        assert run.returncode == 3
        assert "overread up" in run.stderr
    assert "nothing runs" in overread("down", home=tmp_path).stderr


def test_doctor_names_every_fault_with_its_fix_and_fails(tmp_path: Path) -> None:
    run = overread("doctor", "--json", home=tmp_path)
    assert run.returncode == 1
    findings = {finding["name"]: finding for finding in json.loads(run.stdout)}
    assert findings["python"]["good"]
    assert findings["git"]["good"]
    for name in ("processes", "database", "broker", "secrets"):
        assert not findings[name]["good"]
        assert findings[name]["fix"]
    assert "Traceback" not in run.stderr
    assert overread("doctor", "--only", "python", home=tmp_path).returncode == 0
    assert "there is no check named feelings" in overread("doctor", "--only", "feelings", home=tmp_path).stderr


def test_doctor_refuses_secrets_that_can_be_guessed_or_read(tmp_path: Path) -> None:
    strong = "6d1b0c9d8a7f4e2b95c3a1f0e8d7c6b5"
    good = {"OVERREAD_PATIENT_KEY": strong, "OVERREAD_INFERENCE_TOKEN": strong[::-1]}
    assert overread("doctor", "--only", "secrets", home=tmp_path, **good).returncode == 0
    for weak in ("changeme" * 8, "0" * 64, "abc"):
        run = overread("doctor", "--only", "secrets", home=tmp_path, **good | {"OVERREAD_PATIENT_KEY": weak})
        assert run.returncode == 1
        assert "can be guessed" in run.stderr
    kept = tmp_path / "secrets.json"
    kept.write_text(json.dumps(good))
    kept.chmod(0o644)
    assert "others can read" in overread("doctor", "--only", "secrets", home=tmp_path).stderr


def test_a_mistyped_protocol_file_is_an_error_without_a_stack_trace(tmp_path: Path) -> None:
    run = overread("line", "create", "nowhere.yaml", home=tmp_path, OVERREAD_API_KEY="ovr_x_y")
    assert run.returncode == 2
    assert "nowhere.yaml" in run.stderr
    assert "Traceback" not in run.stderr


def _unused_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
