"""Dataset versions for reviewers: how many cases of what, from where, what is new, what waits, who said it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response

from api.auth import ANYONE
from api.console.frame import page
from api.console.route import pages_router, people
from api.dependencies import Id, Pool
from registry import candidates, datasets, db, erasures, lines
from registry.datasets import DatasetVersion

router = pages_router()


@router.get("/lines/{line}/datasets", **people(*ANYONE))
def show_versions(request: Request, pool: Pool, line: str) -> Response:
    """List a line's dataset versions, newest first."""
    with db.transaction(pool) as connection:
        found = datasets.list_versions(connection, lines.get_line(connection, line).line_id)
    return page(request, "datasets.html", line=line, found=found)


@router.get("/dataset-versions/{dataset_version_id}", **people(*ANYONE))
def show_version(request: Request, pool: Pool, dataset_version_id: Id) -> Response:
    """Show one dataset version, and how it differs from the one before."""
    with db.transaction(pool) as connection:
        version = datasets.get(connection, dataset_version_id)
        before = datasets.before(connection, version)
        made = candidates.of_dataset(connection, dataset_version_id)
        erased = erasures.of_subject(connection, subject="dataset_version", subject_id=dataset_version_id)
        line = lines.line_by_id(connection, version.line_id).name
    return page(
        request,
        "dataset.html",
        line=line,
        version=version,
        before=before,
        tables=[(words, _grown(version, before, name)) for name, words in _TABLES.items() if _table(version, name)],
        made=made,
        erased=erased,
        quality=next((one.metadata["data_quality"] for one in made if one.metadata.get("data_quality")), None),
    )


_TABLES = {"counts": "By split and finding", "sites": "By site and split"}


def _table(version: DatasetVersion | None, name: str) -> Mapping[str, Mapping[str, int]]:
    found: Any = version.manifest.get(name) if version else None
    return found if isinstance(found, Mapping) else {}


def _grown(
    version: DatasetVersion, before: DatasetVersion | None, name: str
) -> dict[str, dict[str, tuple[int, int | None]]]:
    """Each count, and how much it grew since the version before, None where there is none."""
    now, then = _table(version, name), _table(before, name)
    return {
        outer: {
            inner: (count, count - then.get(outer, {}).get(inner, 0) if before else None)
            for inner, count in row.items()
        }
        for outer, row in now.items()
    }
