"""A copy that is seconds old: what was acknowledged just before everything was lost comes back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from api.cli.backup import Places, owner_url, places_of
from api.cli.errors import SetupError
from api.cli.home import Home, home_at
from api.cli.processes import PROCESSES
from api.cli.replay import choose, replay
from api.cli.stack import Stack
from api.cli.store import BackupDamaged, Store
from api.cli.streaming import follow, streams
from registry import audit, blobs, db, erasures, lines, users
from tests.waiting import PATIENCE_SECONDS, until
from tests.workers.conftest import make_settings
from tests.workers.lines import confirm_cases, make_line
from workers import notary

RECORD_ONLY = tuple(process for process in PROCESSES if process.name in {"postgres", "migrate"})


def quietly(_what: str, _done: int, _of: int) -> None:
    """Tell nobody."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Outside pytest's own, whose permissions a second pytest would take back from PostgreSQL's user."""
    with tempfile.TemporaryDirectory(prefix="ovr-") as made:
        yield Path(made)


class Hospital:
    """A record on a server of its own, and somebody who confirms cases."""

    def __init__(self, stack: Stack) -> None:
        self.places: Places = places_of(home_at(stack.home))
        self.settings = make_settings(stack.environment["OVERREAD_DATABASE_URL"], stack.home)
        self.line: lines.Line
        self.person: users.User
        self._seed = 0
        with self.record() as record:
            self.line, self.person = make_line(record)

    def record(self) -> db.Connection:
        return db.connect(self.places.database_url)

    def answers(self) -> bool:
        """Whether its server is there."""
        try:
            self.record().close()
        except psycopg.OperationalError:
            return False
        return True

    def confirm(self, count: int = 3) -> None:
        self._seed += 1
        with self.record() as record:
            confirm_cases(record, self.settings, line=self.line, person=self.person, count=count, seed=self._seed)

    def confirmations(self) -> list[tuple[object, ...]]:
        with self.record() as record:
            return confirmations_in(record)


@contextmanager
def following(places: Places, store: Store, **options: float) -> Iterator[list[str]]:
    """Keep a copy while the block runs, from when it can be restored; yields what it said."""
    stopping, said = threading.Event(), list[str]()
    thread = threading.Thread(
        target=follow, args=(places, store), kwargs={"stopping": stopping, "say": said.append, **options}
    )
    thread.start()
    try:
        until(lambda: bool(said) or not thread.is_alive(), what="the base")
        assert "follows from now on" in said[0]
        yield said
    finally:
        stopping.set()
        thread.join(PATIENCE_SECONDS)


def confirmations_in(record: db.Connection) -> list[tuple[object, ...]]:
    query = "SELECT confirmation_id, case_id, finding, created_at FROM confirmations ORDER BY 1"
    return record.execute(query).fetchall()


def count_of(store: Store) -> int:
    listings = store.root.glob("streams/*/blobs.ndjson")
    return sum(len(listing.read_text(encoding="utf-8").splitlines()) for listing in listings)


def restored_record(home: Home) -> Stack:
    return Stack(home.root, {}, processes=RECORD_ONLY[:1])


def test_what_was_confirmed_just_before_the_loss_comes_back(folder: Path) -> None:
    store = Store(folder / "backups")
    with Stack(folder / "home", {}, processes=RECORD_ONLY) as stack:
        hospital = Hospital(stack)
        hospital.confirm()
        with following(hospital.places, store):
            hospital.confirm()
            until(lambda: count_of(store) == 6, what="the second round of images")
            assert notary.sign_once(hospital.settings)
            with hospital.record() as record:
                middle: datetime = db.fetch_value(record, "SELECT clock_timestamp()")
            time.sleep(1.1)
            hospital.confirm()
            acknowledged = hospital.confirmations()
            until(lambda: count_of(store) == 9, what="the third")
            with hospital.record() as record:
                digest = erasures.digest_of_patient("patient-1-0")
                made = erasures.erase(record, patient_digest=digest, line=None, reason="asked for it", actor="olga")
                case_id = next(
                    item.subject_id for item in erasures.concerned(record, made.erasure_id) if item.subject == "case"
                )
                record.commit()
            until(lambda: len(store.erasures()) == 1, what="the erasure")
    shutil.rmtree(folder / "home")

    home = home_at(folder / "back")
    restored = replay(store, choose(store, None), home, tell=quietly)
    assert restored.missing == ()
    with restored_record(home), db.connect(owner_url(home)) as record:
        assert confirmations_in(record) == acknowledged
        assert audit.first_broken(record) is None
        (event,) = audit.list_events(record, subject="record/1")
        assert event.details["stream"] == restored.name
        for (image,) in record.execute("SELECT image_digest FROM cases WHERE erasure_id IS NULL").fetchall():
            assert blobs.read(home.root / "blobs", image)
        settings = make_settings(owner_url(home), home.root)
        assert notary.sign_once(settings)  # it goes on from the checkpoints that were kept

    earlier = home_at(folder / "earlier")
    restored = replay(store, choose(store, None), earlier, until=middle, tell=quietly)
    assert restored.erased_again == 1  # that moment was before the erasure
    with restored_record(earlier), db.connect(owner_url(earlier)) as record:
        assert confirmations_in(record) == acknowledged[:6]
        assert record.execute("SELECT patient FROM cases WHERE case_id = %s", (case_id,)).fetchone() == (None,)
    for moment, words in ((middle + timedelta(days=1), "ends before"), (middle - timedelta(days=1), "begins at")):
        with pytest.raises(SetupError, match=words):
            replay(store, choose(store, None), home_at(folder / "never"), until=moment, tell=quietly)


def test_a_server_that_dies_meanwhile_is_followed_again(folder: Path) -> None:
    store = Store(folder / "backups")
    with Stack(folder / "home", {}, processes=RECORD_ONLY) as stack:
        hospital = Hospital(stack)
        with following(hospital.places, store):
            killed = stack.pids["postgres"]
            os.kill(killed, signal.SIGKILL)
            until(lambda: stack.pids.get("postgres", killed) != killed and hospital.answers(), what="its return")
            hospital.confirm()
            acknowledged = hospital.confirmations()
            until(lambda: count_of(store) == 3, what="the images")
    replay(store, choose(store, None), home_at(folder / "back"), tell=quietly)
    with restored_record(home_at(folder / "back")), db.connect(owner_url(home_at(folder / "back"))) as record:
        assert confirmations_in(record) == acknowledged


def test_a_new_base_takes_the_place_of_the_old_one(folder: Path) -> None:
    store = Store(folder / "backups")
    with Stack(folder / "home", {}, processes=RECORD_ONLY) as stack:
        hospital = Hospital(stack)
        hospital.confirm()
        with following(hospital.places, store, base_seconds=3.0):
            (first,) = streams(store)
            until(lambda: streams(store) != [] and first not in streams(store), what="another base")
            hospital.confirm()
            acknowledged = hospital.confirmations()
        store.keep_newest(1)  # what a stream names is not swept away with old backups
    home = home_at(folder / "back")
    assert replay(store, choose(store, None), home, tell=quietly).missing == ()
    with restored_record(home), db.connect(owner_url(home)) as record:
        assert confirmations_in(record) == acknowledged


def test_a_stream_that_is_damaged_is_refused_and_one_cut_short_says_so(folder: Path) -> None:
    store = Store(folder / "backups")
    with Stack(folder / "home", {}, processes=RECORD_ONLY) as stack:
        hospital = Hospital(stack)
        with following(hospital.places, store):
            hospital.confirm()
            assert notary.sign_once(hospital.settings)
    name = choose(store, None)
    stream = store.root / "streams" / name
    logs = {path: path.read_bytes() for path in (stream / "wal").iterdir()}
    for path in logs:
        path.unlink()
    short = replay(store, name, home_at(folder / "short"), tell=quietly)  # only the base is left
    assert "the end of the audit trail, events" in short.missing[0]
    with restored_record(home_at(folder / "short")):  # and the service goes on signing from there
        assert notary.sign_once(make_settings(owner_url(home_at(folder / "short")), folder / "short"))
    base = stream / "base" / "base.tar.gz"
    base.write_bytes(base.read_bytes()[:-1] + b"x")
    with pytest.raises(BackupDamaged, match="is damaged"):
        replay(store, name, home_at(folder / "damaged"), tell=quietly)
    with pytest.raises(SetupError, match="holds no stream"):
        choose(Store(folder / "void"), None)


def test_a_copy_torn_away_while_people_confirm_has_what_they_were_told_is_safe(folder: Path) -> None:
    store, stop, told = Store(folder / "backups"), threading.Event(), list[tuple[object, ...]]()
    with Stack(folder / "home", {}, processes=RECORD_ONLY) as stack:
        hospital = Hospital(stack)

        def work() -> None:
            while not stop.is_set():
                hospital.confirm(1)
                told[:] = hospital.confirmations()

        with following(hospital.places, store):
            busy = threading.Thread(target=work)
            busy.start()
            try:
                until(lambda: len(told) >= 20, what="people at work")
                safe, torn_at = list(told), datetime.now(UTC)
                subprocess.run(["cp", "-r", str(store.root), str(folder / "torn")], check=False)  # and no more came
            finally:
                stop.set()
                busy.join()
    torn, home = Store(folder / "torn"), home_at(folder / "back")
    restored = replay(torn, choose(torn, None), home, tell=quietly)
    with restored_record(home), db.connect(owner_url(home)) as record:
        back = confirmations_in(record)
    behind = (torn_at - restored.taken_at).total_seconds()
    print(f"{len(safe)} told, {len(back)} back, {len(restored.missing)} images missing, {behind:.2f} s behind")
    assert back[: len(safe)] == safe
