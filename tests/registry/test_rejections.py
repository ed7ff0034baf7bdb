"""A rejection is no diagnosis: it is kept beside the answers, and the case waits on."""

from __future__ import annotations

import pytest

from registry import audit, confirmations, rejections, worklists
from registry.db import Connection
from registry.errors import AlreadyExists, Forbidden, Invalid, NotFound
from tests import factories


def test_a_rejection_is_kept_and_audited_and_the_case_goes_on_waiting(db: Connection) -> None:
    line = factories.line(db)
    case, champion = factories.case(db, line), factories.champion(db, line)
    made = factories.rejection(db, case, champion)
    assert (made.case_id, made.decision, made.reason) == (case.case_id, "pneumonia", "that is a fold")
    assert rejections.of_case(db, case.case_id) == [made]
    assert rejections.count_of_candidate(db, champion.candidate_id) == 1
    event = audit.find_events(db, action="prediction:reject", limit=1)[0]
    assert (event.subject, event.details["row"]) == (f"case/{case.case_id}", f"rejections/{made.rejection_id}")
    assert confirmations.list_for_case(db, case.case_id) == []
    waiting = worklists.pool(db, line=line, candidate_id=champion.candidate_id, limit=10)
    assert [one.case_id for one in waiting] == [case.case_id]


def test_only_what_one_was_shown_is_rejected_and_only_once(db: Connection) -> None:
    line = factories.line(db)
    case, champion = factories.case(db, line), factories.champion(db, line)
    reader, other = factories.user(db, "submitter"), factories.user(db, "reviewer")
    said = factories.prediction(db, case, champion, actor=reader)
    with pytest.raises(Invalid, match="was not shown prediction"):
        rejections.reject(db, prediction_id=said.prediction_id, actor=other)
    rejections.reject(db, prediction_id=said.prediction_id, actor=reader, reason="  ")
    assert rejections.of_case(db, case.case_id)[0].reason is None
    with pytest.raises(AlreadyExists):
        rejections.reject(db, prediction_id=said.prediction_id, actor=reader)
    with pytest.raises(NotFound):
        rejections.reject(db, prediction_id=999_999, actor=reader)
    with pytest.raises(Forbidden):
        rejections.reject(db, prediction_id=said.prediction_id, actor=factories.user(db, "operator"))
