"""A mark is another one after each change of what it stands for, and the same while nothing has changed."""

from __future__ import annotations

import pytest

from registry import changes, lines, runs
from registry.db import Connection
from tests import factories


def mark(db: Connection, subject: str) -> str:
    return changes.marks(db, [subject])[subject]


def test_what_there_is_not_has_no_mark_and_what_is_no_subject_is_refused(db: Connection) -> None:
    assert changes.marks(db, ["run/999999", "line/999999", "worklist/999999"]) == {}
    assert changes.marks(db, []) == {}
    for subject in ("case/1", "run", "run/", "run/-1", "run/١", "run/99999999999999999999"):
        with pytest.raises(ValueError, match="is no subject"):
            changes.marks(db, [subject])


def test_a_run_is_another_after_each_step_and_a_line_after_all_that_its_page_shows(db: Connection) -> None:
    line = factories.line(db)
    case = factories.case(db, line)
    subject = f"line/{line.line_id}"
    seen = {mark(db, subject)}

    def is_another() -> None:
        found = mark(db, subject)
        assert found not in seen
        assert mark(db, subject) == found
        seen.add(found)

    factories.confirmation(db, case)
    is_another()
    run = runs.start_run(db, line_id=line.line_id, requested_by=None, reason="it is time")
    is_another()
    of_run = mark(db, f"run/{run.run_id}")
    runs.cancel(db, run_id=run.run_id, actor=None)
    assert mark(db, f"run/{run.run_id}") != of_run
    factories.gated_candidate(db, line)
    is_another()
    factories.champion(db, line)
    is_another()
    factories.new_protocol(db, line, title="The same question in other words")
    is_another()


def test_of_several_subjects_each_has_its_own_mark_and_only_what_changed_is_another(db: Connection) -> None:
    first, second = factories.line(db), factories.line(db)
    subjects = [f"{kind}/{line.line_id}" for kind in ("line", "worklist") for line in (first, second)]
    before = changes.marks(db, [*subjects, "jobs/0"])
    assert len(set(before.values())) >= 3
    factories.confirmation(db, factories.case(db, first))
    after = changes.marks(db, [*subjects, "jobs/0"])
    changed = {subject for subject in before if before[subject] != after[subject]}
    assert changed == {f"line/{first.line_id}", f"worklist/{first.line_id}"}
    runs.start_run(db, line_id=lines.get_line(db, second.name).line_id, requested_by=None, reason="it is time")
    assert mark(db, "jobs/0") != before["jobs/0"]
