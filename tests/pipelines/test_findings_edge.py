"""What a line of several findings must not say: the whole where a part was asked, or a part where another decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines import evidence, findings, gates, quality_lines, report, wording
from pipelines.agreement import agreement_report
from pipelines.comparison import Comparison, Scored, Sealed, Tuned
from pipelines.endpoints import decision_difference, share
from pipelines.evaluate import outweighing
from pipelines.gate_rules import DataQuality
from pipelines.protocol import Protocol, from_document
from pipelines.types import CaseId, ConfirmedCase, Digest
from tests.pipelines.plates import CLASSES, DOCUMENT, quality_table
from tests.pipelines.saying import adjudication, read

N = 400


def asked(**gates_of: Any) -> Protocol:
    return from_document(
        {**DOCUMENT, "recipe": {"strategy": "replay"}, "gates": {"require_improvement": False, **gates_of}}
    )


def scored(name: str, labels: Any, *, skill: float) -> Scored:
    noise = np.random.default_rng(ord(name)).normal(size=labels.shape)
    scores = 1.0 / (1.0 + np.exp(-2.0 * skill * (skill * (2 * labels - 1) + noise)))
    return Scored(
        digest=Digest(name * 64),
        scores=scores,
        decided=scores >= 0.5,
        threshold=None,
        thresholds=dict.fromkeys(CLASSES, 0.5),
    )


def compared(protocol: Protocol, **changes: Any) -> Comparison:
    labels = np.random.default_rng(3).random((N, 3)) < [0.4, 0.4, 0.25]
    sealed = Sealed(
        labels=labels,
        groups=np.arange(N).astype(str),
        traits={"site": np.array(["north", "south"])[np.arange(N) % 2]},
    )
    models = {"candidate": scored("b", labels, skill=1.5), "champion": scored("a", labels, skill=1.1)}
    values: dict[str, Any] = {"protocol": protocol, "sealed": sealed, "opinions": (), "placements": (), **models}
    return Comparison(**{**values, "tuned": Tuned(cases=sealed, **models), **changes})


@pytest.mark.parametrize("slices", [{}, {"subgroups": {}}, {"subgroups": {"critical": ["site=north"]}}])
def test_a_screen_at_one_half_asks_for_the_point_value_and_looks_for_harm_as_ever(slices: dict[str, Any]) -> None:
    comparison = compared(asked(screen={"confidence": 0.5}, **slices))
    rows = {row.name: row for row in gates.decide(comparison, dataset_digest=Digest("d" * 64)).results}
    assert rows["screen"].verdict == "pass", rows["screen"].reason
    assert comparison.champion is not None
    worse = replace(comparison, tuned=Tuned(cases=comparison.sealed, candidate=comparison.champion,
                                            champion=comparison.candidate))  # fmt: skip
    rows = {row.name: row for row in gates.decide(worse, dataset_digest=Digest("d" * 64)).results}
    assert rows["screen"].verdict == "fail"
    assert "findings on the tune split: opacity: AUROC worse than the champion's" in rows["screen"].reason


def test_a_report_has_the_numbers_of_each_finding_and_says_that_its_own_are_means() -> None:
    made = gates.decide(compared(asked()), dataset_digest=Digest("d" * 64))
    rows = {row.name: row for row in made.results}
    for name in ("auroc", "sensitivity", "specificity"):
        each = {one["finding"]: one["candidate"]["value"] for one in rows[name].details["findings"]}
        found = rows[name].candidate
        assert found is not None
        assert list(each) == list(CLASSES)
        assert np.mean(list(each.values())) == pytest.approx(found.value)
    errors = [one["candidate"]["value"] for one in rows["calibration"].details["findings"]]
    assert rows["calibration"].candidate is not None
    assert max(errors) == rows["calibration"].candidate.value
    assert "Of several findings these are means; the calibration error is the largest" in report.render_text(made)


def test_of_many_slices_those_of_either_endpoint_are_shown() -> None:
    comparison = compared(asked())
    sites = np.array([f"site-{row % 20}" for row in range(N)])
    many = replace(comparison, sealed=replace(comparison.sealed, traits={"site": sites}))
    rows = evidence.forest(many)
    assert len(rows) == evidence.ROWS
    endpoints = [row["endpoint"] for row in rows]
    assert endpoints.count("sensitivity") == endpoints.count("specificity") == evidence.ROWS // 2


def test_a_finding_whose_share_hardly_moved_hides_none_that_a_person_should_see() -> None:
    def cases(n: int, shares: tuple[float, ...]) -> Any:
        return np.column_stack([np.arange(n) < round(n * share) for share in shares])

    old, new = cases(3000, (0.01, 0.50, 0.30)), cases(300, (0.10, 0.38, 0.30))
    line = quality_lines.prior_shift(
        quality_table(np.concatenate([old, new]), number=2, before=3000),
        quality_table(old, number=1, before=3000),
        DataQuality(),
        seed=0,
    )
    assert line.verdict == "warn"
    assert "no ring 50.0% of those before, 62.0% of the new cases" in line.reason


def test_others_outweigh_a_submitter_on_each_finding_by_its_own_majority() -> None:
    mine = read("ring", number=9, submitter="south")
    said = ("opacity", "opacity", "ring+band", "ring", "ring+opacity+band")
    others = [read(finding, number=k, submitter=f"north-{k}") for k, finding in enumerate(said)]
    assert (
        outweighing(mine, others=others) == "opacity"
    )  # the most frequent whole answer, which most readers contradict
    assert outweighing(mine, others=others, findings=CLASSES) == "opacity+ring"
    assert outweighing(mine, others=others[:2] + others[3:5], findings=CLASSES) is None  # ring: two of four
    decided = [*others, adjudication("band", number=20)]
    assert outweighing(mine, others=decided, findings=CLASSES) == "band"


def test_readers_who_agree_on_one_finding_and_differ_on_another_are_told_apart() -> None:
    answers = [("ring", "ring+band"), ("none_of_these", "none_of_these"), ("ring+band", "ring"), ("band", "band")] * 6
    cases = [
        ConfirmedCase(
            case_id=CaseId(number),
            image_digest=Digest(f"{number:064x}"),
            patient=None,
            site="a",
            scanner=None,
            sex=None,
            age_band=None,
            spacing_mm=None,
            confirmations=(
                read(first, number=2 * number, reader="ana"),
                read(second, number=2 * number + 1, reader="ben"),
            ),
        )
        for number, (first, second) in enumerate(answers)
    ]
    each = {name: agreement_report(findings.about(name, cases=cases), resamples=20)["all"] for name in ("ring", "band")}
    assert each["ring"]["alpha"]["value"] == 1.0
    assert each["band"]["agreement"]["value"] == 0.5
    assert each["band"]["alpha"]["value"] < 0.1
    taken_back = replace(
        cases[0], confirmations=(read(None, number=1, kind="retraction"), adjudication("ring", number=2))
    )
    (about,) = findings.about("band", cases=[taken_back])
    assert [item.finding for item in about.confirmations] == [None, "no band"]


def test_nobody_is_told_to_add_a_watch_that_would_be_refused() -> None:
    text = wording.explain(asked())
    assert "Nobody watches a champion of several findings yet." in text
    assert "add monitoring" not in text


def test_findings_that_go_together_tell_no_more_than_one_of_them_however_few_decisions_differ() -> None:
    labels = np.repeat(np.arange(N) < 100, 3).reshape(-1, 3)
    for lost in (0, 1, 3, 20):
        decided = labels & (np.arange(N) >= lost)[:, None]
        comparison = compared(asked())
        assert comparison.champion is not None
        comparison = replace(
            comparison,
            sealed=replace(comparison.sealed, labels=labels),
            candidate=replace(comparison.candidate, decided=decided),
            champion=replace(comparison.champion, decided=labels),
        )
        assert comparison.champion is not None
        whole = decision_difference(comparison, comparison.champion, "sensitivity")
        view = comparison.questions()["ring"]
        assert view.champion is not None
        part = decision_difference(view, view.champion, "sensitivity")
        assert whole.value == pytest.approx(part.value)
        assert whole.low <= part.low + 1e-9
        assert whole.high >= part.high - 1e-9
        assert share(comparison, comparison.candidate, "sensitivity").low <= share(
            view, view.candidate, "sensitivity"
        ).low + 1e-9  # fmt: skip
