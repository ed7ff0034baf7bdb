"""The supervisor with real, small child processes: starting in order, restarting, stopping without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from api.cli.errors import SetupError, StartFailed
from api.cli.processes import Answers, Exits, Lives, Logs, Process, levels
from api.cli.supervisor import TAG, Event, Supervisor, how_it_ended
from tests.api.service import ROOT, free_port
from tests.waiting import until

SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
# A process with a child in a session of its own, as a worker has while it trains.
PARENT = (
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "print('ready', flush=True); time.sleep(600)"
)


def child(name: str, code: str, **options: object) -> Process:
    """Describe a Python one-liner as a process of the table."""
    described = {"health": Logs(pattern="ready"), "start_seconds": 120.0, "stop_seconds": 60.0, **options}
    return Process(name=name, purpose="a test", command=(sys.executable, "-c", code), **described)  # type: ignore[arg-type]


def tagged(tag: str) -> list[psutil.Process]:
    """Find what carries this tag and still runs."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TAG, "").endswith(f"@{tag}") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., tuple[Supervisor, list[Event]]]]:
    """Make supervisors of tables; whatever they started is stopped after the test."""
    made: list[Supervisor] = []

    def make(*processes: Process, **options: object) -> tuple[Supervisor, list[Event]]:
        events: list[Event] = []
        supervisor = Supervisor(
            processes,
            tag=str(tmp_path),
            logs=tmp_path / "logs",
            folder=tmp_path,
            environment=lambda _process: dict(os.environ),
            report=events.append,
            **options,  # type: ignore[arg-type]
        )
        made.append(supervisor)
        return supervisor, events

    yield make
    for supervisor in made:
        supervisor.stop()


def test_a_process_starts_only_when_what_it_needs_is_healthy(
    supervise: Callable[..., tuple[Supervisor, list[Event]]],
) -> None:
    first = child("first", "print('slow'); import time; time.sleep(0.3)", health=Exits(), restart="never")
    second = child("second", SLEEPER, needs=("first",))
    called: list[str] = []
    supervisor, events = supervise(second, first, when_ready={"first": lambda: called.append("first")})
    supervisor.start()
    story = [(event.kind, event.name) for event in events]
    assert story == [("starting", "first"), ("done", "first"), ("starting", "second"), ("ready", "second")]
    assert called == ["first"]


def test_needs_that_run_in_a_circle_are_refused() -> None:
    with pytest.raises(SetupError, match="left, right"):
        levels([child("left", SLEEPER, needs=("right",)), child("right", SLEEPER, needs=("left",))])


def test_a_killed_child_is_restarted_and_said_so_while_the_others_keep_running(
    supervise: Callable[..., tuple[Supervisor, list[Event]]],
) -> None:
    supervisor, events = supervise(child("one", SLEEPER), child("two", SLEEPER))
    supervisor.start()
    one, two = supervisor.children["one"].popen, supervisor.children["two"].popen
    assert one is not None
    assert two is not None
    os.kill(one.pid, signal.SIGKILL)
    until(lambda: [event.kind for event in events if event.name == "one"].count("ready") == 2)
    died = next(event for event in events if event.kind == "died")
    assert (died.name, died.detail) == ("one", "was killed by SIGKILL")
    again = supervisor.children["one"].popen
    assert again is not None
    assert again.pid != one.pid
    assert two.poll() is None
    assert supervisor.children["one"].restarts == 1


def test_the_pause_before_a_restart_grows(
    supervise: Callable[..., tuple[Supervisor, list[Event]]], tmp_path: Path
) -> None:
    flag = tmp_path / "started"
    code = (
        f"import pathlib, sys, time; p = pathlib.Path({str(flag)!r})\nif p.exists(): sys.exit(3)\np.touch(); {SLEEPER}"
    )
    supervisor, events = supervise(child("moody", code))
    supervisor.start()
    process = supervisor.children["moody"].popen
    assert process is not None
    process.kill()
    until(lambda: len([event for event in events if event.kind == "died"]) >= 3)
    died = [event for event in events if event.kind == "died"]
    assert [event.seconds for event in died[:3]] == [0.5, 1.0, 2.0]
    assert died[1].detail == "ended with code 3"


def test_what_a_killed_child_had_started_is_ended_with_it(
    supervise: Callable[..., tuple[Supervisor, list[Event]]], tmp_path: Path
) -> None:
    supervisor, events = supervise(child("parent", PARENT))
    supervisor.start()
    grandchildren = {process.pid for process in tagged(str(tmp_path))} - {_pid(supervisor, "parent")}
    assert len(grandchildren) == 1
    os.kill(_pid(supervisor, "parent"), signal.SIGKILL)
    until(lambda: any(event.kind == "died" for event in events))
    assert not grandchildren & {process.pid for process in tagged(str(tmp_path))}


ANSWERING = (
    "import http.server\n"
    "class Ok(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self): self.send_response(200); self.end_headers()\n"
    "http.server.HTTPServer(('127.0.0.1', {port}), Ok).serve_forever()\n"
)
BEATING = (
    "import os, pathlib, time\nfile = pathlib.Path(os.environ['OVERREAD_PULSE_FILE'])\nprint('ready', flush=True)\n"
    "while True: file.touch(); time.sleep(0.1)\n"
)


def test_a_child_that_hangs_is_killed_and_started_again(
    supervise: Callable[..., tuple[Supervisor, list[Event]]],
) -> None:
    port = free_port()
    answers = Answers(url=f"http://127.0.0.1:{port}/")
    answering = child("answering", ANSWERING.format(port=port), health=answers, silence_seconds=12.0)
    beating = child("beating", BEATING, pulse=True, silence_seconds=12.0)
    quiet = child("quiet", SLEEPER, silence_seconds=0.1)  # nobody asks it for a sign of life
    supervisor, events = supervise(answering, beating, quiet)
    supervisor.start()
    for name in ("answering", "beating"):
        os.kill(_pid(supervisor, name), signal.SIGSTOP)
    for name in ("answering", "beating"):
        until(lambda name=name: [event.kind for event in events if event.name == name].count("ready") == 2)  # type: ignore[misc]
        died = next(event for event in events if (event.kind, event.name) == ("died", name))
        assert died.detail.startswith("gave no sign of life for")
        assert supervisor.children[name].restarts == 1
    assert supervisor.children["quiet"].restarts == 0


def test_a_supervisor_that_was_stopped_itself_blames_nobody(tmp_path: Path) -> None:
    table = f"[Process(name='one', purpose='', command=(sys.executable, '-c', {BEATING!r}), pulse=True, silence_seconds=5.0, health=Lives(seconds=0.1))]"  # noqa: E501 - one line of a script
    script = (
        "import os, pathlib, sys, time\nfrom api.cli.processes import Lives, Process\n"
        "from api.cli.supervisor import Supervisor\n"
        f"made = Supervisor({table}, tag={str(tmp_path)!r}, logs=pathlib.Path({str(tmp_path)!r}),"
        " environment=lambda _: dict(os.environ), report=lambda event: print(event.kind, flush=True))\n"
        "made.start(); pid = made.children['one'].popen.pid\n"
        "for line in sys.stdin: print(made.children['one'].restarts, flush=True)\n"
        "made.stop()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert [process.stdout.readline() for _ in range(2)] == ["starting\n", "ready\n"]
        beaten = tagged(str(tmp_path))
        for one in (process.pid, *(other.pid for other in beaten)):  # as a laptop does that is closed
            os.kill(one, signal.SIGSTOP)
        time.sleep(6)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.6)  # it looks three times
        for other in beaten:
            other.send_signal(signal.SIGCONT)
        process.stdin.write("how often?\n")
        process.stdin.flush()
        assert process.stdout.readline() == "0\n"
    finally:
        process.stdin.close()
        process.wait(timeout=120)
        process.stdout.close()


def test_stopping_goes_backwards_and_leaves_no_orphans(
    supervise: Callable[..., tuple[Supervisor, list[Event]]], tmp_path: Path
) -> None:
    supervisor, events = supervise(child("base", SLEEPER), child("parent", PARENT, needs=("base",)))
    supervisor.start()
    assert len(tagged(str(tmp_path))) == 3
    supervisor.stop()
    assert tagged(str(tmp_path)) == []
    assert [event.name for event in events if event.kind == "stopped"] == ["parent", "base"]
    supervisor.stop()  # twice is no harm


def test_a_child_that_ignores_the_request_to_stop_is_killed(
    supervise: Callable[..., tuple[Supervisor, list[Event]]], tmp_path: Path
) -> None:
    supervisor, events = supervise(child("deaf", DEAF, stop_seconds=0.3))
    supervisor.start()
    supervisor.stop()
    assert [event.name for event in events if event.kind == "killed"] == ["deaf"]
    assert tagged(str(tmp_path)) == []


def test_asked_twice_to_stop_it_waits_for_nobody(supervise: Callable[..., tuple[Supervisor, list[Event]]]) -> None:
    supervisor, events = supervise(child("deaf", DEAF, stop_seconds=1200.0))
    supervisor.start()
    supervisor.ask_to_stop()
    supervisor.ask_to_stop()
    supervisor.stop()  # or the test would go on for ten minutes, and be stopped itself
    assert [event.kind for event in events if event.name == "deaf"][-1] == "killed"


def test_a_child_that_ends_while_starting_stops_everything_and_shows_its_log(
    supervise: Callable[..., tuple[Supervisor, list[Event]]], tmp_path: Path
) -> None:
    broken = child("broken", "import sys; sys.exit('the setting X is missing')", needs=("base",))
    supervisor, _events = supervise(child("base", SLEEPER), broken)
    with pytest.raises(StartFailed, match=r"(?s)broken ended with code 1.*the setting X is missing"):
        supervisor.start()
    assert tagged(str(tmp_path)) == []


def test_a_child_that_never_becomes_healthy_fails_the_start(
    supervise: Callable[..., tuple[Supervisor, list[Event]]], tmp_path: Path
) -> None:
    supervisor, _events = supervise(child("mute", "import time; time.sleep(600)", start_seconds=0.5))
    with pytest.raises(StartFailed, match="mute was not ready after"):
        supervisor.start()
    assert tagged(str(tmp_path)) == []


def test_a_missing_program_is_named(supervise: Callable[..., tuple[Supervisor, list[Event]]]) -> None:
    gone = Process(name="gone", purpose="a test", command=("/nowhere/gone",), health=Lives())
    supervisor, _events = supervise(gone)
    with pytest.raises(SetupError, match="gone cannot start /nowhere/gone: no such file"):
        supervisor.start()


def test_every_process_has_a_log_of_its_own(
    supervise: Callable[..., tuple[Supervisor, list[Event]]], tmp_path: Path
) -> None:
    supervisor, _events = supervise(child("one", SLEEPER), child("two", SLEEPER))
    supervisor.start()
    for name in ("one", "two"):
        text = (tmp_path / "logs" / f"{name}.log").read_text()
        assert f"overread starts {name}" in text
        assert "ready" in text


def test_an_ending_is_told_in_words() -> None:
    assert how_it_ended(0) == "ended with code 0"
    assert how_it_ended(-9) == "was killed by SIGKILL"


def _pid(supervisor: Supervisor, name: str) -> int:
    process = supervisor.children[name].popen
    assert process is not None
    return process.pid
