"""The one table of what runs: every process of Overread, how it is started, what it waits for, how it shows health.

`overread up` starts this table on one machine; `docker-compose.yml` describes the same table with real services, and
`tests/cli/test_processes.py` holds the two against each other. Nothing else in the project starts a process by hand.

A command is a tuple with `{NAME}` places: `{python}` is the interpreter, every other name is a setting (`OVERREAD_…`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from api.cli.errors import SetupError

Restart = Literal["always", "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Healthy when a GET of this URL answers 200."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """Healthy once its log holds a line that matches; for processes that open no port."""

    pattern: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptsConnections:
    """Healthy when PostgreSQL answers on this URL."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exits:
    """A one-off: healthy when it has ended with code 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lives:
    """Healthy when it has not ended for this long; the weakest check, for processes that say nothing."""

    seconds: float = 1.0


Health = Answers | Logs | AcceptsConnections | Exits | Lives


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process: what starts it, what must be healthy before, how its own health shows, what follows its death."""

    name: str
    purpose: str  # a few words for people: what stops working without it
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    health: Health
    restart: Restart = "always"
    awaited: bool = True  # the service counts as up only once this is healthy
    start_seconds: float = 60.0  # without health after this long, the start has failed
    pulse: bool = False  # it touches the file named by OVERREAD_PULSE_FILE each second, as long as it is well
    silence_seconds: float = 30.0  # neither answer (where its health is one) nor pulse for this long: it hangs
    stop_signal: Literal["SIGTERM", "SIGINT"] = "SIGTERM"
    stop_seconds: float = 10.0  # then SIGKILL
    port_setting: str | None = None  # the setting that names the port it listens on
    outside_settings: tuple[str, ...] = ()  # all given from outside: a real service does this work, start nothing
    secrets: tuple[str, ...] = ()  # the settings with secrets that it is given; of these it gets no other
    environment: tuple[tuple[str, str], ...] = ()  # on top of the settings


MLFLOW_ENVIRONMENT = (
    # The store's URL travels here, not on the command line, where `ps` would show its password.
    ("MLFLOW_BACKEND_STORE_URI", "{OVERREAD_MLFLOW_DATABASE_URL}"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false"),
    ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),  # its own job queue would be a second, unsupervised one
)

# Order is the order in which people read it; `needs` is the order in which it starts. Reversed, it is how it stops.
PROCESSES: tuple[Process, ...] = (
    Process(
        name="postgres",
        purpose="the record: cases, confirmations, candidates, promotions",
        command=(
            "{postgres}",
            *("-D", "{OVERREAD_HOME}/postgres"),
            *("-k", "{postgres_socket}"),
            *("-c", "listen_addresses="),  # a unix socket only
            *("-c", "unix_socket_permissions=0700"),
            *("-c", "logging_collector=off"),
            *("-c", "max_connections=100"),
            *("-c", "wal_keep_size=256MB"),  # so that `backup --continuous` may fall behind, or be away, for so long
        ),
        health=AcceptsConnections(url="postgresql://postgres@/postgres?host={postgres_socket}"),
        start_seconds=60,
        stop_signal="SIGINT",  # PostgreSQL's fast shutdown: ends sessions, writes a checkpoint
        stop_seconds=30,
        outside_settings=("OVERREAD_DATABASE_URL", "OVERREAD_BROKER_URL", "OVERREAD_MLFLOW_URL"),
    ),
    Process(
        name="migrate",
        purpose="brings the record's schema up to date, then ends",
        command=("{python}", "-m", "registry.migrate"),
        needs=("postgres",),
        health=Exits(),
        restart="never",
        secrets=("OVERREAD_OWNER_DATABASE_URL", "OVERREAD_DATABASE_URL"),
    ),
    Process(
        name="mlflow",
        purpose="experiments and the model registry's mirror",
        command=(
            *("{python}", "-m", "mlflow", "server"),
            *("--host", "{OVERREAD_MLFLOW_HOST}", "--port", "{OVERREAD_MLFLOW_PORT}", "--workers", "1"),
            *("--artifacts-destination", "{OVERREAD_MLFLOW_ARTIFACTS}"),
            *("--allowed-hosts", "{OVERREAD_MLFLOW_ALLOWED_HOSTS}"),
        ),
        needs=("postgres",),
        health=Answers(url="http://{OVERREAD_MLFLOW_HOST}:{OVERREAD_MLFLOW_PORT}/health"),
        awaited=False,  # it follows the record and nothing else follows it: the loop turns without it
        start_seconds=180,  # the first start makes some forty tables
        silence_seconds=90,  # it may be taking in a large model
        port_setting="OVERREAD_MLFLOW_PORT",
        outside_settings=("OVERREAD_MLFLOW_URL",),
        environment=MLFLOW_ENVIRONMENT,
    ),
    Process(
        name="inference",
        purpose="predictions by the champion, and the jailed image decoder",
        command=("{python}", "-m", "workers.inference"),
        needs=("migrate",),
        health=Answers(url="http://{OVERREAD_INFERENCE_HOST}:{OVERREAD_INFERENCE_PORT}/health"),
        start_seconds=120,
        port_setting="OVERREAD_INFERENCE_PORT",
        secrets=("OVERREAD_DATABASE_URL", "OVERREAD_INFERENCE_TOKEN"),
        outside_settings=("OVERREAD_INFERENCE_URL",),
    ),
    Process(
        name="worker",
        purpose="freezes datasets, trains, gates, mirrors",
        command=("{python}", "-m", "celery", "-A", "workers.app", "worker", "--loglevel", "INFO"),
        needs=("migrate",),
        health=Logs(pattern=r"celery@.* ready"),
        start_seconds=120,
        stop_seconds=20,  # a warm stop: science is stopped and its lease released
        pulse=True,
        secrets=("OVERREAD_DATABASE_URL", "OVERREAD_BROKER_URL"),
    ),
    Process(
        name="beat",
        purpose="starts retraining when a protocol's trigger is due",
        command=("{python}", "-m", "celery", "-A", "workers.app", "beat", "--loglevel", "INFO", "--pidfile="),
        needs=("migrate",),
        health=Logs(pattern=r"beat: Starting"),
        start_seconds=120,
        pulse=True,
        secrets=("OVERREAD_DATABASE_URL", "OVERREAD_BROKER_URL"),
    ),
    Process(
        name="relay",
        purpose="hands committed jobs to the broker, gives lost ones back, signs checkpoints of the audit trail",
        command=("{python}", "-m", "workers.relay"),
        needs=("migrate",),
        health=Lives(seconds=1.5),
        start_seconds=60,
        pulse=True,
        secrets=("OVERREAD_DATABASE_URL", "OVERREAD_BROKER_URL"),
    ),
    Process(
        name="api",
        purpose="every door in: HTTP and pages",
        command=(
            *("{python}", "-m", "uvicorn", "--factory", "api.app:serve"),
            *("--host", "{OVERREAD_API_HOST}", "--port", "{OVERREAD_API_PORT}"),
            *("--no-server-header", "--timeout-graceful-shutdown", "5"),
            "--no-access-log",  # a line a request costs a tenth of it; who changed or read what is in the record
        ),
        needs=("migrate",),
        health=Answers(url="http://{OVERREAD_API_HOST}:{OVERREAD_API_PORT}/health/live"),
        start_seconds=60,
        port_setting="OVERREAD_API_PORT",
        secrets=("OVERREAD_DATABASE_URL", "OVERREAD_INFERENCE_TOKEN", "OVERREAD_PATIENT_KEY"),
    ),
)


def rendered(process: Process, *, values: Mapping[str, str]) -> Process:
    """Fill every `{NAME}` of a process from `values`.

    Raises:
        SetupError: a place has no value.
    """

    def fill(text: str) -> str:
        return _fill(text, values=values, owner=process.name)

    health = process.health
    if isinstance(health, Answers | AcceptsConnections):
        health = replace(health, url=fill(health.url))
    return replace(
        process,
        command=tuple(fill(part) for part in process.command),
        health=health,
        environment=tuple((name, fill(value)) for name, value in process.environment),
    )


def started_here(processes: Iterable[Process], *, outside: Mapping[str, str]) -> tuple[Process, ...]:
    """Keep the processes that no service given from outside replaces; drop needs that went with them."""
    kept = [
        process
        for process in processes
        if not process.outside_settings or any(name not in outside for name in process.outside_settings)
    ]
    names = {process.name for process in kept}
    return tuple(replace(process, needs=tuple(need for need in process.needs if need in names)) for process in kept)


def levels(processes: Iterable[Process]) -> list[list[Process]]:
    """Group processes so that each level needs only earlier levels; stop by walking the list backwards.

    Raises:
        SetupError: the needs run in a circle or name a process that is not there.
    """
    waiting = {process.name: process for process in processes}
    placed: set[str] = set()
    found: list[list[Process]] = []
    while waiting:
        level = [process for process in waiting.values() if placed.issuperset(process.needs)]
        if not level:
            raise SetupError(f"these processes wait for each other or for nobody: {', '.join(sorted(waiting))}")
        found.append(level)
        placed.update(process.name for process in level)
        for process in level:
            del waiting[process.name]
    return found


def _fill(text: str, *, values: Mapping[str, str], owner: str) -> str:
    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in values:
            raise SetupError(f"{owner} needs the setting {name}, which has no value")
        return values[name]

    return re.sub(r"\{([A-Za-z_]+)\}", value_of, text)
