"""One task per kind of job: claim it, have the work done elsewhere, record what came of it in one transaction.

Invariant: a task may be called twice, late, or by two workers at once, and happens once. It holds no transaction while
work goes on, and imports nothing heavy: science and MLflow run in processes of their own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.types import canonical_json
from registry import blobs, candidates, datasets, db, erasures, jobs, promotions, runs, watches, worklists
from workers import sealing, translate, watching
from workers.lease import Lease, NotYet, Workshop, claimed
from workers.supervise import Row

MIRROR_SECONDS = 300.0
"""The most that one attempt to tell MLflow may take; a server that hangs must not keep a worker from learning."""

Task = Callable[..., None]


def freeze_dataset(workshop: Workshop, *, job_id: int) -> None:
    """Freeze a run's confirmed cases as the next dataset version; refused in words where nothing is new."""
    with claimed(workshop, job_id=job_id) as lease:
        if lease is None:
            return
        run_id, name = int(lease.job.payload["run_id"]), f"freeze_dataset-{lease.job.payload['run_id']}"
        directory = lease.directory(name)
        with workshop.transaction() as connection:
            config = translate.freeze_config(connection, run_id=run_id, directory=directory, settings=workshop.settings)
        result = lease.run("pipelines.freeze", name=name, config=config)
        with lease.recording() as connection:
            run = runs.lock(connection, run_id)  # before the audit trail, which a cancel locks after it
            version = datasets.record_version(connection, **translate.version_row(run, result=result))
            champion = promotions.champion(connection, run.line_id) if run.strategy != "full" else None
            runs.attach_dataset(
                connection,
                run_id=run_id,
                dataset_version_id=version.dataset_version_id,
                base_candidate_id=champion.candidate_id if champion else None,
            )


def train_candidate(workshop: Workshop, *, job_id: int) -> None:
    """Train a run's candidate, showing every epoch in the record; an interrupted attempt is resumed."""
    with claimed(workshop, job_id=job_id) as lease:
        if lease is None:
            return
        run_id, name = int(lease.job.payload["run_id"]), f"train_candidate-{lease.job.payload['run_id']}"
        with workshop.transaction() as connection:
            run = runs.get(connection, run_id)
        data = _check_out(lease, dataset_version_id=run.dataset_version_id)
        with workshop.transaction() as connection:
            config = translate.train_config(connection, run=run, settings=workshop.settings) | data
        result = lease.run("pipelines.train", name=name, config=config, note=_showing(run_id))
        with lease.recording() as connection:
            _record_candidate(connection, run_id=run_id, result=result, blob_root=workshop.settings.blob_root)


def gate_candidate(workshop: Workshop, *, job_id: int) -> None:
    """Measure a candidate against the champion on the sealed test, and record the report whatever its verdict.

    A candidate that its data or the screen stop gets its report before the sealed test is used, and nothing is spent.
    """
    with claimed(workshop, job_id=job_id) as lease:
        if lease is None:
            return
        candidate_id, name = lease.job.payload["candidate_id"], f"gate_candidate-{lease.job.payload['candidate_id']}"
        with workshop.transaction() as connection:
            candidate = candidates.get(connection, candidate_id)
        data = _check_out(lease, dataset_version_id=candidate.dataset_version_id)
        if _stopped_before_use(lease, candidate=candidate, data=data):
            return
        champion, use = sealing.grant(lease, candidate=candidate)
        with workshop.transaction() as connection:
            config = data | translate.gate_config(
                connection, candidate=candidate, champion=champion, use=use, settings=workshop.settings
            )
        result = lease.run("pipelines.gates", name=name, config=config)
        with lease.recording() as connection:
            candidates.record_gate_report(
                connection, **translate.report_row(candidate, champion=champion, use=use, result=result)
            )


def mirror_candidate(workshop: Workshop, *, job_id: int) -> None:
    """Show a candidate in MLflow: parameters, curves, data, model, weights."""
    with claimed(workshop, job_id=job_id) as lease:
        if lease is None:
            return
        _mirror(lease, candidate_id=lease.job.payload["candidate_id"])
        assert lease.job.line_id is not None, "a candidate is of a line"
        with lease.recording() as connection:
            jobs.hurry(connection, line_id=lease.job.line_id, kind="mirror_promotion")  # aliases wait for the candidate


def mirror_promotion(workshop: Workshop, *, job_id: int) -> None:
    """Point MLflow's aliases at whom the record names, now and until the record stops changing meanwhile."""
    with claimed(workshop, job_id=job_id) as lease:
        if lease is None:
            return
        told, name = None, f"mirror_promotion-{job_id}"
        while (wanted := _aliases(lease)) != told:
            missing = [found for found in wanted.named() if found.mlflow_model_version is None]
            for candidate in missing:
                _mirror_if_nobody_does(lease, candidate_id=candidate.candidate_id)
            if not missing:
                config = translate.aliases_config(wanted, settings=workshop.settings)
                lease.run("workers.errands", name=name, config=config, within_seconds=MIRROR_SECONDS)
                told = wanted
        with lease.recording():
            pass


def erase_bytes(workshop: Workshop, *, job_id: int) -> None:
    """Remove the bytes of erased cases wherever a line keeps them, and have it learn without them."""
    with claimed(workshop, job_id=job_id) as lease:
        if lease is None:
            return
        assert lease.job.line_id is not None, "bytes are removed line by line"
        erasure_id, line_id, settings = int(lease.job.payload["erasure_id"]), lease.job.line_id, workshop.settings
        with workshop.transaction() as connection:
            _wait_for_stopped(connection, line_id=line_id)
            config = translate.erase_config(connection, erasure_id=erasure_id, line_id=line_id, settings=settings)
            copies = translate.copies_of_erased(connection, erasure_id=erasure_id, line_id=line_id, settings=settings)
        result = lease.run("pipelines.erase", name=f"erase_bytes-{job_id}", config=config)
        for path in copies:
            shutil.rmtree(path, ignore_errors=True)
        with lease.recording() as connection:
            images = erasures.images_to_remove(connection, erasure_id=erasure_id, line_id=line_id)
            removed = erasures.remove_bytes(connection, settings.blob_root, digests=images)
            erasures.record_removal(connection, erasure_id=erasure_id, line_id=line_id, images=removed, **result)


def rank_worklist(workshop: Workshop, *, job_id: int) -> None:
    """Rank what nobody has confirmed yet, by the champion of now."""
    with claimed(workshop, job_id=job_id) as lease:
        if lease is None:
            return
        assert lease.job.line_id is not None, "a worklist is of a line"
        name = f"rank_worklist-{lease.job.line_id}"
        directory = lease.directory(name)
        with workshop.transaction() as connection:
            config = translate.worklist_config(
                connection, line_id=lease.job.line_id, directory=directory, settings=workshop.settings
            )
        result = lease.run("pipelines.worklist", name=name, config=config)
        rows = translate.worklist_rows(config, result=result)
        with lease.recording() as connection:
            worklists.replace(connection, **rows)


def watch_champion(workshop: Workshop, *, job_id: int) -> None:
    """Look at how often the champion is wrong in use, and record what was seen; an alarm is an audit event."""
    with claimed(workshop, job_id=job_id) as lease:
        if lease is None:
            return
        assert lease.job.line_id is not None, "a champion is of a line"
        line_id, name = lease.job.line_id, f"watch_champion-{lease.job.line_id}"
        directory = lease.directory(name)
        with workshop.transaction() as connection:
            config = watching.watch_config(connection, line_id=line_id, directory=directory, settings=workshop.settings)
        seen = None if config is None else lease.run("pipelines.watch", name=name, config=config)
        with lease.recording() as connection:
            if config is not None and seen is not None:
                lease.hold(connection)  # before the audit trail, which whoever cancels a job has after it
                named = {key: config[key] for key in ("line_id", "candidate_id", "protocol_id")}
                watches.record(connection, **named, seen=seen)


TASKS: dict[jobs.JobKind, Task] = {
    "freeze_dataset": freeze_dataset,
    "train_candidate": train_candidate,
    "gate_candidate": gate_candidate,
    "mirror_candidate": mirror_candidate,
    "mirror_promotion": mirror_promotion,
    "erase_bytes": erase_bytes,
    "rank_worklist": rank_worklist,
    "watch_champion": watch_champion,
}


def _wait_for_stopped(connection: db.Connection, *, line_id: int) -> None:
    """Let what an erasure stopped end first: it may be writing down just what has to go. Raises NotYet."""
    running = jobs.list_jobs(connection, line_id=line_id, states=("running",))
    if any(job.cancel_requested for job in running):
        raise NotYet("a job of this line is being stopped; what it wrote goes with the rest")


def _check_out(lease: Lease, *, dataset_version_id: int | None) -> dict[str, str | None]:
    """Bring a version's files here, and those of the one before it, with which its data are compared."""
    assert dataset_version_id is not None, "a run that trains has its data"
    with lease.workshop.transaction() as connection:
        version = datasets.get(connection, dataset_version_id)
        wanted = {"dataset": version, "previous_dataset": datasets.before(connection, version)}
        configs = {
            name: translate.check_out_config(connection, version=found, settings=lease.settings)
            for name, found in wanted.items()
            if found is not None
        }
    paths: dict[str, str | None] = dict.fromkeys(wanted)
    for name, config in configs.items():
        here = translate.checked_out(config)
        job_name = f"check_out-{lease.job.job_id}-{config['number']}"
        paths[name] = str(here) if here else lease.run("workers.errands", name=job_name, config=config)["path"]
    return paths


def _stopped_before_use(lease: Lease, *, candidate: candidates.Candidate, data: dict[str, str | None]) -> bool:
    """Ask the gates that spend nothing of the sealed test; records the report of a candidate that they stop."""
    with lease.workshop.transaction() as connection:
        champion = promotions.champion(connection, candidate.line_id)
        if sealing.paid(connection, candidate=candidate, champion=champion) is not None:
            return False
        config = data | translate.gate_config(
            connection, candidate=candidate, champion=champion, use=None, settings=lease.settings
        )
    result = lease.run("pipelines.gates", name=f"before_use-{candidate.candidate_id}", config=config)
    if result["verdict"] == "pass":
        return False
    with lease.recording() as connection:
        candidates.record_gate_report(
            connection, **translate.report_row(candidate, champion=champion, use=None, result=result)
        )
    return True


def _showing(run_id: int) -> Callable[[db.Connection, list[Row]], None]:
    def note(connection: db.Connection, rows: list[Row]) -> None:
        epochs = [row for row in rows if "epoch" in row]
        runs.record_progress(connection, run_id=run_id, progress=rows[-1], history_rows=epochs)

    return note


def _record_candidate(connection: db.Connection, *, run_id: int, result: dict[str, Any], blob_root: Path) -> None:
    weights = Path(result["weights"]).read_bytes()
    metadata = canonical_json(result["metadata"]).encode()
    weights_digest = blobs.put(connection, blob_root, weights, media_type="application/x-safetensors")
    if weights_digest != result["weights_digest"]:
        raise ValueError("the weights on disk are not those that the training tells of; train again")
    for name, path in result["state"].items():
        kept = blobs.put(connection, blob_root, Path(path).read_bytes(), media_type="application/x-safetensors")
        if kept != result["metadata"]["state"][name]:
            raise ValueError(f"the {name} on disk is not that which the training tells of; train again")
    if result["history"]:
        _showing(run_id)(connection, result["history"])
    candidates.record_candidate(
        connection,
        run_id=run_id,
        weights_digest=weights_digest,
        metadata_digest=blobs.put(connection, blob_root, metadata, media_type="application/json"),
        metadata=result["metadata"],
    )


def _mirror_if_nobody_does(lease: Lease, *, candidate_id: int) -> None:
    with lease.workshop.transaction() as connection:
        unfinished = jobs.list_jobs(connection, line_id=lease.job.line_id, states=("queued", "running"))
    if any(job.kind == "mirror_candidate" and job.payload["candidate_id"] == candidate_id for job in unfinished):
        raise NotYet(f"candidate {candidate_id} is being mirrored; its aliases come after that")
    _mirror(lease, candidate_id=candidate_id)


def _mirror(lease: Lease, *, candidate_id: int) -> None:
    with lease.workshop.transaction() as connection:
        config = translate.mirror_config(connection, candidate_id=candidate_id, settings=lease.settings)
    name = f"mirror_candidate-{candidate_id}-{lease.job.job_id}"
    result = lease.run("workers.errands", name=name, config=config, within_seconds=MIRROR_SECONDS)
    with lease.workshop.transaction() as connection:
        candidates.set_mlflow_version(connection, candidate_id=candidate_id, version=result["version"])


def _aliases(lease: Lease) -> translate.Aliases:
    assert lease.job.line_id is not None, "a promotion is of a line"
    with lease.workshop.transaction() as connection:
        return translate.aliases(connection, line_id=lease.job.line_id)
