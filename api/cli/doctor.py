"""`overread doctor`: look at everything the service stands on; for each fault say what to do.

Every check is one function that returns a sentence when all is well and raises Wrong when not; no check changes
anything. A check that cannot run because something before it is down says so instead of guessing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from api.cli.errors import SetupError
from api.cli.home import Home
from api.cli.patient import LOOPBACK_NAMES, Finding, Patient, Wrong, ask, last_line, patient_of, record_of
from api.cli.stack import alive

LEAST_FREE_BYTES = 2_000_000_000
LONGEST_UNSENT_SECONDS = 30.0
LONGEST_UNSIGNED_SECONDS = 300.0
LONGEST_UNWATCHED_DAYS = 3
WEAK_WORDS = ("change", "default", "example", "password", "secret", "test")


def examine(home: Home, *, only: str | None = None) -> list[Finding]:
    """Run all checks, or the one named `only`, in the order in which faults should be mended.

    Raises:
        SetupError: no check has that name.
    """
    if only is not None and only not in CHECKS:
        raise SetupError(f"there is no check named {only}", fix=f"one of: {', '.join(CHECKS)}")
    patient = patient_of(home)
    return [_found(name, check, patient) for name, check in CHECKS.items() if only in {None, name}]


def check_python(_patient: Patient) -> str:
    """Overread runs on Python 3.11, 3.12 and 3.13."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        raise Wrong(f"Python {version}", fix="use Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 setup")
    return f"Python {version}"


def check_git(_patient: Patient) -> str:
    """Dataset versions are git tags."""
    found = shutil.which("git")
    if found is None:
        raise Wrong("git is missing", fix="install git (apt install git, brew install git)")
    return subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def check_disk(patient: Patient) -> str:
    """Images, datasets and models must find room."""
    folder = patient.home.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free under {folder}"
    if free < LEAST_FREE_BYTES:
        raise Wrong(
            detail, fix="free some space, or move the home folder to a larger disk and name it with OVERREAD_HOME"
        )
    return detail


def check_secrets(patient: Patient) -> str:
    """Secrets are long, not guessable, and readable by their owner only."""
    for name in ("OVERREAD_INFERENCE_TOKEN", "OVERREAD_PATIENT_KEY"):
        value = patient.settings.get(name, "")
        if not value:
            raise Wrong(f"{name} is not set", fix=f"`overread up` makes it; elsewhere: {name}=$(openssl rand -hex 32)")
        if len(value) < 32 or len(set(value)) < 8 or any(word in value.lower() for word in WEAK_WORDS):
            raise Wrong(f"{name} can be guessed", fix="replace it by the output of `openssl rand -hex 32`")
    if patient.home.secrets_file.exists() and stat.S_IMODE(patient.home.secrets_file.stat().st_mode) & 0o077:
        raise Wrong(f"others can read {patient.home.secrets_file}", fix=f"chmod 600 {patient.home.secrets_file}")
    return "long, random, private"


def check_processes(patient: Patient) -> str:
    """What `overread up` started is still there."""
    stack = patient.stack
    if stack is None:
        if "OVERREAD_DATABASE_URL" in os.environ:
            return "not started by `overread up`; the services are looked at one by one below"
        raise Wrong(f"nothing runs in {patient.home.root}", fix="start it with `overread up`, or name another --home")
    if not alive(stack.pid, created=stack.created):
        raise Wrong("the supervisor was killed; nobody restarts what dies", fix="`overread down`, then `overread up`")
    lost = [
        name
        for name, record in stack.processes.items()
        if record.state != "done" and not (record.state == "ready" and alive(record.pid, created=record.created))
    ]
    if lost:
        logs = ", ".join(str(patient.home.logs / f"{name}.log") for name in lost)
        raise Wrong(f"not ready: {', '.join(lost)}", fix=f"if it lasts, read {logs}")
    restarts = sum(record.restarts for record in stack.processes.values())
    return f"{len(stack.processes)} as they should be, {restarts} restarted since the start"


def check_database(patient: Patient) -> str:
    """The record answers."""
    with record_of(patient) as connection:
        row = connection.execute(
            "SELECT current_setting('server_version'), pg_size_pretty(pg_database_size(current_database()))"
        )
        version, size = row.fetchone() or ("?", "?")
    return f"PostgreSQL {version}, the record holds {size}"


def check_migrations(patient: Patient) -> str:
    """The schema is the one this version expects."""
    from registry.migrate import pending  # noqa: PLC0415 - `overread --help` must be quick

    with record_of(patient) as connection:
        missing = pending(connection)
    if missing:
        raise Wrong(
            f"not applied: {', '.join(missing)}", fix="restart `overread up`, or run python -m registry.migrate"
        )
    return "current"


def check_durability(patient: Patient) -> str:
    """What was acknowledged survives a crash."""
    from registry.guard import assert_durable  # noqa: PLC0415 - `overread --help` must be quick

    with record_of(patient) as connection, _refusals(fix="set it in postgresql.conf, then SELECT pg_reload_conf()"):
        assert_durable(connection)
    return "fsync, full_page_writes and synchronous_commit are on"


def check_append_only(patient: Patient) -> str:
    """The tables that tell what happened still refuse change, and the service cannot make them give in."""
    from registry.guard import APPEND_ONLY, assert_append_only, assert_not_owner  # noqa: PLC0415

    with record_of(patient) as connection, _refusals(fix="docs/operating.md, Two logins"):
        assert_append_only(connection)
        assert_not_owner(connection)
        login = connection.info.user
    return f"{len(APPEND_ONLY)} tables refuse UPDATE, DELETE and TRUNCATE; {login} owns nothing"


def check_checkpoints(patient: Patient) -> str:
    """What is written is signed within minutes: an unsigned end of the trail could be cut off unseen."""
    from registry import checkpoints  # noqa: PLC0415 - `overread --help` must be quick
    from registry.errors import NoteRefused  # noqa: PLC0415
    from registry.notes import Verifier, verifier_path  # noqa: PLC0415

    def place(setting: str, name: str) -> Path:
        return Path(patient.settings.get(setting) or patient.home.root / name)

    folder = place("OVERREAD_CHECKPOINTS", "checkpoints")
    key = verifier_path(place("OVERREAD_CHECKPOINT_KEY", "checkpoint.key"))
    if patient.stack is None and not key.exists() and "OVERREAD_DATABASE_URL" in os.environ:
        return "none are signed here; where the relay runs, `overread doctor --only checkpoints` tells"
    try:
        newest = checkpoints.newest(folder, Verifier.parse(key.read_text(encoding="utf-8"))) if key.exists() else None
    except (NoteRefused, OSError) as error:
        raise Wrong(
            f"no checkpoint can be read: {error}", fix=f"`overread verify`; look at {folder} and {key}"
        ) from error
    signed = 0 if newest is None else newest.size
    with record_of(patient) as connection:
        last = connection.execute("SELECT coalesce(max(audit_event_id), 0) FROM audit_events").fetchone() or (0,)
        query = "SELECT extract(epoch FROM clock_timestamp() - at)::float FROM audit_events WHERE audit_event_id = %s"
        (seconds,) = connection.execute(query, (signed + 1,)).fetchone() or (0.0,)
    if signed > last[0]:
        raise Wrong(
            f"checkpoint {signed} is of more than the {last[0]} events there are",
            fix="`overread verify` names what is missing; restore it from a backup",
        )
    every = float(patient.settings.get("OVERREAD_CHECKPOINT_SECONDS") or 60)
    if seconds > max(LONGEST_UNSIGNED_SECONDS, 5 * every):
        kept = "no checkpoint was ever kept" if newest is None else f"the newest checkpoint is of {newest.at:%F %TZ}"
        raise Wrong(
            f"{kept}; {last[0] - signed} events since then are not signed, the oldest for {seconds / 60:.0f} minutes",
            fix=f"is the relay running, and may it write {folder}? See {patient.home.logs}/relay.log",
        )
    return f"{signed} of {last[0]} events are signed, none waits for longer than it should"


def check_broker(patient: Patient) -> str:
    """Messages can be sent; without it jobs wait in the record."""
    url = patient.settings.get("OVERREAD_BROKER_URL")
    if not url and "OVERREAD_DATABASE_URL" in os.environ:
        return "OVERREAD_BROKER_URL is not set here; where the worker runs, `overread doctor --only broker` tells"
    if not url:
        raise Wrong("not known", fix="start the service with `overread up`, or set OVERREAD_BROKER_URL")
    scheme = urlsplit(url).scheme
    fix = "is it started, and is OVERREAD_BROKER_URL right? Jobs wait in the record until it is back"
    if "postgresql" in scheme:
        import psycopg  # noqa: PLC0415

        try:
            psycopg.connect("postgresql://" + url.partition("://")[2], connect_timeout=3).close()
        except psycopg.OperationalError as error:
            raise Wrong(last_line(error), fix=fix) from error
        return "PostgreSQL carries the messages"
    if scheme in {"redis", "rediss"}:
        import redis  # noqa: PLC0415

        try:
            redis.Redis.from_url(url, socket_connect_timeout=3).ping()
        except redis.RedisError as error:
            raise Wrong(f"Redis does not answer: {last_line(error)}", fix=fix) from error
        return "Redis answers"
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname or "127.0.0.1", place.port or 5672), timeout=3).close()
    except OSError as error:
        raise Wrong(f"{place.hostname}:{place.port or 5672} {last_line(error).lower()}", fix=fix) from error
    return f"{place.hostname} accepts connections"


def check_relay(patient: Patient) -> str:
    """Committed jobs are handed to the broker within seconds."""
    query = """
        SELECT count(*), coalesce(extract(epoch FROM max(now() - greatest(created_at, run_after))), 0)::float
        FROM jobs WHERE state = 'queued' AND sent_at IS NULL AND run_after <= now()"""
    with record_of(patient) as connection:
        waiting, oldest_seconds = connection.execute(query).fetchone() or (0, 0.0)
    if oldest_seconds > LONGEST_UNSENT_SECONDS:
        raise Wrong(
            f"{waiting} jobs wait to be sent, the oldest for {oldest_seconds:.0f} s",
            fix=f"is the relay running, does the broker answer? See {patient.home.logs}/relay.log",
        )
    return f"{waiting} jobs wait to be sent"


def check_api(patient: Patient) -> str:
    """The API answers and can reach what it needs."""
    url = patient.settings["OVERREAD_API_URL"]
    status, body = ask(
        f"{url}/health/ready", fix=f"see {patient.home.logs}/api.log; start the service with `overread up`"
    )
    if status != 200:
        raise Wrong(
            f"{url} is not ready: {json.dumps(body)}",
            fix=f"see {patient.home.logs}/api.log, and the checks above and below",
        )
    return url


def check_inference(patient: Patient) -> str:
    """Predictions and image decoding work."""
    url = patient.settings["OVERREAD_INFERENCE_URL"]
    status, body = ask(
        f"{url}/health", fix=f"see {patient.home.logs}/inference.log; start the service with `overread up`"
    )
    if status != 200:
        raise Wrong(f"{url} answered {status}", fix=f"see {patient.home.logs}/inference.log")
    for line, alarm in (body.get("alarms") or {}).items():
        raise Wrong(f"{line}: {alarm}", fix="`overread verify` names the file; restore it from a backup")
    lines = body.get("lines") or {}
    serves = ", ".join(f"{name} by model {line['candidate']}" for name, line in sorted(lines.items()) if line)
    return f"{url}, serves {serves or 'no model yet'}"


def check_mlflow(patient: Patient) -> str:
    """MLflow answers, and only to this machine or its own network: it asks nobody who they are."""
    url = patient.settings["OVERREAD_MLFLOW_URL"]
    status, _body = ask(
        f"{url}/health", fix=f"see {patient.home.logs}/mlflow.log; promotions stand meanwhile, the mirror catches up"
    )
    if status != 200:
        raise Wrong(f"{url} answered {status}", fix=f"see {patient.home.logs}/mlflow.log")
    place = urlsplit(url)
    if place.hostname in LOOPBACK_NAMES:
        exposed = _open_addresses(place.port or 80)
        if exposed:
            raise Wrong(
                f"MLflow listens on {', '.join(exposed)} and has no authentication",
                fix="bind it to 127.0.0.1 (OVERREAD_MLFLOW_HOST), or put it behind an authenticating proxy",
            )
        return f"{url}, loopback only"
    return f"{url}, not on this machine: make sure that only the service's own network can reach it"


def check_data_repository(patient: Patient) -> str:
    """The dataset versions of the record are tags of a sound git repository."""
    folder = patient.home.root / "data-repository"
    if not (folder / ".git").exists():
        return "will be made with the first dataset version"
    with record_of(patient) as connection:
        wanted = {row[0] for row in connection.execute("SELECT git_tag FROM dataset_versions").fetchall()}
    listed = subprocess.run(["git", "-C", folder, "tag", "--list"], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        raise Wrong(
            f"git cannot read {folder}: {listed.stderr.strip()}", fix="restore it from a backup or the DVC remote"
        )
    lost = wanted - set(listed.stdout.split())
    if lost:
        raise Wrong(f"tags are missing: {', '.join(sorted(lost)[:5])}", fix=f"restore {folder} from a backup")
    return f"{len(wanted)} dataset versions, all tagged"


def check_champions(patient: Patient) -> str:
    """No champion errs more in use than its sealed test allowed, and those that are to be watched are looked at."""
    from registry import lines, promotions, watches  # noqa: PLC0415 - `overread --help` must be quick

    watched, unwatched = [], []
    with record_of(patient) as connection:
        for line in lines.list_lines(connection):
            reign = promotions.current(connection, line.line_id)
            if reign is None:
                continue
            if lines.current_protocol(connection, line.line_id).document.get("monitoring") is None:
                unwatched.append(line.name)
                continue
            watch = watches.latest(connection, line_id=line.line_id, candidate_id=reign.candidate_id)
            if watch is not None and watch.verdict == "alarm":
                raise Wrong(f"{line.name}: {watch.reason}", fix=str(watches.what_to_do(watch, line=line.name)))
            since = reign.promoted_at if watch is None else max(watch.created_at, reign.promoted_at)
            if (days := (datetime.now(UTC) - since).days) >= LONGEST_UNWATCHED_DAYS:
                raise Wrong(
                    f"{line.name}: nobody has looked at the champion for {days} days",
                    fix=f"are beat and the worker running? See {patient.home.logs}/worker.log",
                )
            watched.append(f"{line.name}: {'not looked at yet' if watch is None else watch.verdict.replace('_', ' ')}")
    told = [*watched, *(f"{name}: not watched, its protocol has no `monitoring`" for name in unwatched)]
    return "; ".join(told) or "no champion yet"


CHECKS: Mapping[str, Callable[[Patient], str]] = {
    "python": check_python,
    "git": check_git,
    "disk": check_disk,
    "secrets": check_secrets,
    "processes": check_processes,
    "database": check_database,
    "migrations": check_migrations,
    "durability": check_durability,
    "append-only": check_append_only,
    "checkpoints": check_checkpoints,
    "broker": check_broker,
    "relay": check_relay,
    "api": check_api,
    "inference": check_inference,
    "mlflow": check_mlflow,
    "data-repository": check_data_repository,
    "champions": check_champions,
}


def _found(name: str, check: Callable[[Patient], str], patient: Patient) -> Finding:
    try:
        return Finding(name=name, good=True, detail=check(patient))
    except Wrong as wrong:
        return Finding(name=name, good=False, detail=wrong.detail, fix=wrong.fix)


@contextlib.contextmanager
def _refusals(*, fix: str) -> Iterator[None]:
    from registry.errors import Unsafe  # noqa: PLC0415

    try:
        yield
    except Unsafe as refusal:
        raise Wrong(str(refusal), fix=fix) from refusal


def _open_addresses(port: int) -> list[str]:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # macOS shows this to root only; reaching it over loopback is all that is known then
        return []
    listening = {
        connection.laddr.ip
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    }
    return sorted(listening - LOOPBACK_NAMES)
