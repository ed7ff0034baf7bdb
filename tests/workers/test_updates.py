"""An update from a real champion: what it needs beside the weights arrives, and a damaged champion stays untouched."""

from __future__ import annotations

import pytest

from registry import blobs, candidates, db, promotions, runs
from workers import translate
from workers.lease import Workshop
from workers.settings import WorkerSettings

from .conftest import state_of
from .lines import confirm_cases, make_line, promote, start_run, untrained, work

pytestmark = pytest.mark.usefixtures("at_hand")

RECIPE = {"network": "small_cnn", "strategy": "ewc", "epochs": 2, "update_epochs": 1, "threads": 1}


def test_what_ewc_needs_of_the_champion_is_kept_by_digest_and_reaches_the_update(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record, recipe=RECIPE)
    confirm_cases(record, settings, line=line, person=person, count=160)
    start_run(record, line)
    work(workshop, record, "freeze_dataset", "train_candidate")
    (first,) = candidates.list_candidates(record, line.line_id)
    promote(record, first)
    confirm_cases(record, settings, line=line, person=person, count=60, seed=1)
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
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    line, person = make_line(record, recipe={**RECIPE, "strategy": "auto"})
    confirm_cases(record, settings, line=line, person=person, count=160)
    start_run(record, line)
    work(workshop, record, "freeze_dataset")
    first = untrained(record, settings, line)
    promote(record, first)
    confirm_cases(record, settings, line=line, person=person, count=60, seed=1)
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
