"""A whole outbox on each kind of broker: the record, an API, a relay and two workers, as processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from registry import db, users
from tests import factories
from tests.api.service import ROOT, free_port, start_api, wait_for
from tests.brokers.servers import BROKERS, KIND, Broker, Missing
from tests.conftest import as_superuser
from tests.waiting import until
from workers.settings import WorkerSettings

READ = {"finding": "pneumonia", "evidence": "single_read", "ai_exposure": "blind", "reader": "radiologist-17"}


@dataclass(kw_only=True)
class System:
    """One running outbox, and what a test asks of it."""

    broker: Broker
    database_url: str
    environment: dict[str, str]
    url: str
    key: str
    log: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def settings(self) -> WorkerSettings:
        """Settings of the relay and the workers."""
        return WorkerSettings.from_environment(self.environment)

    def ask(self, count: int) -> list[int]:
        """Commit this many jobs; return their ids."""
        with db.connect(self.database_url) as connection:
            rows = [
                connection.execute("INSERT INTO jobs (kind) VALUES (%s) RETURNING job_id", (KIND,)).fetchone()
                for _ in range(count)
            ]
            connection.commit()
        return [row[0] for row in rows if row is not None]

    def done(self, job_ids: list[int]) -> list[tuple[int, int, int]]:
        """Of these jobs those that were worked on: id, how often, and at which attempt it succeeded."""
        with db.connect(self.database_url) as connection:
            return connection.execute(
                "SELECT job_id, count(*), max(attempts) FROM notes JOIN jobs USING (job_id)"
                " WHERE job_id = ANY(%s) AND state = 'succeeded' GROUP BY job_id ORDER BY job_id",
                (job_ids,),
            ).fetchall()

    def wait_for_all(self, job_ids: list[int]) -> float:
        """Return after how many seconds every one of these jobs was done; fail with the log where they are not."""
        return until(lambda: len(self.done(job_ids)) == len(job_ids), what="the end of every job", log=self.log)

    @contextlib.contextmanager
    def confirmations(self, *, seconds: float) -> Iterator[list[int]]:
        """Two clients that confirm during the block, as long as the cases for `seconds` last; yields every status."""
        statuses: list[int] = []
        stopping = threading.Event()
        with db.connect(self.database_url) as connection:
            line, sender = factories.line(connection), factories.user(connection, "submitter")
            count = int(40 * seconds)
            cases = iter([factories.case(connection, line, actor=sender).case_id for _ in range(count)])
            connection.commit()
        turn = threading.Lock()

        def confirm() -> None:
            with httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60) as client:
                while not stopping.wait(0.05):
                    with turn:
                        case = next(cases, None)
                    if case is None:
                        return
                    key = {"Idempotency-Key": str(uuid4())}
                    answer = client.post(f"/v1/cases/{case}/confirmations", json=READ, headers=key)
                    statuses.append(answer.status_code)

        with ThreadPoolExecutor(2) as pool:
            clients = [pool.submit(confirm) for _ in range(2)]
            try:
                yield statuses
            finally:
                stopping.set()
            for client in clients:
                client.result()


@pytest.fixture(scope="module", params=BROKERS)
def system(request: pytest.FixtureRequest, module_database: str) -> Iterator[System]:
    """Everything up on one kind of broker, shared by the tests of the module, which leave it well."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="ovr-broker-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            broker = BROKERS[request.param](folder)
        except Missing as missing:
            pytest.skip(str(missing))
        stack.callback(broker.close)
        broker.start()
        with db.connect(as_superuser(module_database)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS notes (job_id bigint)")
            connection.execute("GRANT INSERT, SELECT ON notes TO overread_app")
            connection.commit()
        with db.connect(module_database) as connection:
            person = users.create_user(connection, name=f"submitter-{uuid4()}", printed_name="S", roles=["submitter"])
            key = users.create_api_key(connection, user_id=person.user_id)
            connection.commit()
        environment = {
            "OVERREAD_HOME": str(folder / "home"),
            "OVERREAD_DATABASE_URL": module_database,
            "OVERREAD_BROKER_URL": broker.url,
            "OVERREAD_INFERENCE_TOKEN": "for-tests-only",
            "OVERREAD_PATIENT_KEY": "ab" * 32,
            "OVERREAD_LEASE_SECONDS": "30",  # no worker dies here, and one that is only slow keeps its job
            "OVERREAD_HEARTBEAT_SECONDS": "0.5",
            "OVERREAD_RESEND_SECONDS": "2",
        }
        log, port = folder / "processes.log", free_port()
        stream = stack.enter_context(log.open("ab"))

        def begin(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
                stdout=stream,
                stderr=stream,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        worker = ("tests.brokers.worker", "worker", "--loglevel", "INFO", "--concurrency", "2")
        made = System(
            broker=broker,
            database_url=module_database,
            environment=environment,
            url=f"http://127.0.0.1:{port}",
            key=key,
            log=log,
            workers=[begin(*worker, "--hostname", f"{name}@%h") for name in ("one", "two")],
        )
        begin("workers.relay")
        api = start_api(environment, port=port, log=stream)
        stack.callback(api.wait)
        stack.callback(api.kill)
        wait_for(f"{made.url}/health/live", process=api, log=log)
        until(lambda: log.read_text(errors="replace").count(" ready.") >= 2, what="two workers", log=log)
        yield made
