"""Does the database hold exactly what the model says, and does it keep the promises that need no model?"""

from __future__ import annotations

import itertools
from typing import Any

from registry import audit
from registry.db import Connection
from tests.machine.model import Model


def assert_equal(conn: Connection, model: Model, *, in_any_order: int = 0) -> None:
    """Compare row by row; the last `in_any_order` events of the trail may have been written in another order."""
    tables = _tables(model)
    columns = ", ".join(
        f"(SELECT coalesce(jsonb_agg(a), '[]') FROM (SELECT jsonb_build_array({query}) AS a{rest}) x)"  # noqa: S608 - fixed texts, below
        for query, rest, _ in tables.values()
    )
    (row,) = conn.execute(f"SELECT {columns}").fetchall()  # one round trip for all
    for (name, (_, _, wanted)), rows in zip(tables.items(), row, strict=True):
        found = {key: tuple(values) for key, *values in rows}
        differs = {key: (found.get(key), wanted.get(key)) for key in found.keys() | wanted.keys()}
        differs = {key: pair for key, pair in differs.items() if pair[0] != pair[1]}
        assert not differs, f"{name}: (in the database, in the model) differ at {differs}"
    events = conn.execute("SELECT actor, action, subject FROM audit_events ORDER BY audit_event_id").fetchall()
    settled = len(model.trail) - in_any_order
    assert events[:settled] == model.trail[:settled]
    assert sorted(events[settled:]) == sorted(model.trail[settled:])


def assert_promises(conn: Connection) -> None:
    """One champion a line, reigns that follow each other without gap or overlap, and an unbroken chain."""
    crowned = conn.execute("SELECT line_id FROM promotions WHERE ended_at IS NULL").fetchall()
    assert len(set(crowned)) == len(crowned), "two champions"
    reigns = conn.execute(
        "SELECT line_id, promotion_id, candidate_id, replaced_candidate_id, promoted_at, ended_at FROM promotions"
        " ORDER BY line_id, promotion_id"
    ).fetchall()
    for line, group in itertools.groupby(reigns, key=lambda row: row[0]):
        history = list(group)
        assert history[0][3] is None, f"the first champion of line {line} replaced nobody"
        for before, after in itertools.pairwise(history):
            assert after[3] == before[2], f"promotion {after[1]} does not name whom it replaced"
            assert after[4] == before[5], f"promotion {after[1]} began at {after[4]}, the one before ended {before[5]}"
    assert audit.first_broken(conn) is None


def _tables(model: Model) -> dict[str, tuple[str, str, dict[Any, tuple[Any, ...]]]]:
    people = {name: user.user_id for name, user in model.people.items()}
    return {
        "cases": (
            "case_id, line_id, name, external_id, image_digest, patient",
            " FROM cases JOIN users ON user_id = submitted_by",
            {
                key: (case.line, case.submitter, case.external_id, case.image, case.patient)
                for key, case in model.cases.items()
            },
        ),
        "confirmations": (
            "confirmation_id, case_id, line_id, kind, finding, submitted_by, supersedes",
            " FROM confirmations",
            {
                key: (c.case, model.cases[c.case].line, c.kind, c.finding, people[c.submitter], c.supersedes)
                for key, c in model.confirmations.items()
            },
        ),
        "discordances": (
            "case_id, line_id",
            " FROM discordances",
            {case: (line,) for case, line in model.discordant().items()},
        ),
        "idempotency keys": (
            "(user_id, key)::text, request_digest, response_body",
            " FROM idempotency_keys",
            {f"({people[name]},{key})": (digest, body) for (name, key), (digest, body) in model.replies.items()},
        ),
        "jobs": (
            "unique_key, kind, line_id, state, attempts, fence, (sent_at IS NOT NULL AND state = 'queued'), cancelling",
            " FROM (SELECT *, cancel_requested AND state = 'running' AS cancelling FROM jobs) known",
            {
                key: (
                    job.kind,
                    job.line,
                    job.state,
                    job.attempts,
                    job.fence,
                    job.sent and job.state == "queued",
                    job.cancel_requested and job.state == "running",
                )
                for key, job in model.jobs.items()
            },
        ),
        "runs": (
            "run_id, line_id, state, requested_by, dataset_version_id, base_candidate_id, finished_at IS NOT NULL",
            " FROM runs",
            {
                key: (
                    run.line,
                    run.state,
                    None if run.requested_by is None else people[run.requested_by],
                    run.version,
                    run.base,
                    run.state not in {"freezing", "training", "gating"},
                )
                for key, run in model.runs.items()
            },
        ),
        "dataset versions": (
            "dataset_version_id, line_id, number, last_confirmation_id, manifest -> 'confirmations', submitter_shares",
            " FROM dataset_versions",
            {key: (v.line, v.number, v.last, v.standing, v.shares) for key, v in model.versions.items()},
        ),
        "candidates": (
            "candidate_id, line_id, number, run_id, dataset_version_id, weights_digest, state",
            " FROM candidates",
            {key: (c.line, c.number, c.run, c.version, c.weights, c.state) for key, c in model.candidates.items()},
        ),
        "gate reports": (
            "gate_report_id, candidate_id, champion_candidate_id, protocol_id, verdict",
            " FROM gate_reports",
            {key: (r.candidate, r.champion, r.protocol, r.verdict) for key, r in model.reports.items()},
        ),
        "approvals": (
            "approval_id, candidate_id, gate_report_id, approver_id, decision",
            " FROM approvals",
            {key: (a.candidate, a.report, people[a.approver], a.decision) for key, a in model.approvals.items()},
        ),
        "promotions": (
            "promotion_id, line_id, candidate_id, kind, replaced_candidate_id, ended_at IS NOT NULL",
            " FROM promotions",
            {key: (r.line, r.candidate, r.kind, r.replaced, r.ended) for key, r in model.reigns.items()},
        ),
    }
