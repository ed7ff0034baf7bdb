"""The page of facts: each promise of the change plan with its digest, and no claim that the record does not hold."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from api.console import charts, facts
from tests import factories
from tests.api.test_report_page import DOCUMENT

PROTOCOL: dict[str, Any] = {"protocol_id": 1, "digest": "9" * 64, "document": factories.protocol_document()}
SOURCES = facts.Sources(
    line={"name": "cxr-pneumonia", "protocol": PROTOCOL},
    protocol=PROTOCOL,
    candidate={
        "number": 2,
        "state": "champion",
        "weights_digest": "a" * 64,
        "metadata_digest": "b" * 64,
        "erasures": [],
        "metadata": {
            "parameters": 94_000,
            "started_from": "nothing",
            "epochs": 20,
            "batch_size": 64,
            "operating_point": {"threshold": 0.41, "rule": "youden", "chosen_on": "tune"},
        },
    },
    report={"verdict": "fail", "digest": "c" * 64, "withheld": False, "document": DOCUMENT},
    version={
        "number": 2,
        "digest": "d" * 64,
        "git_tag": "cxr-pneumonia/v0002",
        "manifest": {"counts": {"train": {"normal": 200, "pneumonia": 212}}},
        "submitter_shares": {"pacs-north": 1.0},
        "waiting": {},
    },
    run={"run_id": 5, "strategy": "full", "seed": 0, "reason": "200 | new"},
    approvals=[
        {"printed_name": "Dr Anna", "decision": "approve", "reason": "I read the report", "bound_digest": "e" * 64}
    ],
)


def row_of(page: str, first: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_each_promise_names_what_shows_it_and_the_digest() -> None:
    page = facts.page(SOURCES)
    assert row_of(page, "Performance evaluation: result")[1:] == ["fail", "c" * 64]
    assert row_of(page, "Update: what runs is what was tested")[2] == "a" * 64
    assert row_of(page, "Update: approved by")[1:] == ["Dr Anna: approve, “I read the report”", "e" * 64]
    assert "use 2 of epoch 1, level 0.0192" in row_of(page, "Performance evaluation: reuse of the test")[1]


def test_performance_has_its_interval_and_n() -> None:
    (area,) = [row for row in DOCUMENT["results"] if row["name"] == "auroc"]
    found = row_of(facts.page(SOURCES), "auroc")
    assert found[1] == charts.estimate(area["candidate"])
    assert found[3] == str(area["candidate"]["n"])


def test_thresholds_that_decide_at_single_sites_are_told() -> None:
    def told(**made: object) -> str:
        candidate = {**SOURCES.candidate, "metadata": {**SOURCES.candidate["metadata"], **made}}
        return row_of(facts.page(replace(SOURCES, candidate=candidate)), "Threshold by site")[1]

    points = {"operating_points_by_site": {"north": {"threshold": 0.6}, "south": {"threshold": None}}}
    assert told(**points, decides_by_site=True) == "north 0.6"
    assert told(**points) == told() == "none: one for all sites"
    assert told(operating_points_by_site={}, decides_by_site=True) == "none: no site had cases enough on tune"


def test_the_champion_beside_which_the_threshold_was_chosen_is_named() -> None:
    made = {**SOURCES.candidate["metadata"], "beside_digest": "ab" * 32}
    told = row_of(facts.page(replace(SOURCES, candidate={**SOURCES.candidate, "metadata": made})), "Threshold")[1]
    assert told == "0.41 (rule youden, chosen on tune beside the champion abababababab)"
    assert "beside" not in row_of(facts.page(SOURCES), "Threshold")[1]


def test_the_checklist_has_all_items_and_leaves_to_people_what_is_theirs() -> None:
    page = facts.page(SOURCES)
    assert list(facts.CLAIM) == list(range(1, 43))
    assert all(row_of(page, str(item)) for item in facts.CLAIM)
    for item in (2, 5, 34, 38, 42):
        assert row_of(page, str(item))[2] == facts.UNKNOWN
    assert row_of(page, "20")[2] == "train 412, tune unknown, sealed_test unknown"
    assert row_of(page, "Impact assessment")[1] == facts.UNKNOWN


def test_a_withheld_report_gives_no_number_away() -> None:
    closed = {**SOURCES.report, "withheld": True, "verdict": "not_passed"}
    page = facts.page(replace(SOURCES, report=closed))
    assert "not open to you yet" in page
    assert not re.search(r"0\.\d{3} \[", page)


def test_what_people_wrote_cannot_break_the_table() -> None:
    assert row_of(facts.page(SOURCES), "Asked for")[1] == r"200 \| new"
