"""Ranking what to confirm next, on a real record with real science in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import embed, images, synthetic
from pipelines.arms import Shares
from pipelines.predict import Model
from pipelines.worklist import main as rank_job
from registry import blobs, cases, confirmations, db, lines, predictions, users, worklists
from tests import factories
from workers import translate
from workers.lease import Workshop
from workers.ranking import rank_due_worklists
from workers.settings import WorkerSettings

from .conftest import state_of
from .lines import approved, crown, make_line, only, waiting, work

pytestmark = pytest.mark.usefixtures("at_hand")


def submit(
    record: db.Connection, settings: WorkerSettings, *, line: lines.Line, person: users.User, count: int
) -> list[cases.Case]:
    """Send synthetic radiographs that nobody has confirmed."""
    pictures, _ = synthetic.radiographs(count, rng=np.random.default_rng(5), size=28)
    made = []
    for index, picture in enumerate(pictures):
        digest = blobs.put(record, settings.blob_root, images.npy_bytes(picture), media_type="application/x-npy")
        case = factories.case(
            record, line, actor=person, image_digest=digest, site=("north", "south")[index % 2], patient=f"p-{index}"
        )
        made.append(case)
    record.commit()
    return made


def confirm(record: db.Connection, case: cases.Case, person: users.User) -> None:
    said = confirmations.Diagnosis(
        case_id=case.case_id, finding="normal", evidence="single_read", ai_exposure="blind", reader="r",
        confirmed_at=None, supersedes=None,
    )  # fmt: skip
    confirmations.confirm(record, said, actor=person)
    record.commit()


def listed(record: db.Connection, line: lines.Line) -> list[worklists.Entry]:
    record.rollback()
    return worklists.entries(record, line_id=line.line_id, limit=1000)


def test_a_tick_asks_once_and_the_cases_of_a_young_line_are_listed_at_random(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record, blind_fraction=0.25)
    made = submit(record, settings, line=line, person=person, count=30)
    confirm(record, made[0], person)
    for _ in range(3):
        rank_due_worklists(workshop)
    job = only(record, "rank_worklist")
    work(workshop, record, "rank_worklist")
    found = listed(record, line)
    assert sorted(entry.case_id for entry in found) == [case.case_id for case in made[1:]]
    assert [entry.place for entry in found] == list(range(1, 30))
    assert {entry.arm for entry in found} <= {"blind", "random"}
    assert state_of(record, "jobs", job_id=job.job_id) == "succeeded"
    assert not list(settings.jobs.iterdir())
    rank_due_worklists(workshop)
    assert waiting(record) == []


def test_after_a_promotion_the_line_is_ranked_anew(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record)
    submit(record, settings, line=line, person=person, count=30)
    rank_due_worklists(workshop)
    work(workshop, record, "rank_worklist")
    champion = crown(record, settings, line, seed=1)
    rank_due_worklists(workshop)
    work(workshop, record, "rank_worklist")
    record.rollback()
    ranking = worklists.latest(record, line.line_id)
    assert ranking is not None
    assert ranking.candidate_id == champion.candidate_id


def job_directory(
    record: db.Connection, settings: WorkerSettings, line: lines.Line, *, directory: Path, shares: dict[str, float]
) -> list[dict[str, str]]:
    """Do the ranking of a line as the task has it done, with shares of the test's own; returns what it lists."""
    directory.mkdir(exist_ok=True)
    record.rollback()
    config = translate.worklist_config(
        record, line_id=line.line_id, directory=directory, settings=settings, shares=Shares(**shares)
    )
    (directory / "config.json").write_text(json.dumps(config))
    assert rank_job([str(directory)]) == 0
    result = json.loads((directory / "result.json").read_text())
    assert "refused" not in result, result
    worklists.replace(record, **translate.worklist_rows(config, result=result))
    record.commit()
    return [json.loads(line_) for line_ in Path(result["ranking"]).read_text().splitlines()]


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's own niceness is not for the process of the tests."""
    monkeypatch.setattr("os.nice", lambda _by: 0)


def test_the_least_certain_come_first_by_the_champions_own_scores(
    record: db.Connection, settings: WorkerSettings, tmp_path: Path
) -> None:
    line, person = make_line(record, blind_fraction=0.0)
    made = submit(record, settings, line=line, person=person, count=24)
    champion = crown(record, settings, line, seed=1)
    found = job_directory(record, settings, line, directory=tmp_path / "job", shares={"uncertain": 1.0})
    model = Model.from_files(
        blobs.path_of(settings.blob_root, champion.weights_digest), metadata=champion.metadata, expected_digest=None
    )
    scores, _ = embed.look_at_stored(model, [case.image_digest for case in made], blobs=settings.blob_root)
    margin = {case.case_id: abs(float(row[0] - row[1])) for case, row in zip(made, scores, strict=True)}
    margins = [round(margin[int(row["case_id"])], 2) for row in found]
    assert margins == sorted(margins)
    assert listed(record, line)[0].case_id == int(found[0]["case_id"])


def test_scores_on_record_are_taken_from_there_if_they_are_the_champions(
    record: db.Connection, settings: WorkerSettings, tmp_path: Path
) -> None:
    line, person = make_line(record, blind_fraction=0.0)
    made = submit(record, settings, line=line, person=person, count=12)
    champion = crown(record, settings, line, seed=1)
    wanted = made[7]
    predictions.log_prediction(
        record,
        line_id=line.line_id,
        case_id=wanted.case_id,
        candidate_id=champion.candidate_id,
        weights_digest=champion.weights_digest,
        image_digest=wanted.image_digest,
        scores={"normal": 0.5, "pneumonia": 0.5},
        decision="pneumonia",
        threshold=0.4,
        shown=False,
        latency_seconds=0.01,
        requested_by=person.user_id,
    )
    record.commit()
    found = job_directory(record, settings, line, directory=tmp_path / "job", shares={"uncertain": 1.0})
    assert (int(found[0]["case_id"]), found[0]["reason"]) == (wanted.case_id, "uncertain: .50 for pneumonia")


@pytest.mark.parametrize(
    "shares", [{"diverse": 0.5, "disagreement": 0.3, "random": 0.2}, {"unlike": 0.5, "coverage": 0.5}]
)
def test_every_arm_works_on_stored_images_and_a_damaged_one_is_left_out(
    record: db.Connection, settings: WorkerSettings, tmp_path: Path, shares: dict[str, float]
) -> None:
    line, person = make_line(record, blind_fraction=0.1)
    made = submit(record, settings, line=line, person=person, count=40)
    for case in made[:6]:
        confirm(record, case, person)
    crown(record, settings, line, seed=1)
    approved(record, blob_root=settings.blob_root, line=line, seed=2)  # a challenger
    record.rollback()
    pool = worklists.pool(record, line=line, candidate_id=None, limit=100)
    damaged = next(case for case in pool if case.lot >= 0.1)
    blobs.path_of(settings.blob_root, damaged.image_digest).write_bytes(b"not what it was")
    found = job_directory(record, settings, line, directory=tmp_path / "job", shares=shares)
    assert {int(row["case_id"]) for row in found} == {case.case_id for case in pool} - {damaged.case_id}
    blind = {case.case_id for case in pool if case.lot < 0.1}
    assert {int(row["case_id"]) for row in found if row["arm"] == "blind"} == blind
    assert {row["arm"] for row in found} <= {"blind", "random", *shares}
    ranking = worklists.latest(record, line.line_id)
    assert ranking is not None
    assert ranking.left_out == 1


def test_weights_that_were_altered_rank_nothing_and_the_list_stays(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings, tmp_path: Path
) -> None:
    line, person = make_line(record)
    submit(record, settings, line=line, person=person, count=20)
    rank_due_worklists(workshop)
    work(workshop, record, "rank_worklist")
    before = [entry.case_id for entry in listed(record, line)]
    champion = crown(record, settings, line, seed=1)
    blobs.path_of(settings.blob_root, champion.weights_digest).write_bytes(b"other weights")
    directory = tmp_path / "job"
    directory.mkdir()
    config = translate.worklist_config(
        record, line_id=line.line_id, directory=directory, settings=settings, shares=Shares(uncertain=1.0)
    )
    (directory / "config.json").write_text(json.dumps(config))
    rank_job([str(directory)])
    assert "cannot be loaded" in json.loads((directory / "result.json").read_text())["refused"]
    assert [entry.case_id for entry in listed(record, line)] == before
