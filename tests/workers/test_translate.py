"""What the record tells the science to do."""

from __future__ import annotations

from pipelines import beside, network
from registry import db, runs
from tests import factories
from workers import translate
from workers.settings import WorkerSettings

from .lines import approved, crown, make_line


def test_a_candidate_is_gated_against_every_model_that_was_ever_approved(
    record: db.Connection, settings: WorkerSettings
) -> None:
    line, _ = make_line(record)
    first, second = (crown(record, settings, line, seed=seed) for seed in (1, 2))
    waiting = approved(record, blob_root=settings.blob_root, line=line, seed=3)
    use = factories.sealed_test_use(record, waiting)
    config = translate.gate_config(record, candidate=waiting, champion=second, use=use, settings=settings)
    assert (config["use"]["level"], config["use"]["use"]) == (use.level, use.sealed_test_use_id)
    assert config["champion"]["weights_digest"] == second.weights_digest
    assert [model["weights_digest"] for model in config["approved"]] == [first.weights_digest, second.weights_digest]
    assert all(model["metadata"]["classes"] == ["normal", "pneumonia"] for model in config["approved"])


def test_a_training_from_nothing_too_hears_of_the_champion_beside_which_its_threshold_is_chosen(
    record: db.Connection, settings: WorkerSettings
) -> None:
    line, _ = make_line(record)
    first = approved(record, blob_root=settings.blob_root, line=line, seed=1)
    run = runs.get(record, first.run_id)
    assert translate.train_config(record, run=run, settings=settings)["beside"] is None
    factories.promotion(record, first)
    config = translate.train_config(record, run=run, settings=settings)
    assert config["base"] is None
    found = beside.Beside.from_job(config["beside"])
    assert found is not None
    assert (found.weights_digest, found.metadata) == (first.weights_digest, first.metadata)
    assert network.digest_of_bytes(found.weights.read_bytes()) == first.weights_digest
