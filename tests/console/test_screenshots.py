"""Whoever photographs the console leaves nothing running behind, however they are interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.api.service import ROOT

DEMO = """
import signal, sys, time
from api.cli import service
for number in service.STOPS:
    signal.signal(number, service._interrupt_once)
try:
    print("Ctrl-C stops it.", file=sys.stderr, flush=True)
    time.sleep(60)
finally:
    time.sleep(0.5)  # stopping in order takes a while
    open(sys.argv[1], "w").write("stopped in order")
"""
"""In the place of a demo: it says that it is up, and takes a while to stop."""
PHOTOGRAPHER = """
import signal, sys, time
from pathlib import Path
from tests.console import screenshots
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, screenshots.leave)
with screenshots.demo(sys.executable, "-c", sys.argv[1], sys.argv[2]) as home:
    print(home, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_is_stopped_in_order_when_the_photographer_is_interrupted(
    tmp_path: Path, number: signal.Signals
) -> None:
    said = tmp_path / "said"
    with subprocess.Popen(
        [sys.executable, "-c", PHOTOGRAPHER, DEMO, str(said)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        home = Path(process.stdout.readline().strip())
        assert home.parent.is_dir()
        os.kill(process.pid, number)
        assert process.wait(timeout=120) != 0
    assert said.read_text() == "stopped in order"
    assert not home.parent.exists()


def test_a_demo_that_is_told_twice_to_stop_still_stops_in_order(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with subprocess.Popen(
        [sys.executable, "-c", DEMO, str(said)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "Ctrl-C" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)
    assert said.read_text() == "stopped in order"
