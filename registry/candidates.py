"""Candidates: the models that runs made, known by the digest of their weights, and the gate reports on them.

A gate report is stored only if its document names, by digest, exactly what it is recorded for; it is append-only, and
the newest one counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from registry import audit, datasets, jobs, lifecycle, lines, runs, sealed_tests
from registry.db import Connection, constraint_means, fetch_all, fetch_known, fetch_one
from registry.errors import AlreadyExists, EvidenceMismatch, StateMoved


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model; `metadata` holds architecture, temperature, operating point and recipe as the science wrote them."""

    candidate_id: int
    line_id: int
    number: int
    run_id: int
    dataset_version_id: int
    protocol_id: int
    weights_digest: str
    metadata_digest: str
    metadata: dict[str, Any]
    state: str
    mlflow_model_version: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """The verdict on a candidate against the champion of that time (None: there was none).

    `sealed_test_use_id` names the use of the sealed test that it answers; None where the data stopped the candidate
    before one was paid for, and from before there was a ledger.
    """

    gate_report_id: int
    candidate_id: int
    champion_candidate_id: int | None
    dataset_version_id: int
    protocol_id: int
    verdict: str
    document: dict[str, Any]
    text: str
    digest: str
    sealed_test_use_id: int | None
    created_at: datetime


_IN_A_BIT = {True: "gates passed", False: "gates not passed"}
"""All that whoever made a candidate learns at once of what the sealed test says of it."""


def record_candidate(
    conn: Connection, *, run_id: int, weights_digest: str, metadata_digest: str, metadata: Mapping[str, Any]
) -> Candidate:
    """Record what a run trained (both files stored as blobs already), and ask for its gates and its mirror.

    Raises StateMoved, AlreadyExists if the run has a candidate, NotFound.
    """
    run = runs.move_to_gating(conn, run_id=run_id)
    assert run.dataset_version_id is not None  # a run in training has its data
    with constraint_means(
        conn,
        candidates_one_per_run=AlreadyExists(f"run {run_id} has its candidate already"),
        candidates_one_row_per_number=StateMoved("another candidate of this line was recorded meanwhile; try again"),
    ):
        candidate = fetch_one(
            conn,
            Candidate,
            "INSERT INTO candidates (line_id, number, run_id, dataset_version_id, protocol_id, weights_digest,"
            " metadata_digest, metadata) VALUES (%(line_id)s,"
            " (SELECT coalesce(max(number), 0) + 1 FROM candidates WHERE line_id = %(line_id)s),"
            " %(run_id)s, %(version)s, %(protocol)s, %(weights)s, %(metadata_digest)s, %(metadata)s) RETURNING *",
            {
                "line_id": run.line_id,
                "run_id": run_id,
                "version": run.dataset_version_id,
                "protocol": run.protocol_id,
                "weights": weights_digest,
                "metadata_digest": metadata_digest,
                "metadata": Jsonb(dict(metadata)),
            },
        )
    assert candidate is not None
    kinds: tuple[jobs.JobKind, ...] = ("gate_candidate", "mirror_candidate")
    for kind in kinds:
        jobs.enqueue(
            conn,
            kind=kind,
            line_id=run.line_id,
            payload={"candidate_id": candidate.candidate_id, "run_id": run_id},
            unique_key=f"{kind}:candidate:{candidate.candidate_id}",
        )
    audit.record(
        conn,
        actor=audit.SYSTEM,
        action="candidate:train",
        subject=f"candidate/{candidate.candidate_id}",
        details={"run": run_id, "weights": weights_digest, "metadata": metadata_digest},
        row=f"candidates/{candidate.candidate_id}",
    )
    return candidate


def record_gate_report(
    conn: Connection,
    *,
    candidate_id: int,
    champion_candidate_id: int | None,
    dataset_version_id: int,
    protocol_id: int,
    verdict: str,
    document: Mapping[str, Any],
    text: str,
    digest: str,
    sealed_test_use_id: int | None,
) -> GateReport:
    """Record the verdict on a candidate and, if its run still waits for it, finish the run.

    Anything but "pass" makes the candidate `gates_failed`. Without a use of the sealed test the report is one that does
    not pass and tells of no sealed score: the candidate was stopped before. Raises EvidenceMismatch if the document
    does not name exactly these things, or the use of the sealed test that paid for it, or has another digest;
    StateMoved where the run was cancelled or broke off (whoever stopped it was told that nothing more comes of it), or
    the use is answered.
    """
    run = runs.lock(conn, get(conn, candidate_id).run_id)
    if run.state not in {"gating", "finished"}:
        raise StateMoved(f"run {run.run_id} is {run.state}; its candidate gets no gate report", state=run.state)
    candidate = lock(conn, candidate_id)
    champion = None if champion_candidate_id is None else get(conn, champion_candidate_id)
    use = None
    if sealed_test_use_id is not None:
        use = sealed_tests.check_answers(
            conn,
            sealed_test_use_id=sealed_test_use_id,
            candidate_id=candidate_id,
            champion_id=champion_candidate_id,
            protocol_id=protocol_id,
        )
    named = {
        "candidate_digest": candidate.weights_digest,
        "champion_digest": None if champion is None else champion.weights_digest,
        "dataset_digest": datasets.get(conn, dataset_version_id).digest,
        "protocol_digest": lines.protocol(conn, protocol_id).digest,
        "verdict": verdict,
        "sealed_test": None if use is None else use.named(),
    }
    if use is None and (verdict == "pass" or _tells_of_scores(document)):
        raise EvidenceMismatch(f"nothing was paid for what this gate report tells of candidate {candidate_id}")
    wrong = [name for name, value in named.items() if name not in document or document[name] != value]
    if audit.digest_of(document) != digest:
        wrong.append("digest")
    if dataset_version_id != candidate.dataset_version_id:
        wrong.append("dataset_version_id")
    if wrong:
        raise EvidenceMismatch(
            f"the gate report is not about candidate {candidate_id} as recorded: {', '.join(wrong)} differ"
        )
    answered = StateMoved(f"use {sealed_test_use_id} of the sealed test has its gate report already; it stands")
    with constraint_means(conn, gate_reports_one_per_use_of_the_sealed_test=answered):
        report = fetch_one(
            conn,
            GateReport,
            "INSERT INTO gate_reports (candidate_id, champion_candidate_id, dataset_version_id, protocol_id, verdict,"
            " document, text, digest, sealed_test_use_id) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING *",
            (
                candidate_id,
                champion_candidate_id,
                dataset_version_id,
                protocol_id,
                verdict,
                Jsonb(dict(document)),
                text,
                digest,
                sealed_test_use_id,
            ),
        )
    assert report is not None
    set_state(conn, candidate, "gates_passed" if verdict == "pass" else "gates_failed")
    if run.state == "gating":
        runs.finish(conn, run_id=run.run_id, outcome=f"candidate {candidate.number}: {_IN_A_BIT[verdict == 'pass']}")
    audit.record(
        conn,
        actor=audit.SYSTEM,
        action=f"candidate:gate_{verdict}",
        subject=f"candidate/{candidate_id}",
        details={"gate_report": report.gate_report_id, "digest": digest},
        row=f"gate_reports/{report.gate_report_id}",
    )
    return report


def _tells_of_scores(document: Mapping[str, Any]) -> bool:
    """Whether a report tells of a score on the sealed test; the screen's are of the tune split."""
    measured = ("candidate", "champion", "difference")
    rows = [row for row in document.get("results", ()) if row["name"] != "screen"]
    return any(row.get(name) is not None for row in rows for name in measured)


def get(conn: Connection, candidate_id: int) -> Candidate:
    """Return a candidate by id. Raises NotFound."""
    return fetch_known(conn, Candidate, "candidate", candidate_id)


def lock(conn: Connection, candidate_id: int) -> Candidate:
    """Return a candidate and keep others from changing it until the transaction ends. Raises NotFound."""
    return fetch_known(conn, Candidate, "candidate", candidate_id, lock=True)


def list_candidates(conn: Connection, line_id: int) -> list[Candidate]:
    """Candidates of a line, newest first."""
    return fetch_all(conn, Candidate, "SELECT * FROM candidates WHERE line_id = %s ORDER BY number DESC", (line_id,))


def of_run(conn: Connection, run_id: int) -> Candidate | None:
    """Return what a run made, None where it has made nothing."""
    return fetch_one(conn, Candidate, "SELECT * FROM candidates WHERE run_id = %s", (run_id,))


def of_dataset(conn: Connection, dataset_version_id: int) -> list[Candidate]:
    """Candidates that were made from a dataset version, oldest first."""
    return fetch_all(
        conn, Candidate, "SELECT * FROM candidates WHERE dataset_version_id = %s ORDER BY number", (dataset_version_id,)
    )


def in_state(conn: Connection, line_id: int, *, state: str) -> list[Candidate]:
    """Candidates of a line that are in a state, newest first."""
    return fetch_all(
        conn,
        Candidate,
        "SELECT * FROM candidates WHERE line_id = %s AND state = %s ORDER BY number DESC",
        (line_id, state),
    )


def latest_report(conn: Connection, candidate_id: int) -> GateReport | None:
    """Return the gate report that counts, None before the first."""
    return fetch_one(
        conn,
        GateReport,
        "SELECT * FROM gate_reports WHERE candidate_id = %s ORDER BY gate_report_id DESC LIMIT 1",
        (candidate_id,),
    )


def set_state(conn: Connection, candidate: Candidate, target: str) -> None:
    """Move a candidate on. Raises StateMoved if it may not go there, or is no longer where `candidate` says."""
    moved = conn.execute(
        "UPDATE candidates SET state = %s WHERE candidate_id = %s AND state = %s",
        (lifecycle.advance("candidate", candidate.state, target), candidate.candidate_id, candidate.state),
    )
    if moved.rowcount != 1:
        raise StateMoved(f"candidate {candidate.candidate_id} is no longer {candidate.state}; read it again")


def set_mlflow_version(conn: Connection, *, candidate_id: int, version: str) -> None:
    """Note under which model version MLflow shows a candidate."""
    conn.execute("UPDATE candidates SET mlflow_model_version = %s WHERE candidate_id = %s", (version, candidate_id))
