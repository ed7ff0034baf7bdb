"""Labels given before the model was seen, and labels given after: what each says, and which of them decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines import blind, evidence, gates, report
from pipelines.comparison import Comparison, Scored, Sealed
from pipelines.protocol import ProtocolError, from_document
from pipelines.types import Digest, GateReport, digest_of
from tests.pipelines.test_gates import DATASET, DOCUMENT, PLACEMENTS

N = 1600
BLIND = from_document({**DOCUMENT, "gates": {"evidence": "blind", "require_improvement": False}})
ALL = from_document({**DOCUMENT, "gates": {"require_improvement": False}})


def model(name: str, truth: Any, *, right: Any) -> Scored:
    """A model that is right where it is said to be, and fairly sure of it."""
    decided = np.where(right, truth, 1 - truth)
    sure = np.random.default_rng(ord(name)).uniform(0.75, 0.95, len(truth))
    positive = np.where(decided == 1, sure, 1.0 - sure)
    return Scored(
        digest=Digest(name * 64), scores=np.stack([1 - positive, positive], axis=1), decided=decided, threshold=0.5
    )


def comparison(*, copied: float, blind_share: float = 0.4, better: bool = True, **changes: Any) -> Comparison:
    """A candidate right in 90 %, a champion in 85 %; aided readers say what the champion says in so many cases."""
    rng = np.random.default_rng(1)
    truth = np.arange(N) % 2
    candidate = model("b", truth, right=rng.random(N) < (0.9 if better else 0.8))
    champion = model("a", truth, right=rng.random(N) < 0.85)
    unseen = rng.random(N) < blind_share
    follows = ~unseen & (rng.random(N) < copied)
    labels = np.where(follows, champion.decided, truth).astype(np.int64)
    values: dict[str, Any] = {
        "protocol": BLIND,
        "sealed": Sealed(
            labels=labels, groups=np.arange(N).astype(str), exposures=np.where(unseen, "blind", "aided"),
            case_ids=np.arange(N), traits={"site": np.where(np.arange(N) % 4 == 0, "north", "south")},
        ),
        "candidate": candidate,
        "champion": champion,
        "opinions": (),
        "placements": PLACEMENTS,
    }  # fmt: skip
    return Comparison(**{**values, **changes})


def decided(found: Comparison) -> GateReport:
    return gates.decide(found, dataset_digest=DATASET)


def test_where_readers_copy_all_labels_stop_a_better_candidate_and_blind_ones_let_it_pass() -> None:
    copied = comparison(copied=0.6)
    assert decided(replace(copied, protocol=ALL)).verdict == "fail"
    assert decided(copied).verdict == "pass"
    assert decided(copied).summary["sealed_test"] != decided(replace(copied, protocol=ALL)).summary["sealed_test"]


def test_a_worse_candidate_is_stopped_by_blind_labels_too() -> None:
    found = decided(comparison(copied=0.6, better=False))
    assert found.verdict != "pass"
    assert {"sensitivity"} <= set(found.summary["not_passed"])


def test_what_is_measured_on_blind_labels_is_what_these_cases_alone_would_give() -> None:
    whole = comparison(copied=0.3)
    alone = replace(whole.of(np.flatnonzero(whole.sealed.exposures == "blind")), protocol=ALL)
    assert decided(whole).results == decided(alone).results


@pytest.mark.parametrize("exposures", [None, np.full(N, "aided"), np.full(N, "unknown")])
def test_without_blind_labels_nothing_passes_and_the_report_says_what_is_missing(exposures: Any) -> None:
    whole = comparison(copied=0.0)
    found = decided(replace(whole, sealed=replace(whole.sealed, exposures=exposures)))
    assert found.verdict == "insufficient"
    rows = {row.name: row for row in found.results}
    for name in ("minimum_cases", "auroc", "sensitivity", "specificity", "calibration"):
        assert rows[name].verdict == "insufficient"
    assert rows["auroc"].reason == "only 0 of normal, 0 of pneumonia were read blind: have more of the blind cases read"
    assert rows["leakage"].verdict == "pass"


def test_one_blind_label_too_few_of_a_class_is_too_few() -> None:
    whole = comparison(copied=0.0)
    for kept, verdict in ((20, "pass"), (19, "insufficient")):
        positives = np.cumsum(whole.sealed.labels == 1)
        exposures = np.where((whole.sealed.labels == 0) | (positives <= kept), "blind", "aided")
        found = decided(replace(whole, sealed=replace(whole.sealed, exposures=exposures)))
        (row,) = [row for row in found.results if row.name == "minimum_cases"]
        (auroc,) = [row for row in found.results if row.name == "auroc"]
        assert row.verdict == verdict
        assert ("were read blind" in auroc.reason) == (verdict == "insufficient")


@pytest.mark.parametrize("protocol", [ALL, BLIND])
def test_the_report_shows_both_and_how_far_readers_followed_whoever_decides(protocol: Any) -> None:
    whole = comparison(copied=0.6, protocol=protocol)
    found = evidence.gather(whole)["exposure"]
    digest_of(found)  # plain JSON values
    assert found["decides"] == protocol.gates.evidence
    assert sum(found["cases"].values()) == N
    assert found["cases"]["aided"] > found["cases"]["blind"] > 500
    rows = {row["endpoint"]: row for row in found["endpoints"]}
    assert set(rows) == {"auroc", "sensitivity", "specificity"}
    for row in rows.values():
        assert row["all"]["difference"]["high"] < 0.0 < row["blind"]["difference"]["value"]
        assert row["blind"]["candidate"]["n"] < row["all"]["candidate"]["n"]
    assert found["copied"]["low"] < 0.6 < found["copied"]["high"]
    assert "blind labels say pass where all labels say insufficient" in found["warning"]
    assert "copied the champion in about" in found["warning"]


def test_the_blind_half_of_the_report_is_what_the_gates_measured() -> None:
    whole = comparison(copied=0.2)
    rows = {row.name: row for row in decided(whole).results}
    for row in blind.both(whole)["endpoints"]:
        measured = rows[row["endpoint"]]
        assert measured.difference is not None
        assert measured.candidate is not None
        assert row["blind"]["difference"]["low"] == measured.difference.low
        assert row["blind"]["candidate"]["value"] == measured.candidate.value


def test_where_nobody_copied_there_is_nothing_to_warn_of() -> None:
    found = blind.both(comparison(copied=0.0))
    assert found["warning"] is None
    assert found["copied"]["low"] == 0.0


def test_what_cannot_be_told_says_why() -> None:
    whole = comparison(copied=0.5)
    first = blind.both(replace(whole, champion=None))
    assert first["copied"] == {"missing": "there was no champion to follow"}
    assert first["endpoints"][0]["all"]["difference"] == {"missing": "there was no champion"}
    every = blind.both(comparison(copied=0.0, blind_share=1.0))
    assert "too few labels of both kinds" in every["copied"]["missing"]
    none = blind.both(comparison(copied=0.0, blind_share=0.0))
    assert "missing" in none["endpoints"][0]["blind"]["candidate"]
    unknown = replace(whole, sealed=replace(whole.sealed, exposures=None))
    assert "not known" in evidence.gather(unknown)["exposure"]["missing"]


def test_the_plots_show_the_cases_that_decide() -> None:
    whole = comparison(copied=0.4)
    shown, unseen = evidence.gather(whole), int((whole.sealed.exposures == "blind").sum())
    assert shown["flips"]["n"] == unseen < N
    assert evidence.gather(replace(whole, protocol=ALL))["flips"]["n"] == N


def test_the_text_tells_how_many_read_blind_and_what_the_others_would_have_said() -> None:
    whole = comparison(copied=0.6)
    verdict = decided(whole)
    text = report.render_text(replace(verdict, evidence=evidence.gather(whole)))
    told = " ".join(text.split())
    unseen = int((whole.sealed.exposures == "blind").sum())
    assert f"{unseen} of {N} sealed cases were read blind; these alone decide. blind labels say pass" in told
    assert max(map(len, text.splitlines())) <= report.WIDTH


def test_a_protocol_that_says_nothing_of_evidence_keeps_its_digest() -> None:
    assert "evidence" not in ALL.document()["gates"]
    assert from_document({**DOCUMENT, "gates": {"evidence": "all", "require_improvement": False}}).digest == ALL.digest
    assert BLIND.digest != ALL.digest
    with pytest.raises(ProtocolError, match="evidence"):
        from_document({**DOCUMENT, "gates": {"evidence": "aided"}})
