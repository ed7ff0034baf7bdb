"""One service under one home: who holds it, which ports it takes, what its children are told, what outlives it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from api.cli.doctor import examine
from api.cli.errors import SetupError
from api.cli.health import accepts_connections
from api.cli.home import AlreadyUp, home_at, read_stack_file
from api.cli.processes import PROCESSES, Exits, Logs, Process, started_here
from api.cli.stack import SECRET_SETTINGS, Stack
from api.cli.supervisor import TAG
from tests.waiting import PATIENCE_SECONDS, until

SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
TELL = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(('OVERREAD_', 'PG'))}))"
OUTSIDE = {
    "OVERREAD_DATABASE_URL": "postgresql://record:pw@127.0.0.1:1/overread",
    "OVERREAD_BROKER_URL": "redis://:pw@127.0.0.1:1/0",
    "OVERREAD_MLFLOW_URL": "http://127.0.0.1:1",
}


def small(name: str, code: str = SLEEPER, **options: object) -> Process:
    """Describe a small process that takes the place of a large one."""
    described = {"health": Logs(pattern="ready"), "start_seconds": 120.0, **options}
    return Process(name=name, purpose="a test", command=("{python}", "-c", code), **described)  # type: ignore[arg-type]


def test_a_second_up_on_the_same_home_is_refused_with_the_pid(tmp_path: Path) -> None:
    with Stack(tmp_path, {}, processes=(small("one"),)) as stack:
        with pytest.raises(AlreadyUp, match=rf"already up .* \(pid {os.getpid()}\)"):
            Stack(tmp_path, {}, processes=(small("one"),)).start()
        command = [sys.executable, "-m", "api.cli", "up", "--home", str(tmp_path)]
        second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert second.returncode == 1
        assert f"(pid {os.getpid()})" in second.stderr
        assert "Traceback" not in second.stderr
        assert psutil.pid_exists(stack.pids["one"])  # the first is none the worse
    with Stack(tmp_path, {}, processes=(small("one"),)):
        pass  # and the home is free again


def test_a_port_in_use_is_named_with_its_setting_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        wants_port = small("api", port_setting="OVERREAD_API_PORT", needs=("one",))
        stack = Stack(tmp_path, {"OVERREAD_API_PORT": str(port)}, processes=(small("one"), wants_port))
        with pytest.raises(
            SetupError, match=rf"port {port} .* for api, cannot be used: address already in use"
        ) as refused:
            stack.start()
    assert "OVERREAD_API_PORT=" in (refused.value.fix or "")
    assert not (tmp_path / "logs" / "one.log").exists()


def test_port_zero_means_any_free_port(tmp_path: Path) -> None:
    with Stack(
        tmp_path, {"OVERREAD_API_PORT": "0"}, processes=(small("api", port_setting="OVERREAD_API_PORT"),)
    ) as stack:
        port = int(stack.environment["OVERREAD_API_PORT"])
        assert port > 0
        assert stack.url == f"http://127.0.0.1:{port}"


def test_a_process_is_told_only_the_secrets_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "of somebody else")
    monkeypatch.setenv("OVERREAD_API_KEY", "of the person who started it")
    knows_one = small("one", TELL, health=Exits(), restart="never", secrets=("OVERREAD_PATIENT_KEY",))
    knows_none = small("none", TELL, health=Exits(), restart="never")
    with Stack(tmp_path, OUTSIDE, processes=(knows_one, knows_none)) as stack:
        told = {name: json.loads(_last_line(stack.home / "logs" / f"{name}.log")) for name in ("one", "none")}
    assert set(told["one"]) & set(SECRET_SETTINGS) == {"OVERREAD_PATIENT_KEY"}
    assert set(told["none"]) & set(SECRET_SETTINGS) == set()
    assert told["none"]["OVERREAD_HOME"] == str(stack.home)
    assert not {"OVERREAD_API_KEY", "PGPASSWORD"} & set(told["none"])


def test_secrets_are_made_once_and_only_their_owner_can_read_them(tmp_path: Path) -> None:
    with Stack(tmp_path, {}, processes=()) as first:
        made = first.environment["OVERREAD_PATIENT_KEY"]
    assert len(bytes.fromhex(made)) == 32
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600
    with Stack(tmp_path, {}, processes=()) as second:
        assert second.environment["OVERREAD_PATIENT_KEY"] == made


def test_a_service_given_from_outside_is_not_started_here() -> None:
    def names(**outside: str) -> set[str]:
        return {process.name for process in started_here(PROCESSES, outside=outside)}

    everything = {process.name for process in PROCESSES}
    assert names() == everything
    assert names(OVERREAD_MLFLOW_URL="http://mlflow.internal") == everything - {"mlflow"}
    assert names(OVERREAD_DATABASE_URL="postgresql://db") == everything  # broker and MLflow still want a database
    assert names(**OUTSIDE) == everything - {"postgres", "mlflow"}


def test_the_stack_file_tells_where_it_answers_and_goes_when_it_stops(tmp_path: Path) -> None:
    with Stack(tmp_path, OUTSIDE, processes=(small("one"),)) as stack:
        told = read_stack_file(home_at(tmp_path))
        assert told is not None
        assert told.pid == os.getpid()
        assert told.state == "ready"
        assert told.processes["one"].pid == stack.pids["one"]
        assert "pw" not in (tmp_path / "stack.json").read_text()  # passwords from outside stay out of it
    assert read_stack_file(home_at(tmp_path)) is None


def test_sigterm_stops_everything_without_orphans(tmp_path: Path) -> None:
    supervisor = _stack_in_a_process(tmp_path)
    children = _tagged(tmp_path)
    assert len(children) == 2
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(timeout=PATIENCE_SECONDS) == 0
    assert _tagged(tmp_path) == []


def test_what_a_killed_supervisor_left_behind_is_ended_by_the_next_start(tmp_path: Path) -> None:
    supervisor = _stack_in_a_process(tmp_path)
    left = {process.pid for process in _tagged(tmp_path)}
    supervisor.kill()
    supervisor.wait(timeout=PATIENCE_SECONDS)
    assert {process.pid for process in _tagged(tmp_path)} == left  # nobody was there to stop them
    said: list[str] = []
    with Stack(tmp_path, {}, processes=(small("one"),), report=said.append):
        assert not left & {process.pid for process in _tagged(tmp_path)}
    assert any("was cut off: ended 2 processes" in line for line in said)


@pytest.fixture
def roomy() -> Iterator[Path]:
    """A folder outside pytest's own, whose permissions a second pytest would take back from PostgreSQL's user."""
    with tempfile.TemporaryDirectory(prefix="ovr-") as folder:
        yield Path(folder)


def test_the_embedded_database_is_private_durable_and_survives_a_kill(roomy: Path) -> None:
    home = roomy / ("far-away-" * 12)  # too long for a unix socket, which then lies elsewhere
    table = tuple(process for process in PROCESSES if process.name in {"postgres", "migrate"})
    with Stack(home, {}, processes=table) as stack:
        url = stack.environment["OVERREAD_DATABASE_URL"]
        for check in ("database", "migrations", "durability", "append-only"):
            [finding] = examine(home_at(home), only=check)
            assert finding.good, finding
        with psycopg.connect(url) as connection:
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
            query = "SELECT rolname FROM pg_roles WHERE rolsuper AND rolname <> 'postgres'"
            assert connection.execute(query).fetchall() == []
            folder = Path(connection.info.host)  # the socket's folder is what guards it
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            connection.execute("INSERT INTO users (name, printed_name, roles) VALUES ('kept', 'Kept', '{}')")
        os.kill(stack.pids["postgres"], signal.SIGKILL)
        until(lambda: accepts_connections(url), what="the database")
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT printed_name FROM users WHERE name = 'kept'").fetchone() == ("Kept",)
    assert not accepts_connections(url)


def _stack_in_a_process(home: Path) -> subprocess.Popen[bytes]:
    code = (
        "import signal, sys\n"
        "from api.cli.service import _stop_on_signals\n"
        "from api.cli.stack import Stack\n"
        "from tests.cli.test_stack import small\n"
        f"stack = Stack({str(home)!r}, {{}}, processes=(small('one'), small('two', needs=('one',))))\n"
        "_stop_on_signals(stack); stack.start(); stack.wait(); stack.stop()\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    started = subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment)
    until(lambda: (told := read_stack_file(home_at(home))) is not None and told.state == "ready", process=started)
    return started


def _tagged(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.environ().get(TAG, "").endswith(f"@{home.resolve()}")
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _last_line(log: Path) -> str:
    return log.read_text().strip().splitlines()[-1]
