"""Science whose imports are done: each job is a process of its own, forked from one that has torch, MONAI and DVC.

What most tests of the workers ask about comes after those imports, which take a job of a small line longer than its
work. The process is given what `workers.supervise` gives it, leads a session of its own, and is killed in the same way.
Tests of the processes themselves (test_supervise, most of test_tasks, test_processes, faults, journeys) start them as
the service does.

python -m tests.forks ALSO …        # a JSON request and two files a message on stdin; modules to import too
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import IO, Any

from tests.waiting import PATIENCE_SECONDS
from workers.supervise import environment

ROOT = Path(__file__).parents[1]
IMPORTED = (
    *("pipelines.train", "pipelines.gates", "pipelines.freezing", "pipelines.worklist", "pipelines.watch"),
    *("pipelines.erase", "workers.errands", "dvc.repo", "torch._dynamo"),
)
LARGEST_REQUEST = 1 << 17


class Forks:
    """The parent's end: `start` takes the place of `workers.supervise.start`."""

    def __init__(self, *also: str) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.forks", *also]
        with theirs:
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=theirs, env=environment())

    def start(self, module: str, job_dir: Path, *, stderr: IO[bytes]) -> Forked:
        """Start a job's process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {"module": module, "job": str(job_dir), "environment": environment()}
        with theirs:
            socket.send_fds(self._ours, [json.dumps(request).encode()], [theirs.fileno(), stderr.fileno()])
        return Forked(ours)

    def stop(self) -> None:
        """End it."""
        self._ours.close()
        self._process.wait(timeout=PATIENCE_SECONDS)


class Forked:
    """What `workers.supervise` asks of a process, of one that is no child of this one."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        self.pid = self._number(PATIENCE_SECONDS)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, None before the end."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self.returncode = self._number(timeout)
            self._told.close()
        return self.returncode

    def _number(self, timeout: float | None) -> int:
        if not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a forked job", timeout or 0.0)
        return int(self._told.recv(64))


def _mind(told: socket.socket, stderr: int, request: dict[str, Any]) -> None:
    """Tell of a job's process what it is called and how it ends; in a process that waits for it alone."""
    child = os.fork()
    if child == 0:
        os.setsid()
        told.send(str(os.getpid()).encode())
        told.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for ours, here in ((nothing, 0), (nothing, 1), (stderr, 2)):
            os.dup2(ours, here)
        os._exit(_do(request))
    _, status = os.waitpid(child, 0)
    told.send(str(os.waitstatus_to_exitcode(status)).encode())


def _do(request: dict[str, Any]) -> int:
    """Do what `python -m module JOB_DIR` does."""
    os.environ.clear()
    os.environ.update(request["environment"])
    try:
        return int(importlib.import_module(request["module"]).main([request["job"]]))
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001 - as Python ends a program: in words, and with 1
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()


def main(also: list[str]) -> None:
    """Fork what is asked for until nobody asks any more."""
    from pipelines import network  # noqa: PLC0415 - the parent's end needs none of it

    for name in (*IMPORTED, *also):
        importlib.import_module(name)
    network.monai("networks.nets")
    gc.freeze()  # so that a child's first collection does not copy all of it
    with socket.socket(fileno=os.dup(0)) as asked:
        while (message := socket.recv_fds(asked, LARGEST_REQUEST, 2))[0]:
            told, stderr = message[1]
            if os.fork() == 0:
                asked.close()
                _mind(socket.socket(fileno=told), stderr, json.loads(message[0]))
                os._exit(0)
            os.close(told)
            os.close(stderr)
            _bury()
    _bury()


def _bury() -> None:
    """Take leave of those who waited, so that what they and their jobs cost is counted."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
