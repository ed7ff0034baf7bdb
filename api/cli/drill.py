"""`overread drill`: lose a whole service while people work, and put it back; say what was lost, and how long it took.

The recovery point is how far behind what came back was when everything was killed: as old as the newest backup, or,
with a copy that is kept continuously, as the last event that reached it. The recovery time is from the kill to the
first prediction by the restored champion. Everything happens in a folder of its own, removed at the end.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

from api.cli.backup import owner_url, places_of, take
from api.cli.demo import FIRST_BATCH, LINE, PROTOCOL
from api.cli.doors import make_people
from api.cli.errors import StartFailed
from api.cli.home import Home, home_at, prepare, read_stack_file
from api.cli.replay import choose, replay
from api.cli.restore import NotTheSame, restore
from api.cli.store import Store
from api.cli.story import MORE_CASES, MORE_ROUNDS, Story, Xray, find_xrays
from api.cli.streaming import streams
from api.cli.supervisor import tail
from registry import db

START_SECONDS = 300.0
WORK_SECONDS = 5.0  # people confirm for so long before and after the backup


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service that runs in processes of its own, so that all of it can be killed."""

    supervisor: psutil.Process
    home: Path
    url: str
    environment: Mapping[str, str]

    def kill(self) -> int:
        """Kill everything at once, as a power cut does; return how many processes that were."""
        everything = [self.supervisor, *self.supervisor.children(recursive=True)]
        for process in everything:
            process.suspend()  # so that nobody restarts anybody, or says goodbye
        for process in everything:
            process.kill()
        psutil.wait_procs(everything)
        return len(everything)


@dataclass(slots=True, kw_only=True)
class Work:
    """What people were told is safe: confirmation id -> finding, and when they were told."""

    findings: dict[int, str] = field(default_factory=dict)
    told_at: dict[int, datetime] = field(default_factory=dict)


def drill(folder: Path, *, continuous: bool = False, screen: Console) -> dict[str, Any]:
    """Play a loss and a recovery in `folder`, which must not exist; return the figures.

    The copy is a backup taken meanwhile, or a stream that follows the service until it is gone.

    Raises:
        NotTheSame: something that was safely in the backup did not come back.
    """
    folder.mkdir(parents=True)
    try:
        return _play(folder, continuous=continuous, screen=screen)
    finally:
        for home in (folder / "lost", folder / "back"):
            subprocess.run([sys.executable, "-m", "api.cli", "down", "--home", str(home)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _play(folder: Path, *, continuous: bool, screen: Console) -> dict[str, Any]:
    lost = _up(folder / "lost")
    xrays, source = find_xrays(folder / "xrays", count=FIRST_BATCH + MORE_ROUNDS * MORE_CASES)
    people = make_people(lost)
    story = Story(lost, people=people, xrays=xrays, screen=screen, line=LINE)
    story.say(source)
    story.create_line(PROTOCOL.read_text(encoding="utf-8"))
    story.sign_and_promote(story.learn_until_shown(FIRST_BATCH, "pacs-north")[-1].candidate)
    champion = story.doors["rita"].get(f"/v1/lines/{LINE}")["champion"]["weights_digest"]
    store = Store(folder / "backups")
    with _people_at_work(lost.url, people["pacs-south"].key, xrays) as work:
        time.sleep(WORK_SECONDS)
        safe = dict(work.findings)
        began = time.monotonic()
        follower = _copy(home_at(lost.home), store, continuous=continuous)
        backup_seconds = time.monotonic() - began
        time.sleep(WORK_SECONDS)
        killed_at, began = datetime.now(UTC), time.monotonic()
        processes = lost.kill()
    if follower is not None:
        follower.terminate()
        follower.wait(60)
    story.close()
    shutil.rmtree(lost.home)  # the disk went with it
    restoring = time.monotonic()
    if continuous:
        restored = replay(store, choose(store, None), home_at(folder / "back"), tell=_quietly)
    else:
        restored = restore(store, store.choose(None), home_at(folder / "back"), url=None, tell=_quietly)
    restore_seconds = time.monotonic() - restoring
    back = _up(folder / "back")
    story = Story(back, people=people, xrays=xrays, screen=screen, line=LINE)
    story.wait("a prediction", lambda: story.predict().is_success)
    recovery_seconds = time.monotonic() - began
    with db.connect(owner_url(home_at(back.home))) as connection:
        here: dict[int, str] = dict(connection.execute("SELECT confirmation_id, finding FROM confirmations").fetchall())
    changed = [number for number, finding in safe.items() if here.get(number) != finding]
    if changed:
        raise NotTheSame(f"{len(changed)} confirmations that were backed up did not come back, the first {changed[0]}")
    now = story.doors["rita"].get(f"/v1/lines/{LINE}")["champion"]
    if now["weights_digest"] != champion or list(restored.champions.values()) != [champion]:
        raise NotTheSame(f"the champion is {now['weights_digest']}, and was {champion}")
    story.wait("MLflow's alias to come back", lambda: _alias_is_back(story, now))
    story.close()
    gone = [number for number in work.findings if number not in here]
    oldest = min((work.told_at[number] for number in gone), default=killed_at)
    return {
        "processes_killed": processes,
        "acknowledged": len(work.findings),
        "acknowledged_before_the_backup": len(safe),
        "of_these_lost": len(changed),
        "acknowledged_after_it_and_lost": len(gone),
        # Below 0 where somebody was still confirming while the kill went round.
        "recovery_point_seconds": max(0.0, round((killed_at - restored.taken_at).total_seconds(), 1)),
        "oldest_loss_seconds": round((killed_at - oldest).total_seconds(), 1),
        "backup_seconds": round(backup_seconds, 1),
        "restore_seconds": round(restore_seconds, 1),
        "recovery_time_seconds": round(recovery_seconds, 1),
        "rows": restored.rows,
        "files": restored.files,
        "files_missing": len(restored.missing),
        "audit_events": restored.last_audit_event,
        "champion": champion,
    }


def _copy(home: Home, store: Store, *, continuous: bool) -> subprocess.Popen[bytes] | None:
    """Back a service up, or begin to follow it: the process that does, once all there was until now is safe."""
    if not continuous:
        take(places_of(home), store, tell=_quietly)
        return None
    command = [sys.executable, "-m", "api.cli", "backup", str(store.root), "--continuous", "--home", str(home.root)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")}
    follower = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    while not streams(store):
        if follower.poll() is not None:
            raise StartFailed(f"{' '.join(command)} ended with {follower.returncode}")
        time.sleep(0.1)
    return follower


def _quietly(_what: str, _done: int, _of: int) -> None:
    """Tell nobody."""


def _alias_is_back(story: Story, champion: dict[str, Any]) -> bool:
    try:
        return story.alias_follows(champion)
    except httpx.TransportError:
        return False  # the last to start, for nothing waits for it


@contextmanager
def _people_at_work(url: str, key: str, xrays: list[Xray]) -> Iterator[Work]:
    """Send cases and confirm them, one after the other, until the service is gone."""
    work, stop = Work(), threading.Event()

    def confirm() -> None:
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as door:
            for number in itertools.count():
                if stop.is_set():
                    return
                try:
                    made = _confirm(door, xrays[number % len(xrays)], number=number)
                except httpx.TransportError:
                    return  # killed, in the middle of anything
                work.findings[made["confirmation_id"]] = made["finding"]
                work.told_at[made["confirmation_id"]] = datetime.now(UTC)

    thread = threading.Thread(target=confirm, daemon=True)
    thread.start()
    try:
        yield work
    finally:
        stop.set()
        thread.join(60)


def _confirm(door: httpx.Client, xray: Xray, *, number: int) -> dict[str, Any]:
    case = door.post(
        "/v1/cases",
        data={"line": LINE, "site": "south", "patient": f"drill-{number}"},
        files={"image": (xray.name, xray.at("south"), "image/png")},
    )
    read = {"finding": xray.finding, "evidence": "single_read", "ai_exposure": "blind", "reader": "reader-south"}
    made = door.post(
        f"/v1/cases/{case.raise_for_status().json()['case_id']}/confirmations",
        json=read,
        headers={"Idempotency-Key": f"drill-{number}"},
    )
    return dict(made.raise_for_status().json())


def _up(folder: Path) -> Service:
    home = home_at(folder)
    prepare(home)
    settings = {f"OVERREAD_{service}_PORT": "0" for service in ("API", "INFERENCE", "MLFLOW")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERREAD_")} | settings
    log = home.logs / "up.log"
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "api.cli", "up", "--home", str(folder)],
            env=environment | {"OVERREAD_TRIGGER_SECONDS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    until = time.monotonic() + START_SECONDS
    while (stack := read_stack_file(home)) is None or stack.state != "ready" or stack.pid != child.pid:
        if child.poll() is not None or time.monotonic() > until:
            raise StartFailed(f"the service did not start:\n{tail(log, offset=0)}")
        time.sleep(0.1)
    assert stack.database_url is not None
    return Service(
        supervisor=psutil.Process(child.pid),
        home=folder,
        url=stack.api_url,
        environment={"OVERREAD_DATABASE_URL": stack.database_url, "OVERREAD_MLFLOW_URL": stack.mlflow_url},
    )
