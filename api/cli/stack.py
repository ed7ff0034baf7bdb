"""One whole service on this machine: the settings it runs with, and the processes that make it up.

`Stack` turns a home folder and settings into running processes and back into silence. A service whose URL is given
from outside (`OVERREAD_DATABASE_URL`, `…_BROKER_URL`, `…_MLFLOW_URL`, `…_INFERENCE_URL`) is used; every other is
started here. Each process is given only the secrets that the table names for it.

    with Stack(home) as stack:
        httpx.get(f"{stack.url}/health/ready")
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import psutil

import api
from api.cli import home as homes
from api.cli.errors import SetupError
from api.cli.postgres import SERVICE, create_databases, database_url, prepare_cluster
from api.cli.processes import PROCESSES, Process, rendered, started_here
from api.cli.supervisor import Event, Supervisor, end_tagged

DEFAULTS = {
    "OVERREAD_API_HOST": "127.0.0.1",
    "OVERREAD_API_PORT": "8080",
    "OVERREAD_INFERENCE_HOST": "127.0.0.1",
    "OVERREAD_INFERENCE_PORT": "8090",
    "OVERREAD_MLFLOW_HOST": "127.0.0.1",
    "OVERREAD_MLFLOW_PORT": "5000",
    "OVERREAD_MLFLOW_ALLOWED_HOSTS": "localhost:*,127.0.0.1:*",
    "OVERREAD_WORKER_CONCURRENCY": "4",
}
SECRET_SETTINGS = (
    *("OVERREAD_DATABASE_URL", "OVERREAD_OWNER_DATABASE_URL"),
    *("OVERREAD_BROKER_URL", "OVERREAD_MLFLOW_DATABASE_URL"),
    *("OVERREAD_INFERENCE_TOKEN", "OVERREAD_PATIENT_KEY"),
)
CLIENT_SETTINGS = ("OVERREAD_API_KEY", "OVERREAD_API_URL")  # a person's, not the service's
MODULES = ("celery", "mlflow", "registry", "uvicorn", "workers")
LOOPBACK = "127.0.0.1,localhost,::1"
STALE_SECONDS = 20.0  # patience with what a killed supervisor left behind


class Stack:
    """A service under `home`; `settings` are OVERREAD_* values on top of nothing (default: this process's environment).

    A port setting of 0 means any free port. `report` is told, in a line of plain text, what a person may want to see.
    """

    def __init__(
        self,
        home: Path | str,
        settings: Mapping[str, str] | None = None,
        *,
        report: Callable[[str], None] | None = None,
        processes: tuple[Process, ...] = PROCESSES,
    ) -> None:
        given = os.environ if settings is None else settings
        self._places = homes.home_at(home)
        self.home = self._places.root
        self._given = {
            name: value
            for name, value in given.items()
            if name.startswith("OVERREAD_") and name not in CLIENT_SETTINGS and value
        }
        self._report = report or (lambda _text: None)
        self._processes = processes
        self._resources = contextlib.ExitStack()
        self._supervisor: Supervisor | None = None
        self._state = "starting"
        self._started_at = datetime.now(UTC)
        self._embedded_database = False
        self._wants_stop = False
        self.environment: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Where the API answers."""
        return self.environment["OVERREAD_API_URL"]

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of what runs, by name of the table."""
        children = self._supervisor.children.values() if self._supervisor else ()
        return {
            child.process.name: child.popen.pid
            for child in children
            if child.popen is not None and child.state in {"starting", "ready"}
        }

    def start(self) -> None:
        """Start everything and return when all of it is healthy.

        Raises:
            AlreadyUp, SetupError: nothing was started.
            StartFailed, Interrupted: everything was stopped again.
        """
        check_machine()
        homes.prepare(self._places)
        self._resources.enter_context(homes.held(self._places))
        try:
            self.end_leftovers()
            table = started_here(self._processes, outside=self._given)
            self._settle(table)
            check_ports(table, settings=self.environment)
            values = {**self.environment, "python": sys.executable}
            run_as, when_ready = {}, {}
            if self._embedded_database:
                self._report("preparing PostgreSQL ...")
                cluster = prepare_cluster(self._places)
                for note in cluster.notes:
                    self._report(note)
                self._name_databases(cluster.socket)
                values |= {**self.environment, "postgres": str(cluster.program), "postgres_socket": str(cluster.socket)}
                when_ready["postgres"] = lambda: create_databases(cluster.socket)
                if cluster.user:
                    run_as["postgres"] = cluster.user
            self._supervisor = Supervisor(
                [rendered(process, values=values) for process in table],
                tag=str(self.home),
                logs=self._places.logs,
                folder=self.home,
                environment=self._environment_of,
                run_as=run_as,
                when_ready=when_ready,
                report=self._tell,
                changed=self._write_stack_file,
            )
            if self._wants_stop:
                self._supervisor.ask_to_stop()
            self._supervisor.start()
            self._state = "ready"
            self._write_stack_file()
        except BaseException:
            self.stop()
            raise

    def ask_to_stop(self) -> None:
        """Make `start` or `wait` come back; asked twice, stopping waits for nobody. Safe in a signal handler."""
        self._wants_stop = True
        if self._supervisor is not None:
            self._supervisor.ask_to_stop()

    @property
    def stop_is_wanted(self) -> bool:
        """Whether `ask_to_stop` was called."""
        return self._wants_stop

    def wait(self) -> None:
        """Return when `ask_to_stop` was called."""
        assert self._supervisor is not None, "start() comes first"
        self._supervisor.wait()

    def stop(self) -> None:
        """Stop everything in reverse order and free the home; safe to call twice."""
        self._state = "stopping"
        try:
            if self._supervisor is not None:
                self._supervisor.stop()
                self._supervisor = None
                self._places.stack_file.unlink(missing_ok=True)
        finally:
            self._resources.close()

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _settle(self, table: tuple[Process, ...]) -> None:
        """Decide every setting but those of the embedded databases, whose socket is not known yet."""
        settings = {**DEFAULTS, **homes.keep_secrets(self._places), **self._given, "OVERREAD_HOME": str(self.home)}
        for process in table:
            if process.port_setting and settings[process.port_setting] == "0":
                settings[process.port_setting] = str(_free_port())
        settings.setdefault("OVERREAD_BLOB_ROOT", str(self.home / "blobs"))
        settings.setdefault("OVERREAD_DVC_REMOTE", str(self.home / "dvc-remote"))
        settings.setdefault("OVERREAD_MLFLOW_ARTIFACTS", str(self.home / "mlflow-artifacts"))
        for service in ("API", "INFERENCE", "MLFLOW"):
            host = settings[f"OVERREAD_{service}_HOST"].replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - never bound here
            settings.setdefault(f"OVERREAD_{service}_URL", f"http://{host}:{settings[f'OVERREAD_{service}_PORT']}")
        self._embedded_database = any(process.name == "postgres" for process in table)
        self.environment = settings

    def _name_databases(self, socket_folder: Path) -> None:
        if "OVERREAD_DATABASE_URL" not in self._given:
            self.environment["OVERREAD_DATABASE_URL"] = database_url("overread", role=SERVICE, socket=socket_folder)
            self.environment["OVERREAD_OWNER_DATABASE_URL"] = database_url("overread", socket=socket_folder)
        self.environment.setdefault(
            "OVERREAD_BROKER_URL", database_url("broker", socket=socket_folder, driver="sqla+postgresql+psycopg")
        )
        self.environment.setdefault(
            "OVERREAD_MLFLOW_DATABASE_URL", database_url("mlflow", socket=socket_folder, driver="postgresql+psycopg")
        )

    def _environment_of(self, process: Process) -> dict[str, str]:
        settings = {
            name: value
            for name, value in self.environment.items()
            if name not in SECRET_SETTINGS or name in process.secrets
        }
        return {**_surroundings(), **settings, **dict(process.environment)}

    def end_leftovers(self) -> None:
        """End what a killed supervisor of this home left running."""
        stack = homes.read_stack_file(self._places)
        ended = end_tagged(f"@{self.home}", patience_seconds=STALE_SECONDS)
        for name, record in stack.processes.items() if stack else ():
            if process := alive(record.pid, created=record.created):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
                    process.wait(STALE_SECONDS)
                    ended += 1
        if ended:
            self._report(f"the last run in {self.home} was cut off: ended {ended} processes it left behind")

    def _tell(self, event: Event) -> None:
        match event.kind:
            case "ready" | "done":
                self._report(f"✓ {event.name} {event.kind} after {event.seconds:.1f} s")
            case "died":
                log = self._places.logs / f"{event.name}.log"
                self._report(f"✗ {event.name} {event.detail}; starting it again in {event.seconds:.1f} s (log: {log})")
            case "killed":
                self._report(f"✗ {event.name} did not stop within {event.seconds:.0f} s and was killed")
            case "stopped":
                self._report(f"  {event.name} stopped after {event.seconds:.1f} s")
            case "starting" | "stopping":
                return

    def _write_stack_file(self) -> None:
        if self._supervisor is None:
            return
        me = psutil.Process()
        settings = self.environment
        homes.write_stack_file(
            self._places,
            stack=homes.StackFile(
                pid=me.pid,
                created=me.create_time(),
                state=self._state,
                started_at=f"{self._started_at:%Y-%m-%dT%H:%M:%SZ}",
                api_url=settings["OVERREAD_API_URL"],
                inference_url=settings["OVERREAD_INFERENCE_URL"],
                mlflow_url=settings["OVERREAD_MLFLOW_URL"],
                database_url=None if "OVERREAD_DATABASE_URL" in self._given else settings.get("OVERREAD_DATABASE_URL"),
                broker_url=None if "OVERREAD_BROKER_URL" in self._given else settings.get("OVERREAD_BROKER_URL"),
                processes={
                    name: homes.ProcessRecord(
                        state=child.state,
                        pid=child.popen.pid if child.popen else None,
                        created=child.created,
                        restarts=child.restarts,
                    )
                    for name, child in self._supervisor.children.items()
                },
            ),
        )


def alive(pid: int | None, *, created: float | None) -> psutil.Process | None:
    """Find a process that was recorded earlier; None if it ended, even when its pid now means another."""
    if pid is None or created is None:
        return None
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def check_machine() -> None:
    """Raise SetupError when a program or package that the processes need is missing."""
    if shutil.which("git") is None:
        raise SetupError(
            "git is missing: datasets are versioned with it", fix="install git (apt install git, brew install git)"
        )
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"this installation lacks {', '.join(missing)}", fix="run `make setup`, or `pip install overread` again"
        )


def check_ports(table: tuple[Process, ...], *, settings: Mapping[str, str]) -> None:
    """Raise SetupError naming the first port in use, and the setting that chooses another."""
    for process in table:
        if process.port_setting is None:
            continue
        host, text = settings[process.port_setting.replace("_PORT", "_HOST")], settings[process.port_setting]
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise SetupError(
                f"{process.port_setting}={text} is not a port", fix="choose a number from 1 to 65535, or 0 for any"
            )
        try:
            with socket.socket() as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((host, int(text)))
        except OSError as error:
            why = (error.strerror or str(error)).lower() + _who_listens(int(text))
            raise SetupError(
                f"port {text} on {host}, for {process.name}, cannot be used: {why}",
                fix=f"stop what uses it, or choose another: {process.port_setting}={_free_port()}",
            ) from error


def wait_until_gone(pid: int, *, created: float, seconds: float) -> bool:
    """Wait for a recorded process to end; say whether it did."""
    until = time.monotonic() + seconds
    while alive(pid, created=created):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _who_listens(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid
            ):
                return f" (by pid {connection.pid}, {psutil.Process(connection.pid).name()})"
    return ""


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def _surroundings() -> dict[str, str]:
    """This process's environment without our settings and libpq's, and with what every child should hold to."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OVERREAD_", "PG"))}
    packages = str(Path(api.__file__).parents[1])
    for name in ("no_proxy", "NO_PROXY"):  # clients of loopback services must never go through a proxy
        kept[name] = ",".join(filter(None, (kept.get(name), LOOPBACK)))
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, (packages, kept.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "TZ": "UTC",
    }
