"""Checkpoints are signed beside the relay: at its start, by the clock, and as it stops."""

from __future__ import annotations

import dataclasses
import logging
import threading

import pytest

from registry import audit, checkpoints, db, notes
from tests.conftest import as_superuser
from tests.waiting import until
from workers import notary
from workers.settings import WorkerSettings

from .lines import make_line


def sizes(settings: WorkerSettings) -> list[int]:
    return [int(file.stem) for file in checkpoints.files(settings.checkpoints)]


def view(record: db.Connection) -> None:
    audit.record(record, actor="rita", action="case:view", subject="case/1")
    record.commit()


def test_checkpoints_are_signed_at_the_start_by_the_clock_and_at_the_end(
    settings: WorkerSettings, record: db.Connection
) -> None:
    make_line(record)
    before = len(audit.list_events(record))
    record.rollback()
    stopping = threading.Event()
    often = dataclasses.replace(settings, checkpoint_seconds=0.2)
    with notary.signing(often, stopping=stopping):
        until(lambda: sizes(settings) == [before])  # what a killed one left unsigned
        view(record)
        until(lambda: sizes(settings) == [before, before + 1])
    seldom = dataclasses.replace(settings, checkpoint_seconds=3600)
    stopping = threading.Event()
    with notary.signing(seldom, stopping=stopping):
        view(record)
    until(lambda: sizes(settings)[-1] == before + 2)
    verifier = notes.signer_at(settings.checkpoint_key).verifier
    assert [checkpoints.read(file, verifier).size for file in checkpoints.files(settings.checkpoints)] == sizes(
        settings
    )


def test_a_trail_that_is_not_the_one_signed_before_is_not_signed_and_the_log_says_so(
    settings: WorkerSettings, record: db.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    make_line(record)
    assert notary.sign_once(settings)
    assert not notary.sign_once(settings)  # nothing new
    with db.connect(as_superuser(settings.database_url)) as superuser:
        superuser.execute("ALTER TABLE audit_events DISABLE TRIGGER ALL")
        superuser.execute("DELETE FROM audit_events WHERE audit_event_id > 1")
        superuser.execute("ALTER TABLE audit_events ENABLE ALWAYS TRIGGER audit_events_are_chained")
    for _ in range(5):
        view(record)  # the trail is longer than ever, and another
    with caplog.at_level(logging.ERROR):
        assert not notary.sign_once(settings)
    assert "was rewritten" in caplog.text
    assert len(sizes(settings)) == 1


def test_while_the_record_is_away_it_tries_again(settings: WorkerSettings, caplog: pytest.LogCaptureFixture) -> None:
    away = dataclasses.replace(settings, database_url="postgresql://127.0.0.1:9/none")
    with caplog.at_level(logging.WARNING):
        assert not notary.sign_once(away)
    assert "no checkpoint could be signed just now" in caplog.text
