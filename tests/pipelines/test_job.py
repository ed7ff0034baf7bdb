"""A heavy job and its parent."""

from __future__ import annotations

import subprocess
import sys

import psutil

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
CHILD = """
import time
from pipelines import job
job.end_with_parent(look_seconds=0.05)
print("begun", flush=True)
time.sleep(600)
"""


def test_an_orphan_ends_amid_its_work() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        child.wait(timeout=60)  # raises where it goes on
