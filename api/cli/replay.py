"""Put a stream back into an empty home: the base, and on top of it all that PostgreSQL had written by the end.

Invariant: as with a dump, nothing that is there is overwritten, a home appears under its name only when all of it is
there, and whoever was erased does not come back. What the record names and the stream did not get in time is told of,
and so is a trail that ends before a checkpoint that was signed for it. The databases of MLflow and of the broker are in
the base as well; they are dropped, for the record fills both again.
"""

from __future__ import annotations

import shlex
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg import sql

from api.cli.backup import BUNDLE, PRIVATE, Tell, owner_url
from api.cli.errors import SetupError, StartFailed
from api.cli.home import Home
from api.cli.postgres import DATABASES, database_url, prepare_cluster
from api.cli.processes import PROCESSES
from api.cli.restore import NotTheSame, Restored, place_files, unbundle, unfinished_home
from api.cli.stack import Stack
from api.cli.store import BackupDamaged, Entry, Store, rows_of, sha256_of
from api.cli.streaming import facts_of, streams
from api.cli.supervisor import as_user
from registry import audit, checkpoints, db, erasures, recovery

LONGEST_REPLAY_SECONDS = 86_400.0
TOO_LATE = "recovery ended before configured recovery target was reached"


def choose(store: Store, name: str | None) -> str:
    """Return `name` or the newest stream. Raises SetupError where there is no such stream."""
    known = streams(store)
    if not known:
        raise SetupError(f"{store.root} holds no stream", fix="begin one: overread backup DIR --continuous")
    if name is not None and name not in known:
        raise SetupError(f"{store.root} holds no stream {name}", fix=f"one of: {', '.join(known)}")
    return name or known[-1]


def replay(
    store: Store,
    name: str,
    home: Home,
    *,
    until: datetime | None = None,
    erased_elsewhere: Sequence[Mapping[str, Any]] = (),
    tell: Tell,
    say: Callable[[str], None] = lambda _text: None,
) -> Restored:
    """Put a stream back into the empty home `home`, up to its end or to what was committed by `until`.

    Raises:
        SetupError: the home is not empty, or the stream does not reach `until`.
        BackupDamaged: the base or a file is missing or damaged; what was restored so far is not a service.
        NotTheSame: the audit trail does not fit.
    """
    facts, folder = facts_of(store, name), store.root / "streams" / name
    if until is not None and until < datetime.fromisoformat(facts["taken_at"]):
        raise SetupError(f"stream {name} begins at {facts['taken_at']}", fix="name a later time, or an older stream")
    if sha256_of(folder / "base" / "base.tar.gz") != facts["base_sha256"]:
        raise BackupDamaged(f"the base of stream {name} is damaged", fix="use another stream, or a backup")
    unfinished = unfinished_home(home)
    entries = rows_of(folder / "files.ndjson")
    for entry in entries:
        if entry.place in PRIVATE:  # before anything starts there, which would make new ones
            store.place(entry, unfinished.root / entry.place)
    tell("record", 0, 1)
    _lay_out(folder, unfinished, until=until)
    postgres = next(process for process in PROCESSES if process.name == "postgres")
    patient = replace(postgres, start_seconds=LONGEST_REPLAY_SECONDS)
    try:
        with Stack(unfinished.root, {}, report=say, processes=(patient,)) as stack:
            _end_replay(unfinished, stack=stack)
            tell("record", 1, 1)
            with db.connect(owner_url(unfinished)) as connection:
                restored = _complete(
                    connection,
                    store,
                    entries,
                    home=unfinished,
                    final=home,
                    until=until,
                    erased_elsewhere=erased_elsewhere,
                    tell=tell,
                    stream=name,
                )
    except StartFailed as error:
        if TOO_LATE in error.message:
            raise SetupError(f"stream {name} ends before {until}", fix="leave --until out") from error
        raise
    unfinished.root.rename(home.root)
    return restored


def _lay_out(folder: Path, home: Home, *, until: datetime | None) -> None:
    """Unpack the base, put the log beside it, and tell PostgreSQL to replay it before it lets anybody in."""
    home.postgres.mkdir(mode=0o700, exist_ok=True)
    try:
        with tarfile.open(folder / "base" / "base.tar.gz") as base:
            base.extractall(home.postgres, filter="tar")
        log = home.postgres / "replay"
        log.mkdir(mode=0o700)
        for segment in (folder / "wal").iterdir():
            target = log / segment.name.removesuffix(".partial")
            if not (segment.suffix == ".partial" and target.exists()):
                shutil.copyfile(segment, target)
    except (OSError, tarfile.TarError) as error:
        raise BackupDamaged(f"{folder} cannot be unpacked: {error}", fix="use another stream, or a backup") from error
    place = shlex.quote(str(log)).replace("%", "%%").replace("'", "''")
    lines = [f"restore_command = 'cp {place}/%f %p'", "hot_standby = off", "recovery_target_action = 'promote'"]
    if until is not None:
        lines.append(f"recovery_target_time = '{until.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f+00}'")
    settings = home.postgres / "postgresql.auto.conf"
    shutil.copyfile(settings, home.postgres / "replay.conf")
    settings.write_text(settings.read_text(encoding="utf-8") + "\n".join(lines) + "\n", encoding="utf-8")
    (home.postgres / "recovery.signal").touch()
    cluster = prepare_cluster(home)
    if cluster.user is not None:
        for path in home.postgres.rglob("*"):
            shutil.chown(path, user=cluster.user, group=as_user(cluster.user)["group"])


def _end_replay(home: Home, *, stack: Stack) -> None:
    """Take back what only the replay needed, and drop what the record fills again."""
    (home.postgres / "replay.conf").replace(home.postgres / "postgresql.auto.conf")
    shutil.rmtree(home.postgres / "replay")
    socket = Path(parse_qs(urlsplit(stack.environment["OVERREAD_DATABASE_URL"]).query)["host"][0])
    with psycopg.connect(database_url("postgres", socket=socket), autocommit=True) as connection:
        connection.execute("SELECT pg_reload_conf()")
        for name in DATABASES[1:]:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _complete(
    connection: db.Connection,
    store: Store,
    entries: Sequence[Entry],
    *,
    home: Home,
    final: Home,
    until: datetime | None,
    erased_elsewhere: Sequence[Mapping[str, Any]],
    tell: Tell,
    stream: str,
) -> Restored:
    """Check the record, and put its files back as far as they came."""
    inventory = recovery.take_inventory(connection)
    reached = db.fetch_value(connection, "SELECT max(at) FROM audit_events")
    signed = {entry.place: _size_of(entry) for entry in entries if entry.place.endswith(checkpoints.SUFFIX)}
    last, newest = inventory.last_audit_event, max(signed.values(), default=0)
    if (broken := audit.first_broken(connection)) is not None:
        raise NotTheSame(f"the audit trail does not fit at event {broken}", fix="do not use it; restore another stream")
    erased = erasures.erase_again(connection, [*store.erasures(), *erased_elsewhere])
    needed = recovery.stored_files(connection)
    here = [Entry(place=f"blobs/{digest[:2]}/{digest}", sha256=digest, size=size) for digest, size in needed]
    missing = [f"stored file {entry.sha256}" for entry in here if not store.holds(entry.sha256, size=entry.size)]
    if until is None and last < newest:
        missing.insert(0, f"the end of the audit trail, events {last + 1} to {newest}, which was signed,")
    wanted = [entry for entry in here if store.holds(entry.sha256, size=entry.size)]
    # A checkpoint of events that are not here would keep the service from ever signing another.
    wanted += [entry for entry in entries if signed.get(entry.place, 0) <= last]
    place_files(store, wanted, needed={digest for digest, _size in needed}, home=home, tell=tell)
    versions = recovery.dataset_versions(connection)
    bundle = next((entry for entry in entries if entry.place == BUNDLE), None)
    if versions and bundle is not None:
        store.place(bundle, home.root / BUNDLE)
        unbundle(home.root / BUNDLE, home=home, final=final, versions=versions)
        (home.root / BUNDLE).unlink()
    details = {"stream": stream, "until": str(reached), "erased_again": erased, "missing": len(missing)}
    recovery.mark_restored(connection, details=details)
    return Restored(
        name=stream,
        taken_at=reached or datetime.now(UTC),
        rows=sum(inventory.rows.values()),
        files=len(wanted),
        last_audit_event=last,
        champions=inventory.champions,
        missing=tuple(missing),
        erased_again=erased,
    )


def _size_of(checkpoint: Entry) -> int:
    return int(Path(checkpoint.place).name.removesuffix(checkpoints.SUFFIX))
