"""Dataset versions for reviewers: how many cases of what, from where, what is new, what waits, who said it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from api.auth import ANYONE
from api.console.frame import page
from api.console.route import pages_router, people
from api.dependencies import Id, Pool
from registry import candidates, datasets, db, erasures, lines, sealed_tests
from registry.datasets import DatasetVersion
from registry.findings import are_several
from registry.sealed_tests import Use

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
        tables=[
            (words, _grown(version, before, name), _cases(version, name))
            for name, words in _TABLES.items()
            if _table(version, name)
        ],
        made=made,
        erased=erased,
        quality=next((one.metadata["data_quality"] for one in made if one.metadata.get("data_quality")), None),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wallet:
    """How a wallet of the newest epoch stands; `first` and `left` are None where the protocol says nothing of wear."""

    wallet: str
    epoch: int
    uses: int
    passed: int
    first: float | None
    left: float | None


@router.get("/lines/{line}/sealed-test", **people(*ANYONE))
def show_sealed_test(request: Request, pool: Pool, line: str) -> Response:
    """Show the ledger of a line's sealed test, newest use first, and what is left in its wallets."""
    with db.transaction(pool) as connection:
        line_id = lines.get_line(connection, line).line_id
        uses = sealed_tests.list_uses(connection, line_id)
        numbers = {one.candidate_id: one.number for one in candidates.list_candidates(connection, line_id)}
    newest = [use for use in uses if use.epoch == uses[-1].epoch]
    wallets = [
        _wallet([use for use in newest if use.wallet == name]) for name in sorted({use.wallet for use in newest})
    ]
    return page(request, "sealed_test.html", line=line, uses=uses[::-1], numbers=numbers, wallets=wallets)


def _wallet(uses: Sequence[Use]) -> Wallet:
    last = uses[-1]
    return Wallet(
        wallet=last.wallet,
        epoch=last.epoch,
        uses=len(uses),
        passed=sum(use.passed is True for use in uses),
        first=max((use.wallet_before for use in uses if use.wallet_before is not None), default=None),
        left=last.wallet_before if last.passed else last.wallet_after,  # who passes hands their level on
    )


_TABLES = {"counts": "By split and finding", "sites": "By site and split"}


def _table(version: DatasetVersion | None, name: str) -> Mapping[str, Mapping[str, int]]:
    found: Any = version.manifest.get(name) if version else None
    return found if isinstance(found, Mapping) else {}


def _cases(version: DatasetVersion, name: str) -> dict[str, int]:
    """The cases of each row; of several findings each is counted once for every one of them, with it or without."""
    each = are_several(version.manifest) and name == "counts"
    return {
        outer: sum(row.values()) // (max(1, len(row) // 2) if each else 1)
        for outer, row in _table(version, name).items()
    }


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
