"""`overread demo`: the whole loop on real chest X-rays, told as it happens.

Everything it does goes through the doors a hospital would use: images and confirmed diagnoses over HTTP, the line's own
trigger starts the learning, two people sign, one transaction promotes. Then one submitter's labels arrive flipped, and
the same way is closed to them. Nothing here knows more than a client of the API could know, except that it makes the
users and their keys. Patients, sites and readers are simulated; the images and findings are what `chest_xrays` found.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
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
from rich.table import Table

from api.cli.stack import Stack
from registry import db, users

LINE = "cxr-pneumonia"
PROTOCOL = Path("protocols") / "cxr-pneumonia.yaml"
PEOPLE = (
    ("pacs-north", "PACS, Hospital North", ("submitter",)),
    ("pacs-south", "PACS, Hospital South", ("submitter",)),
    ("pacs-east", "PACS, Hospital East", ("submitter",)),
    ("otto", "Otto Operator", ("operator", "auditor")),
    ("rita", "Rita Reviewer, ML engineer", ("reviewer",)),
    ("anna", "Dr Anna Approver, clinical safety", ("approver",)),
    ("ben", "Dr Ben Approver, radiology", ("approver",)),
)
FIRST_BATCH, GOOD_BATCH, POISONED_BATCH = 240, 660, 240
STEP_LIMIT_SECONDS = 300
SETTINGS = {"OVERREAD_API_PORT": "0", "OVERREAD_INFERENCE_PORT": "0", "OVERREAD_MLFLOW_PORT": "0", "OVERREAD_TRIGGER_SECONDS": "1"}


class DemoStopped(Exception):
    """The demo could not go on; the message says at which step and where to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Xray:
    """One chest X-ray on disk and its confirmed finding."""

    path: Path
    finding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """One turn of the loop, as the closing table shows it."""

    what: str
    candidate: dict[str, Any]
    report: dict[str, Any]
    outcome: str
    seconds_to_verdict: float


class Door:
    """The HTTP API as one person sees it: raises DemoStopped with the problem's own words."""

    def __init__(self, url: str, key: str) -> None:
        self._client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and return the response, whatever its status."""
        return self._client.request(method, path, **options)

    def get(self, path: str, **parameters: Any) -> Any:
        """Read a resource."""
        return self._accepted(self.request("GET", path, params=parameters))

    def post(self, path: str, **options: Any) -> Any:
        """Change something that must be accepted."""
        return self._accepted(self.request("POST", path, **options))

    def _accepted(self, response: httpx.Response) -> Any:
        if response.is_error:
            raise DemoStopped(f"{response.request.method} {response.request.url.path} was refused: {problem(response)}")
        return response.json()


def problem(response: httpx.Response) -> str:
    """The words of an RFC 9457 problem, or the body where there is none."""
    try:
        document = response.json()
    except ValueError:
        return response.text[:300]
    return str(document.get("detail") or document.get("title") or document)


def make_people(stack: Stack) -> dict[str, str]:
    """Create the demo's users in the record; return name -> API key, also kept in the home, readable by its owner only."""
    keys = {}
    with db.connect(stack.environment["OVERREAD_DATABASE_URL"]) as connection:
        for name, printed_name, roles in PEOPLE:
            user = users.create_user(connection, name=name, printed_name=printed_name, roles=roles)
            keys[name] = users.create_api_key(connection, user_id=user.user_id)
    path = stack.home / "demo-keys.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(keys, indent=2) + "\n")
    return keys


class Story:
    """One line's story, step by step; every method is one step that a reader of the screen can name."""

    def __init__(self, stack: Stack, *, keys: dict[str, str], xrays: Sequence[Xray], screen: Console, line: str = LINE) -> None:
        self.stack, self.screen, self.line = stack, screen, line
        self.doors = {name: Door(stack.url, key) for name, key in keys.items()}
        self._xrays = list(xrays)
        self._sent = 0
        self._watched = 0

    def create_line(self, protocol: str) -> None:
        """Register the question and its protocol (YAML)."""
        line = self.doors["otto"].post("/v1/lines", content=protocol, headers={"Content-Type": "application/yaml"})
        self.say(f"line [bold]{self.line}[/bold] created under protocol {line['protocol']['digest'][:12]}")

    def confirm_batch(self, count: int, submitters: Sequence[str], *, flipped: bool = False) -> float:
        """Send `count` images, then their confirmed diagnoses in bulk; return the time of the last confirmation."""
        batch = self._xrays[self._sent : self._sent + count]
        if len(batch) < count:
            raise DemoStopped(f"only {len(self._xrays)} X-rays were found; the demo needs {FIRST_BATCH + GOOD_BATCH + POISONED_BATCH}")
        first, self._sent = self._sent, self._sent + count
        who = [submitters[position % len(submitters)] for position in range(count)]

        def send(position: int) -> int:
            xray = batch[position]
            case = self.doors[who[position]].post(
                "/v1/cases",
                data={"line": self.line, "site": who[position].removeprefix("pacs-"), "patient": f"patient-{first + position}"},
                files={"image": (xray.path.name, xray.path.read_bytes(), "image/png")},
            )
            return int(case["case_id"])

        with self._progress() as progress, ThreadPoolExecutor(4) as pool:
            task = progress.add_task(f"{count} chest X-rays in over HTTP", total=count)
            case_ids = []
            for case_id in pool.map(send, range(count)):
                case_ids.append(case_id)
                progress.advance(task)
        for submitter in dict.fromkeys(submitters):
            rows = [
                json.dumps(
                    {
                        "case_id": case_id,
                        "finding": _other(xray.finding) if flipped else xray.finding,
                        "evidence": "single_read",
                        "ai_exposure": "blind",
                        "reader": f"reader-{submitter.removeprefix('pacs-')}",
                    }
                )
                for case_id, xray, sender in zip(case_ids, batch, who, strict=True)
                if sender == submitter
            ]
            answer = self.doors[submitter].post(
                "/v1/confirmations",
                params={"line": self.line},
                content="\n".join(rows),
                headers={"Content-Type": "application/x-ndjson", "Idempotency-Key": f"demo-{submitter}-{first}"},
            )
            if answer["rejected"]:
                raise DemoStopped(f"{answer['rejected']} confirmations were rejected: {answer['rows'][0]}")
            self.say(f"{answer['accepted']} confirmed diagnoses accepted from {submitter}")
        return time.monotonic()

    def learn(self, confirmed: float) -> tuple[dict[str, Any], dict[str, Any], float]:
        """Watch the run that the line's trigger starts, until its gates have decided: (candidate, report, seconds)."""
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
            raise DemoStopped(f"run {run['run_id']} ended {run['state']}: {run['outcome']}; see {self.stack.home / 'logs'}")
        candidate = next(c for c in reviewer.get(f"/v1/lines/{self.line}/candidates") if c["run_id"] == run["run_id"])
        report = reviewer.get(f"/v1/candidates/{candidate['candidate_id']}/gate-report")
        return candidate, report, time.monotonic() - confirmed

    def sign_and_promote(self, candidate: dict[str, Any]) -> str:
        """Two people sign what the gates measured; then, and only then, the role moves."""
        path = f"/v1/candidates/{candidate['candidate_id']}"
        champion = self.doors["anna"].get(f"/v1/lines/{self.line}")["champion"]
        for name, reason in (("anna", "gates passed, endpoints reviewed"), ("ben", "agree, operating point suits our prior")):
            signature = self.doors[name].post(f"{path}/approvals", json={"decision": "approve", "reason": reason})
            self.say(f"signed by {signature['printed_name']}")
        expected = champion["candidate_id"] if champion else None
        self.doors["ben"].post(f"{path}/promotion", json={"expected_champion": expected, "reason": "two signatures"})
        self.wait("the inference process to serve it", lambda: self.serves(candidate))
        self.wait("MLflow's alias to follow", lambda: self.alias_follows(candidate))
        self.say(f"model {candidate['number']} is champion: promoted, mirrored to MLflow, serving")
        return "promoted, signed by Dr Anna Approver and Dr Ben Approver"

    def try_to_sign(self, candidate: dict[str, Any]) -> str:
        """Someone tries to wave a failed candidate through; the record refuses."""
        path = f"/v1/candidates/{candidate['candidate_id']}/approvals"
        answer = self.doors["anna"].request("POST", path, json={"decision": "approve", "reason": "looks fine to me"})
        if not answer.is_error:
            raise DemoStopped("a candidate that failed its gates could be signed; this must never happen")
        self.say(f"an approver tries to sign it: [red]refused[/red] ({problem(answer)})")
        return "BLOCKED, no signature possible"

    def predict(self) -> httpx.Response:
        """Ask for a prediction of an X-ray that no model has seen."""
        xray = self._xrays[-1]
        picture = {"image": (xray.path.name, xray.path.read_bytes(), "image/png")}
        return self.doors["pacs-north"].request("POST", "/v1/predictions", params={"line": self.line}, files=picture)

    def show_prediction(self) -> None:
        """Print what the champion says of the X-ray that no model has seen."""
        answer = self.predict().json()
        scores = ", ".join(f"{name} {score:.2f}" for name, score in answer["scores"].items())
        self.say(
            f"an unseen X-ray ({self._xrays[-1].finding}): [bold]{answer['decision']}[/bold] ({scores}) "
            f"from model {answer['number']}, weights {answer['weights_digest'][:12]}"
        )

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

    def _newest_run(self) -> dict[str, Any] | None:
        """The newest run, if it is not one that was watched to its end before."""
        runs = self.doors["rita"].get(f"/v1/lines/{self.line}/runs")
        newest = max(runs, key=lambda run: run["run_id"], default=None)
        return newest if newest and newest["run_id"] > self._watched else None

    def wait(self, what: str, look: Callable[[], Any]) -> Any:
        start = time.monotonic()
        while not (found := look()):
            if time.monotonic() - start > STEP_LIMIT_SECONDS:
                raise DemoStopped(f"waited {STEP_LIMIT_SECONDS} s for {what}; see {self.stack.home / 'logs'}")
            time.sleep(0.2)
        return found

    def _check_time(self, start: float) -> None:
        if time.monotonic() - start > STEP_LIMIT_SECONDS:
            raise DemoStopped(f"no verdict after {STEP_LIMIT_SECONDS} s; see {self.stack.home / 'logs'}")

    def _progress(self) -> Progress:
        columns = (TextColumn("  "), SpinnerColumn(), TextColumn("{task.description}"), BarColumn(30), TimeElapsedColumn())
        return Progress(*columns, console=self.screen, transient=True)


def _other(finding: str) -> str:
    return {"normal": "pneumonia", "pneumonia": "normal"}[finding]


def find_xrays(folder: Path, *, count: int) -> tuple[list[Xray], str]:
    """Write `count` chest X-rays as PNG files into `folder`; return them and the sentence that says where they came from."""
    command = [sys.executable, "-m", "pipelines.chest_xrays", str(folder), "--count", str(count)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise DemoStopped(f"no chest X-rays could be prepared: {answer.stderr.strip().splitlines()[-1:]}")
    with (folder / "index.csv").open(encoding="utf-8", newline="") as index:
        xrays = [Xray(path=folder / row["file"], finding=row["finding"]) for row in csv.DictReader(index)]
    return xrays, answer.stdout.strip()


def closing_table(cycles: Sequence[Cycle]) -> Table:
    """What each model measured on the sealed test, and what became of it."""
    table = Table(title="What happened", title_justify="left", expand=False)
    for heading in ("batch", "model", "dataset", "AUROC on the sealed test [95 %]", "gates", "from last confirmation to verdict", "outcome"):
        table.add_column(heading, overflow="fold")
    for cycle in cycles:
        results = cycle.report["document"]["results"]
        auroc = next((row["candidate"] for row in results if row["name"] == "auroc"), None)
        failed = [row["name"] for row in results if row["verdict"] != "pass"]
        table.add_row(
            cycle.what,
            str(cycle.candidate["number"]),
            f"v{cycle.candidate['dataset_version']:04d}",
            f"{auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}], n={auroc['n']}" if auroc else "not measurable",
            f"{len(results) - len(failed)} of {len(results)} passed" + (f"; not: {', '.join(failed)}" if failed else ""),
            f"{cycle.seconds_to_verdict:.0f} s",
            cycle.outcome,
        )
    return table


def demo(home: Path, *, keep: bool = False) -> int:
    """Run the story under `home` (emptied first); return the exit status."""
    screen = Console(stderr=True)
    begun = time.monotonic()
    if home.exists():
        if not (home / "demo-keys.json").exists() and any(home.iterdir()):
            screen.print(f"{home} holds something that is not an earlier demo; choose another --home")
            return 2
        shutil.rmtree(home)
    home.mkdir(parents=True)
    try:
        with Stack(home, SETTINGS | os.environ, report=lambda text: screen.print(f"   [dim]{text}[/dim]", highlight=False)) as stack:
            return _tell(stack, screen, begun, keep=keep)
    except DemoStopped as stopped:
        screen.print(f"[red]The demo stopped:[/red] {stopped}")
        return 1


def _tell(stack: Stack, screen: Console, begun: float, *, keep: bool) -> int:
    def chapter(title: str) -> None:
        screen.print(f"\n[bold]{title}[/bold]  [dim]{time.monotonic() - begun:.0f} s[/dim]", highlight=False)

    xrays, source = find_xrays(stack.home / "xrays", count=FIRST_BATCH + GOOD_BATCH + POISONED_BATCH + 1)
    chapter("1  A question and its protocol")
    story = Story(stack, keys=make_people(stack), xrays=xrays, screen=screen)
    story.say(source)
    story.create_line((Path(__file__).parents[2] / "pipelines" / PROTOCOL).read_text(encoding="utf-8"))

    cycles = []
    chapter("2  The first confirmed diagnoses make the first model")
    candidate, report, seconds = story.learn(story.confirm_batch(FIRST_BATCH, ["pacs-north"]))
    outcome = story.sign_and_promote(candidate)
    cycles.append(Cycle(what="first", candidate=candidate, report=report, outcome=outcome, seconds_to_verdict=seconds))
    story.show_prediction()

    chapter("3  More confirmed diagnoses, from two hospitals, make a better one")
    candidate, report, seconds = story.learn(story.confirm_batch(GOOD_BATCH, ["pacs-north", "pacs-south"]))
    outcome = story.sign_and_promote(candidate)
    cycles.append(Cycle(what="good", candidate=candidate, report=report, outcome=outcome, seconds_to_verdict=seconds))
    story.show_prediction()

    chapter("4  A poisoned batch: one submitter's labels arrive flipped")
    candidate, report, seconds = story.learn(story.confirm_batch(POISONED_BATCH, ["pacs-east"], flipped=True))
    outcome = story.try_to_sign(candidate)
    cycles.append(Cycle(what="poisoned", candidate=candidate, report=report, outcome=outcome, seconds_to_verdict=seconds))
    screen.print(report["text"], highlight=False, markup=False)
    story.show_prediction()

    screen.print()
    screen.print(closing_table(cycles))
    screen.print(f"Done in {time.monotonic() - begun:.0f} s. Not a medical device.", highlight=False)
    if keep:
        screen.print(
            f"\nStill running: API docs {stack.url}/docs · MLflow {stack.environment['OVERREAD_MLFLOW_URL']} · "
            f"keys in {stack.home / 'demo-keys.json'}\nCtrl-C stops it.",
            highlight=False,
        )
        stack.wait()
    else:
        screen.print("Look around: run it again with --keep, and it stays up (API docs, MLflow).", highlight=False)
    return 0
