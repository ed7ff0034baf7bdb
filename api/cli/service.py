"""`overread up`, `status`, `down`, `doctor`, `demo`: the service on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.errors import NotRunning, StartFailed
from api.cli.home import home_at, prepare, read_stack_file
from api.cli.options import HomeOption, JsonFlag
from api.cli.output import answer, say, screen

if TYPE_CHECKING:
    from types import FrameType

    from api.cli.stack import Stack

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DOWN_SECONDS = 75.0  # a little more than the slowest orderly stop


def up(
    home: HomeOption = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the API [default: OVERREAD_API_PORT or 8080; 0: any]")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once it is up; stop it with `overread down`")
    ] = False,
) -> None:
    """Start the whole service on this machine, and keep it running until Ctrl-C.

    PostgreSQL, MLflow, API, inference, worker, schedule and relay, all under one home folder, all on loopback.
    A service that you name is used, not started: OVERREAD_DATABASE_URL, OVERREAD_BROKER_URL, OVERREAD_MLFLOW_URL,
    OVERREAD_INFERENCE_URL. Other ports: OVERREAD_INFERENCE_PORT, OVERREAD_MLFLOW_PORT.

    Example: overread up --home /srv/overread --detach
    """
    from api.cli.stack import Stack  # noqa: PLC0415 - `overread --help` must be quick
    from api.cli.supervisor import Interrupted  # noqa: PLC0415

    places = home_at(home)
    if detach:
        _up_detached(str(places.root), port=port)
        return
    began = time.monotonic()
    settings = dict(os.environ) | ({"OVERREAD_API_PORT": str(port)} if port is not None else {})
    stack = Stack(places.root, settings, report=say)
    _stop_on_signals(stack)
    try:
        stack.start()
        _greet(stack, seconds=time.monotonic() - began)
        stack.wait()
    except Interrupted:
        raise typer.Exit(130) from None
    finally:
        stack.stop()
    say("✓ all stopped")


def down(home: HomeOption = None) -> None:
    """Stop the service of a home folder, in order, and say when it is gone.

    Example: overread down
    """
    from api.cli.stack import Stack, alive, wait_until_gone  # noqa: PLC0415 - `overread --help` must be quick

    places = home_at(home)
    stack = read_stack_file(places)
    if stack is None:
        say(f"nothing runs in {places.root}")
        return
    if alive(stack.pid, created=stack.created):
        os.kill(stack.pid, signal.SIGTERM)
        with screen().status(f"stopping (pid {stack.pid}) ..."):
            gone = wait_until_gone(stack.pid, created=stack.created, seconds=DOWN_SECONDS)
        if not gone:
            raise StartFailed(
                f"pid {stack.pid} still stops after {DOWN_SECONDS:.0f} s",
                fix=f"look at {places.logs}; `overread down` again hurries it",
            )
    else:
        Stack(places.root, {}, report=say).end_leftovers()
        places.stack_file.unlink(missing_ok=True)
    say("✓ all stopped")


def status(home: HomeOption = None, as_json: JsonFlag = False) -> None:
    """Show what runs in a home folder and where it answers. Exit code 3 if nothing does.

    Example: overread status --json
    """
    from api.cli.stack import alive  # noqa: PLC0415 - `overread --help` must be quick

    places = home_at(home)
    stack = read_stack_file(places)
    if stack is None:
        raise NotRunning(f"nothing runs in {places.root}", fix="start it with `overread up`")
    if not alive(stack.pid, created=stack.created):
        raise NotRunning(
            f"the supervisor (pid {stack.pid}) was killed; what it started may still run, but nobody watches it",
            fix="`overread up` cleans up and starts again; `overread down` only cleans up",
        )
    rows: list[dict[str, Any]] = [
        {
            "process": name,
            "state": record.state
            if record.state == "done" or alive(record.pid, created=record.created)
            else "not running",
            "pid": record.pid if record.state != "done" else None,
            "restarts": record.restarts,
            "log": str(places.logs / f"{name}.log"),
        }
        for name, record in stack.processes.items()
    ]
    if as_json:
        urls = {"api": stack.api_url, "inference": stack.inference_url, "mlflow": stack.mlflow_url}
        answer(
            {"home": str(places.root), "pid": stack.pid, "state": stack.state, "urls": urls, "processes": rows},
            as_json=True,
        )
        return
    say(f"{stack.state} since {stack.started_at}, pid {stack.pid}, API {stack.api_url}, MLflow {stack.mlflow_url}")
    answer(rows, as_json=False, columns=("process", "state", "pid", "restarts", "log"))


def doctor(
    home: HomeOption = None,
    only: Annotated[str | None, typer.Option(help="One check by its name, e.g. relay (for health checks)")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check everything the service stands on, and print what to mend. Exit code 1 if anything is wrong.

    Example: overread doctor
    """
    from api.cli.doctor import examine  # noqa: PLC0415 - `overread --help` must be quick

    findings = examine(home_at(home), only=only)
    if as_json:
        answer([asdict(finding) for finding in findings], as_json=True)
    else:
        for finding in findings:
            say(f"{'✓' if finding.good else '✗'} {finding.name}: {finding.detail}")
            if finding.fix and not finding.good:
                say(f"    → {finding.fix}")
    wrong = sum(not finding.good for finding in findings)
    if wrong:
        if not as_json:
            say(f"\n{wrong} of {len(findings)} checks failed.")
        raise typer.Exit(1)


def demo(
    home: Annotated[str, typer.Option("--home", metavar="DIR", help="Where it plays; emptied first")] = ".home/demo",
    keep: Annotated[bool, typer.Option("--keep", help="Stay up at the end, to look around")] = False,
) -> None:
    """Watch the whole loop on real chest X-rays: a better model gets in, a poisoned one does not. Two to five minutes.

    Example: overread demo --keep
    """
    from api.cli.demo import demo as play  # noqa: PLC0415 - `overread --help` must be quick

    for number in STOPS:
        signal.signal(number, _interrupt_once)
    raise typer.Exit(play(Path(home).expanduser().resolve(), keep=keep))


def _greet(stack: Stack, *, seconds: float) -> None:
    from api.cli.links import demo_links  # noqa: PLC0415 - `overread --help` must be quick

    say(f"\n✓ Overread is up after {seconds:.0f} s, home {stack.home}")
    say(f"  API     {stack.url}  (documentation: {stack.url}/docs)")
    say(f"  console {stack.url}/console")
    say(f"  MLflow  {stack.environment['OVERREAD_MLFLOW_URL']}")
    say(f"  logs    {stack.home / 'logs'}")
    say(f"  proof   {_verifier_key(stack)}  (keep a copy elsewhere: it checks what `overread verify` checks)")
    for line in demo_links(home_at(stack.home)):
        say(f"  {line}")
    say("  First time: `overread user create --help`. Something wrong: `overread doctor`. Ctrl-C stops all of it.")


def _verifier_key(stack: Stack) -> str:
    from registry.notes import signer_at  # noqa: PLC0415 - `overread --help` must be quick

    key = stack.environment.get("OVERREAD_CHECKPOINT_KEY") or stack.home / "checkpoint.key"
    return str(signer_at(Path(key)).verifier)


def _stop_on_signals(stack: Stack) -> None:
    def stop(number: int, _frame: FrameType | None) -> None:
        # A signal may come in the middle of a print to the same screen, so this one writes to the file itself.
        word = "again: stopping at once" if stack.stop_is_wanted else "stopping in order (again to hurry)"
        os.write(2, f"\n{signal.Signals(number).name}, {word} ...\n".encode())
        stack.ask_to_stop()

    for number in STOPS:
        signal.signal(number, stop)


def _interrupt_once(_number: int, _frame: FrameType | None) -> None:
    """Break off as Ctrl-C does; what comes after that finds us stopping, and must not break off the stopping."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _up_detached(home: str, *, port: int | None) -> None:
    from api.cli.supervisor import tail  # noqa: PLC0415

    places = home_at(home)
    prepare(places)
    log = places.logs / "up.log"
    command = [
        sys.executable,
        "-m",
        "api.cli",
        "up",
        "--home",
        home,
        *(("--port", str(port)) if port is not None else ()),
    ]
    with log.open("ab") as file:
        offset = file.tell()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    with screen().status(f"starting, details in {log} ..."):
        while child.poll() is None:
            stack = read_stack_file(places)
            if stack is not None and stack.pid == child.pid and stack.state == "ready":
                say(f"✓ Overread is up (pid {child.pid}): {stack.api_url}; stop it with `overread down`")
                return
            time.sleep(0.1)
    raise StartFailed(f"it did not start:\n{tail(log, offset=offset)}")
