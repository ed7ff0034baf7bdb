"""Dataset versions: what a line's models were made from and measured on, frozen and DVC-tagged."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from api.auth import ANYONE, allow, guarded_router
from api.dependencies import Id, Pool
from api.v1 import examples
from api.v1.views import Digest, View, shown_as
from registry import datasets, db, erasures, lines

router = guarded_router(tag="Dataset versions")


class DatasetVersionView(View):
    """A frozen set of cases with their reference standard, split by patient."""

    model_config = shown_as(examples.DATASET_VERSION)

    dataset_version_id: int
    number: int = Field(description="Its number within the line")
    protocol_id: int = Field(description="The protocol it was frozen under")
    digest: Digest
    git_tag: str = Field(description="Reproduce it with `dvc get <data repository> <path> --rev <tag>`")
    git_commit: str
    manifest: dict[str, Any] = Field(description="Counts per split and finding, and the digests of the files")
    submitter_shares: dict[str, float] = Field(description="Share of the new labels by submitter")
    waiting: dict[str, int] = Field(description="Confirmed cases that did not enter, by reason")
    last_confirmation_id: int = Field(description="Every confirmation up to this one was considered")
    erasures: list[int] = Field(
        description="Erasures of patients whom it considered; if it held one, its files are gone"
    )
    created_at: datetime


@router.get(
    "/lines/{line}/dataset-versions", summary="List dataset versions", **allow(*ANYONE, problems=("not-found",))
)
def list_dataset_versions(pool: Pool, line: str) -> list[DatasetVersionView]:
    """List a line's dataset versions, newest first."""
    with db.transaction(pool) as connection:
        rows = datasets.list_versions(connection, lines.get_line(connection, line).line_id)
        return [_view(connection, row) for row in rows]


@router.get(
    "/dataset-versions/{dataset_version_id}",
    summary="Read a dataset version",
    **allow(*ANYONE, problems=("not-found",)),
)
def read_dataset_version(pool: Pool, dataset_version_id: Id) -> DatasetVersionView:
    """Read one dataset version with its manifest."""
    with db.transaction(pool) as connection:
        return _view(connection, datasets.get(connection, dataset_version_id))


def _view(connection: db.Connection, version: datasets.DatasetVersion) -> DatasetVersionView:
    erased = erasures.of_subject(connection, subject="dataset_version", subject_id=version.dataset_version_id)
    return DatasetVersionView.model_validate(
        {**{name: getattr(version, name) for name in version.__slots__}, "erasures": erased}
    )
