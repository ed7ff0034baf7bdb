"""A second copy of everything: taken while people work, put back elsewhere, and the same as what was acknowledged."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from api.cli.backup import Places, git, owner_url, places_of, take
from api.cli.errors import SetupError
from api.cli.home import Home, home_at
from api.cli.processes import PROCESSES
from api.cli.restore import NotTheSame, restore
from api.cli.stack import Stack
from api.cli.store import BackupDamaged, Store
from pipelines.dataset import checkout
from registry import (
    audit,
    blobs,
    candidates,
    checkpoints,
    datasets,
    db,
    jobs,
    lines,
    notes,
    promotions,
    recovery,
    users,
    verify,
)
from tests.waiting import until
from tests.workers.conftest import make_settings
from tests.workers.lines import confirm_cases, make_line, promote, start_run, untrained, waiting, work
from workers import notary
from workers.lease import Workshop
from workers.settings import WorkerSettings

RECORD_ONLY = tuple(process for process in PROCESSES if process.name in {"postgres", "migrate"})


def quietly(_what: str, _done: int, _of: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A record with a line that has learned from real files, on a database server of its own."""

    stack: Stack
    places: Places
    settings: WorkerSettings
    line: lines.Line
    person: users.User

    def record(self) -> db.Connection:
        return db.connect(self.places.database_url)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Outside pytest's own, whose permissions a second pytest would take back from PostgreSQL's user."""
    with tempfile.TemporaryDirectory(prefix="ovr-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with Stack(folder / "home", {}, processes=RECORD_ONLY) as stack:
        places = places_of(home_at(stack.home))
        settings = make_settings(stack.environment["OVERREAD_DATABASE_URL"], stack.home)
        workshop = Workshop(settings)
        with db.connect(places.database_url) as record:
            line, person = make_line(record)
            confirm_cases(record, settings, line=line, person=person, count=120)
            start_run(record, line)
            work(workshop, record, "freeze_dataset")
            candidate = untrained(record, settings, line)
            promote(record, candidate)
            candidates.set_mlflow_version(record, candidate_id=candidate.candidate_id, version="7")
            for job in jobs.list_jobs(record, states=["queued"]):
                jobs.request_cancel(record, job.job_id)
            record.commit()
        workshop.close()
        assert notary.sign_once(settings)
        yield Service(stack=stack, places=places, settings=settings, line=line, person=person)


def new_home(folder: Path, name: str) -> Home:
    return home_at(folder / name)


def test_a_backup_taken_while_people_confirm_comes_back_whole(service: Service, folder: Path) -> None:
    store, acknowledged, stop = Store(folder / "backups"), [], threading.Event()

    def keep_confirming() -> None:
        seed = 100
        with service.record() as record:
            while not stop.is_set():
                confirm_cases(record, service.settings, line=service.line, person=service.person, count=2, seed=seed)
                seed += 1
                acknowledged.append(seed)

    busy = threading.Thread(target=keep_confirming)
    busy.start()
    try:
        while len(acknowledged) < 3:
            assert busy.is_alive()
        taken = take(service.places, store, tell=quietly)
    finally:
        stop.set()
        busy.join()
    assert taken.damaged == ()
    assert store.wrong(taken.name, tell=lambda _done, _of: None) == []

    home = new_home(folder, "back")
    restore(store, taken.name, home, url=None, tell=quietly)
    with Stack(home.root, {}, processes=RECORD_ONLY):
        with db.connect(owner_url(home)) as record, service.record() as original:
            assert audit.first_broken(record) is None
            manifest = store.manifest(taken.name)["inventory"]
            kept = record.execute(
                "SELECT confirmation_id, case_id, finding, created_at FROM confirmations ORDER BY confirmation_id"
            ).fetchall()
            assert len(kept) == manifest["rows"]["confirmations"] > 120
            assert kept == original.execute(
                "SELECT confirmation_id, case_id, finding, created_at FROM confirmations ORDER BY confirmation_id"
                " LIMIT %s", (len(kept),)
            ).fetchall()  # fmt: skip
            champion, before = (promotions.champion(conn, service.line.line_id) for conn in (record, original))
            assert champion is not None
            assert before is not None
            assert champion.weights_digest == before.weights_digest
            for digest, size in recovery.stored_files(record):
                assert len(blobs.read(home.root / "blobs", digest)) == size
            waiting = {job.kind for job in jobs.list_jobs(record, states=["queued"])}
            assert {"mirror_candidate", "mirror_promotion"} <= waiting  # MLflow is filled again
            assert champion.mlflow_model_version is None
            assert audit.list_events(record, after=manifest["last_audit_event"])[0].action == "record:restore"
        with db.connect(owner_url(home)) as record:  # the trail of now begins with the one that was signed there
            signer = notes.signer_at(home.root / "checkpoint.key")
            assert checkpoints.take(record, home.root / "checkpoints", signer=signer) is not None
            checks = verify.check_trail(
                record, folder=home.root / "checkpoints", verifier=signer.verifier, tell=lambda _what, _done: None
            )
            assert [check.state for check in checks] == ["fine", "fine"]
        for name in ("secrets.json", "checkpoint.key", "checkpoint.key.pub"):
            assert (home.root / name).read_bytes() == (service.places.home.root / name).read_bytes()
            assert stat.S_IMODE((home.root / name).stat().st_mode) == 0o600


def test_dataset_versions_come_back_but_none_that_the_record_does_not_name(service: Service, folder: Path) -> None:
    store = Store(folder / "versions")
    with service.record() as record:
        version = datasets.latest(record, service.line.line_id)
    repository = service.places.data_repository
    assert version is not None
    home = new_home(folder, "versions-back")
    # Published by a freeze whose record was lost with the service: it must not pass for the next version.
    lost = f"{service.line.name}/v0002"
    git(repository, "-c", "user.name=x", "-c", "user.email=x@x", "tag", "-a", "-m", "lost", lost)
    try:
        taken = take(service.places, store, tell=quietly)
    finally:
        git(repository, "tag", "--delete", lost)
    restore(store, taken.name, home, url=None, tell=quietly)
    back = home.root / "data-repository"
    assert git(back, "tag", "--list").split() == [version.git_tag]
    shutil.move(service.places.dvc_folder, folder / "away")  # what comes back must stand on its own
    try:
        path = checkout(back, line=service.line.name, number=1, into=folder / "checkout", digest=version.digest)
    finally:
        shutil.move(folder / "away", service.places.dvc_folder)
    assert json.loads((path / "manifest.json").read_text())["examples"] == version.manifest["examples"]


def test_a_second_backup_copies_only_what_is_new(service: Service, folder: Path) -> None:
    first = take(service.places, Store(folder / "twice"), tell=quietly)
    with service.record() as record:
        confirm_cases(record, service.settings, line=service.line, person=service.person, count=1, seed=7)
    second = take(service.places, Store(folder / "twice"), tell=quietly)
    assert first.new_files > 100
    assert second.new_files <= 4  # the image, the dump, and what git packs anew
    store = Store(folder / "twice")
    assert store.names() == [first.name, second.name]
    assert store.keep_newest(1) == 1
    assert store.wrong(second.name, tell=lambda _done, _of: None) == []


def test_a_damaged_backup_is_named_and_not_restored(service: Service, folder: Path) -> None:
    store = Store(folder / "damaged")
    taken = take(service.places, store, tell=quietly)
    entry = next(entry for entry in store.entries(taken.name) if entry.place.startswith("blobs/"))
    file = store.root / "files" / entry.sha256[:2] / entry.sha256
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    (wrong,) = store.wrong(taken.name, tell=lambda _done, _of: None)
    assert entry.place in wrong
    home = new_home(folder, "never")
    with pytest.raises(BackupDamaged, match=entry.sha256):
        restore(store, taken.name, home, url=None, tell=quietly)
    assert not home.root.exists()  # half a service must not look like one
    listing = store.root / taken.name / "files.ndjson"
    listing.write_text("\n".join(listing.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(BackupDamaged, match="list of files"):
        restore(store, taken.name, home, url=None, tell=quietly)


def test_a_record_that_is_not_what_the_manifest_says_is_refused(service: Service, folder: Path) -> None:
    store = Store(folder / "other")
    taken = take(service.places, store, tell=quietly)
    path = store.root / taken.name / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inventory"]["rows"]["confirmations"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(NotTheSame, match=r"confirmations: .* rows were backed up"):
        restore(store, taken.name, new_home(folder, "not-the-same"), url=None, tell=quietly)


def test_a_stored_file_that_is_damaged_is_named_and_all_else_is_backed_up(service: Service, folder: Path) -> None:
    with service.record() as record:
        digest, _size = recovery.stored_files(record)[0]
    file = blobs.path_of(service.settings.blob_root, digest)
    sound = file.read_bytes()
    earlier = Store(folder / "earlier")
    take(service.places, earlier, tell=quietly)
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    try:
        first = take(service.places, Store(folder / "first"), tell=quietly)
        again = take(service.places, earlier, tell=quietly)
    finally:
        file.write_bytes(sound)
    assert first.damaged == (f"stored file {digest}",)
    assert again.damaged == ()  # the copy of before is good


def test_a_backup_that_was_cut_off_is_none_and_is_swept(service: Service, folder: Path) -> None:
    store = Store(folder / "cut")
    taken = take(service.places, store, tell=quietly)
    half = store.root / "20990101T000000Z"
    half.mkdir()
    (half / "files.ndjson").write_text("")
    assert store.choose(None) == taken.name
    take(service.places, store, tell=quietly)
    assert not half.exists()


def test_nothing_that_exists_is_overwritten(service: Service, folder: Path) -> None:
    store = Store(folder / "careful")
    taken = take(service.places, store, tell=quietly)
    with pytest.raises(SetupError, match="is not empty"):
        restore(store, taken.name, service.places.home, url=None, tell=quietly)
    with pytest.raises(SetupError, match="has tables already"):
        restore(store, taken.name, new_home(folder, "x"), url=service.places.database_url, tell=quietly)


def test_nobody_else_can_read_a_backup(service: Service, folder: Path) -> None:
    store = Store(folder / "private")
    take(service.places, store, tell=quietly)
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in store.root.rglob("files/??/*")} == {0o600}


def test_who_was_erased_after_a_backup_does_not_come_back_with_it(service: Service, folder: Path) -> None:
    store = Store(folder / "before-the-erasure")
    with service.record() as record:
        confirm_cases(record, service.settings, line=service.line, person=service.person, count=1, seed=500)
        (case_id, image) = record.execute(
            "SELECT case_id, image_digest FROM cases WHERE patient = 'patient-500-0'"
        ).fetchall()[0]
    before = take(service.places, store, tell=quietly)
    done = _overread(
        service,
        *("erase", "--pseudonym", "patient-500-0", "--reason", "asked for it", "--yes"),
        meanwhile=lambda: _work_once(service, "erase_bytes"),
    )
    assert done.returncode == 0, done.stderr
    assert "1 cases are nobody's any more" in done.stderr
    assert "1 images removed" in done.stderr
    assert "Backups still hold the images" in done.stderr
    assert not blobs.path_of(service.settings.blob_root, image).exists()

    after = take(service.places, store, tell=quietly)
    assert after.damaged == ()  # what was erased is not missed
    assert f"blobs/{image[:2]}/{image}" not in {entry.place for entry in store.entries(after.name)}
    home = new_home(folder, "erased-again")
    restored = restore(store, before.name, home, url=None, tell=quietly)
    assert restored.erased_again == 1
    assert not blobs.path_of(home.root / "blobs", image).exists()
    with Stack(home.root, {}, processes=RECORD_ONLY), db.connect(owner_url(home)) as record:
        assert record.execute("SELECT patient FROM cases WHERE case_id = %s", (case_id,)).fetchone() == (None,)
        assert audit.first_broken(record) is None
    (store.root / "erasures.ndjson").unlink()  # what it is for: without it they would be back
    without = new_home(folder, "not-erased-again")
    assert restore(store, before.name, without, url=None, tell=quietly).erased_again == 0
    assert blobs.path_of(without.root / "blobs", image).exists()
    store.keep_newest(1)
    assert not (store.root / "files" / image[:2] / image).exists()


def test_the_commands_say_what_they_did_and_what_to_do(service: Service, folder: Path) -> None:
    target = str(folder / "by-command")
    done = _overread(service, "backup", target)
    assert done.returncode == 0, done.stderr
    assert "rows as of" in done.stderr
    assert _overread(service, "backup", target, "--verify").returncode == 0
    again = _overread(service, "restore", target, "--home", str(service.places.home.root))
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    nobody = _overread(service, "erase", "--patient", "4711", "--reason", "x", "--yes")
    assert nobody.returncode == 1
    assert "there is no case of this patient" in nobody.stderr
    assert "give either --patient or --pseudonym" in _overread(service, "erase", "--reason", "x").stderr
    assert "holds no backup" in _overread(service, "restore", str(folder / "void"), "--home", "x").stderr


def _overread(
    service: Service, *arguments: str, meanwhile: Callable[[], object] = lambda: None
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    clean |= {"OVERREAD_HOME": str(service.places.home.root), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "api.cli", *arguments]
    with subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        meanwhile()
        output, errors = running.communicate(timeout=300)
    return subprocess.CompletedProcess(command, running.returncode, output, " ".join(errors.split()))


def _work_once(service: Service, kind: str) -> None:
    """Be the worker that does the first job of a kind, once there is one."""
    workshop = Workshop(service.settings)
    with service.record() as record:
        until(lambda: waiting(record, kind), what=f"a job of kind {kind}")
        work(workshop, record, kind)
    workshop.close()
