"""Between the record and the science: rows become the configurations of jobs, results become the values of rows.

Invariant: the two meet here and nowhere else. What is read from the record is read in the caller's transaction, and a
configuration names everything by path and digest, so that the process that gets it needs no database.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from pipelines.arms import Shares
from pipelines.job import replacing, write_atomically
from pipelines.types import AiExposure, CaseId, Confirmation, ConfirmedCase, Digest, Evidence, digest_of
from pipelines.worklist import DEFAULT
from registry import (
    blobs,
    candidates,
    confirmations,
    datasets,
    db,
    erasures,
    lines,
    promotions,
    runs,
    sealed_tests,
    worklists,
)
from workers.settings import WorkerSettings

DATASET_DIGEST_LENGTH = 36
"""What MLflow allows a dataset's digest; the whole one is among the tags."""

LARGEST_POOL = 100_000
"""Cases that one ranking looks at; of more that wait, the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aliases:
    """Who MLflow's aliases of a line's model ought to name; None: nobody."""

    line: str
    champion: candidates.Candidate | None
    previous: candidates.Candidate | None
    challenger: candidates.Candidate | None

    def named(self) -> list[candidates.Candidate]:
        """Return each candidate that has an alias."""
        return [found for found in (self.champion, self.previous, self.challenger) if found is not None]


def confirmed_cases(rows: Iterable[confirmations.StandingConfirmation]) -> Iterator[ConfirmedCase]:
    """Gather standing rows, in order of case, into the cases they are of."""
    for case_id, group in groupby(rows, key=lambda row: row.case_id):
        said = list(group)
        yield ConfirmedCase(
            case_id=CaseId(case_id),
            image_digest=Digest(said[0].image_digest),
            patient=said[0].patient,
            site=said[0].site,
            scanner=said[0].scanner,
            sex=said[0].sex,
            age_band=said[0].age_band,
            spacing_mm=_spacing(said[0].attributes),
            confirmations=tuple(
                Confirmation(
                    confirmation_id=row.confirmation_id,
                    kind=row.kind,
                    finding=row.finding,
                    evidence=cast(Evidence, row.evidence),
                    ai_exposure=cast(AiExposure, row.ai_exposure),
                    submitter=row.submitter,
                    reader=row.reader,
                    confirmed_on=row.confirmed_on,
                    reason=row.reason,
                )
                for row in said
            ),
        )


def _spacing(attributes: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Distance of rows and of columns, from what DICOM calls PixelSpacing or, of a projection, ImagerPixelSpacing.

    Of a volume that of its slices comes first, from SpacingBetweenSlices or else SliceThickness.
    """
    along = attributes.get("SpacingBetweenSlices_mm") or attributes.get("SliceThickness_mm")
    volume = int(attributes.get("NumberOfFrames") or 1) > 1
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        sides = [attributes.get(f"{keyword}{side}_mm") for side in ("Rows", "Columns")]
        if volume:
            sides = [along, *sides]
        if None not in sides:
            return tuple(float(side) for side in sides)  # type: ignore[arg-type] # none is None
    return None


def freeze_config(
    connection: db.Connection, *, run_id: int, directory: Path, settings: WorkerSettings
) -> dict[str, Any]:
    """Say what a run's freeze has to do, and put its cases beside it.

    These are the cases of which something new was said since the version before; all of them where there is none, or
    where the protocol asks for other answers or other splits than it did then.
    """
    run = runs.get(connection, run_id)
    line = lines.line_by_id(connection, run.line_id)
    protocol = lines.protocol(connection, run.protocol_id).document
    previous = datasets.latest(connection, run.line_id)
    whole = previous is None or any(
        lines.protocol(connection, previous.protocol_id).document[section] != protocol[section]
        for section in ("reference_standard", "splits", "classes")
    )
    after = 0 if whole or previous is None else previous.last_confirmation_id
    up_to = confirmations.last_id(connection, run.line_id)
    standing = confirmations.standing_for_line(connection, line_id=run.line_id, up_to=up_to, after=after)
    cases = directory / "cases.ndjson"
    with replacing(cases) as temporary, temporary.open("w", encoding="utf-8") as rows:
        rows.writelines(json.dumps(asdict(case), allow_nan=False) + "\n" for case in confirmed_cases(standing))
    return {
        "kind": "freeze",
        "repository": str(settings.data_repository),
        "remote": settings.dvc_remote,
        "line": line.name,
        "number": previous.number + 1 if previous else 1,
        "previous": previous.number if previous else None,
        "protocol": protocol,
        "split_key": line.split_key.hex(),
        "cases": str(cases),
        "whole": whole,
        "gone": erasures.erased_cases(connection, line_id=run.line_id),
        "last_confirmation_id": up_to,
        "blobs": str(settings.blob_root),
    }


def version_row(run: runs.Run, *, result: dict[str, Any]) -> dict[str, Any]:
    """Name the values of `datasets.record_version` for what a freeze made.

    What was considered is said by the version itself: it may have been published by a run that did not live to tell.
    """
    kept = ("number", "digest", "git_tag", "git_commit", "manifest", "submitter_shares")
    return {
        **{name: result[name] for name in kept},
        "line_id": run.line_id,
        "protocol_id": run.protocol_id,
        "waiting": result["manifest"]["waiting"],
        "last_confirmation_id": result["manifest"]["last_confirmation_id"],
    }


def check_out_config(
    connection: db.Connection, *, version: datasets.DatasetVersion, settings: WorkerSettings
) -> dict[str, Any]:
    """Say which dataset version's files are needed here."""
    return {
        "errand": "check_out",
        "repository": str(settings.data_repository),
        "line": lines.line_by_id(connection, version.line_id).name,
        "number": version.number,
        "digest": version.digest,
        "git_tag": version.git_tag,
        "into": str(settings.checkouts),
    }


def checked_out(config: dict[str, Any]) -> Path | None:
    """Return where a dataset version's files are if they are here already, None if they have to be fetched."""
    path = Path(config["into"]) / config["git_tag"]
    manifest = path / "manifest.json"
    found = manifest.exists() and digest_of(json.loads(manifest.read_text(encoding="utf-8"))) == config["digest"]
    return path if found else None


def erase_config(
    connection: db.Connection, *, erasure_id: int, line_id: int, settings: WorkerSettings
) -> dict[str, Any]:
    """Say which cases have to go from a line's dataset versions."""
    found = erasures.concerned(connection, erasure_id)
    return {
        "repository": str(settings.data_repository),
        "remote": settings.dvc_remote,
        "line": lines.line_by_id(connection, line_id).name,
        "cases": [item.subject_id for item in found if (item.subject, item.line_id) == ("case", line_id)],
        "recorded": [version.number for version in datasets.list_versions(connection, line_id)],
    }


def copies_of_erased(
    connection: db.Connection, *, erasure_id: int, line_id: int, settings: WorkerSettings
) -> list[Path]:
    """Name where erased cases of a line may lie besides the data repository: checkouts, and what ended runs left."""
    concerned = {item.subject_id for item in erasures.concerned(connection, erasure_id) if "version" in item.subject}
    versions = [one for one in datasets.list_versions(connection, line_id) if one.dataset_version_id in concerned]
    ended = {run.run_id for run in runs.list_runs(connection, line_id, limit=100_000) if run.finished_at is not None}
    gated = [made.candidate_id for made in candidates.list_candidates(connection, line_id) if made.run_id in ended]
    return [
        *(settings.checkouts / version.git_tag for version in versions),
        *(settings.checkouts / version.git_tag.rpartition("/")[0] / "prepared" for version in versions),
        *(settings.jobs / f"{kind}-{run_id}" for kind in ("freeze_dataset", "train_candidate") for run_id in ended),
        *(
            settings.jobs / f"{kind}-{candidate_id}"
            for kind in ("gate_candidate", "data_gates")
            for candidate_id in gated
        ),
        settings.jobs / f"rank_worklist-{line_id}",
        settings.jobs / f"watch_champion-{line_id}",
    ]


def train_config(connection: db.Connection, *, run: runs.Run, settings: WorkerSettings) -> dict[str, Any]:
    """Say what a run's training has to do; with `dataset` and `previous_dataset` it is whole."""
    base = None
    if run.base_candidate_id is not None:
        candidate = candidates.get(connection, run.base_candidate_id)
        base = {
            **model_files(candidate, settings=settings),
            "architecture": candidate.metadata["architecture"],
            "state": {
                name: {"path": str(blobs.path_of(settings.blob_root, digest)), "digest": digest}
                for name, digest in candidate.metadata.get("state", {}).items()
            },
            "dataset_number": datasets.get(connection, candidate.dataset_version_id).number,
        }
    champion = promotions.champion(connection, run.line_id)
    document = lines.protocol(connection, run.protocol_id).document
    return {
        "protocol": document,
        "strategy": run.strategy,
        "seed": run.seed,
        "base": base,
        "beside": model_files(champion, settings=settings) if champion else None,
        "threads": document["recipe"]["threads"],
        "weights_folder": str(settings.home / "weights"),
    }


def gate_config(
    connection: db.Connection,
    *,
    candidate: candidates.Candidate,
    champion: candidates.Candidate | None,
    use: sealed_tests.Use | None,
    settings: WorkerSettings,
) -> dict[str, Any]:
    """Say what is measured against what, and at which level; with `dataset` and `previous_dataset` it is whole.

    Without a use of the sealed test only the gates that spend nothing of it are asked.
    """
    return {
        "protocol": lines.protocol(connection, candidate.protocol_id).document,
        "use": use and use.named(),
        "before_use": use is None,
        "candidate": model_files(candidate, settings=settings),
        "champion": model_files(champion, settings=settings) if champion else None,
        "approved": [
            model_files(earlier, settings=settings) for earlier in promotions.approved(connection, candidate.line_id)
        ],
    }


def report_row(
    candidate: candidates.Candidate,
    *,
    champion: candidates.Candidate | None,
    use: sealed_tests.Use | None,
    result: dict[str, Any],
) -> dict[str, Any]:
    """Name the values of `candidates.record_gate_report` for what the gates found."""
    return {
        "candidate_id": candidate.candidate_id,
        "champion_candidate_id": champion.candidate_id if champion else None,
        "dataset_version_id": candidate.dataset_version_id,
        "protocol_id": candidate.protocol_id,
        "verdict": result["verdict"],
        "document": result["report"],
        "text": result["text"],
        "digest": result["digest"],
        "sealed_test_use_id": use and use.sealed_test_use_id,
    }


def worklist_config(
    connection: db.Connection, *, line_id: int, directory: Path, settings: WorkerSettings, shares: Shares = DEFAULT
) -> dict[str, Any]:
    """Say whom a line's ranking asks about which cases, and put these beside it; what no arm needs is not read."""
    line, protocol = lines.line_by_id(connection, line_id), lines.current_protocol(connection, line_id)
    asked = aliases(connection, line_id=line_id)
    champion_id = asked.champion.candidate_id if asked.champion else None
    last_case_id, last_confirmation_id = worklists.reach(connection, line_id)
    pool = worklists.pool(connection, line=line, candidate_id=champion_id, limit=LARGEST_POOL)
    return {
        "line_id": line_id,
        "candidate_id": champion_id,
        "protocol_id": protocol.protocol_id,
        "last_case_id": last_case_id,
        "last_confirmation_id": last_confirmation_id,
        "blind_fraction": protocol.document["blind_fraction"],
        "classes": list(protocol.classes),
        "shares": asdict(shares),
        "confirmed": worklists.confirmed_by_site(connection, line_id) if shares.coverage else {},
        "champion": asked.champion and model_files(asked.champion, settings=settings),
        "challenger": asked.challenger and model_files(asked.challenger, settings=settings),
        "pool": _beside(directory / "pool.ndjson", pool),
        "known": _beside(
            directory / "known.ndjson", worklists.known(connection, line_id=line_id) if shares.unlike else ()
        ),
        "blobs": str(settings.blob_root),
    }


def worklist_rows(config: dict[str, Any], *, result: dict[str, Any]) -> dict[str, Any]:
    """Name the values of `worklists.replace` for what a ranking came to."""
    with Path(result["ranking"]).open(encoding="utf-8") as lines_:
        listed = [json.loads(line) for line in lines_]
    kept = ("line_id", "candidate_id", "protocol_id", "last_case_id", "last_confirmation_id")
    return {
        **{name: config[name] for name in kept},
        "shares": result["shares"],
        "left_out": result["left_out"],
        "case_ids": [row["case_id"] for row in listed],
        "arms": [row["arm"] for row in listed],
        "reasons": [row["reason"] for row in listed],
    }


def _beside(path: Path, rows: Iterable[Any]) -> str:
    write_atomically(path, "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows).encode())
    return str(path)


def model_files(candidate: candidates.Candidate, *, settings: WorkerSettings) -> dict[str, Any]:
    """Name a model's weights, by path and digest, and its metadata."""
    return {
        "weights": str(blobs.path_of(settings.blob_root, candidate.weights_digest)),
        "weights_digest": candidate.weights_digest,
        "metadata": candidate.metadata,
    }


def mirror_config(connection: db.Connection, *, candidate_id: int, settings: WorkerSettings) -> dict[str, Any]:
    """Say all that MLflow is to show of a candidate."""
    candidate = candidates.get(connection, candidate_id)
    run = runs.get(connection, candidate.run_id)
    version = datasets.get(connection, candidate.dataset_version_id)
    protocol = lines.protocol(connection, candidate.protocol_id)
    line = lines.line_by_id(connection, candidate.line_id)
    return {
        "errand": "mirror_candidate",
        **model_files(candidate, settings=settings),
        "tracking_uri": settings.mlflow_url,
        "lock": str(settings.jobs / f"mirror_candidate-{candidate_id}.lock"),
        "niceness": settings.mirror_niceness,
        "line": line.name,
        "number": candidate.number,
        "run_name": f"{line.name} candidate {candidate.number}",
        "params": {**protocol.document["recipe"], "strategy": run.strategy, "seed": run.seed},
        "history": run.history,
        "dataset": {
            "name": version.git_tag,
            "digest": version.digest[:DATASET_DIGEST_LENGTH],
            "counts": version.manifest["counts"],
        },
        "tags": {
            "overread.candidate_id": str(candidate_id),
            "overread.run_id": str(run.run_id),
            "overread.weights_digest": candidate.weights_digest,
            "overread.dataset_digest": version.digest,
            "overread.protocol_digest": protocol.digest,
        },
    }


def aliases(connection: db.Connection, *, line_id: int) -> Aliases:
    """Return who the aliases of a line ought to name now."""
    champion = promotions.champion(connection, line_id)
    passed = [found for found in candidates.list_candidates(connection, line_id) if found.state == "gates_passed"]
    newer = [found for found in passed if champion is None or found.number > champion.number]
    return Aliases(
        line=lines.line_by_id(connection, line_id).name,
        champion=champion,
        previous=promotions.previous(connection, line_id),
        challenger=newer[0] if newer else None,
    )


def aliases_config(wanted: Aliases, *, settings: WorkerSettings) -> dict[str, Any]:
    """Say which MLflow versions the aliases are to name."""
    return {
        "errand": "set_aliases",
        "tracking_uri": settings.mlflow_url,
        "line": wanted.line,
        "champion": wanted.champion and wanted.champion.mlflow_model_version,
        "previous": wanted.previous and wanted.previous.mlflow_model_version,
        "challenger": wanted.challenger and wanted.challenger.mlflow_model_version,
    }
