"""Keep a copy of a running service that is seconds old, for as long as this runs.

A base backup of PostgreSQL, then its write-ahead log as it is written (`pg_receivewal --synchronous`), and beside it
the files that the record names, fetched as the audit trail tells of them:

    DIR/streams/<time>/base/            base.tar.gz, backup_manifest: the whole server as of some moment
    DIR/streams/<time>/wal/             what it has written since, in segments; the last one ends in .partial
    DIR/streams/<time>/files.ndjson     dataset versions, checkpoints, secrets; replaced whole
    DIR/streams/<time>/blobs.ndjson     images and weights, a row each as they came; bytes are in DIR/files
    DIR/streams/<time>/stream.json      written last: a stream without it is none

Invariant: the log of a stream has no gap. Where the receiver cannot go on from where it was, or the base has become
old, another stream begins, and the old one is kept until the new one has its base. No slot holds the log back on the
server: a receiver that is away fills nobody's disk. Reference: PostgreSQL 18, chapter 25.3, Continuous Archiving.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg

from api.cli.backup import (
    BUNDLE,
    Places,
    bundle_versions,
    copy_blobs,
    copy_folder,
    postgres_command,
    snapshot_of,
)
from api.cli.errors import CliError, NotRunning, SetupError
from api.cli.home import read_stack_file
from api.cli.postgres import database_url
from api.cli.store import Busy, Entry, Store, rows_of, sha256_of
from registry import db, erasures, recovery

FORMAT = 1
ROUND_SECONDS = 1.0
SLOW_ROUND_SECONDS = 60.0  # checkpoints; dataset versions are fetched as soon as there is a new one
FIRST_WAL_SECONDS = 30.0
RECEIVER_ATTEMPTS = 5
CATCH_UP_SECONDS = 5.0
REACHED = "SELECT bool_and(flush_lsn >= %s::pg_lsn) FROM pg_stat_replication WHERE application_name = 'pg_receivewal'"
CHANGES_FILES = "SELECT EXISTS (SELECT FROM audit_events WHERE audit_event_id > %s AND action = ANY (%s))"


class GapInTheLog(SetupError):
    """The server no longer has what was written since the receiver last heard of it."""


class Stream:
    """One base and all that was written since, at `DIR/streams/<name>`."""

    def __init__(self, places: Places, store: Store, *, url: str) -> None:
        self.places, self.store, self._url = places, store, url
        self.begun = time.monotonic()
        self.folder = store.root / "streams" / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        self._receiver: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._seen: int | None = None  # the last audit event whose files are here
        self._slow_at = 0.0

    def begin(self, *, meanwhile: Callable[[], None]) -> None:
        """Take the base, with `meanwhile` called every second; from its return on, the stream can be restored.

        Raises SetupError with what PostgreSQL's program said.
        """
        (self.folder / "wal").mkdir(parents=True, mode=0o700)
        for folder in (self.folder, self.folder.parent):
            folder.chmod(0o700)
        self._receive()
        until = time.monotonic() + FIRST_WAL_SECONDS
        while not any((self.folder / "wal").iterdir()):  # from before the base, so that nothing is missing between them
            if time.monotonic() > until:
                raise SetupError(f"pg_receivewal received nothing: {self._complaint()}", fix="see `overread doctor`")
            time.sleep(0.05)
        options = (
            "--format=tar",
            "--compress=client-gzip:1",
            "--checkpoint=fast",
            "--wal-method=fetch",
            "--no-password",
        )
        command, environment = postgres_command(
            "pg_basebackup", f"--pgdata={self.folder / 'base'}", *options, url=self._url
        )
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as child:
            while child.poll() is None:
                meanwhile()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(ROUND_SECONDS)
            said = child.stderr.read() if child.stderr else ""
        if child.returncode != 0:
            raise SetupError(f"pg_basebackup failed: {said.strip()}", fix="is there room, and does the service run?")
        self._slow_round()
        self._keep_receiving()
        facts = {"format": FORMAT, "base_sha256": sha256_of(self.folder / "base" / "base.tar.gz")}
        taken_at = datetime.now(UTC).isoformat()
        _replace(self.folder / "stream.json", json.dumps({**facts, "taken_at": taken_at}, indent=1) + "\n")
        os.sync()

    def round(self, *, everything: bool = False) -> bool:
        """Fetch the files that came since the last round; false while the record is away.

        Raises GapInTheLog: this stream ends here, and stays good up to here. SetupError: the folder cannot be written.
        """
        try:
            new_versions = self._has_new_versions()
            if everything or new_versions or time.monotonic() >= self._slow_at:
                self._slow_round(new_versions=new_versions)
            else:
                with db.connect(self.places.database_url) as connection, self.store.writing():
                    self._fetch(connection)
            self._keep_receiving()
        except Busy:
            return True  # the next round fetches what this one would have
        except (psycopg.OperationalError, NotRunning):
            return False
        except OSError as error:
            raise SetupError(
                f"{self.folder} cannot be written: {error.strerror}", fix="make room, or mend it"
            ) from error
        return True

    def close(self) -> None:
        """Stop receiving once all that was written until now is here, if that is soon; what has come stays."""
        until = time.monotonic() + CATCH_UP_SECONDS
        with contextlib.suppress(psycopg.OperationalError), db.connect(self._url) as connection:
            now = db.fetch_value(connection, "SELECT pg_current_wal_flush_lsn()")
            while not db.fetch_value(connection, REACHED, (now,)) and time.monotonic() < until:
                connection.rollback()  # statistics are read once in a transaction
                time.sleep(0.05)
        if self._receiver is not None:
            self._receiver.terminate()
            self._receiver.wait()

    def _has_new_versions(self) -> bool:
        with db.connect(self.places.database_url) as connection:
            changes = ["dataset:freeze", "patient:erase", "patient:erase_bytes"]
            return bool(db.fetch_value(connection, CHANGES_FILES, (self._seen or 0, changes)))

    def _slow_round(self, *, new_versions: bool = True) -> None:
        """Fetch everything that is new, the erasures first: whoever is on that list does not come back."""
        before = {entry.place: entry for entry in rows_of(self.folder / "files.ndjson")}
        store, places = self.store, self.places
        with store.writing(), snapshot_of(places.database_url) as (connection, _name, _at):
            store.remember_erasures(erasures.as_list(connection))
            self._fetch(connection)
            entries = copy_folder(places.checkpoints, below="checkpoints", store=store, before=before, tell=_quietly)
            if places.dvc_folder is not None:
                entries += copy_folder(places.dvc_folder, below="dvc-remote", store=store, before=before, tell=_quietly)
            entries += self._bundle() if new_versions else [before[place] for place in {BUNDLE} & before.keys()]
            entries += [store.add(file, place=name) for name, file in places.private_files.items()]
            _replace(self.folder / "files.ndjson", _rows(entries))
            os.sync()
        self._slow_at = time.monotonic() + SLOW_ROUND_SECONDS

    def _bundle(self) -> list[Entry]:
        with tempfile.TemporaryDirectory(dir=self.store.root, prefix=".work-") as scratch:
            packed = Path(scratch) / BUNDLE
            tags = bundle_versions(self.places.data_repository, target=packed)
            return [self.store.add(packed, place=BUNDLE)] if tags else []

    def _fetch(self, connection: db.Connection) -> None:
        """Fetch the images and weights that the trail tells of since the last time; the first time, all there are."""
        last = int(db.fetch_value(connection, "SELECT coalesce(max(audit_event_id), 0) FROM audit_events"))
        if self._seen is None:
            wanted = recovery.stored_files(connection)
        else:
            wanted = recovery.stored_files_since(connection, after=self._seen) if last > self._seen else []
        entries, _lost = copy_blobs(self.places, wanted, store=self.store, tell=_quietly)
        if entries:
            with (self.folder / "blobs.ndjson").open("a", encoding="utf-8") as file:
                file.write(_rows(entries))
                file.flush()
                os.fsync(file.fileno())
        self._seen = last

    def _receive(self) -> None:
        command, environment = postgres_command(
            "pg_receivewal",
            *(f"--directory={self.folder / 'wal'}", "--synchronous", "--no-loop", "--no-password"),
            url=self._url,
        )
        with (self.folder / "receiver.log").open("w", encoding="utf-8") as log:
            self._receiver = subprocess.Popen(command, env=environment, stderr=log, umask=0o077)

    def _keep_receiving(self) -> None:
        """Start the receiver again where it has ended; it goes on from the last segment it has."""
        if self._receiver is not None and self._receiver.poll() is None:
            self._failures = 0
            return
        self._failures += 1
        complaint = self._complaint()
        if "has already been removed" in complaint or self._failures > RECEIVER_ATTEMPTS:
            raise GapInTheLog(f"the log cannot be followed any further: {complaint}", fix="another stream begins")
        self._receive()

    def _complaint(self) -> str:
        return (self.folder / "receiver.log").read_text(encoding="utf-8").strip() or "no word of it"


def follow(
    places: Places,
    store: Store,
    *,
    stopping: threading.Event,
    keep: int = 1,
    base_seconds: float = 86_400.0,
    say: Callable[[str], None],
) -> None:
    """Keep a copy until told to stop; a new base every `base_seconds`, after which all but `keep` streams go.

    Raises CliError where the first base cannot be taken; from then on it tries again.
    """
    url, current, away = _server(places), None, False
    with store.writing():
        pass  # made, and its owner's alone
    try:
        while not stopping.is_set():
            following = Stream(places, store, url=url)
            try:
                following.begin(meanwhile=partial(_go_on, current))
            except (CliError, psycopg.Error) as error:
                following.close()
                shutil.rmtree(following.folder, ignore_errors=True)
                if current is None:
                    raise
                say(f"! {str(error).strip()}; trying again")
                stopping.wait(SLOW_ROUND_SECONDS)
                continue
            if current is not None:
                current.close()
            current = following
            with contextlib.suppress(Busy), store.writing():
                forget(store, keep=keep)
            say(f"✓ stream {current.folder.name} follows from now on; what is written is here within a second or two")
            while not stopping.wait(ROUND_SECONDS) and time.monotonic() - current.begun < base_seconds:
                try:
                    here = current.round()
                except GapInTheLog as gap:
                    say(f"! {gap.message}")
                    break
                if here == away:
                    say("✓ the service is back" if here else "! the service is away; what came until now is kept")
                    away = not here
    finally:
        if current is not None:
            with contextlib.suppress(CliError):
                current.round(everything=True)
            current.close()


def _go_on(current: Stream | None) -> None:
    """Keep the old stream going while the base of a new one is taken; one that has ended stays as it is."""
    if current is not None:
        with contextlib.suppress(GapInTheLog):
            current.round()


def streams(store: Store) -> list[str]:
    """Names of the streams that can be restored, the oldest first."""
    return sorted(path.parent.name for path in store.root.glob("streams/*/stream.json"))


def facts_of(store: Store, name: str) -> dict[str, Any]:
    """Read what is known of a stream's base. Raises SetupError where another version wrote it."""
    facts: dict[str, Any] = json.loads((store.root / "streams" / name / "stream.json").read_text(encoding="utf-8"))
    if facts.get("format") != FORMAT:
        raise SetupError(
            f"stream {name} has format {facts.get('format')}, this version reads {FORMAT}",
            fix="use the version of Overread that made it",
        )
    return facts


def forget(store: Store, *, keep: int) -> None:
    """Remove all streams but the newest `keep`, what was cut off before its base was whole, and their bytes."""
    kept = streams(store)[-keep:]
    for path in (store.root / "streams").iterdir():
        if path.name not in kept:
            (path / "stream.json").unlink(missing_ok=True)  # first: half a stream must not look like one
            shutil.rmtree(path)
    store.sweep()


def _server(places: Places) -> str:
    """Name the embedded server as somebody who may copy all of it."""
    stack = read_stack_file(places.home)
    if stack is None or stack.database_url is None:
        raise SetupError(
            "only the embedded PostgreSQL can be followed",
            fix="archive the log of your own server with its own tools (pgBackRest, Barman), and back the files up "
            "with `overread backup DIR`",
        )
    return database_url("postgres", socket=Path(parse_qs(urlsplit(stack.database_url).query)["host"][0]))


def _rows(entries: list[Entry]) -> str:
    return "".join(json.dumps(asdict(entry)) + "\n" for entry in entries)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o600)
    temporary.replace(path)


def _quietly(_what: str, _done: int, _of: int) -> None:
    """Tell nobody."""
