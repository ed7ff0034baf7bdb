"""The part of `overread verify` that needs the science and MLflow: dataset versions, and what MLflow shows.

Reads the record and the files, changes nothing, and prints a JSON object a line: {"done": …} while it goes on, then
{"check", "state", "detail"} for each finding, as `registry.verify` words them.

    OVERREAD_DATABASE_URL=… python -m workers.verify
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import psycopg

from pipelines import stored
from pipelines.data_repository import DatasetError, tag_of
from registry import datasets, db, erasures, lines
from registry.verify import Finding
from workers import drift
from workers.settings import SettingsError, WorkerSettings


def check_datasets(connection: db.Connection, settings: WorkerSettings) -> Finding:
    """Compare every dataset version with its tag, and every file of it with the digests of its manifest."""
    versions = [
        (line.name, version)
        for line in lines.list_lines(connection)
        for version in datasets.list_versions(connection, line.line_id)
    ]
    shelf = stored.Shelf(settings.data_repository, remote=settings.dvc_remote)
    for done, (line, version) in enumerate(versions, start=1):
        try:
            concerned = erasures.of_subject(
                connection, subject="dataset_version", subject_id=version.dataset_version_id
            )
            shelf.check(
                line=line,
                number=version.number,
                digest=version.digest,
                commit=version.git_commit,
                erased=bool(concerned),
            )
        except DatasetError as error:
            return Finding(check="dataset files", state="damaged", detail=f"{tag_of(line, version.number)}: {error}")
        _print({"done": f"{done} of {len(versions)} dataset versions"})
    detail = f"{len(versions)} versions, {shelf.files} files have their digests"
    return Finding(check="dataset files", state="fine", detail=detail)


def check_mlflow(connection: db.Connection, settings: WorkerSettings) -> Finding:
    """Compare MLflow's aliases with the champions of the record; skipped, with a word, where MLflow is away."""
    try:
        found = drift.differences(connection, settings)
    except drift.Unreachable as error:
        return Finding(check="MLflow", state="skipped", detail=f"it does not answer ({error}); nothing depends on it")
    if found:
        return Finding(check="MLflow", state="damaged", detail=f"{found[0]}; it is set right within a minute")
    return Finding(check="MLflow", state="fine", detail="its aliases name the champions of the record")


def main() -> int:
    """Check, print, and return 0 whatever was found; 2 where the settings do not tell what to check."""
    try:
        settings = WorkerSettings.from_environment()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        with db.connect(settings.database_url) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            for check in (check_datasets, check_mlflow):
                _print(asdict(check(connection, settings)))
    except psycopg.OperationalError as error:
        print(f"the database does not answer: {error}", file=sys.stderr)
        return 1
    return 0


def _print(row: dict[str, Any]) -> None:
    print(json.dumps(row, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    sys.exit(main())
