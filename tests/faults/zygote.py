"""Does scenarios in forked children, one after the other, so that a kill costs milliseconds and not an import of torch.

python -m tests.faults.zygote        # a JSON request a line in, the exit code of each child out
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.faults import mutation
from tests.faults.hook import sitecustomize
from tests.faults.mutation import Mutation

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120


@dataclass(kw_only=True)
class Zygote:
    """The parent's end: `run` has one scenario done."""

    process: subprocess.Popen[str]
    log: Path
    answers: Path
    number: int = 0

    @classmethod
    def start(cls, folder: Path) -> Zygote:
        """Start one that writes what goes wrong into `folder`."""
        log = folder / "zygote.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.zygote"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        return cls(process=process, log=log, answers=folder)

    def run(
        self,
        scenario: str,
        place: dict[str, Any],
        *,
        faultpoint: str = "",
        seen: Path | None = None,
        mutations: tuple[Mutation, ...] = (),
    ) -> tuple[int, Any]:
        """Return the child's exit code, and what was acknowledged to it (None where it died before that)."""
        self.number += 1
        answer = self.answers / f"answer-{self.number}.json"
        request = {
            "scenario": scenario,
            "place": place,
            "answer": str(answer),
            "mutations": mutations,
            "environment": {"FAULTPOINT": faultpoint, **({"FAULTPOINT_SEEN": str(seen)} if seen else {})},
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        told = self.process.stdout.readline()
        assert told, self.said()
        return int(told), json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else None

    def said(self) -> str:
        """What the children wrote last."""
        return self.log.read_text(errors="replace")[-6000:]

    def stop(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=PATIENCE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()


def _child(request: dict[str, Any], act: Callable[[dict[str, Any]], Any], *, stdout: IO[str]) -> int:
    stdout.close()
    faulthandler.dump_traceback_later(PATIENCE_SECONDS, exit=True)
    try:
        for change in request["mutations"]:
            mutation.apply(tuple(change))
        sitecustomize.arm(request["environment"])
        answer = act(request["place"])
        Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    except BaseException:  # noqa: BLE001 - whatever it is, the test is told
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Do what is asked until nobody asks any more."""
    # Here, for the parent's end needs none of it; and before the first fork, also what is imported at first use.
    from pipelines import network  # noqa: PLC0415
    from tests.faults.scenarios import SCENARIOS  # noqa: PLC0415

    importlib.import_module("torch._dynamo")
    network.monai("networks.nets")
    gc.freeze()  # so that a child's first collection does not copy all of it

    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the code prints is no answer
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            request = json.loads(line)
            os._exit(_child(request, SCENARIOS[request["scenario"]].act, stdout=out))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=out, flush=True)


if __name__ == "__main__":
    main()
