"""Suspect labels: networks that have not seen a case score it, flipped labels are found, nothing is dropped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import dataset, job, network, suspects, train
from pipelines.metrics import auroc
from tests.pipelines.toy import DOCUMENT, PROTOCOL, cases

N = 240
TRUE = cases(N, seed=5)
FLIPPED = np.random.default_rng(1).random(N) < 0.15
GIVEN = replace(
    TRUE, labels=np.where(FLIPPED, 1 - TRUE.labels, TRUE.labels), sites=np.array(["a", "b"])[np.arange(N) % 2]
)
PATIENTS = np.array([f"p{row // 2}" for row in range(N)])


@pytest.fixture(scope="module")
def fitted() -> suspects.CrossFit:
    return suspects.cross_fit(GIVEN, PATIENTS, protocol=PROTOCOL, epochs=6)


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=60),
    hands=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_groups_stay_together_and_each_stratum_is_spread(sizes: list[tuple[int, int]], hands: int, seed: int) -> None:
    strata = np.array([stratum for stratum, size in sizes for _ in range(size)])
    groups = np.array([group for group, (_, size) in enumerate(sizes) for _ in range(size)])
    dealt = suspects.deal(strata, groups, hands=hands, rng=np.random.default_rng(seed))
    assert all(len(set(dealt[groups == group])) == 1 for group in set(groups.tolist()))
    for stratum in set(strata.tolist()):
        of_it = [dealt[groups == group][0] for group, (its, _) in enumerate(sizes) if its == stratum]
        counts = np.bincount(of_it, minlength=hands)
        assert counts.max() - counts.min() <= 1


def test_each_case_is_scored_without_its_patient_and_the_cost_is_told(fitted: suspects.CrossFit) -> None:
    assert all(len(set(fitted.folds[patient == PATIENTS])) == 1 for patient in set(PATIENTS.tolist()))
    assert np.bincount(fitted.folds).tolist() == [80, 80, 80]
    assert fitted.probabilities.sum(axis=1) == pytest.approx(np.ones(N))
    assert fitted.started_from == "nothing"
    assert 3 * 6 * 0.85 * 160 < fitted.sample_gradients <= 3 * 6 * 160


def test_scores_do_not_follow_a_label_that_was_held_out(fitted: suspects.CrossFit) -> None:
    """A network that had learnt the flipped labels would give them more than chance."""
    of_given = fitted.probabilities[np.arange(N), GIVEN.labels]
    assert of_given[FLIPPED].mean() < 0.5
    assert of_given[~FLIPPED].mean() > 0.5


def test_flipped_labels_are_ranked_first_within_their_class(fitted: suspects.CrossFit) -> None:
    ranking = suspects.rank(GIVEN.labels, fitted.probabilities)
    for finding in (0, 1):
        rows = GIVEN.labels == finding
        assert auroc(FLIPPED[rows], 1.0 - ranking.quality[rows]) > 0.65
    assert FLIPPED[ranking.doubted].mean() > 1.3 * FLIPPED.mean()


def test_the_second_reader_gets_the_most_doubtful_of_each_class_and_at_most_a_fifth() -> None:
    labels = np.array([0] * 10 + [1] * 10)
    probabilities = np.tile([0.9, 0.1], (20, 1))
    probabilities[10:] = [0.1, 0.9]
    probabilities[:4] = [[0.2, 0.8], [0.1, 0.9], [0.3, 0.7], [0.4, 0.6]]
    ranking = suspects.rank(labels, probabilities)
    assert np.argsort(ranking.quality)[:3].tolist() == [1, 0, 2]
    found = suspects.for_a_second_reader(
        replace(ranking, doubted=np.arange(20) < 4),
        case_ids=np.arange(20) + 100,
        labels=labels,
        sites=np.array(["a"] * 20),
        probabilities=probabilities,
        classes=("normal", "pneumonia"),
    )
    assert [suspect.case_id for suspect in found["normal"]] == [101, 100]
    assert found["normal"][0].instead == "pneumonia"
    assert (found["normal"][0].probability, found["normal"][0].site) == (0.1, "a")
    assert found["pneumonia"] == []


def test_a_class_without_a_case_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="every class"):
        suspects.rank(np.zeros(5, dtype=np.int64), np.tile([0.5, 0.5], (5, 1)))


def version(**changes: Any) -> SimpleNamespace:
    splits = np.array(["train", "train", "tune", "sealed_test"])[np.arange(N) % 4]
    values: dict[str, Any] = {
        "line": "toy",
        "number": 2,
        "digest": "d" * 64,
        "classes": PROTOCOL.classes,
        "splits": splits,
        "labels": GIVEN.labels,
        "sites": GIVEN.sites,
        "label_since": np.full(N, 2),
        "groups": PATIENTS,
        "case_ids": np.arange(N) + 1000,
        "prepared": lambda spec: GIVEN.images,
    }
    return SimpleNamespace(**{**values, **changes})


def test_a_job_starts_from_the_champion_leaves_the_sealed_test_alone_and_writes_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = network.architecture_for(PROTOCOL)
    data = network.save_weights(network.build(architecture))
    (tmp_path / "weights.safetensors").write_bytes(data)
    monkeypatch.setattr(dataset, "open_version", lambda path: version())
    config = {
        "dataset": "v2",
        "protocol": PROTOCOL.document(),
        "seed": 3,
        "base": {
            "weights": str(tmp_path / "weights.safetensors"),
            "weights_digest": network.digest_of_bytes(data),
            "architecture": architecture.document(),
            "dataset_number": 1,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert suspects.main([str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    document = result["suspects"]
    assert (document["started_from"], document["cases"], document["folds"]) == ("champion", 180, 3)
    assert document["base_digest"] == network.digest_of_bytes(data)
    listed = [suspect for finding in document["classes"].values() for suspect in finding["suspects"]]
    assert listed
    sealed = set((np.flatnonzero(version().splits == "sealed_test") + 1000).tolist())
    assert not sealed & {suspect["case_id"] for suspect in listed}
    assert f"case {listed[0]['case_id']} " in result["text"]
    progress = [json.loads(row) for row in (tmp_path / "progress.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["fold"] for row in progress] == [fold for fold in (1, 2, 3) for _ in range(suspects.EPOCHS)]


def test_the_command_prints_the_list_or_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = tmp_path / "protocol.yaml"
    protocol.write_text(json.dumps(DOCUMENT), encoding="utf-8")
    monkeypatch.setattr(suspects, "EPOCHS_FROM_NOTHING", 1)
    monkeypatch.setattr(dataset, "open_version", lambda path: version())
    assert suspects.main(["v2", "--protocol", str(protocol)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Suspect labels · toy · version 2")
    assert "normal: " in text
    monkeypatch.setattr(dataset, "open_version", lambda path: version(classes=("a", "b")))
    assert suspects.main(["v2", "--protocol", str(protocol)]) == 2
    assert "other classes" in capsys.readouterr().err


def test_too_few_cases_of_a_class_are_refused_in_words() -> None:
    lonely = replace(TRUE, labels=(np.arange(N) == 0).astype(np.int64))
    with pytest.raises(train.TrainingRefused, match="no case of pneumonia"):
        suspects.cross_fit(lonely, PATIENTS, protocol=PROTOCOL, epochs=1)
    assert issubclass(train.TrainingRefused, job.Refused)
