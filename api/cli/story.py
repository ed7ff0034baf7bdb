"""A line's story through the doors of the service: cases in, a run watched, signatures, promotion, predictions.

Each step is what a hospital's own client would do over HTTP, and knows no more than that. `overread demo` tells it to a
person, and the journeys of the tests hold the service to it.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from api.cli.doors import Credentials, Door, Running, StoryStopped, problem

MORE_CASES, MORE_ROUNDS = 400, 2  # where the gates ask for more, that many come, at most so often
OTHER = {"normal": "pneumonia", "pneumonia": "normal"}
STEP_LIMIT_SECONDS = 600
MACHINES = {"south": "B"}
"""Whose machine of `pipelines.sites` a hospital has; one not named here has A, whose pictures are as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Xray:
    """One chest X-ray and its confirmed finding; on disk as each machine would have taken it."""

    folder: Path
    name: str
    finding: str

    def at(self, site: str) -> bytes:
        """The picture that a hospital's machine took of it, PNG."""
        return (self.folder / MACHINES.get(site, "A") / self.name).read_bytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """One turn of the loop, as the closing table shows it."""

    candidate: dict[str, Any]
    report: dict[str, Any]
    seconds_to_verdict: float

    @property
    def results(self) -> list[dict[str, Any]]:
        """The lines of the gate report."""
        return list(self.report["document"]["results"])

    @property
    def passed(self) -> bool:
        """Whether all that was asked was shown."""
        return bool(self.report["verdict"] == "pass")

    @property
    def missed(self) -> list[dict[str, Any]]:
        """The lines that did not pass."""
        return [row for row in self.results if row["verdict"] != "pass"]

    @property
    def auroc(self) -> dict[str, Any] | None:
        """AUROC on the sealed test: value, low, high, n, level. None where there is none."""
        return next((row["candidate"] for row in self.results if row["name"] == "auroc"), None)


class Story:
    """One line's story, step by step; every method is one step that a reader of the screen can name."""

    def __init__(
        self, stack: Running, *, people: dict[str, Credentials], xrays: Sequence[Xray], screen: Console, line: str
    ) -> None:
        self.stack, self.screen, self.line = stack, screen, line
        self.doors = {name: Door(stack.url, credentials) for name, credentials in people.items()}
        self._xrays = list(xrays)
        self._sent = 0
        self._watched = 0

    def close(self) -> None:
        """Leave every door."""
        for door in self.doors.values():
            door.close()

    def create_line(self, protocol: str) -> None:
        """Register the question and its protocol (YAML)."""
        line = self.doors["otto"].post("/v1/lines", content=protocol, headers={"Content-Type": "application/yaml"})
        self.say(f"line [bold]{self.line}[/bold] created under protocol {line['protocol']['digest'][:12]}")

    def confirm_batch(self, count: int, submitter: str, *, flipped: bool = False) -> float:
        """Send `count` images, then their confirmed diagnoses in bulk; return the time of the last confirmation."""
        batch = self._xrays[self._sent : self._sent + count]
        if len(batch) < count:
            raise StoryStopped(f"{count} more X-rays are needed and only {len(batch)} are left")
        first, self._sent = self._sent, self._sent + count
        door, site = self.doors[submitter], submitter.removeprefix("pacs-")
        case_ids = self._send(batch, first=first, submitter=submitter)
        rows = [
            {
                "case_id": case_id,
                "finding": OTHER[xray.finding] if flipped else xray.finding,
                "evidence": "single_read",
                "ai_exposure": "blind",
                "reader": f"reader-{site}",
            }
            for case_id, xray in zip(case_ids, batch, strict=True)
        ]
        answer = door.post(
            "/v1/confirmations",
            params={"line": self.line},
            content="\n".join(json.dumps(row) for row in rows),
            headers={"Content-Type": "application/x-ndjson", "Idempotency-Key": f"{self.line}-{first}"},
        )
        if answer["rejected"]:
            raise StoryStopped(
                f"{answer['rejected']} confirmations were rejected, the first answer: {answer['rows'][0]}"
            )
        self.say(f"{answer['accepted']} confirmed diagnoses accepted from {submitter}")
        return time.monotonic()

    def leave_work(self, *, unread: int, differing: int) -> None:
        """Leave something for people to do at the console: X-rays to read, and some that readers see differently."""
        batch = self._xrays[self._sent : self._sent + unread + differing]
        first, self._sent = self._sent, self._sent + len(batch)
        case_ids = self._send(batch, first=first, submitter="pacs-north")
        for case_id in case_ids[:differing]:
            for submitter, finding in (("pacs-north", "normal"), ("pacs-south", "pneumonia")):
                read = {"evidence": "single_read", "ai_exposure": "blind", "reader": f"reader-{submitter[5:]}"}
                self.doors[submitter].post(f"/v1/cases/{case_id}/confirmations", json={"finding": finding, **read})
        path = f"/v1/lines/{self.line}/worklist"
        self.wait("the worklist to be ranked", lambda: self.doors["clara"].get(path)["cases"])
        self.say(f"{len(batch) - differing} X-rays wait to be read, and readers differ about {differing}")

    def _send(self, batch: Sequence[Xray], *, first: int, submitter: str) -> list[int]:
        door, site = self.doors[submitter], submitter.removeprefix("pacs-")

        def send(position: int) -> int:
            xray = batch[position]
            case = door.post(
                "/v1/cases",
                data={
                    "line": self.line,
                    "site": site,
                    "patient": f"patient-{first + position}",
                    "external_id": f"{site}-{first + position}",
                },
                files={"image": (xray.name, xray.at(site), "image/png")},
            )
            return int(case["case_id"])

        case_ids = []
        with self._progress() as progress, ThreadPoolExecutor(4) as pool:
            task = progress.add_task(f"{len(batch)} chest X-rays in over HTTP", total=len(batch))
            for case_id in pool.map(send, range(len(batch))):
                case_ids.append(case_id)
                progress.advance(task)
        return case_ids

    def learn_until_shown(self, count: int, submitter: str) -> list[Cycle]:
        """Confirm cases and learn; where the gates ask for more cases, confirm more. The last cycle has passed."""
        cycles = self.learn_in_rounds(count, submitter)
        if not cycles[-1].passed:
            raise StoryStopped(f"no candidate passed its gates:\n{cycles[-1].report['text']}")
        return cycles

    def learn_in_rounds(self, count: int, submitter: str) -> list[Cycle]:
        """The same, but the last cycle may have failed too.

        How many cases it takes depends on which patients fall into the sealed test, and nobody can choose that.
        """
        cycles: list[Cycle] = []
        for size in (count, *[MORE_CASES] * MORE_ROUNDS):
            if cycles:
                self.say("not shown yet, so nobody may sign: more cases are confirmed")
            cycles.append(self.learn(self.confirm_batch(size, submitter)))
            if cycles[-1].passed:
                break
        return cycles

    def learn(self, confirmed: float) -> Cycle:
        """Watch the run that the line's trigger starts, until its gates have decided."""
        reviewer = self.doors["rita"]
        with self._progress() as progress:
            task = progress.add_task("waiting for the line's trigger", total=None)
            run = self.wait("the trigger to start a run", self._newest_run)
            while run["state"] not in {"finished", "refused", "failed", "cancelled"}:
                done = run["progress"]
                progress.update(
                    task,
                    description={
                        "freezing": "freezing a dataset version (DVC)",
                        "training": "retraining in a Celery worker",
                        "gating": "gates on the sealed test",
                    }[run["state"]],
                    completed=done.get("epoch", 0),
                    total=done.get("epochs") if run["state"] == "training" else None,
                )
                self._check_time(confirmed)
                time.sleep(0.3)
                run = reviewer.get(f"/v1/runs/{run['run_id']}")
        self._watched = run["run_id"]
        if run["state"] != "finished":
            raise StoryStopped(
                f"run {run['run_id']} ended {run['state']}: {run['outcome']}; see {self.stack.home / 'logs'}"
            )
        candidate = next(c for c in reviewer.get(f"/v1/lines/{self.line}/candidates") if c["run_id"] == run["run_id"])
        report = reviewer.get(f"/v1/candidates/{candidate['candidate_id']}/gate-report")
        cycle = Cycle(candidate=candidate, report=report, seconds_to_verdict=time.monotonic() - confirmed)
        self._tell_of(cycle)
        return cycle

    def sign_and_promote(self, candidate: dict[str, Any]) -> None:
        """Two people sign what the gates measured; then, and only then, the role moves."""
        path = f"/v1/candidates/{candidate['candidate_id']}"
        champion = self.doors["anna"].get(f"/v1/lines/{self.line}")["champion"]
        for name, reason in (
            ("anna", "gates passed, endpoints reviewed"),
            ("ben", "agree, operating point suits our prior"),
        ):
            signed = self.doors[name].approve(candidate["candidate_id"], reason=reason)
            if signed.is_error:
                raise StoryStopped(f"{name} could not sign: {problem(signed)}")
            self.say(f"signed by {signed.json()['printed_name']}")
        expected = champion["candidate_id"] if champion else None
        self.doors["ben"].post(f"{path}/promotion", json={"expected_champion": expected, "reason": "two signatures"})
        self.wait("the inference process to serve it", lambda: self.serves(candidate))
        self.say(f"model {candidate['number']} is champion: promoted, and serving")

    def try_to_sign(self, candidate: dict[str, Any]) -> None:
        """Someone tries to wave a failed candidate through; the record refuses."""
        answer = self.doors["anna"].approve(candidate["candidate_id"], reason="looks fine to me")
        if not answer.is_error:
            raise StoryStopped("a candidate that failed its gates could be signed; this must never happen")
        self.say(f"an approver tries to sign it: [red]refused[/red] ({problem(answer)})")

    def predict(self, site: str = "north") -> httpx.Response:
        """Ask for a prediction of an X-ray that no model has seen, as a hospital's machine shows it."""
        xray = self._xrays[-1]
        picture = {"image": (xray.name, xray.at(site), "image/png")}
        return self.doors[f"pacs-{site}"].request("POST", "/v1/predictions", params={"line": self.line}, files=picture)

    def show_prediction(self, site: str = "north") -> None:
        """Print what the champion says of the X-ray that no model has seen."""
        answer = self.predict(site).json()
        scores = ", ".join(f"{name} {score:.2f}" for name, score in answer["scores"].items())
        self.say(
            f"an unseen X-ray at Hospital {site.title()} ({self._xrays[-1].finding}): "
            f"[bold]{answer['decision']}[/bold] ({scores}) from model {answer['number']}, "
            f"weights {answer['weights_digest'][:12]}"
        )

    def signatures(self) -> dict[int, str]:
        """Who signed, by the id of each candidate that was ever champion."""
        found = {}
        for promotion in self.doors["rita"].get(f"/v1/lines/{self.line}/promotions"):
            signed = self.doors["rita"].get(f"/v1/candidates/{promotion['candidate_id']}/approvals")
            found[promotion["candidate_id"]] = ", ".join(one["printed_name"].split(",")[0] for one in signed)
        return found

    def say(self, text: str) -> None:
        """Tell one thing that happened."""
        self.screen.print(f"   [green]✓[/green] {text}", highlight=False)

    def serves(self, candidate: dict[str, Any]) -> bool:
        answer = self.predict()
        return answer.is_success and bool(answer.json()["weights_digest"] == candidate["weights_digest"])

    def alias_follows(self, candidate: dict[str, Any]) -> bool:
        answer = httpx.get(
            f"{self.stack.environment['OVERREAD_MLFLOW_URL']}/api/2.0/mlflow/registered-models/alias",
            params={"name": self.line, "alias": "champion"},
        )
        if answer.is_error:
            return False
        tags = {tag["key"]: tag["value"] for tag in answer.json()["model_version"].get("tags", [])}
        return tags.get("overread.candidate_id") == str(candidate["candidate_id"])

    def _tell_of(self, cycle: Cycle) -> None:
        candidate, version = cycle.candidate, cycle.candidate["dataset_version"]
        self.say(
            f"dataset v{version:04d} frozen, model {candidate['number']} trained "
            f"({candidate['metadata']['strategy']}, {candidate['metadata']['seconds']:.0f} s)"
            + (f", AUROC {in_words(cycle.auroc)}" if cycle.auroc else "")
        )
        passed, colour = len(cycle.results) - len(cycle.missed), "red" if cycle.missed else "green"
        self.say(
            f"gates: [{colour}]{cycle.report['verdict']}[/{colour}], {passed} of {len(cycle.results)} passed, "
            f"{cycle.seconds_to_verdict:.0f} s after the last confirmation"
        )
        for row in cycle.missed:
            self.screen.print(f"       {row['name']}: {row['reason']}", highlight=False, markup=False)

    def _newest_run(self) -> dict[str, Any] | None:
        """The newest run, if it is not one that was watched to its end before."""
        runs = self.doors["rita"].get(f"/v1/lines/{self.line}/runs")
        newest = max(runs, key=lambda run: run["run_id"], default=None)
        return newest if newest and newest["run_id"] > self._watched else None

    def wait(self, what: str, look: Callable[[], Any]) -> Any:
        start = time.monotonic()
        with self.screen.status(f"waiting for {what}"):
            while not (found := look()):
                if time.monotonic() - start > STEP_LIMIT_SECONDS:
                    raise StoryStopped(f"waited {STEP_LIMIT_SECONDS} s for {what}; see {self.stack.home / 'logs'}")
                time.sleep(0.2)
        return found

    def _check_time(self, start: float) -> None:
        if time.monotonic() - start > STEP_LIMIT_SECONDS:
            raise StoryStopped(f"no verdict after {STEP_LIMIT_SECONDS} s; see {self.stack.home / 'logs'}")

    def _progress(self) -> Progress:
        columns = (
            TextColumn("  "),
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(30),
            TimeElapsedColumn(),
        )
        return Progress(*columns, console=self.screen, transient=True)


def in_words(estimate: dict[str, Any] | None) -> str:
    """An estimate as people write it: value and interval."""
    if estimate is None:
        return "not measured"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def find_xrays(folder: Path, *, count: int) -> tuple[list[Xray], str]:
    """Write `count` chest X-rays as PNG files into `folder`; return them and a sentence on their source."""
    machines = sorted({"A", *MACHINES.values()})
    command = [sys.executable, "-m", "pipelines.xray_files", str(folder), "--count", str(count), "--machines"]
    answer = subprocess.run([*command, *machines], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise StoryStopped(f"no chest X-rays could be prepared: {answer.stderr.strip().splitlines()[-1:]}")
    with (folder / "index.csv").open(encoding="utf-8", newline="") as index:
        xrays = [Xray(folder=folder, name=row["file"], finding=row["finding"]) for row in csv.DictReader(index)]
    return xrays, answer.stdout.strip()
