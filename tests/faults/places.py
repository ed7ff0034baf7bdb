"""Where a scenario happens, and what one consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.db import Connection
from workers.settings import WorkerSettings

Place = dict[str, Any]
"""`database_url`, `home`, `inference_url`, and what `prepare` adds; plain JSON values, for a child gets them."""

TOKEN = "for-tests-only"
READ = {"finding": "pneumonia", "evidence": "single_read", "ai_exposure": "blind", "reader": "radiologist-17"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One piece of the service's life."""

    prepare: Callable[[Connection, Place], Place]
    act: Callable[[Place], Any]
    check: Callable[[Connection, Place, Any], None]
    """Looks at the record, the place, and what the last, unharmed child was told."""
    subjects: tuple[str, ...]
    """Every fault point of these subjects is on its way, and it is killed there; others may be too."""


def blob_root(place: Place) -> Path:
    """Where a place keeps its files."""
    return Path(place["home"]) / "blobs"


def worker_settings(place: Place) -> WorkerSettings:
    """Settings of a worker that beats once at the beginning and once at the end of each piece of science."""
    given = {
        "OVERREAD_HOME": place["home"],
        "OVERREAD_DATABASE_URL": place["database_url"],
        "OVERREAD_BROKER_URL": "sqla+postgresql+psycopg://" + place["empty_url"].partition("://")[2],
        "OVERREAD_MLFLOW_URL": "http://127.0.0.1:9",
        "OVERREAD_INFERENCE_TOKEN": TOKEN,
    }
    made = WorkerSettings.from_environment(given)
    return dataclasses.replace(made, lease_seconds=60.0, heartbeat_seconds=600.0, resend_seconds=1.0)
