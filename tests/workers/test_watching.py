"""A champion in use, looked at by the worker: real cases, real scores, and people who confirm what they see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import embed, images, synthetic
from pipelines.predict import Model
from pipelines.watch import main as look_job
from registry import audit, blobs, confirmations, db, jobs, promotions, watches
from registry.lines import Line
from tests import factories
from workers.lease import Workshop
from workers.settings import WorkerSettings
from workers.watching import watch_config, watch_due_champions

from .conftest import state_of
from .lines import approved, make_line, only, story, waiting, work

pytestmark = pytest.mark.usefixtures("at_hand")

WATCHED: dict[str, Any] = {"tolerance": 0.036, "maturity_days": 0.0, "alpha": 0.1, "sample": "every_case"}
"""With a sealed test of 200 errors in 2000 cases the limit is .15, that of the simulation of the alarm."""
SHARE = {"value": 0.9, "low": 0.88, "high": 0.92, "n": 1000, "level": 0.9}
RESULTS = tuple({"name": name, "verdict": "pass", "candidate": SHARE} for name in ("sensitivity", "specificity"))
A_WEEK = 20
"""Confirmations, as in the simulation."""


class Hospital:
    """A line with a champion, and people who send cases and confirm them; `risk` is how often the champion is wrong."""

    def __init__(self, record: db.Connection, settings: WorkerSettings, **monitoring: Any) -> None:
        self.record, self.settings = record, settings
        self.line, self.person = make_line(record, monitoring={**WATCHED, **monitoring})
        self.rng = np.random.default_rng(0)

    def crown(self, *, seed: int = 1, results: Any = RESULTS) -> Model:
        """A champion with random weights, whose report says how often it was wrong on the sealed test."""
        made = approved(self.record, blob_root=self.settings.blob_root, line=self.line, seed=seed, results=results)
        factories.promotion(self.record, made)
        self.record.commit()
        weights = blobs.path_of(self.settings.blob_root, made.weights_digest)
        return Model.from_files(weights, metadata=made.metadata, expected_digest=None)

    def confirm(self, model: Model, *, weeks: int, risk: float, **fields: Any) -> None:
        """Weeks of cases that are read blind; what readers find is what the model says, but for its errors."""
        count = weeks * A_WEEK
        pictures, _ = synthetic.radiographs(count, rng=self.rng, size=28)
        stored = [images.npy_bytes(picture) for picture in pictures]
        digests = [
            blobs.put(self.record, self.settings.blob_root, data, media_type="application/x-npy") for data in stored
        ]
        scores, _ = embed.look_at_stored(model, digests, blobs=self.settings.blob_root)
        wrong = self.rng.random(count) < risk
        for digest, decided, error in zip(digests, model.decided(scores).tolist(), wrong.tolist(), strict=True):
            case = factories.case(self.record, self.line, actor=self.person, image_digest=digest)
            finding = model.classes[1 - decided if error else decided]
            factories.confirmation(self.record, case, actor=self.person, **{"finding": finding, **fields})
        self.record.commit()

    def look(self, workshop: Workshop) -> watches.Watch:
        """A day goes by, the clock ticks, and the worker looks."""
        self.record.rollback()
        self.record.execute("UPDATE jobs SET created_at = created_at - interval '1 day' WHERE kind = 'watch_champion'")
        self.record.commit()
        watch_due_champions(workshop)
        work(workshop, self.record, "watch_champion")
        self.record.rollback()
        return watches.list_for_line(self.record, self.line.line_id)[0]

    def look_here(self, directory: Path) -> watches.Watch:
        """Look as the worker has it done, but in the process of the tests."""
        self.record.rollback()
        config = watch_config(self.record, line_id=self.line.line_id, directory=directory, settings=self.settings)
        assert config is not None
        (directory / "config.json").write_text(json.dumps(config))
        assert look_job([str(directory)]) == 0
        seen = json.loads((directory / "result.json").read_text())
        assert "refused" not in seen, seen
        named = {key: config[key] for key in ("line_id", "candidate_id", "protocol_id")}
        watches.record(self.record, **named, seen=seen)
        self.record.commit()
        return watches.list_for_line(self.record, self.line.line_id)[0]

    def alarms(self) -> int:
        """How often an alarm rose."""
        return len(audit.find_events(self.record, action="champion:alarm"))


@pytest.fixture
def hospital(record: db.Connection, settings: WorkerSettings) -> Hospital:
    """A hospital of the test's own."""
    return Hospital(record, settings)


def test_a_champion_whose_confirmations_turn_bad_raises_the_alarm_within_the_weeks_of_the_simulation(
    hospital: Hospital, workshop: Workshop, tmp_path: Path
) -> None:
    model = hospital.crown()
    hospital.confirm(model, weeks=6, risk=0.12)
    calm = hospital.look(workshop)
    assert (calm.verdict, calm.n, calm.raised_at) == ("in_order", 6 * A_WEEK, None)
    assert calm.risk_limit == pytest.approx(0.148, abs=0.002)
    hospital.confirm(model, weeks=13, risk=0.25)
    seen = hospital.look_here(tmp_path)
    assert seen.verdict == "alarm", seen
    assert 6 * A_WEEK < (seen.raised_at or 0) <= (6 + 13) * A_WEEK
    assert "errs in more than 14.8% of cases" in seen.reason
    assert (seen.lower_bound or 0.0) > (seen.risk_limit or 1.0) - 0.005
    assert hospital.alarms() == 1
    again = hospital.look_here(tmp_path)
    assert (again.verdict, again.raised_at, hospital.alarms()) == ("alarm", seen.raised_at, 1)


def test_an_honest_champion_is_left_in_peace_for_a_year(hospital: Hospital, tmp_path: Path) -> None:
    model = hospital.crown()
    hospital.confirm(model, weeks=52, risk=0.12)
    seen = hospital.look_here(tmp_path)
    assert (seen.verdict, seen.n, hospital.alarms()) == ("in_order", 52 * A_WEEK, 0), seen
    assert seen.verified_share == 1.0
    assert seen.weighted_risk["value"] == pytest.approx(seen.risk)


def test_words_of_readers_who_had_seen_the_model_calm_nobody(hospital: Hospital, tmp_path: Path) -> None:
    model = hospital.crown()
    hospital.confirm(model, weeks=10, risk=0.4)
    hospital.confirm(model, weeks=20, risk=0.0, ai_exposure="aided")
    seen = hospital.look_here(tmp_path)
    assert (seen.verdict, seen.n, seen.sample) == ("alarm", 10 * A_WEEK, 30 * A_WEEK)
    assert seen.verified_share == pytest.approx(1 / 3)


def test_after_a_roll_back_the_champion_of_then_is_looked_at_for_itself(hospital: Hospital, tmp_path: Path) -> None:
    first, second = hospital.crown(seed=1), hospital.crown(seed=2)
    assert first.classes == second.classes
    hospital.confirm(second, weeks=8, risk=0.5)
    seen = hospital.look_here(tmp_path)
    assert seen.verdict == "alarm"
    promotions.roll_back(
        hospital.record,
        line_id=hospital.line.line_id,
        expected_champion_id=seen.candidate_id,
        actor=factories.user(hospital.record, "operator"),
        reason="the alarm",
    )
    hospital.record.commit()
    again = hospital.look_here(tmp_path)
    champion = promotions.champion(hospital.record, hospital.line.line_id)
    assert champion is not None
    assert (again.candidate_id, again.n) == (champion.candidate_id, seen.n)
    assert again.candidate_id != seen.candidate_id


def test_a_challenger_is_followed_on_the_cases_that_neither_has_learned_from(
    record: db.Connection, settings: WorkerSettings, tmp_path: Path
) -> None:
    hospital = Hospital(record, settings, shadow_margin=0.05)
    model = hospital.crown()
    hospital.confirm(model, weeks=2, risk=0.1)
    assert hospital.look_here(tmp_path).shadow is None
    known = confirmations.last_id(record, hospital.line.line_id)
    other = approved(record, blob_root=settings.blob_root, line=hospital.line, seed=2, learned_up_to=known)
    hospital.confirm(model, weeks=1, risk=0.1)
    seen = hospital.look_here(tmp_path)
    assert seen.shadow is not None
    assert (seen.shadow["candidate_id"], seen.n) == (other.candidate_id, 3 * A_WEEK)
    assert seen.shadow["n"] == 1 * A_WEEK
    assert seen.shadow["verdict"] in {"pass", "insufficient"}


@pytest.mark.parametrize("results", [(), ({"name": "auroc", "candidate": SHARE},)])
def test_a_champion_whose_report_tells_no_errors_is_not_said_to_be_in_order(
    hospital: Hospital, tmp_path: Path, results: Any
) -> None:
    hospital.confirm(hospital.crown(results=results), weeks=3, risk=0.0)
    seen = hospital.look_here(tmp_path)
    assert (seen.verdict, seen.risk_limit) == ("insufficient", None)
    assert "does not tell how often" in seen.reason


def test_weights_that_were_altered_are_not_looked_at_with(
    hospital: Hospital, workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    hospital.crown()
    champion = promotions.champion(record, hospital.line.line_id)
    assert champion is not None
    blobs.path_of(settings.blob_root, champion.weights_digest).write_bytes(b"other weights")
    watch_due_champions(workshop)
    job = only(record, "watch_champion")
    work(workshop, record, "watch_champion")
    record.rollback()
    assert "cannot be loaded" in str(jobs.get_job(record, job.job_id).error)
    assert watches.list_for_line(record, hospital.line.line_id) == []


def test_nobody_is_looked_at_who_is_not_to_be_watched_any_more(
    hospital: Hospital, workshop: Workshop, record: db.Connection
) -> None:
    hospital.crown()
    watch_due_champions(workshop)
    watch_due_champions(workshop)
    job = only(record, "watch_champion")
    unwatched(record, hospital.line)
    work(workshop, record, "watch_champion")
    assert state_of(record, "jobs", job_id=job.job_id) == "succeeded", story(record)
    assert watches.list_for_line(record, hospital.line.line_id) == []
    watch_due_champions(workshop)
    assert waiting(record, "watch_champion") == []


def unwatched(record: db.Connection, line: Line) -> None:
    """Amend the protocol so that it says nothing of monitoring."""
    factories.new_protocol(record, line, monitoring=None)
    record.commit()
