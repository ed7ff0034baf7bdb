"""Makes things in the record the way the service does, with sensible values for whatever a test does not care about."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from registry import (
    amendments,
    approvals,
    audit,
    candidates,
    cases,
    confirmations,
    datasets,
    jobs,
    lines,
    predictions,
    promotions,
    rejections,
    runs,
    sealed_tests,
    users,
    watches,
)
from registry.amendments import Amendment
from registry.candidates import Candidate, GateReport
from registry.cases import Case
from registry.confirmations import Confirmation
from registry.datasets import DatasetVersion
from registry.db import Connection
from registry.jobs import Job, JobKind
from registry.lines import Line
from registry.predictions import Prediction
from registry.promotions import Promotion
from registry.rejections import Rejection
from registry.runs import Run
from registry.sealed_tests import Use
from registry.users import User
from registry.watches import Watch

PROTOCOL = Path(__file__).parent.parent / "pipelines" / "protocols" / "cxr-pneumonia.yaml"

_numbers = itertools.count(1)

_SEEN: dict[str, Any] = {
    "sample": 40,
    "n": 30,
    "errors": 12,
    "risk": 0.4,
    "lower_bound": 0.25,
    "risk_limit": 0.2,
    "raised_at": 22,
    "verified_share": 0.75,
    "weighted_risk": {"missing": "too few"},
    "mature_after_days": 3.0,
    "verdict": "alarm",
    "reason": "errs in more than 20.0% of cases, shown after 22 labels",
    "cases_to_see": [9, 7],
    "shadow": None,
}


def protocol_document(**changes: Any) -> dict[str, Any]:
    """The example protocol as plain values, with some fields changed; nobody is watched unless they say so."""
    return {**yaml.safe_load(PROTOCOL.read_text(encoding="utf-8")), "monitoring": None, **changes}


def user(db: Connection, *roles: str, name: str | None = None, printed_name: str | None = None) -> User:
    """Somebody with these roles."""
    name = name or f"user-{next(_numbers)}"
    return users.create_user(db, name=name, printed_name=printed_name or name.title(), roles=roles)


def line(db: Connection, **changes: Any) -> Line:
    """A line under the example protocol with some fields changed; its name is its own."""
    document = protocol_document(**{"line": f"line-{next(_numbers)}", **changes})
    # Recipes and triggers as a checked protocol has them: every default filled in.
    document["recipe"] = {"seed": 0, **document["recipe"]}
    return lines.create_line(
        db,
        name=document["line"],
        document=document,
        digest=audit.digest_of(document),
        actor=user(db, "operator"),
    )


def amendment(
    db: Connection, line: Line, *, actor: User | None = None, told: Sequence[str] | None = None, **changes: Any
) -> Amendment:
    """A proposal to change some fields of a line's protocol, `told` in words; nobody has signed it."""
    now = lines.current_protocol(db, line.line_id)
    document = {**now.document, **changes}
    return amendments.propose(
        db,
        line_id=line.line_id,
        protocol_id=now.protocol_id,
        document=document,
        digest=audit.digest_of(document),
        changes=told or [f"{name}: another value" for name in changes],
        reason="it has to change",
        actor=actor or user(db, "operator"),
    )


def new_protocol(db: Connection, line: Line, **changes: Any) -> None:
    """Put a further version of a line's protocol into force."""
    required = lines.current_protocol(db, line.line_id).document["approvals"]["required"]
    proposed = amendment(db, line, **changes)
    for _ in range(required):
        amendments.sign(
            db,
            amendment_id=proposed.amendment_id,
            approver=user(db, "approver"),
            decision="approve",
            reason="I read what changes",
        )


def blob(db: Connection) -> str:
    """The digest of a stored file that no test reads."""
    digest = hashlib.sha256(str(next(_numbers)).encode()).hexdigest()
    db.execute("INSERT INTO blobs (digest, size_bytes, media_type) VALUES (%s, 1, 'application/x-npy')", (digest,))
    return digest


def case(db: Connection, line: Line, *, actor: User | None = None, **fields: Any) -> Case:
    """A case with an image of its own."""
    values: dict[str, Any] = {
        "image_digest": fields.pop("image_digest", None) or blob(db),
        "patient": None,
        "site": "north",
        "scanner": None,
        "sex": None,
        "age_band": None,
        "attributes": {},
        "external_id": None,
    }
    made, _ = cases.submit_case(db, line_id=line.line_id, actor=actor or user(db, "submitter"), **{**values, **fields})
    return made


def confirmation(db: Connection, case: Case, *, actor: User | None = None, **fields: Any) -> Confirmation:
    """A blind single read that found nothing, unless told otherwise."""
    values: dict[str, Any] = {
        "finding": "normal",
        "evidence": "single_read",
        "ai_exposure": "blind",
        "reader": "reader-1",
        "confirmed_at": None,
        "supersedes": None,
    }
    diagnosis = confirmations.Diagnosis(case_id=case.case_id, **{**values, **fields})
    return confirmations.confirm(db, diagnosis, actor=actor or user(db, "submitter"))


def dataset_version(
    db: Connection, line: Line, *, submitter_shares: Mapping[str, float] | None = None, up_to: int | None = None
) -> DatasetVersion:
    """The next dataset version of a line."""
    newest = datasets.latest(db, line.line_id)
    number = 1 if newest is None else newest.number + 1
    digest = hashlib.sha256(f"{line.name} {number}".encode()).hexdigest()
    return datasets.record_version(
        db,
        line_id=line.line_id,
        number=number,
        protocol_id=lines.current_protocol(db, line.line_id).protocol_id,
        digest=digest,
        git_tag=f"{line.name}/v{number:04d}",
        git_commit=digest[:40],
        manifest={"number": number},
        submitter_shares=submitter_shares or {},
        waiting={},
        last_confirmation_id=confirmations.last_id(db, line.line_id) if up_to is None else up_to,
    )


def training_run(
    db: Connection,
    line: Line,
    *,
    requested_by: User | None = None,
    submitter_shares: Mapping[str, float] | None = None,
) -> Run:
    """A run that has its data and is training."""
    run = runs.start_run(db, line_id=line.line_id, requested_by=requested_by, reason="a test asked for it")
    version = dataset_version(db, line, submitter_shares=submitter_shares)
    base = promotions.champion(db, line.line_id)
    return runs.attach_dataset(
        db,
        run_id=run.run_id,
        dataset_version_id=version.dataset_version_id,
        base_candidate_id=None if base is None else base.candidate_id,
    )


def candidate(db: Connection, line: Line, **run_fields: Any) -> Candidate:
    """A candidate that waits for its gates."""
    run = training_run(db, line, **run_fields)
    return candidates.record_candidate(
        db, run_id=run.run_id, weights_digest=blob(db), metadata_digest=blob(db), metadata={"network": "small_cnn"}
    )


def sealed_test_use(db: Connection, candidate: Candidate) -> Use:
    """A use of the sealed test by a candidate against today's champion, at a level that is as good as any."""
    champion = promotions.champion(db, candidate.line_id)
    hypothesis: dict[str, Any] = {
        "candidate_id": candidate.candidate_id,
        "champion_candidate_id": None if champion is None else champion.candidate_id,
        "protocol_id": lines.current_protocol(db, candidate.line_id).protocol_id,
    }
    return sealed_tests.of_hypothesis(db, **hypothesis) or sealed_tests.record_use(
        db,
        **hypothesis,
        epoch=1,
        after_version=0,
        wallet="unlimited",
        place=len(sealed_tests.list_uses(db, candidate.line_id)) + 1,
        wallet_before=None,
        level=0.05,
    )


def gate_report_values(
    db: Connection,
    candidate: Candidate,
    *,
    use: Use | None = None,
    verdict: str = "pass",
    results: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What a report on a candidate against today's champion, under the line's current protocol, is recorded with."""
    champion = promotions.champion(db, candidate.line_id)
    use = use or sealed_test_use(db, candidate)
    protocol = lines.current_protocol(db, candidate.line_id)
    document = {
        "candidate_digest": candidate.weights_digest,
        "champion_digest": None if champion is None else champion.weights_digest,
        "dataset_digest": datasets.get(db, candidate.dataset_version_id).digest,
        "protocol_digest": protocol.digest,
        "verdict": verdict,
        "sealed_test": use.named(),
        "results": list(results),
    }
    return {
        "candidate_id": candidate.candidate_id,
        "champion_candidate_id": None if champion is None else champion.candidate_id,
        "dataset_version_id": candidate.dataset_version_id,
        "protocol_id": protocol.protocol_id,
        "verdict": verdict,
        "document": document,
        "text": f"verdict: {verdict}",
        "digest": audit.digest_of(document),
        "sealed_test_use_id": use.sealed_test_use_id,
    }


def unused_report_values(
    db: Connection, candidate: Candidate, *, verdict: str = "fail", results: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What the report on a candidate that its data stopped is recorded with: nothing of the sealed test was spent."""
    champion = promotions.champion(db, candidate.line_id)
    document = {
        "candidate_digest": candidate.weights_digest,
        "champion_digest": None if champion is None else champion.weights_digest,
        "dataset_digest": datasets.get(db, candidate.dataset_version_id).digest,
        "protocol_digest": lines.protocol(db, candidate.protocol_id).digest,
        "verdict": verdict,
        "sealed_test": None,
        "results": list(results),
    }
    return {
        "candidate_id": candidate.candidate_id,
        "champion_candidate_id": None if champion is None else champion.candidate_id,
        "dataset_version_id": candidate.dataset_version_id,
        "protocol_id": candidate.protocol_id,
        "verdict": verdict,
        "document": document,
        "text": f"verdict: {verdict}",
        "digest": audit.digest_of(document),
        "sealed_test_use_id": None,
    }


def gate_report(db: Connection, candidate: Candidate, **fields: Any) -> GateReport:
    """A report on a candidate against today's champion, under the line's current protocol."""
    return candidates.record_gate_report(db, **gate_report_values(db, candidate, **fields))


def gated_candidate(db: Connection, line: Line, *, verdict: str = "pass", **run_fields: Any) -> Candidate:
    """A candidate with its gate report."""
    made = candidate(db, line, **run_fields)
    gate_report(db, made, verdict=verdict)
    return candidates.get(db, made.candidate_id)


def signatures(db: Connection, candidate: Candidate, approvers: Sequence[User]) -> None:
    """Everyone in `approvers` signs for the candidate."""
    for approver in approvers:
        approvals.sign(
            db, candidate_id=candidate.candidate_id, approver=approver, decision="approve", reason="I read the report"
        )


def approved_candidate(db: Connection, line: Line, **run_fields: Any) -> Candidate:
    """A candidate that only waits for its promotion."""
    made = gated_candidate(db, line, **run_fields)
    signatures(db, made, [user(db, "approver"), user(db, "approver")])
    return made


def promotion(db: Connection, candidate: Candidate) -> Promotion:
    """The promotion of an approved candidate in place of today's champion."""
    champion = promotions.champion(db, candidate.line_id)
    return promotions.promote(
        db,
        candidate_id=candidate.candidate_id,
        expected_champion_id=None if champion is None else champion.candidate_id,
        actor=user(db, "approver"),
        reason="it is better",
    )


def champion(db: Connection, line: Line) -> Candidate:
    """A new champion, come to it the long way."""
    made = approved_candidate(db, line)
    promotion(db, made)
    return candidates.get(db, made.candidate_id)


def watch(db: Connection, champion: Candidate, **changes: Any) -> Watch:
    """A look at a champion that finds it to err too often, unless told otherwise."""
    return watches.record(
        db,
        line_id=champion.line_id,
        candidate_id=champion.candidate_id,
        protocol_id=champion.protocol_id,
        seen={**_SEEN, **changes},
    )


def prediction(db: Connection, case: Case, candidate: Candidate, *, actor: User) -> Prediction:
    """What a model says of a case, shown to somebody."""
    return predictions.log_prediction(
        db,
        line_id=case.line_id,
        case_id=case.case_id,
        candidate_id=candidate.candidate_id,
        weights_digest=candidate.weights_digest,
        image_digest=case.image_digest,
        scores={"normal": 0.25, "pneumonia": 0.75},
        decision="pneumonia",
        threshold=0.5,
        shown=True,
        latency_seconds=0.01,
        requested_by=actor.user_id,
    )


def rejection(db: Connection, case: Case, candidate: Candidate) -> Rejection:
    """A reader's rejection of what a model said of a case."""
    reader = user(db, "submitter")
    said = prediction(db, case, candidate, actor=reader)
    return rejections.reject(db, prediction_id=said.prediction_id, actor=reader, reason="that is a fold")


def job(db: Connection, *, kind: JobKind = "freeze_dataset", **fields: Any) -> Job:
    """A queued job."""
    job_id = jobs.enqueue(db, kind=kind, line_id=None, **{"payload": {}, **fields})
    assert job_id is not None
    return jobs.get_job(db, job_id)
