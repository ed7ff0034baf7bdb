"""What `overread doctor` examines: one service, as its home, its stack file and the settings tell of it.

Invariant: looking changes nothing, and what does not answer is a finding and no crash.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from api.cli.errors import CliError
from api.cli.home import Home, StackFile, read_secrets, read_stack_file

if TYPE_CHECKING:
    from psycopg import Connection

LOOPBACK_NAMES = {"127.0.0.1", "::1", "localhost"}


class Wrong(Exception):
    """A check failed; `fix` says what to do."""

    def __init__(self, detail: str, *, fix: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fix = fix


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    name: str
    good: bool
    detail: str
    fix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """What is examined: a home, what its stack file says, and the settings in force."""

    home: Home
    stack: StackFile | None
    settings: Mapping[str, str]


def patient_of(home: Home) -> Patient:
    stack = read_stack_file(home)
    settings = {
        "OVERREAD_API_URL": "http://127.0.0.1:8080",
        "OVERREAD_INFERENCE_URL": "http://127.0.0.1:8090",
        "OVERREAD_MLFLOW_URL": "http://127.0.0.1:5000",
    }
    try:
        settings |= read_secrets(home)
    except CliError as error:
        settings["unreadable"] = error.message
    if stack is not None:
        named = {"API": stack.api_url, "INFERENCE": stack.inference_url, "MLFLOW": stack.mlflow_url}
        named |= {"DATABASE": stack.database_url or "", "BROKER": stack.broker_url or ""}
        settings |= {f"OVERREAD_{name}_URL": url for name, url in named.items() if url}
    settings |= {name: value for name, value in os.environ.items() if name.startswith("OVERREAD_") and value}
    return Patient(home=home, stack=stack, settings=settings)


def record_of(patient: Patient) -> Connection[Any]:
    import psycopg  # noqa: PLC0415 - `overread --help` must be quick

    from registry import db  # noqa: PLC0415

    url = patient.settings.get("OVERREAD_DATABASE_URL")
    if not url:
        raise Wrong("not known", fix="start the service with `overread up`, or set OVERREAD_DATABASE_URL")
    try:
        return db.connect(url)
    except psycopg.OperationalError as error:
        raise Wrong(
            last_line(error),
            fix=f"is PostgreSQL started, and OVERREAD_DATABASE_URL right? See {patient.home.logs}/postgres.log",
        ) from error


def ask(url: str, *, fix: str) -> tuple[int, dict[str, Any]]:
    import httpx  # noqa: PLC0415 - `overread --help` must be quick

    try:
        response = httpx.get(url, timeout=5, trust_env=urlsplit(url).hostname not in LOOPBACK_NAMES)
    except httpx.TransportError as error:
        raise Wrong(f"nobody answers at {url} ({type(error).__name__})", fix=fix) from error
    try:
        body = response.json()
    except ValueError:
        body = {}
    return response.status_code, body if isinstance(body, dict) else {}


def last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
