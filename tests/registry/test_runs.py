"""A line learns one step at a time, for a reason, and each step asks for the next."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from queue import Queue

import pytest

from registry import candidates, jobs, lifecycle, runs
from registry.db import Connection, connect, fetch_value
from registry.errors import GateNotPassed, Invalid, RegistryError, RunInProgress, StateMoved
from registry.lines import Line
from tests import factories
from tests.waiting import PATIENCE_SECONDS, until


def _asked(db: Connection, line: Line) -> list[tuple[str, dict[str, int]]]:
    return [(job.kind, job.payload) for job in reversed(jobs.list_jobs(db, line_id=line.line_id))]


def test_a_run_goes_from_freeze_to_gated_candidate_job_by_job(db: Connection) -> None:
    line = factories.line(db)
    requester = factories.user(db, "operator")
    run = runs.start_run(db, line_id=line.line_id, requested_by=requester, reason="by hand")
    assert (run.state, run.requested_by) == ("freezing", requester.user_id)
    version = factories.dataset_version(db, line)
    run = runs.attach_dataset(
        db, run_id=run.run_id, dataset_version_id=version.dataset_version_id, base_candidate_id=None
    )
    assert (run.state, run.dataset_version_id) == ("training", version.dataset_version_id)
    candidate = candidates.record_candidate(
        db, run_id=run.run_id, weights_digest=factories.blob(db), metadata_digest=factories.blob(db), metadata={}
    )
    assert (candidate.number, candidate.state, runs.get(db, run.run_id).state) == (1, "trained", "gating")
    factories.gate_report(db, candidate)
    finished = runs.get(db, run.run_id)
    assert (finished.state, finished.outcome) == ("finished", "candidate 1: gates passed")
    assert finished.finished_at is not None
    of_run = {"run_id": run.run_id}
    assert _asked(db, line) == [
        ("freeze_dataset", of_run),
        ("train_candidate", of_run),
        ("gate_candidate", {"candidate_id": candidate.candidate_id, **of_run}),
        ("mirror_candidate", {"candidate_id": candidate.candidate_id, **of_run}),
    ]


def test_the_strategy_is_the_protocols_once_there_is_a_champion(db: Connection) -> None:
    line = factories.line(db, recipe={"strategy": "replay"})
    factories.champion(db, line)
    first = runs.get(db, candidates.list_candidates(db, line.line_id)[0].run_id)
    run = runs.start_run(db, line_id=line.line_id, requested_by=None, reason="trigger")
    assert (first.strategy, run.strategy) == ("full", "replay")
    runs.refuse(db, run_id=run.run_id, outcome="nothing new")
    by_hand = runs.start_run(db, line_id=line.line_id, requested_by=None, reason="by hand", strategy="finetune")
    assert by_hand.strategy == "finetune"


def test_an_unknown_strategy_is_refused(db: Connection) -> None:
    with pytest.raises(Invalid, match="unknown strategy"):
        runs.start_run(db, line_id=factories.line(db).line_id, requested_by=None, reason="x", strategy="magic")


def test_a_strategy_outside_the_envelope_is_refused_with_the_clause_named(db: Connection) -> None:
    line = factories.line(db, envelope={"strategies": ["full"]})
    factories.champion(db, line)
    with pytest.raises(Invalid, match=r"envelope\.strategies of the protocol does not allow 'warm', only full"):
        runs.start_run(db, line_id=line.line_id, requested_by=None, reason="x", strategy="warm")
    assert runs.start_run(db, line_id=line.line_id, requested_by=None, reason="x").strategy == "full"


def test_a_second_run_waits_for_the_first(db: Connection) -> None:
    line, other = factories.line(db), factories.line(db)
    first = runs.start_run(db, line_id=line.line_id, requested_by=None, reason="x")
    with pytest.raises(RunInProgress):
        runs.start_run(db, line_id=line.line_id, requested_by=None, reason="x")
    runs.start_run(db, line_id=other.line_id, requested_by=None, reason="another line is free")
    runs.fail(db, run_id=first.run_id, outcome="broke")
    runs.start_run(db, line_id=line.line_id, requested_by=None, reason="x")


def test_a_job_that_failed_for_good_ends_its_run(db: Connection) -> None:
    line = factories.line(db)
    run = runs.start_run(db, line_id=line.line_id, requested_by=None, reason="x")
    (job,) = jobs.list_jobs(db, line_id=line.line_id)
    for _ in range(job.maximum_attempts):
        assert runs.get(db, run.run_id).state == "freezing"
        assert jobs.claim(db, job_id=job.job_id, owner="w", lease_seconds=-1.0) is not None
        reaped = jobs.reap(db, job_id=job.job_id)
        assert reaped is not None
        runs.fail_for_job(db, job=reaped)
    ended = runs.get(db, run.run_id)
    assert ended.state == "failed"
    assert ended.outcome is not None
    assert ended.outcome.startswith("freeze dataset failed, attempt 3: the worker w stopped answering")


def test_a_mirror_that_failed_ends_no_run(db: Connection) -> None:
    line = factories.line(db)
    factories.candidate(db, line)
    (job,) = [job for job in jobs.list_jobs(db, line_id=line.line_id) if job.kind == "mirror_candidate"]
    claimed = jobs.claim(db, job_id=job.job_id, owner="w", lease_seconds=15.0)
    assert claimed is not None
    failed = jobs.fail(db, job_id=job.job_id, fence=claimed.fence, error="x", retry=False)
    assert failed is not None
    assert runs.fail_for_job(db, job=failed) is None


def test_cancelling_a_run_stops_its_jobs(db: Connection) -> None:
    line = factories.line(db)
    run = factories.training_run(db, line)
    freeze, train = reversed(jobs.list_jobs(db, line_id=line.line_id))
    assert jobs.claim(db, job_id=train.job_id, owner="w", lease_seconds=15.0) is not None
    actor = factories.user(db, "operator")
    cancelled = runs.cancel(db, run_id=run.run_id, actor=actor)
    assert (cancelled.state, cancelled.outcome) == ("cancelled", f"cancelled by {actor.name}")
    assert jobs.get_job(db, freeze.job_id).state == "cancelled"
    assert jobs.get_job(db, train.job_id).cancel_requested
    with pytest.raises(StateMoved):
        candidates.record_candidate(
            db, run_id=run.run_id, weights_digest=factories.blob(db), metadata_digest=factories.blob(db), metadata={}
        )
    with pytest.raises(StateMoved):
        runs.cancel(db, run_id=run.run_id, actor=actor)


def test_nothing_comes_of_a_run_once_it_was_cancelled(db: Connection) -> None:
    candidate = factories.candidate(db, factories.line(db))
    runs.cancel(db, run_id=candidate.run_id, actor=factories.user(db, "operator"))
    with pytest.raises(StateMoved, match="is cancelled; its candidate gets no gate report"):
        factories.gate_report(db, candidate)
    assert candidates.latest_report(db, candidate.candidate_id) is None
    assert candidates.get(db, candidate.candidate_id).state == "trained"
    with pytest.raises(GateNotPassed):
        factories.signatures(db, candidate, [factories.user(db, "approver")])


def test_a_candidate_of_a_finished_run_may_be_gated_again_against_another_champion(db: Connection) -> None:
    line = factories.line(db)
    candidate = factories.gated_candidate(db, line, verdict="fail")
    factories.champion(db, line)
    assert factories.gate_report(db, candidate).verdict == "pass"


def test_a_resumed_training_does_not_repeat_its_history(db: Connection) -> None:
    run = factories.training_run(db, factories.line(db))
    rows = [{"epoch": epoch, "loss": 1.0 / epoch} for epoch in (1, 2, 3)]
    runs.record_progress(db, run_id=run.run_id, progress={"epoch": 2}, history_rows=rows[:2])
    runs.record_progress(db, run_id=run.run_id, progress={"epoch": 3}, history_rows=rows[1:])
    shown = runs.get(db, run.run_id)
    assert (shown.progress, shown.history) == ({"epoch": 3}, rows)


def _confirmations(db: Connection, line: Line, count: int) -> None:
    reader = factories.user(db, "submitter")
    for _ in range(count):
        factories.confirmation(db, factories.case(db, line, actor=reader), actor=reader)


def _let_time_pass(db: Connection, line: Line, passed: timedelta) -> None:
    db.execute("UPDATE runs SET created_at = created_at - %s WHERE line_id = %s", (passed, line.line_id))
    db.execute("UPDATE lines SET created_at = created_at - %s WHERE line_id = %s", (passed, line.line_id))


def _due(db: Connection, line: Line) -> list[str]:
    return [reason for due, reason in runs.due_triggers(db) if due.line_id == line.line_id]


def test_enough_new_confirmations_trigger_a_run(db: Connection) -> None:
    line = factories.line(db, triggers={"new_confirmations": 3, "every_hours": None})
    _confirmations(db, line, 2)
    assert _due(db, line) == []
    _confirmations(db, line, 1)
    assert _due(db, line) == ["3 new confirmations; the protocol asks for 3"]
    assert runs.next_trigger(db, line.line_id) == {"new_confirmations": 3, "needed": 3, "every_hours": None}


def test_an_unfinished_run_keeps_the_trigger_quiet(db: Connection) -> None:
    line = factories.line(db, triggers={"new_confirmations": 1, "every_hours": None})
    _confirmations(db, line, 1)
    runs.start_run(db, line_id=line.line_id, requested_by=None, reason="x")
    assert _due(db, line) == []


def test_what_a_dataset_version_has_seen_is_not_new(db: Connection) -> None:
    line = factories.line(db, triggers={"new_confirmations": 2, "every_hours": None})
    _confirmations(db, line, 2)
    factories.gated_candidate(db, line, verdict="fail")
    assert _due(db, line) == []
    _confirmations(db, line, 1)
    assert _due(db, line) == []
    _confirmations(db, line, 1)
    assert len(_due(db, line)) == 1


def test_a_refused_run_is_not_repeated_without_new_confirmations(owner_db: Connection) -> None:
    line = factories.line(owner_db, triggers={"new_confirmations": 2, "every_hours": None})
    _confirmations(owner_db, line, 2)
    run = runs.start_run(owner_db, line_id=line.line_id, requested_by=None, reason="x")
    runs.refuse(owner_db, run_id=run.run_id, outcome="the sealed test would be empty")
    assert _due(owner_db, line) == []
    # All of a test happens at one transaction's time: let the run have been earlier, the confirmations earlier still.
    _let_time_pass(owner_db, line, timedelta(hours=1))
    assert len(_due(owner_db, line)) == 1


def test_the_clock_triggers_a_run_if_there_is_anything_new(owner_db: Connection) -> None:
    line = factories.line(owner_db, triggers={"new_confirmations": 100, "every_hours": 24.0})
    _let_time_pass(owner_db, line, timedelta(hours=25))
    assert _due(owner_db, line) == []
    _confirmations(owner_db, line, 1)
    assert _due(owner_db, line) == ["24 hours have passed and there are 1 new confirmations"]
    run = runs.start_run(owner_db, line_id=line.line_id, requested_by=None, reason="clock")
    runs.fail(owner_db, run_id=run.run_id, outcome="broke")
    assert _due(owner_db, line) == []  # not again before another 24 hours
    _let_time_pass(owner_db, line, timedelta(hours=25))
    assert len(_due(owner_db, line)) == 1


def test_a_cancel_is_not_refused_because_a_step_is_recorded_just_then(fresh_database: str) -> None:
    with connect(fresh_database) as conn:
        line, operator = factories.line(conn), factories.user(conn, "operator")
        run = runs.start_run(conn, line_id=line.line_id, requested_by=None, reason="x")
        version = factories.dataset_version(conn, line)

    def cancel(conn: Connection) -> str:
        return runs.cancel(conn, run_id=run.run_id, actor=operator).state

    def attach(conn: Connection) -> str:
        return runs.attach_dataset(
            conn, run_id=run.run_id, dataset_version_id=version.dataset_version_id, base_candidate_id=None
        ).state

    assert _at_once(fresh_database, attach, cancel) == ("training", "cancelled")
    with connect(fresh_database) as conn:
        assert {job.state for job in jobs.list_jobs(conn, line_id=line.line_id)} == {"cancelled"}


def test_the_tables_of_states_match_the_schema(db: Connection) -> None:
    for kind, constraint in (
        ("candidate", "candidates_state_is_known"),
        ("run", "runs_state_is_known"),
        ("job", "jobs_state_is_known"),
    ):
        row = db.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s", (constraint,)
        ).fetchone()
        assert row is not None
        assert set(row[0].split("'")[1::2]) == set(lifecycle.TRANSITIONS[kind])
        assert {state for targets in lifecycle.TRANSITIONS[kind].values() for state in targets} <= set(
            lifecycle.TRANSITIONS[kind]
        )


@pytest.mark.parametrize(
    ("kind", "current", "target"),
    [("candidate", "rejected", "champion"), ("candidate", "gates_failed", "champion"), ("run", "finished", "failed")],
)
def test_a_state_that_is_over_stays_over(kind: lifecycle.Kind, current: str, target: str) -> None:
    with pytest.raises(StateMoved):
        lifecycle.advance(kind, current, target)


@pytest.mark.parametrize("first", ["the cancel", "the report"])
def test_of_a_cancel_and_a_gate_report_at_once_the_first_counts(fresh_database: str, first: str) -> None:
    with connect(fresh_database) as conn:
        line, operator = factories.line(conn), factories.user(conn, "operator")
        candidate = factories.candidate(conn, line)

    def cancel(conn: Connection) -> str:
        return runs.cancel(conn, run_id=candidate.run_id, actor=operator).state

    def report(conn: Connection) -> str:
        return factories.gate_report(conn, candidate).verdict

    done = _at_once(fresh_database, *((cancel, report) if first == "the cancel" else (report, cancel)))
    with connect(fresh_database) as conn:
        found = candidates.latest_report(conn, candidate.candidate_id)
        state, ended = candidates.get(conn, candidate.candidate_id).state, runs.get(conn, candidate.run_id).state
    if first == "the cancel":
        assert (done, found, state, ended) == (("cancelled", "state-moved"), None, "trained", "cancelled")
    else:
        assert found is not None
        assert (done, state, ended) == (("pass", "state-moved"), "gates_passed", "finished")


def _at_once(url: str, first: Callable[[Connection], str], second: Callable[[Connection], str]) -> tuple[str, str]:
    """Have `second` begin, and come to wait, while `first` is done and not committed; what each said, or refused."""
    pids: Queue[int] = Queue()

    def later() -> str:
        with connect(url) as conn:
            pids.put(conn.info.backend_pid)
            try:
                return second(conn)
            except RegistryError as refusal:
                conn.rollback()
                return refusal.slug

    with connect(url) as conn, connect(url) as watcher, ThreadPoolExecutor(1) as other:
        said = first(conn)
        ending, pid = other.submit(later), pids.get(timeout=PATIENCE_SECONDS)
        watcher.autocommit = True
        waits = "SELECT pg_blocking_pids(%s) <> '{}'"
        until(lambda: ending.done() or fetch_value(watcher, waits, (pid,)), what="its end or its turn to wait")
        conn.commit()
        return said, ending.result(timeout=PATIENCE_SECONDS)


def _next_strategy(db: Connection, line: Line) -> tuple[str, str]:
    """What the next run trains by, and its reason; the run is given up at once."""
    run = runs.start_run(db, line_id=line.line_id, requested_by=None, reason="trigger")
    runs.refuse(db, run_id=run.run_id, outcome="for tests")
    return run.strategy, run.reason


def test_a_line_trains_from_nothing_once_its_archive_has_grown_enough(db: Connection) -> None:
    line = factories.line(db, recipe={"strategy": "auto", "anchor_growth": 2.0})
    _confirmations(db, line, 4)
    factories.champion(db, line)
    assert _next_strategy(db, line) == ("auto", "trigger")
    _confirmations(db, line, 3)
    assert _next_strategy(db, line)[0] == "auto"
    _confirmations(db, line, 1)
    strategy, reason = _next_strategy(db, line)
    assert strategy == "full"
    assert reason == "trigger; trained from nothing, for 8 cases are confirmed and the last such training knew 4"
    factories.candidate(db, line)  # such a training, which is the anchor from now on
    run_id = runs.list_runs(db, line.line_id)[0].run_id
    runs.cancel(db, run_id=run_id, actor=None)
    assert _next_strategy(db, line) == ("auto", "trigger")


def test_failed_gates_lead_up_the_ladder_and_a_promotion_down_again(db: Connection) -> None:
    line = factories.line(db, recipe={"strategy": "auto", "escalation": ["warm", "full"]})
    factories.champion(db, line)
    seen = []
    for _ in range(4):
        seen.append(_next_strategy(db, line)[0])
        factories.gated_candidate(db, line, verdict="fail")
    assert seen == ["auto", "warm", "full", "full"]
    assert "by full, for 4 in a row did not pass the gates" in _next_strategy(db, line)[1]
    factories.promotion(db, factories.approved_candidate(db, line))
    assert _next_strategy(db, line) == ("auto", "trigger")


def test_whoever_asks_for_a_strategy_gets_it_whatever_the_ladder_says(db: Connection) -> None:
    line = factories.line(db, recipe={"strategy": "auto", "escalation": ["full"]})
    factories.champion(db, line)
    factories.gated_candidate(db, line, verdict="fail")
    run = runs.start_run(db, line_id=line.line_id, requested_by=None, reason="by hand", strategy="warm")
    assert (run.strategy, run.reason) == ("warm", "by hand")
