"""The processes behind the tests of the API, and how to reach them."""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import psycopg
import yaml
from psycopg import sql

from registry import db
from tests.waiting import PATIENCE_SECONDS, until

ROOT = Path(__file__).parents[2]
ROLES = ("submitter", "reviewer", "approver", "operator", "auditor")
PROTOCOL = {
    "title": "Pneumonia on a frontal chest radiograph",
    "intended_use": "Second reader for frontal chest radiographs of children; never without a first reader.",
    "classes": ["normal", "pneumonia"],
    "input": {"rows": 28, "columns": 28},
    "blind_fraction": 0.0,  # or one case in twenty is refused a prediction
}


PASSWORD = "four words do well"
"""Of everyone in the tests who may sign."""

_TLS = ssl.create_default_context()
"""Unused over plain HTTP, but a client that is given none spends a tenth of a second on making one."""


@dataclass
class Service:
    """A running API, keys for it, and the record behind it."""

    url: str
    environment: dict[str, str]
    keys: dict[str, str]
    logs: Path
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def client(self, user: str | None) -> httpx.Client:
        """A client with the key of `user` (of each role there is one named after it), or without a key."""
        headers = {"Authorization": f"Bearer {self.keys[user]}"} if user else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_SECONDS, verify=_TLS)

    def connect(self) -> psycopg.Connection[Any]:
        """A connection to the record."""
        return db.connect(self.environment["OVERREAD_DATABASE_URL"])

    def trail(self) -> list[dict[str, Any]]:
        """Every event of the audit trail, however many tests came before."""
        return self._pages("/v1/audit", number="audit_event_id")

    def looks(self, **asked: int) -> list[dict[str, Any]]:
        """Every look of somebody at something of a patient; `case_id` asks for one case's."""
        return self._pages("/v1/reads", number="read_id", **asked)

    def _pages(self, path: str, *, number: str, **asked: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        with self.client("auditor") as auditor:
            while page := auditor.get(
                path, params={"limit": 1000, "after": rows[-1][number] if rows else 0, **asked}
            ).json():
                rows += page
        return rows

    def fingerprints(self, *, but: Collection[str] = ()) -> dict[str, str]:
        """What every table holds, in a few characters each, and which files are stored; some tables left out."""
        found = {"files": " ".join(sorted(path.name for path in self.blob_root.rglob("*") if path.is_file()))}
        with self.connect() as connection:
            tables = connection.execute("SELECT relname FROM pg_stat_user_tables ORDER BY relname").fetchall()
            for (table,) in tables:
                if table not in but:
                    query = sql.SQL(
                        "SELECT count(*)::text, md5(string_agg(row::text, chr(10) ORDER BY row::text)) FROM {} row"
                    )
                    found[table] = str(connection.execute(query.format(sql.Identifier(table))).fetchone())
        return found

    @property
    def blob_root(self) -> Path:
        """Where the images are."""
        return Path(self.environment["OVERREAD_HOME"]) / "blobs"

    def new_line(self, **changes: object) -> str:
        """Create a line of its own for a test; keyword arguments change fields of its protocol."""
        name = f"line-{next(self.numbers)}"
        text = yaml.safe_dump({"line": name, **PROTOCOL, **changes})
        with self.client("operator") as operator:
            answer = operator.post("/v1/lines", content=text, headers={"Content-Type": "application/yaml"})
        assert answer.status_code == 201, answer.text
        return name


def slug(answer: httpx.Response) -> tuple[int, str]:
    """The status of a refusal, and the problem it names."""
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


_PORTS = itertools.cycle(range(first := 12_000 + os.getpid() % 100 * 200, first + 200))
"""Below those the system gives to whoever asks for any, and another part of them for each session of tests."""


def free_port() -> int:
    """A port that nobody listens on, and that nobody else will take before whoever it is for does."""
    for port in itertools.islice(_PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("200 ports are taken")


def start(arguments: list[str], *, environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start `python -m …` from the root of the repository."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log
    )


def start_api(
    environment: Mapping[str, str], *, port: int, log: IO[bytes], grace_seconds: int = 2
) -> subprocess.Popen[bytes]:
    """Start the API as `overread up` does; told to stop, it waits so long for requests under way."""
    arguments = ["uvicorn", "--factory", "api.app:serve", "--port", str(port)]
    return start([*arguments, "--timeout-graceful-shutdown", str(grace_seconds)], environment=environment, log=log)


def wait_for(url: str, *, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a GET of `url` answers 200; fail with the log where the process ends or takes too long."""

    def answers() -> bool:
        try:
            return httpx.get(url, timeout=10, verify=_TLS).status_code == 200
        except httpx.TransportError:
            return False

    until(answers, seconds=300, what=f"an answer of {url}", log=log, process=process)
