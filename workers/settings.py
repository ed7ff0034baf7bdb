"""What the workers are told from outside: read once from the environment, then passed down.

Invariant: no other module of this package reads the environment. `docs/operating.md` lists every variable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class SettingsError(ValueError):
    """A setting is missing or cannot be read; the message names it and says what to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Settings of Celery's worker and beat, the relay and the inference process; its repr shows no secret."""

    home: Path
    database_url: str = field(repr=False)
    broker_url: str = field(repr=False)
    mlflow_url: str
    dvc_remote: str
    blob_root: Path
    inference_host: str
    inference_port: int
    inference_token: str = field(repr=False)
    """Shared with the API; the inference process refuses to start without it."""
    lease_seconds: float
    """How long a job may be silent before another worker takes it."""
    heartbeat_seconds: float
    resend_seconds: float
    """How long a sent job may wait to be claimed before it is sent again."""
    trigger_seconds: float
    """How often the schedule asks whether a line is due to learn."""
    worker_concurrency: int
    mirror_niceness: int
    """By how much showing a candidate in MLflow stands back for gates and predictions (`nice`, 0 to 19)."""
    checkpoints: Path
    """Folder of the signed checkpoints of the audit trail."""
    checkpoint_key: Path
    """File of the key that signs them; made at the first start."""
    checkpoint_seconds: float
    """How often one is signed, if anything was written since."""
    pulse_file: Path | None = None
    """Touched each second for whoever supervises this process."""

    @property
    def jobs(self) -> Path:
        """Folder of job directories; one is kept across the attempts at a job, so that training resumes."""
        return self.home / "jobs"

    @property
    def checkouts(self) -> Path:
        """Folder of dataset versions, materialised read-only."""
        return self.home / "checkouts"

    @property
    def data_repository(self) -> Path:
        """The service's own git and DVC repository of dataset versions."""
        return self.home / "data-repository"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> WorkerSettings:
        """Read the OVERREAD_ variables. Raises SettingsError naming the one at fault."""
        given = os.environ if environment is None else environment
        home = Path(given.get("OVERREAD_HOME") or Path.home() / ".overread").expanduser().absolute()
        database_url = _required(given, "OVERREAD_DATABASE_URL", example="postgresql://user@127.0.0.1:5432/overread")
        settings = cls(
            home=home,
            database_url=database_url,
            broker_url=given.get("OVERREAD_BROKER_URL") or _broker_in(database_url),
            mlflow_url=given.get("OVERREAD_MLFLOW_URL") or "http://127.0.0.1:5000",
            dvc_remote=given.get("OVERREAD_DVC_REMOTE") or str(home / "dvc-remote"),
            blob_root=Path(given.get("OVERREAD_BLOB_ROOT") or home / "blobs"),
            inference_host=given.get("OVERREAD_INFERENCE_HOST") or "127.0.0.1",
            inference_port=int(_number(given, "OVERREAD_INFERENCE_PORT", default=8090, least=1)),
            inference_token=given.get("OVERREAD_INFERENCE_TOKEN") or "",
            lease_seconds=_number(given, "OVERREAD_LEASE_SECONDS", default=15, least=1),
            heartbeat_seconds=_number(given, "OVERREAD_HEARTBEAT_SECONDS", default=3, least=0.1),
            resend_seconds=_number(given, "OVERREAD_RESEND_SECONDS", default=20, least=1),
            trigger_seconds=_number(given, "OVERREAD_TRIGGER_SECONDS", default=5, least=0.1),
            worker_concurrency=int(_number(given, "OVERREAD_WORKER_CONCURRENCY", default=4, least=1)),
            mirror_niceness=min(19, int(_number(given, "OVERREAD_MIRROR_NICENESS", default=10, least=0))),
            checkpoints=Path(given.get("OVERREAD_CHECKPOINTS") or home / "checkpoints").expanduser(),
            checkpoint_key=Path(given.get("OVERREAD_CHECKPOINT_KEY") or home / "checkpoint.key").expanduser(),
            checkpoint_seconds=_number(given, "OVERREAD_CHECKPOINT_SECONDS", default=60, least=0.1),
            pulse_file=Path(given["OVERREAD_PULSE_FILE"]) if given.get("OVERREAD_PULSE_FILE") else None,
        )
        if settings.heartbeat_seconds * 2 > settings.lease_seconds:
            raise SettingsError("OVERREAD_HEARTBEAT_SECONDS must be at most half of OVERREAD_LEASE_SECONDS")
        return settings


def _required(given: Mapping[str, str], name: str, *, example: str) -> str:
    value = given.get(name)
    if not value:
        raise SettingsError(f"{name} is not set; write for example {name}={example}")
    return value


def _number(given: Mapping[str, str], name: str, *, default: float, least: float) -> float:
    text = given.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(f"{name}={text!r} is not a number") from None
    if not least <= value < float("inf"):
        raise SettingsError(f"{name}={text} must be a number of at least {least:g}")
    return value


def _broker_in(database_url: str) -> str:
    # The record's own database carries the nudges where nothing else is named: one service less to run.
    return "sqla+postgresql+psycopg://" + database_url.partition("://")[2]
