"""The champions in use: which is to be looked at again, and what a look goes by.

Invariant: the clock only asks, in one transaction; at most one look at a line's champion is unfinished, however many
ask. A look goes by what was on record when it began, under the protocol in force.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.job import write_atomically
from registry import confirmations, datasets, db, lines, promotions, watches
from workers.lease import Workshop
from workers.settings import WorkerSettings
from workers.translate import aliases, model_files

TASK = "workers.watch_due_champions"

log = logging.getLogger(__name__)


def watch_due_champions(workshop: Workshop) -> None:
    """Ask for a look at every champion that its protocol has watched and that it is time for."""
    with workshop.transaction() as connection:
        asked = [
            (line, champion, watches.ask(
                connection, line_id=line.line_id, candidate_id=champion.candidate_id, protocol_id=protocol_id
            ))
            for line, champion, protocol_id in watches.due(connection)
        ]  # fmt: skip
    for line, champion, job_id in asked:
        if job_id is not None:
            log.info("line %s: job %s looks at the champion, candidate %s", line.name, job_id, champion.number)


def watch_config(
    connection: db.Connection, *, line_id: int, directory: Path, settings: WorkerSettings
) -> dict[str, Any] | None:
    """Say what a look at a line's champion goes by, and put the cases beside it; None where nobody is to be watched."""
    line, protocol = lines.line_by_id(connection, line_id), lines.current_protocol(connection, line_id)
    rule, champion = protocol.document.get("monitoring"), promotions.champion(connection, line_id)
    if champion is None or rule is None:
        return None
    by_lot = rule["sample"] == "blind_fraction"
    sample = watches.sample(
        connection,
        line=line,
        after_confirmation_id=datasets.get(connection, champion.dataset_version_id).last_confirmation_id,
        maturity_days=rule["maturity_days"],
        blind_fraction=protocol.document["blind_fraction"] if by_lot else None,
        up_to=confirmations.last_id(connection, line_id),
    )
    promised = watches.promised(connection, champion)
    path = directory / "sample.ndjson"
    write_atomically(path, "".join(json.dumps(asdict(case), allow_nan=False) + "\n" for case in sample).encode())
    return {
        "line_id": line_id,
        "candidate_id": champion.candidate_id,
        "protocol_id": protocol.protocol_id,
        "protocol": protocol.document,
        "champion": model_files(champion, settings=settings),
        "challenger": _challenger(connection, line_id=line_id, settings=settings),
        "sealed": None if promised is None else asdict(promised),
        "sample": str(path),
        "blobs": str(settings.blob_root),
    }


def _challenger(connection: db.Connection, *, line_id: int, settings: WorkerSettings) -> dict[str, Any] | None:
    """The newest candidate that passed its gates, with up to which confirmation it may have learned; None: nobody."""
    found = aliases(connection, line_id=line_id).challenger
    if found is None:
        return None
    version = datasets.get(connection, found.dataset_version_id)
    named = {"candidate_id": found.candidate_id, "last_confirmation_id": version.last_confirmation_id}
    return model_files(found, settings=settings) | named
