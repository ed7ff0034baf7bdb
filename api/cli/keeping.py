"""`overread backup`, `restore`, `drill`: keeping a second copy of everything, and proving that it can be used."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.errors import Refused, SetupError
from api.cli.home import Home, home_at
from api.cli.options import HomeOption, JsonFlag
from api.cli.output import answer, say, screen

if TYPE_CHECKING:
    from api.cli.backup import Tell
    from api.cli.store import Store

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of backups, best on another disk")]
AtOption = Annotated[str | None, typer.Option("--at", metavar="NAME", help="Which backup [default: the newest]")]


def backup(
    *,
    folder: FolderArgument,
    home: HomeOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Take none; read every byte of the one there is, and hold it to its digest")
    ] = False,
    at: AtOption = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Afterwards remove all but the newest so many, and their bytes")
    ] = None,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Go on until stopped: a base, then all that is written, as it is")
    ] = False,
    base_hours: Annotated[
        float, typer.Option(min=0.01, help="With --continuous: take a new base after so long")
    ] = 24.0,
    as_json: JsonFlag = False,
) -> None:
    """Back the running service up: the record, images and weights, dataset versions, checkpoints, secrets.

    The service stays in use. A second backup into the same folder copies only what is new. The folder holds the
    patients' images and the secrets (mode 0600): guard it like the service itself, and copy it to another place.

    With --continuous it runs beside the service and loses a second or two at most, not what came since the last backup;
    it is started like the service, and keeps one stream unless --keep says more.

    Example: overread backup /mnt/backups/overread --keep 30
    """
    from api.cli.backup import places_of, take  # noqa: PLC0415 - `overread --help` must be quick
    from api.cli.store import Store  # noqa: PLC0415

    store = Store(folder.expanduser().resolve())
    if continuous:
        _follow(store, home_at(home), keep=keep or 1, base_seconds=base_hours * 3600)
        return
    if verify:
        _verify(store, at=at, as_json=as_json)
        return
    began = time.monotonic()
    with _progress() as tell:
        taken = take(places_of(home_at(home)), store, tell=tell)
    removed = store.keep_newest(keep) if keep else 0
    if as_json:
        answer({**asdict(taken), "removed": removed}, as_json=True)
    say(
        f"✓ backup {taken.name}: {taken.rows} rows as of {taken.taken_at:%Y-%m-%d %H:%M:%S %Z}, {taken.files} files, "
        f"{taken.new_files} of them new ({taken.new_bytes / 1e6:.1f} MB), in {time.monotonic() - began:.1f} s"
        + (f"; {removed} older removed" if removed else "")
    )
    say(f"  manifest {taken.manifest_sha256} (note it elsewhere; `overread backup {folder} --verify` reads it again)")
    if taken.damaged:
        raise Refused(
            f"{len(taken.damaged)} things are missing or damaged, the first is {taken.damaged[0]}; all else is safe",
            fix="`overread doctor`, then restore them from an earlier backup, or send those images again",
        )


def restore(
    *,
    folder: FolderArgument,
    home: Annotated[str, typer.Option("--home", metavar="DIR", help="New home folder; it must be empty")],
    at: AtOption = None,
    erased: Annotated[
        Path | None,
        typer.Option("--erasures", metavar="FILE", help="A list of erasures made after the backup, kept elsewhere"),
    ] = None,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="From what `backup --continuous` kept, up to its end")
    ] = False,
    until: Annotated[
        datetime | None,
        typer.Option(help="With --continuous: only what was committed by then (UTC), to undo what came after"),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put a backup back into an empty home, check it against its manifest, and have MLflow filled again.

    The database is made in the home, or is the empty one that OVERREAD_OWNER_DATABASE_URL names. Nothing that exists is
    overwritten. Exit code 2 if what comes back is not what was backed up.

    Example: overread restore /mnt/backups/overread --home /srv/overread
    """
    from api.cli.restore import restore as put_back  # noqa: PLC0415 - `overread --help` must be quick
    from api.cli.store import Store  # noqa: PLC0415

    began = time.monotonic()
    store, places = Store(folder.expanduser().resolve()), home_at(home)
    url = os.environ.get("OVERREAD_OWNER_DATABASE_URL") or os.environ.get("OVERREAD_DATABASE_URL")
    elsewhere = [json.loads(row) for row in erased.read_text(encoding="utf-8").splitlines()] if erased else []
    with _progress() as tell:
        if continuous or until:
            if url:
                raise SetupError("a stream is put back into a home", fix="unset OVERREAD_DATABASE_URL and its owner's")
            from api.cli.replay import choose, replay  # noqa: PLC0415

            moment = until.replace(tzinfo=until.tzinfo or UTC) if until else None
            name = choose(store, at)
            restored = replay(store, name, places, until=moment, erased_elsewhere=elsewhere, tell=tell)
        else:
            restored = put_back(store, store.choose(at), places, url=url, erased_elsewhere=elsewhere, tell=tell)
    if as_json:
        answer(asdict(restored), as_json=True)
    say(
        f"✓ {restored.rows} rows and {restored.files} files of backup {restored.name} are back in {places.root} after "
        f"{time.monotonic() - began:.1f} s; the audit trail fits to its end, event {restored.last_audit_event}"
    )
    for line, digest in restored.champions.items():
        say(f"  {line}: champion {digest[:12]}")
    say(f"  What was recorded after {restored.taken_at:%Y-%m-%d %H:%M:%S %Z} is not here.")
    if restored.erased_again:
        say(f"  {restored.erased_again} erasures made after the backup were made again; their bytes go with `up`.")
    for what in restored.missing:
        say(f"! {what} is missing: it was damaged before the backup, or came too late for it")
    say(f"Next: overread up --home {places.root}, then overread verify")


def drill(
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Where it plays; must not exist [default: temporary]")
    ] = None,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Restore from a copy kept continuously, not from a backup")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Lose a whole service while people work, and put it back: prints what was lost and how long it took.

    Starts a service of its own, lets a model learn, backs it up under load, kills every process, removes its home,
    restores the backup and starts again. Touches no service of yours. Takes about three minutes.

    Example: overread drill
    """
    import tempfile  # noqa: PLC0415 - `overread --help` must be quick

    from api.cli.drill import drill as play  # noqa: PLC0415

    chosen = folder.expanduser().resolve() if folder else Path(tempfile.mkdtemp(prefix="ovr-")) / "drill"
    if chosen.exists():
        raise SetupError(f"{chosen} exists", fix="name a folder that does not")
    figures = play(chosen, continuous=continuous, screen=screen())
    if as_json:
        answer(figures, as_json=True)
        return
    answer(figures, as_json=False)
    say("✓ everything that the backup held came back: counts, audit trail, digests, champion, MLflow's alias")


def _follow(store: Store, home: Home, *, keep: int, base_seconds: float) -> None:
    """Keep a copy until SIGINT or SIGTERM."""
    import signal  # noqa: PLC0415 - only for this
    import threading  # noqa: PLC0415

    from api.cli.backup import places_of  # noqa: PLC0415 - `overread --help` must be quick
    from api.cli.streaming import follow  # noqa: PLC0415

    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    follow(places_of(home), store, stopping=stopping, keep=keep, base_seconds=base_seconds, say=say)


def _verify(store: Store, *, at: str | None, as_json: bool) -> None:
    name = store.choose(at)
    with _progress() as tell:
        wrong = store.wrong(name, tell=lambda done, of: tell("files", done, of))
    manifest = store.manifest(name)
    wrong += [f"{what} was damaged or missing already" for what in manifest["damaged"]]
    if as_json:
        answer({"name": name, "taken_at": manifest["taken_at"], "wrong": wrong}, as_json=True)
    for line in wrong:
        say(f"✗ {line}")
    if wrong:
        raise typer.Exit(2)
    say(f"✓ backup {name} is whole: every file has its digest")


@contextlib.contextmanager
def _progress() -> Iterator[Tell]:
    """Show a bar for each kind of thing that is copied."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen(), transient=True) as progress:
        tasks = {}

        def tell(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=of)

        yield tell
