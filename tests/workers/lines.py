"""A small line that really learns: synthetic radiographs, a protocol that asks for little, its jobs done in order."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, LiteralString

import numpy as np
import psycopg.conninfo
import torch

from pipelines import images, network, protocol, synthetic
from pipelines.types import digest_of
from registry import blobs, candidates, datasets, db, jobs, lines, runs, users
from tests import factories
from workers.lease import Workshop
from workers.settings import WorkerSettings
from workers.tasks import TASKS

INTENDED_USE = "Second reader for synthetic radiographs in tests; of no use to anybody who is ill."


def small_protocol(name: str, **changes: Any) -> protocol.Protocol:
    """Two epochs, one thread, and gates that a model of two epochs can be measured by."""
    document = {
        "line": name,
        "title": "Synthetic pneumonia",
        "intended_use": INTENDED_USE,
        "classes": ["normal", "pneumonia"],
        "input": {"channels": 1, "rows": 28, "columns": 28},
        "recipe": {"network": "small_cnn", "epochs": 2, "update_epochs": 1, "threads": 1},
        "triggers": {"new_confirmations": 50},
        "gates": {"minimum_cases_per_class": 5},
    }
    return protocol.from_document({**document, **changes})


def make_line(record: db.Connection, *, name: str = "small", **changes: Any) -> tuple[lines.Line, users.User]:
    """Open a line, and somebody who may do everything."""
    asked = small_protocol(name, **changes)
    roles = ("submitter", "reviewer", "operator")
    person = users.create_user(record, name=f"{name}-olga", printed_name="Olga", roles=roles)
    lines.create_line(record, name=name, document=asked.document(), digest=asked.digest, actor=person)
    # A line's key is random, and one key in some thousands leaves a split of so few cases without a class.
    record.commit()
    as_holder(record, "UPDATE lines SET split_key = sha256('for tests')")
    return lines.get_line(record, name), person


def as_holder(record: db.Connection, statement: LiteralString) -> None:
    """Do what the service may not, as whoever holds the server; commits."""
    where = psycopg.conninfo.make_conninfo(record.info.dsn, user="postgres")
    with db.connect(where) as connection:
        connection.execute(statement)


def confirm_cases(
    record: db.Connection, settings: WorkerSettings, *, line: lines.Line, person: users.User, count: int, seed: int = 0
) -> None:
    """Submit and confirm synthetic radiographs, each of a patient of its own."""
    pictures, labels = synthetic.radiographs(count, rng=np.random.default_rng(seed), size=28)
    said = [("normal", "pneumonia")[label] for label in labels]
    confirm_pictures(record, settings, line=line, person=person, pictures=pictures, said=said, seed=seed)


def confirm_pictures(
    record: db.Connection,
    settings: WorkerSettings,
    *,
    line: lines.Line,
    person: users.User,
    pictures: Iterable[np.ndarray[Any, Any]],
    said: Iterable[str],
    seed: int = 0,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Submit and confirm pictures, each of a patient of its own, whose name has the seed in it."""
    for index, (picture, finding) in enumerate(zip(pictures, said, strict=True)):
        digest = blobs.put(record, settings.blob_root, images.npy_bytes(picture), media_type="application/x-npy")
        patient = f"patient-{seed}-{index}"
        case = factories.case(
            record, line, actor=person, image_digest=digest, patient=patient, attributes=attributes or {}
        )
        factories.confirmation(record, case, actor=person, finding=finding)
    record.commit()


def start_run(record: db.Connection, line: lines.Line) -> runs.Run:
    """Ask a line to learn."""
    run = runs.start_run(record, line_id=line.line_id, requested_by=None, reason="a test asked for it")
    record.commit()
    return run


def crown(
    record: db.Connection, settings: WorkerSettings, line: lines.Line, *, seed: int, **changes: Any
) -> candidates.Candidate:
    """Promote a model with random weights, the short way: for what happens after the evidence."""
    made = approved(record, blob_root=settings.blob_root, line=line, seed=seed, **changes)
    factories.promotion(record, made)
    record.commit()
    return made


def approved(
    record: db.Connection,
    *,
    blob_root: Path,
    line: lines.Line,
    seed: int,
    results: Sequence[Mapping[str, Any]] = (),
    learned_up_to: int = 0,
    **changes: Any,
) -> candidates.Candidate:
    """Record a model with random weights that passed its gates and is signed for; it only waits for its promotion."""
    made = _with_random_weights(
        record,
        blob_root=blob_root,
        run=_run_with_data(record, line, learned_up_to=learned_up_to),
        asked=small_protocol(line.name, **changes),
        seed=seed,
    )
    factories.gate_report(record, made, results=results)
    factories.signatures(record, made, [factories.user(record, "approver") for _ in range(2)])
    record.commit()
    return candidates.get(record, made.candidate_id)


def untrained(
    record: db.Connection, settings: WorkerSettings, line: lines.Line, *, seed: int = 0
) -> candidates.Candidate:
    """Record a candidate with random weights of the run that is to train: for what happens after the training."""
    job = only(record, "train_candidate")
    asked = protocol.from_document(lines.current_protocol(record, line.line_id).document)
    run = runs.get(record, int(job.payload["run_id"]))
    made = _with_random_weights(record, blob_root=settings.blob_root, run=run, asked=asked, seed=seed)
    jobs.request_cancel(record, job.job_id)
    record.commit()
    return made


def promote(record: db.Connection, candidate: candidates.Candidate) -> None:
    """Promote a candidate as if its gates had passed and two people had signed."""
    for job in waiting(record, "gate_candidate"):
        jobs.request_cancel(record, job.job_id)
    factories.gate_report(record, candidate)
    factories.signatures(record, candidate, [factories.user(record, "approver") for _ in range(2)])
    factories.promotion(record, candidate)
    record.commit()


def _with_random_weights(
    record: db.Connection, *, blob_root: Path, run: runs.Run, asked: protocol.Protocol, seed: int
) -> candidates.Candidate:
    torch.manual_seed(seed)
    architecture = network.architecture_for(asked)
    weights = network.save_weights(network.build(architecture))
    metadata: dict[str, Any] = {
        "architecture": architecture.document(),
        "classes": list(asked.classes),
        "positive": asked.positive,
        "strategy": run.strategy,
        "started_from": "nothing",
        "temperature": 1.0,
        "log_prior": [0.0, 0.0],
        "operating_point": {"threshold": 0.4, "rule": "youden"},
        "operating_points_by_site": {"east": {"threshold": 0.0, "rule": "youden"}},
        "decides_by_site": True,
        "test_time_shifts": asked.recipe.test_time_shifts,
    }
    return candidates.record_candidate(
        record,
        run_id=run.run_id,
        weights_digest=blobs.put(record, blob_root, weights, media_type="application/x-safetensors"),
        metadata_digest=blobs.put(record, blob_root, str(metadata).encode(), media_type="application/json"),
        metadata=metadata,
    )


def _run_with_data(record: db.Connection, line: lines.Line, *, learned_up_to: int) -> runs.Run:
    newest = datasets.latest(record, line.line_id)
    number = newest.number + 1 if newest else 1
    run = runs.start_run(record, line_id=line.line_id, requested_by=None, reason="a test asked for it")
    version = datasets.record_version(
        record,
        line_id=line.line_id,
        number=number,
        protocol_id=run.protocol_id,
        digest=digest_of([line.name, number]),
        git_tag=f"{line.name}/v{number:04d}",
        git_commit="0" * 40,
        manifest={"counts": {"train": {"normal": 1, "pneumonia": 1}}},
        submitter_shares={},
        waiting={},
        last_confirmation_id=learned_up_to,
    )
    return runs.attach_dataset(
        record, run_id=run.run_id, dataset_version_id=version.dataset_version_id, base_candidate_id=None
    )


def waiting(record: db.Connection, kind: str | None = None) -> list[jobs.Job]:
    """Jobs that wait to be claimed, oldest first."""
    record.rollback()
    found = [job for job in jobs.list_jobs(record, states=["queued"]) if kind in {None, job.kind}]
    record.rollback()
    return found[::-1]


def only(record: db.Connection, kind: str | None = None) -> jobs.Job:
    """The one job that waits to be claimed; where there is none, or more, the failure tells what became of all."""
    found = waiting(record, kind)
    assert len(found) == 1, story(record)
    return found[0]


def work(workshop: Workshop, record: db.Connection, *kinds: str) -> None:
    """Do the waiting jobs of each of these kinds in turn; a kind of which none waits is a failure that says why."""
    for kind in kinds:
        due = waiting(record, kind)
        assert due, f"no {kind} waits: {story(record)}"
        for job in due:
            TASKS[job.kind](workshop, job_id=job.job_id)  # type: ignore[index]


def story(record: db.Connection) -> list[tuple[Any, ...]]:
    """What became of every job and run, for the message of an assertion."""
    record.rollback()
    return record.execute(
        "SELECT 'job', job_id, kind, state, error FROM jobs"
        " UNION ALL SELECT 'run', run_id, strategy, state, outcome FROM runs"
    ).fetchall()


def in_thread(workshop: Workshop, job: jobs.Job) -> threading.Thread:
    """Do a job as the Celery worker does, in a thread."""
    thread = threading.Thread(
        target=TASKS[job.kind],  # type: ignore[index]
        args=(workshop,),
        kwargs={"job_id": job.job_id},
        daemon=True,
    )
    thread.start()
    return thread
