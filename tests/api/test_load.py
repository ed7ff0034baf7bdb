"""The benchmark of confirmations in small: it asserts what must hold at any speed, and says nothing of speed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import measured, outage
from benchmarks.stage import Stage, open_stage


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A PostgreSQL of the benchmark's own, fsync on."""
    with open_stage() as opened:
        yield opened


def test_while_the_broker_is_killed_no_confirmation_and_no_job_is_lost_or_doubled(stage: Stage) -> None:
    soon = {"OVERREAD_RESEND_SECONDS": "2"}  # a nudge that died with the broker is sent again
    found = outage.endure(stage, kind="embedded", seconds=10, kill_every_seconds=3, connections=4, **soon)
    assert found.kills >= 1
    assert found.failed_at_first == {}, "a broker that is away costs no request"
    assert found.confirmations.acknowledged > 0
    assert (found.confirmations.lost, found.confirmations.doubled, found.confirmations.whole) == (0, 0, True)
    assert found.jobs > 0
    assert (found.jobs_lost, found.jobs_doubled) == (0, 0)


def test_the_comparison_names_what_is_lost_doubled_or_broken(stage: Stage) -> None:
    record = stage.record("compared", cases=3)
    told = ("reader-1", 1, "normal", 4)
    assert measured.compare(record, [told]) == measured.Comparison(acknowledged=1, lost=1, doubled=0, whole=True)
    with stage.admin(record.name) as connection:
        for _ in range(2):
            connection.execute(
                "INSERT INTO confirmations (case_id, line_id, finding, evidence, ai_exposure, reader, confirmed_at,"
                " submitted_by) SELECT case_id, line_id, 'normal', 'single_read', 'blind', 'reader-1', now(),"
                " submitted_by FROM cases WHERE case_id = 1"
            )
        connection.execute("INSERT INTO audit_events (actor, action, subject, details) VALUES ('a', 'b:c', 'd', '{}')")
        connection.execute("ALTER TABLE audit_events DISABLE TRIGGER ALL")
        connection.execute("UPDATE audit_events SET subject = 'e' WHERE actor = 'a'")
    assert measured.compare(record, [told]) == measured.Comparison(acknowledged=1, lost=0, doubled=1, whole=False)
