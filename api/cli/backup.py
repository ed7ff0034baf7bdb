"""Take a backup of a running service.

What is backed up: the record (a PostgreSQL dump), every stored file it names (images, weights), the data repository and
its DVC store, the signed checkpoints, and the secrets of the home. What is not, because the record makes it again: the
broker's messages, MLflow's mirror, job directories, checkouts, logs.

Invariant: what is named is copied after what names it was fixed. Checkpoints first, for they vouch for the record as it
was; then the record, in one snapshot; then the bytes that the snapshot names, which nobody removes meanwhile but an
erasure. Whatever moment the service dies at, the newest backup with a manifest is whole.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from api.cli.errors import NotRunning, SetupError
from api.cli.home import Home, read_stack_file
from api.cli.postgres import database_url, programs
from api.cli.store import BackupDamaged, Entry, Store
from registry import db, erasures, recovery
from registry.notes import verifier_path

DUMP = "record.dump"
BUNDLE = "data-repository.bundle"
PRIVATE = ("secrets.json", "checkpoint.key", "checkpoint.key.pub")
Tell = Callable[[str, int, int], None]
"""Told what is being copied, how many of these are done, and how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a service keeps what a backup is made of."""

    home: Home
    database_url: str
    blob_root: Path
    dvc_remote: str

    @property
    def dvc_folder(self) -> Path | None:
        """The DVC store where it is a folder; one behind a URL is backed up where it is."""
        return None if "://" in self.dvc_remote else Path(self.dvc_remote)

    @property
    def data_repository(self) -> Path:
        """Git's part of the dataset versions."""
        return self.home.root / "data-repository"

    @property
    def private_files(self) -> dict[str, Path]:
        """What no record can make again: the secrets of the home, the key that signs checkpoints and its verifier."""
        key = Path(os.environ.get("OVERREAD_CHECKPOINT_KEY") or self.home.root / "checkpoint.key")
        files = dict(zip(PRIVATE, (self.home.secrets_file, key, verifier_path(key)), strict=True))
        return {name: path for name, path in files.items() if path.exists()}

    @property
    def checkpoints(self) -> Path:
        """The signed checkpoints of the audit trail."""
        return Path(os.environ.get("OVERREAD_CHECKPOINTS") or self.home.root / "checkpoints")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a backup came to; `damaged` names what could not be copied because it is no longer what it was."""

    name: str
    manifest_sha256: str
    taken_at: datetime
    rows: int
    files: int
    new_files: int
    new_bytes: int
    damaged: tuple[str, ...]


def places_of(home: Home) -> Places:
    """Find out where the running service of a home keeps everything. Raises NotRunning."""
    return Places(
        home=home,
        database_url=owner_url(home),
        blob_root=Path(os.environ.get("OVERREAD_BLOB_ROOT") or home.root / "blobs"),
        dvc_remote=os.environ.get("OVERREAD_DVC_REMOTE") or str(home.root / "dvc-remote"),
    )


def owner_url(home: Home) -> str:
    """Name the record's database as somebody who may read and write all of it. Raises NotRunning."""
    given = os.environ.get("OVERREAD_OWNER_DATABASE_URL") or os.environ.get("OVERREAD_DATABASE_URL")
    if given:
        return given
    stack = read_stack_file(home)
    if stack is None or stack.database_url is None:
        raise NotRunning(
            f"no service runs in {home.root}",
            fix="start it with `overread up` (it may stay in use meanwhile), or set OVERREAD_OWNER_DATABASE_URL",
        )
    return database_url("overread", socket=Path(parse_qs(urlsplit(stack.database_url).query)["host"][0]))


def take(places: Places, store: Store, *, tell: Tell) -> Taken:
    """Back a running service up into `store`.

    Raises:
        SetupError: the folder cannot be written, or the database cannot be dumped.
    """
    with store.writing(), tempfile.TemporaryDirectory(dir=store.root, prefix=".work-") as scratch:
        work = Path(scratch)
        known = store.names()
        before = {entry.place: entry for entry in store.entries(known[-1])} if known else {}
        entries = copy_folder(places.checkpoints, below="checkpoints", store=store, before={}, tell=tell)
        with snapshot_of(places.database_url) as (connection, snapshot, taken_at):
            tell("record", 0, 1)
            _dump(places.database_url, snapshot=snapshot, target=work / DUMP)
            inventory = recovery.take_inventory(connection)
            wanted = recovery.stored_files(connection)
            versions = recovery.dataset_versions(connection)
            erased = erasures.as_list(connection)
        entries.append(store.add(work / DUMP, place=DUMP))
        tell("record", 1, 1)
        blobs, lost = copy_blobs(places, wanted, store=store, tell=tell)
        entries += blobs
        if places.dvc_folder is not None:
            entries += copy_folder(places.dvc_folder, below="dvc-remote", store=store, before=before, tell=tell)
        tags = bundle_versions(places.data_repository, target=work / BUNDLE)
        if tags:
            entries.append(store.add(work / BUNDLE, place=BUNDLE))
        damaged = [f"stored file {digest}" for digest in _still_needed(places, lost)]
        damaged += [f"dataset version {tag}" for tag in sorted(set(versions) - tags)]
        entries += [store.add(file, place=name) for name, file in places.private_files.items()]
        store.remember_erasures(erased)
        name = store.new_name(taken_at)
        facts = {
            "taken_at": taken_at.isoformat(),
            "inventory": asdict(inventory),
            "dvc_remote": None if places.dvc_folder else places.dvc_remote,
            "damaged": damaged,
        }
        digest = store.finish(name, entries=entries, facts=facts)
    return Taken(
        name=name,
        manifest_sha256=digest,
        taken_at=taken_at,
        rows=sum(inventory.rows.values()),
        files=len(entries),
        new_files=store.new_files,
        new_bytes=store.new_bytes,
        damaged=tuple(damaged),
    )


def run_postgres_program(name: str, *arguments: str, url: str) -> None:
    """Run one of PostgreSQL's client programs on a database. Raises SetupError with what it said."""
    command, environment = postgres_command(name, *arguments, url=url)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(
            f"{name} failed: {done.stderr.strip() or f'exit code {done.returncode}'}",
            fix="if rights are missing, name the owner's login with OVERREAD_OWNER_DATABASE_URL",
        )


def postgres_command(name: str, *arguments: str, url: str) -> tuple[list[str], dict[str, str]]:
    """Give the command and the environment of one of PostgreSQL's client programs on a database."""
    parts = {key: str(value) for key, value in conninfo_to_dict(url).items()}
    password = parts.pop("password", None)  # in the environment, for `ps` shows command lines to everybody
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "OVERREAD_"))}
    if password:
        environment["PGPASSWORD"] = password
    return [str(programs() / name), *arguments, "--dbname", make_conninfo(**parts)], environment


@contextlib.contextmanager
def snapshot_of(url: str) -> Iterator[tuple[db.Connection, str, datetime]]:
    """Hold one state of the record for reading; its name lets pg_dump see the same."""
    try:
        connection = db.connect(url)
    except psycopg.OperationalError as error:
        raise NotRunning(
            f"the database does not answer: {str(error).strip().splitlines()[-1]}", fix="see `overread doctor`"
        ) from error
    with connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        row = connection.execute("SELECT pg_export_snapshot(), now()").fetchone()
        assert row is not None
        yield connection, str(row[0]), row[1]


def _dump(url: str, *, snapshot: str, target: Path) -> None:
    run_postgres_program("pg_dump", "--format=custom", f"--snapshot={snapshot}", f"--file={target}", url=url)


def copy_blobs(
    places: Places, wanted: Sequence[tuple[str, int]], *, store: Store, tell: Tell
) -> tuple[list[Entry], list[str]]:
    """Copy the stored files that are not in the store yet; the second answer names those that cannot be copied."""
    entries, lost = [], []
    for done, (digest, size) in enumerate(wanted, start=1):
        place = f"{digest[:2]}/{digest}"
        entry = Entry(place=f"blobs/{place}", sha256=digest, size=size)
        if not store.holds(digest, size=size):
            try:
                store.add(places.blob_root / place, place=entry.place, expected=digest)
            except (FileNotFoundError, BackupDamaged):
                lost.append(digest)
                continue
        entries.append(entry)
        tell("stored files", done, len(wanted))
    return entries, lost


def _still_needed(places: Places, digests: Sequence[str]) -> list[str]:
    """Leave out what an erasure has removed since the record was dumped: that is no damage."""
    if not digests:
        return []
    with snapshot_of(places.database_url) as (connection, _name, _at):
        needed = {digest for digest, _size in recovery.stored_files(connection)}
    return [digest for digest in digests if digest in needed]


def copy_folder(root: Path, *, below: str, store: Store, before: Mapping[str, Entry], tell: Tell) -> list[Entry]:
    """Copy a folder; what `before` names and is as long as then is not read again, for its name is its content."""
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    entries = []
    for done, path in enumerate(files, start=1):
        place = f"{below}/{path.relative_to(root).as_posix()}"
        known = before.get(place)
        try:
            if known and known.size == path.stat().st_size and store.holds(known.sha256, size=known.size):
                entries.append(known)
            else:
                entries.append(store.add(path, place=place))
        except FileNotFoundError:
            continue  # a temporary file that has got its name meanwhile
        tell(below, done, len(files))
    return entries


def bundle_versions(repository: Path, *, target: Path) -> set[str]:
    """Pack git's part of the dataset versions into one file; return the tags in it, none while there are none."""
    if not (repository / ".git" / "HEAD").exists():
        return set()
    tags = set(git(repository, "tag", "--list").split())
    if tags:
        git(repository, "bundle", "create", "-q", str(target.resolve()), "--all")
    return tags


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder and return what it printed. Raises SetupError with what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SetupError(f"git {arguments[0]} failed in {folder}: {done.stderr.strip()}", fix="see `overread doctor`")
    return done.stdout
