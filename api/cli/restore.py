"""Put a backup back into an empty place, and hold what came of it against what was backed up.

Invariant: nothing that is there is overwritten; a home that is not empty, or a database with tables, is refused. A home
appears under its name only when all of it is there. What the record does not name is not brought back: dataset versions
that were published after the dump was taken would otherwise pass for the next ones, with confirmations that no longer
exist. MLflow is filled again by the worker.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from api.cli.backup import BUNDLE, DUMP, PRIVATE, Tell, git, owner_url, run_postgres_program
from api.cli.errors import CliError, SetupError
from api.cli.home import Home, home_at, prepare
from api.cli.processes import PROCESSES
from api.cli.stack import Stack
from api.cli.store import BackupDamaged, Entry, Store
from registry import audit, db, erasures, recovery

FOLDERS = ("blobs", "checkpoints", "dvc-remote")


class NotTheSame(CliError):
    """What was restored is not what was backed up."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What came back."""

    name: str
    taken_at: datetime
    rows: int
    files: int
    last_audit_event: int
    champions: dict[str, str]
    missing: tuple[str, ...]
    erased_again: int


def restore(
    store: Store,
    name: str,
    home: Home,
    *,
    url: str | None,
    erased_elsewhere: Sequence[Mapping[str, Any]] = (),
    tell: Tell,
    say: Callable[[str], None] = lambda _text: None,
) -> Restored:
    """Put a backup back into the empty home `home`, and into the empty database `url` or else an embedded one.

    Whom the folder of backups, or `erased_elsewhere`, names as erased does not come back.

    Raises:
        SetupError: the home or the database is not empty.
        BackupDamaged: a file of the backup is missing or damaged; what was restored so far is not a service.
        NotTheSame: the restored record is not what the manifest says.
    """
    manifest, entries = store.manifest(name), store.entries(name)
    unfinished = unfinished_home(home)
    erased = _put_back(
        store, name, unfinished, final=home, url=url, erased_elsewhere=erased_elsewhere, tell=tell, say=say
    )
    unfinished.root.rename(home.root)
    inventory = manifest["inventory"]
    return Restored(
        name=name,
        taken_at=datetime.fromisoformat(manifest["taken_at"]),
        rows=sum(inventory["rows"].values()),
        files=len(entries),
        last_audit_event=inventory["last_audit_event"],
        champions=inventory["champions"],
        missing=tuple(manifest["damaged"]),
        erased_again=erased,
    )


def unfinished_home(home: Home) -> Home:
    """Make a folder beside the empty `home`, to get its name once all is there. Raises SetupError."""
    if home.root.exists() and any(home.root.iterdir()):
        raise SetupError(f"{home.root} is not empty", fix="restore into a new folder: --home DIR")
    unfinished = home_at(home.root.with_name(f"{home.root.name}.unfinished"))
    if unfinished.root.exists():  # of a restore that was cut off
        shutil.rmtree(unfinished.root)
    prepare(unfinished)
    return unfinished


def _put_back(
    store: Store,
    name: str,
    home: Home,
    *,
    final: Home,
    url: str | None,
    erased_elsewhere: Sequence[Mapping[str, Any]],
    tell: Tell,
    say: Callable[[str], None],
) -> int:
    manifest, entries = store.manifest(name), store.entries(name)
    by_place = {entry.place: entry for entry in entries}
    for private in by_place.keys() & set(PRIVATE):  # before anything starts there, which would make new ones
        store.place(by_place[private], home.root / private)
    with tempfile.TemporaryDirectory(dir=home.root, prefix=".restore-") as scratch:
        work = Path(scratch)
        store.place(by_place[DUMP], work / DUMP)
        with _database(home, url=url, say=say) as target, db.connect(target) as connection:
            tell("record", 0, 1)
            _load(work / DUMP, url=target)
            _check(connection, manifest=manifest)
            tell("record", 1, 1)
            erased = erasures.erase_again(connection, [*store.erasures(), *erased_elsewhere])
            needed = {digest for digest, _size in recovery.stored_files(connection)}
            place_files(store, entries, needed=needed, home=home, tell=tell)
            versions = recovery.dataset_versions(connection)
            if versions and BUNDLE in by_place:
                store.place(by_place[BUNDLE], work / BUNDLE)
                unbundle(work / BUNDLE, home=home, final=final, versions=versions)
            details = {"backup": name, "taken_at": manifest["taken_at"], "erased_again": erased}
            recovery.mark_restored(connection, details=details)
    return erased


@contextlib.contextmanager
def _database(home: Home, *, url: str | None, say: Callable[[str], None]) -> Iterator[str]:
    """Give an empty database to restore into, as its owner."""
    if url is None:
        only = tuple(process for process in PROCESSES if process.name == "postgres")
        with Stack(home.root, {}, report=say, processes=only):
            yield owner_url(home)
        return
    with db.connect(url) as connection:
        if not recovery.is_empty(connection):
            raise SetupError("the database has tables already", fix="name an empty one")
    yield url


def _load(dump: Path, *, url: str) -> None:
    run_postgres_program("pg_restore", "--no-owner", "--exit-on-error", "--single-transaction", str(dump), url=url)


def _check(conn: db.Connection, *, manifest: Mapping[str, Any]) -> None:
    """Hold the restored record against the manifest, and its audit trail against itself. Raises NotTheSame."""
    wrong = recovery.Inventory(**manifest["inventory"]).differences(recovery.take_inventory(conn))
    broken = audit.first_broken(conn)
    if broken is not None:
        wrong.append(f"the audit trail does not fit at event {broken}")
    if wrong:
        raise NotTheSame(
            f"the record is not what was backed up: {'; '.join(wrong)}", fix="do not use it; restore another backup"
        )


def place_files(store: Store, entries: Sequence[Entry], *, needed: Set[str], home: Home, tell: Tell) -> None:
    """Copy the files of the home's folders out, images and weights only where their digest is `needed`."""

    def is_wanted(entry: Entry) -> bool:
        folder = PurePosixPath(entry.place).parts[0]
        return folder in FOLDERS and (folder != "blobs" or entry.sha256 in needed)  # not those of the erased

    wanted = [entry for entry in entries if is_wanted(entry)]
    for done, entry in enumerate(wanted, start=1):
        target = home.root / entry.place
        if not target.resolve().is_relative_to(home.root):
            raise BackupDamaged(f"the backup names {entry.place}, which lies outside of the home")
        store.place(entry, target)
        tell("files", done, len(wanted))


def unbundle(bundle: Path, *, home: Home, final: Home, versions: Mapping[str, str]) -> None:
    """Bring back the dataset versions that the record names, and only these; without any, the first freeze begins."""
    repository = home.root / "data-repository"
    git(home.root, "clone", "-q", str(bundle), str(repository))
    git(repository, "remote", "remove", "origin")
    here = set(git(repository, "tag", "--list").split())
    for tag in sorted(tag for tag in here if tag.partition(".e")[0] not in versions):  # .e1: without erased cases
        git(repository, "tag", "--delete", tag)
    # The next freeze would put the place of the DVC store right; a checkout before that must find it too.
    config = repository / ".dvc" / "config"
    store = final.root / "dvc-remote"
    config.write_text(re.sub(r"(?m)^(\s*url = )/.*$", rf"\g<1>{store}", config.read_text()))
