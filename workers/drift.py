"""Does MLflow still show what it was told? Finds an alias that was moved behind our back, and has it set right.

Invariant: what serves never comes from MLflow, so a moved alias moves nothing but what people see there. It is written
into the audit trail once, in the transaction that asks for the repair. An alias that nobody moved, for MLflow was told
of a new challenger only with the next promotion or missed it, is brought up to date without an event.

Asks MLflow's REST API itself: the client would take seconds and a hundred megabytes to import, three times a minute.

Reference: MLflow 3 REST API, `registered-models/get`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from registry import audit, db, jobs, lines
from workers import translate
from workers.lease import Workshop
from workers.settings import WorkerSettings

TASK = "workers.check_mirror"
PAUSE_SECONDS = 10.0
"""Between two looks, so that a moved alias is found within a minute even where some ticks are lost."""
MLFLOW_SECONDS = 5.0
ACTION = "mirror:drift"

log = logging.getLogger(__name__)


class Unreachable(Exception):
    """MLflow cannot be asked; the message says how it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Aliases of a line as MLflow shows them and as it ought to, by name; None: nothing."""

    line: lines.Line
    found: Mapping[str, str | None]
    wanted: Mapping[str, str | None]
    was_told: bool
    """The last attempt to tell MLflow of a promotion succeeded."""

    @property
    def was_moved(self) -> bool:
        """Somebody else moved what differs: MLflow was told of this champion and of the one before."""
        return self.was_told and any(self.found[alias] != self.wanted[alias] for alias in ("champion", "previous"))

    def __str__(self) -> str:
        return "; ".join(
            f"alias {alias} of {self.line.name} names version {self.found[alias] or 'none'}, not {version or 'none'}"
            for alias, version in self.wanted.items()
            if self.found[alias] != version
        )


def check_mirror(workshop: Workshop) -> None:
    """Set right every line whose aliases differ from the record; audit those that somebody moved."""
    try:
        with workshop.transaction() as connection:
            found = differences(connection, workshop.settings)
    except Unreachable as error:
        log.debug("MLflow cannot be asked for its aliases: %s", error)
        return
    for drift in found:
        with workshop.transaction() as connection:
            db.lock_line(connection, drift.line.line_id)
            if _wanted(connection, drift.line, settings=workshop.settings) != (drift.wanted, drift.was_told):
                continue  # a promotion came meanwhile, or another tick: MLflow is being told
            job_id = jobs.enqueue(
                connection,
                kind="mirror_promotion",
                line_id=drift.line.line_id,
                payload={},
                unique_key=f"mirror_promotion:drift:{drift.line.line_id}",
            )
            if drift.was_moved:
                audit.record(
                    connection,
                    actor=audit.SYSTEM,
                    action=ACTION,
                    subject=f"line/{drift.line.line_id}",
                    details={"found": dict(drift.found), "wanted": dict(drift.wanted)},
                )
        log.warning("%s: set right by job %s", drift, job_id)


def differences(connection: db.Connection, settings: WorkerSettings) -> list[Drift]:
    """Lines whose aliases in MLflow differ from the record and that no job is about to set. Raises Unreachable."""
    drifts = []
    for line in lines.list_lines(connection):
        expected = _wanted(connection, line, settings=settings)
        if expected is None:
            continue
        wanted, was_told = expected
        shown = _shown(settings.mlflow_url, line.name)
        found = {alias: shown.get(alias) for alias in wanted}
        if found != wanted:
            drifts.append(Drift(line=line, found=found, wanted=wanted, was_told=was_told))
    return drifts


def _wanted(
    connection: db.Connection, line: lines.Line, *, settings: WorkerSettings
) -> tuple[dict[str, str | None], bool] | None:
    """Version by alias, and whether MLflow was told; None where it is being told, or has nothing to show yet."""
    expected = translate.aliases(connection, line_id=line.line_id)
    if not expected.named() or any(candidate.mlflow_model_version is None for candidate in expected.named()):
        return None
    last = connection.execute(
        "SELECT state FROM jobs WHERE line_id = %s AND kind IN ('mirror_promotion', 'mirror_candidate')"
        " ORDER BY state IN ('queued', 'running') DESC, kind = 'mirror_promotion' DESC, job_id DESC LIMIT 1",
        (line.line_id,),
    ).fetchone()
    if last is not None and last[0] in {"queued", "running"}:
        return None
    versions = translate.aliases_config(expected, settings=settings)
    wanted = {alias: versions[alias] for alias in ("champion", "previous", "challenger")}
    return wanted, last is not None and last[0] == "succeeded"


def _shown(url: str, line: str) -> dict[str, str]:
    """Alias -> version as MLflow shows them now; empty for a model it does not know. Raises Unreachable."""
    local = urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    try:
        response = httpx.get(
            f"{url.rstrip('/')}/api/2.0/mlflow/registered-models/get",
            params={"name": line},
            auth=(user, password or "") if user else None,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            timeout=MLFLOW_SECONDS,
            trust_env=not local,  # loopback never goes through a proxy
        )
        document: dict[str, Any] = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error
    if response.status_code == httpx.codes.NOT_FOUND and document.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
        return {}
    if response.is_error:
        raise Unreachable(f"it answered {response.status_code}")
    listed = document["registered_model"].get("aliases") or []
    return {item["alias"]: str(item["version"]) for item in listed}
