"""Start, watch and stop a table of processes.

Invariants: a process starts only when everything it needs is healthy; a process that dies, or lives and is silent for
its `silence_seconds`, is started again with a growing pause, and said so in one line; `stop` ends every process and
whatever those started, in reverse order, and returns only when they are gone. One thread at a time drives the table:
the caller's in `start` and `stop`, the watcher's between.

Every child carries OVERREAD_PROCESS=<name>@<home> in its environment, so that orphans of a killed child, or of a killed
supervisor, can be told from other people's processes.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil

from api.cli.errors import SetupError, StartFailed
from api.cli.health import answers, is_healthy
from api.cli.processes import Answers, Exits, Process, levels

State = Literal["waiting", "starting", "ready", "done", "pausing", "stopped"]
TAG = "OVERREAD_PROCESS"
TICK_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 30.0
CALM_SECONDS = 60.0  # ready for this long: earlier deaths are forgotten
LARGEST_LOG_BYTES = 20_000_000  # at a start, a larger log is set aside as .1
PULSE_FILE = "OVERREAD_PULSE_FILE"
PROBE_SECONDS = 5.0  # how often a process is asked whether it still answers, and how long it may take
ABSENCE_SECONDS = 3.0  # no tick for this long: the machine slept, or the supervisor did; nobody else was silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something a person may want to see."""

    kind: Literal["starting", "ready", "done", "died", "stopping", "stopped", "killed"]
    name: str
    seconds: float = 0.0
    detail: str = ""


@dataclass(slots=True, kw_only=True)
class Child:
    """A process and where it stands; changed only by the thread that drives the table."""

    process: Process
    log: Path
    state: State = "waiting"
    popen: subprocess.Popen[bytes] | None = None
    created: float | None = None
    began: float = 0.0  # time.monotonic()
    ready_at: float = 0.0
    log_offset: int = 0
    pulse: Path
    heard_at: float = 0.0  # time.monotonic() of its last sign of life
    beat: int = 0  # when it last touched its pulse file, by its file system's clock
    restarts: int = 0
    deaths_in_a_row: int = 0
    resume_at: float = 0.0


class Supervisor:
    """Drives a table of rendered processes.

    `environment` names for each process the whole environment it gets; `run_as` the system user for those that need
    one; `when_ready` what to do once a process is healthy for the first time, before anything that needs it starts.
    """

    def __init__(
        self,
        processes: Iterable[Process],
        *,
        tag: str,
        logs: Path,
        environment: Callable[[Process], Mapping[str, str]],
        folder: Path | None = None,
        run_as: Mapping[str, str] | None = None,
        when_ready: Mapping[str, Callable[[], None]] | None = None,
        report: Callable[[Event], None] = lambda _event: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._levels = [[process.name for process in level] for level in levels(processes)]
        self.children = {
            process.name: Child(process=process, log=logs / f"{process.name}.log", pulse=logs / f"{process.name}.pulse")
            for process in processes
        }
        self._tag = tag
        self._folder = folder or logs
        self._environment = environment
        self._run_as = run_as or {}
        self._when_ready = dict(when_ready or {})
        self._report = report
        self._changed = changed
        self._stop_wanted = threading.Event()
        self._hurry = threading.Event()
        self._watcher: threading.Thread | None = None
        self._ticked_at = time.monotonic()
        self._started = False

    def start(self) -> None:
        """Start everything in order and return once all that is awaited is healthy; then keep watching in a thread.

        Raises:
            StartFailed: a process ended or took too long; everything was stopped again. The message ends its log.
            Interrupted: `ask_to_stop` was called meanwhile; everything was stopped again.
        """
        try:
            awaited = [child for child in self.children.values() if child.process.awaited]
            while not all(child.state in {"ready", "done"} for child in awaited):
                self._tick()
                time.sleep(TICK_SECONDS)
        except BaseException:
            self.stop()
            raise
        self._started = True
        self._watcher = threading.Thread(target=self._watch, name="overread-supervisor", daemon=True)
        self._watcher.start()
        threading.Thread(target=self._listen, name="overread-listener", daemon=True).start()

    def ask_to_stop(self) -> None:
        """Ask whoever waits to stop; asked twice, stopping no longer waits for anybody. Safe in a signal handler."""
        if self._stop_wanted.is_set():
            self._hurry.set()
        self._stop_wanted.set()

    def wait(self) -> None:
        """Return when `ask_to_stop` was called."""
        while not self._stop_wanted.wait(timeout=0.5):  # a bare wait() would hold back signals
            if self._watcher is not None and not self._watcher.is_alive():
                raise StartFailed("the supervisor's watch ended; this is a fault of Overread")

    def stop(self) -> None:
        """Stop everything in reverse order; safe to call twice."""
        self._stop_wanted.set()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()
            self._watcher = None
        for level in reversed(self._levels):
            self._stop_level([self.children[name] for name in level])
        end_tagged(f"@{self._tag}")

    def _watch(self) -> None:
        with contextlib.suppress(Interrupted):
            while not self._stop_wanted.wait(timeout=TICK_SECONDS * 4):
                self._tick()

    def _listen(self) -> None:
        """Ask each ready process that answers whether it still does; writes `heard_at` and nothing else."""
        while not self._stop_wanted.wait(timeout=PROBE_SECONDS):
            for child in self.children.values():
                health = child.process.health
                if (
                    child.state == "ready"
                    and isinstance(health, Answers)
                    and answers(health.url, timeout_seconds=PROBE_SECONDS)
                ):
                    child.heard_at = time.monotonic()

    def _tick(self) -> None:
        if self._stop_wanted.is_set():
            raise Interrupted
        now = time.monotonic()
        absent, self._ticked_at = now - self._ticked_at, now
        if absent > ABSENCE_SECONDS:
            for child in self.children.values():
                child.heard_at += absent
        for child in self.children.values():
            if child.state == "waiting":
                if all(self.children[need].state in {"ready", "done"} for need in child.process.needs):
                    self._spawn(child)
            elif child.state == "pausing":
                if time.monotonic() >= child.resume_at:
                    self._spawn(child)
            elif child.state in {"starting", "ready"}:
                self._look_at(child)

    def _spawn(self, child: Child) -> None:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        if child.log.exists() and child.log.stat().st_size > LARGEST_LOG_BYTES:
            child.log.replace(child.log.with_suffix(".log.1"))
        with child.log.open("ab") as log:
            child.log_offset = log.tell()
            log.write(f"--- {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} overread starts {child.process.name}\n".encode())
            log.flush()
            try:
                child.popen = subprocess.Popen(
                    child.process.command,
                    env={
                        **self._environment(child.process),
                        TAG: f"{child.process.name}@{self._tag}",
                        PULSE_FILE: str(child.pulse),
                    },
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches the supervisor only, which then stops in order
                    **as_user(self._run_as.get(child.process.name)),
                )
            except OSError as error:
                self._cannot_spawn(child, error=error)
                return
        with contextlib.suppress(psutil.NoSuchProcess):
            child.created = psutil.Process(child.popen.pid).create_time()
        child.began = time.monotonic()
        child.state = "starting"
        self._report(Event(kind="starting", name=child.process.name))
        self._changed()

    def _cannot_spawn(self, child: Child, *, error: OSError) -> None:
        why = f"cannot start {child.process.command[0]}: {(error.strerror or str(error)).lower()}"
        if not self._started:
            raise SetupError(
                f"{child.process.name} {why}", fix="run `make setup` again to repair the installation"
            ) from error
        self._pause(child, why=why)  # short of memory or processes, perhaps: it may pass

    def _look_at(self, child: Child) -> None:
        assert child.popen is not None
        process, ended = child.process, child.popen.poll()
        seconds = time.monotonic() - child.began
        if ended is not None and isinstance(process.health, Exits) and ended == 0:
            self._now(child, state="done")
        elif ended is not None:
            self._died(child, how=how_it_ended(ended))
        elif child.state == "starting" and is_healthy(
            process.health, seconds=seconds, log=child.log, log_offset=child.log_offset
        ):
            self._now(child, state="ready")
        elif child.state == "starting" and seconds > process.start_seconds:
            self._give_up_on(child, why=f"was not ready after {process.start_seconds:.0f} s")
        elif child.state == "ready" and _silent(child) > process.silence_seconds:
            self._give_up_on(child, why=f"gave no sign of life for {process.silence_seconds:.0f} s")
        elif child.state == "ready" and child.deaths_in_a_row and time.monotonic() - child.ready_at > CALM_SECONDS:
            child.deaths_in_a_row = 0

    def _now(self, child: Child, *, state: Literal["ready", "done"]) -> None:
        if hook := self._when_ready.pop(child.process.name, None):
            hook()
        child.state = state
        child.ready_at = child.heard_at = time.monotonic()
        self._report(Event(kind=state, name=child.process.name, seconds=child.ready_at - child.began))
        self._changed()

    def _give_up_on(self, child: Child, *, why: str) -> None:
        assert child.popen is not None
        self._signal(child, number=signal.SIGKILL)
        child.popen.wait()
        self._died(child, how=why)

    def _died(self, child: Child, *, how: str) -> None:
        self._signal(child, number=signal.SIGKILL)  # what it leaves in its group would hold its port or its files
        end_tagged(f"{child.process.name}@{self._tag}")
        if not self._started or child.process.restart == "never":
            child.state = "stopped"
            raise StartFailed(
                f"{child.process.name} {how}. The end of {child.log}:\n{tail(child.log, offset=child.log_offset)}",
                fix="mend what the log says and start again; `overread doctor` may know more",
            )
        child.restarts += 1
        self._pause(child, why=how)

    def _pause(self, child: Child, *, why: str) -> None:
        child.deaths_in_a_row += 1
        pause = min(LONGEST_PAUSE_SECONDS, 0.5 * 2 ** min(child.deaths_in_a_row - 1, 10))
        child.resume_at = time.monotonic() + pause
        child.state = "pausing"
        self._report(Event(kind="died", name=child.process.name, seconds=pause, detail=why))
        self._changed()

    def _stop_level(self, children: list[Child]) -> None:
        running = [child for child in children if child.popen is not None and child.popen.poll() is None]
        for child in running:
            self._report(Event(kind="stopping", name=child.process.name))
            self._signal(child, number=signal.Signals[child.process.stop_signal], group=False)
        began = time.monotonic()
        while running:
            for child in list(running):
                assert child.popen is not None
                waited = time.monotonic() - began
                if child.popen.poll() is not None:
                    running.remove(child)
                    self._report(Event(kind="stopped", name=child.process.name, seconds=waited))
                elif waited > child.process.stop_seconds or self._hurry.is_set():
                    self._signal(child, number=signal.SIGKILL)
                    child.popen.wait()
                    running.remove(child)
                    self._report(Event(kind="killed", name=child.process.name, seconds=waited))
            time.sleep(TICK_SECONDS)
        for child in children:
            end_tagged(f"{child.process.name}@{self._tag}")
            child.state = "stopped"
        self._changed()

    @staticmethod
    def _signal(child: Child, *, number: signal.Signals, group: bool = True) -> None:
        assert child.popen is not None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if group:
                os.killpg(child.popen.pid, number)
            else:
                child.popen.send_signal(number)


class Interrupted(Exception):
    """Somebody asked to stop."""


def as_user(name: str | None) -> dict[str, Any]:
    """Give subprocess what makes a child another system user altogether: root's groups must not stay with it."""
    if name is None:
        return {}
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


def how_it_ended(code: int) -> str:
    """Say in words how a process ended: `code` as subprocess gives it, negative for a signal."""
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def tail(log: Path, *, offset: int, lines: int = 15) -> str:
    """Give the last lines of a log written after `offset`, indented."""
    with log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - 16_384))
        text = file.read().decode(errors="replace")
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines()[-lines:])


def end_tagged(tag: str, *, patience_seconds: float = 0.0) -> int:
    """End every process whose tag is `tag`, or ends with it; return how many there were.

    With patience they are asked first (SIGTERM). Processes of other users cannot be read and are left alone.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            name = process.environ().get(TAG, "")
            if (name == tag or (tag.startswith("@") and name.endswith(tag))) and process.pid != os.getpid():
                found.append(process)
    if patience_seconds:
        _signal_all(found, number=signal.SIGTERM)
        psutil.wait_procs(found, timeout=patience_seconds)
    _signal_all(found, number=signal.SIGKILL)
    psutil.wait_procs(found, timeout=5)
    return len(found)


def _signal_all(processes: list[psutil.Process], *, number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _silent(child: Child) -> float:
    """For how many seconds a ready process has given no sign of life; 0 for one that is not asked for any."""
    if child.process.pulse:
        with contextlib.suppress(OSError):
            beat = child.pulse.stat().st_mtime_ns  # only compared with itself: clocks jump
            if beat != child.beat:
                child.beat, child.heard_at = beat, time.monotonic()
    elif not isinstance(child.process.health, Answers):
        return 0.0
    return time.monotonic() - child.heard_at
