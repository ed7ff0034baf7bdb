"""An update from a real champion: what it needs beside the weights arrives, and a damaged champion stays untouched."""

from __future__ import annotations

from typing import Any

import pytest

from registry import blobs, candidates, db, promotions, runs
from tests import factories
from workers import translate
from workers.lease import Workshop
from workers.settings import WorkerSettings

from .conftest import state_of
from .lines import confirm_cases, make_line, start_run, work

RECIPE = {"network": "small_cnn", "strategy": "ewc", "epochs": 2, "update_epochs": 1, "threads": 1}
OPEN = {
    "minimum_cases_per_class": 5,
    "auroc": {"floor": 0.0, "margin": 0.4},
    "sensitivity": {"floor": 0.0, "margin": 0.4},
    "specificity": {"floor": 0.0, "margin": 0.4},
    "calibration": {"maximum_ece": 1.0, "margin": 0.4},
}
"""Gates that a first model of two epochs comes through: what is tested lies before them."""

STEPS = ("freeze_dataset", "train_candidate", "gate_candidate")
Champion = tuple[Any, candidates.Candidate]


@pytest.fixture
def champion(workshop: Workshop, record: db.Connection, settings: WorkerSettings) -> Champion:
    """A line and its champion, trained from nothing, and 60 cases that it has not seen."""
    line, person = make_line(record, recipe=RECIPE, gates=OPEN)
    confirm_cases(record, settings, line=line, person=person, count=160)
    start_run(record, line)
    work(workshop, record, *STEPS)
    (made,) = candidates.list_candidates(record, line.line_id)
    factories.signatures(record, made, [factories.user(record, "approver") for _ in range(2)])
    factories.promotion(record, made)
    record.commit()
    confirm_cases(record, settings, line=line, person=person, count=60, seed=1)
    return line, made


def test_what_ewc_needs_of_the_champion_is_kept_by_digest_and_reaches_the_update(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings, champion: Champion
) -> None:
    line, first = champion
    assert blobs.read(settings.blob_root, first.metadata["state"]["fisher"])
    run = start_run(record, line)
    work(workshop, record, "freeze_dataset")
    config = translate.train_config(record, run=runs.get(record, run.run_id), settings=settings)
    assert config["base"]["state"]["fisher"]["digest"] == first.metadata["state"]["fisher"]
    record.rollback()
    work(workshop, record, "train_candidate")
    second = candidates.list_candidates(record, line.line_id)[0]
    assert (second.metadata["strategy"], second.metadata["started_from"]) == ("ewc", "champion")
    assert second.metadata["base_digest"] == first.weights_digest
    assert second.metadata["state"]["fisher"] != first.metadata["state"]["fisher"]


def test_a_champion_whose_bytes_have_changed_refuses_the_run_in_words_and_stays(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings, champion: Champion
) -> None:
    line, first = champion
    file = blobs.path_of(settings.blob_root, first.weights_digest)
    file.chmod(0o600)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    run = start_run(record, line)
    work(workshop, record, "freeze_dataset", "train_candidate")
    assert state_of(record, "runs", run_id=run.run_id) == "refused"
    assert "put its weights back from a backup" in str(runs.get(record, run.run_id).outcome)
    still = promotions.champion(record, line.line_id)
    assert still is not None
    assert still.candidate_id == first.candidate_id
    assert len(candidates.list_candidates(record, line.line_id)) == 1
