"""Signs checkpoints of the audit trail, beside the relay: once a minute if anything was written, and as it stops.

Invariant: it never waits for the broker and nothing waits for it. While the record is away, or no longer is what was
signed before, it signs nothing, says so in the log, and tries again; `overread verify` names what is wrong.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from registry import checkpoints, db, notes, reads
from registry.errors import NoteRefused, TrailDamaged
from workers.settings import WorkerSettings

STOP_SECONDS = 5.0

log = logging.getLogger(__name__)


@contextmanager
def signing(settings: WorkerSettings, *, stopping: threading.Event) -> Iterator[None]:
    """Sign checkpoints while the block runs, and a last one when it is to stop; a defect here stops it."""
    thread = threading.Thread(target=_follow, args=(settings, stopping), name="notary", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(STOP_SECONDS)


def sign_once(settings: WorkerSettings) -> bool:
    """Sign what was written since the last checkpoint; say whether a new one was made. Never raises for what may be."""
    try:
        signer = notes.signer_at(settings.checkpoint_key)
        with db.connect(settings.database_url) as connection:
            reads.seal(connection)  # so that the checkpoint holds the log of looks too
            connection.commit()
            made = checkpoints.take(connection, settings.checkpoints, signer=signer)
    except (TrailDamaged, NoteRefused) as error:
        log.error("no checkpoint was signed; look at `overread verify`: %s", error)  # noqa: TRY400 - nothing to trace
        return False
    except (psycopg.Error, OSError) as error:
        log.warning("no checkpoint could be signed just now: %s", error)
        return False
    if made is not None:
        log.info("checkpoint: %s events, root %s", made.size, made.root.hex())
    return made is not None


def _follow(settings: WorkerSettings, stopping: threading.Event) -> None:
    try:
        sign_once(settings)  # what a killed one left unsigned
        while not stopping.wait(settings.checkpoint_seconds):
            sign_once(settings)
        sign_once(settings)
    except BaseException:
        stopping.set()  # the process ends and is started again; a trail that nobody signs must not go unnoticed
        raise
